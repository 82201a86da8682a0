//! Sockets on addresses that no interface carries yet: a virtual IP is local by a route, which may come
//! later.

use std::io;
use std::net::SocketAddr;

use socket2::{Domain, Socket, Type};

/// A bound, non-blocking socket of one address family. A listener that is `shared` may have others beside it
/// (`SO_REUSEPORT`), over which the kernel spreads the connections.
///
/// # Errors
/// What the kernel says: the address is taken, the port privileged.
pub fn bind(address: SocketAddr, kind: Type, shared: bool) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), kind.nonblocking().cloexec(), None)?;
    if kind == Type::STREAM {
        // Connections of an earlier run may linger in TIME_WAIT.
        socket.set_reuse_address(true)?;
    }
    if shared {
        socket.set_reuse_port(true)?;
    }
    // IPv6 binds only to addresses of an interface, local route or not.
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
        socket.set_freebind_v6(true)?;
    } else {
        socket.set_freebind_v4(true)?;
    }
    socket.bind(&address.into())?;
    Ok(socket)
}
