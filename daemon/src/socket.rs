//! Sockets on addresses that no interface has yet: a virtual IP is local by a route, which may be added
//! later.

use std::io;
use std::net::SocketAddr;

use socket2::{Domain, Socket, Type};

/// Returns a bound, non-blocking socket of one address family. With `shared` several listeners can bind the
/// address (`SO_REUSEPORT`), and the kernel spreads the connections.
///
/// # Errors
/// If the address is in use or the port is privileged.
pub fn bind(address: SocketAddr, kind: Type, shared: bool) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), kind.nonblocking().cloexec(), None)?;
    if kind == Type::STREAM {
        // Connections of an earlier process may be in TIME_WAIT.
        socket.set_reuse_address(true)?;
    }
    if shared {
        socket.set_reuse_port(true)?;
    }
    // IPv6 binds only to addresses of an interface, even with a local route.
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
        socket.set_freebind_v6(true)?;
    } else {
        socket.set_freebind_v4(true)?;
    }
    socket.bind(&address.into())?;
    Ok(socket)
}
