//! Listening sockets on addresses that no interface carries.

use std::io;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::time::Duration;

use socket2::{Domain, SockRef, Socket, Type};

/// Connections that may wait to be accepted. The kernel caps it at `net.core.somaxconn`.
const BACKLOG: i32 = 4096;

/// One TCP listener for each worker. The kernel spreads connections over them (`SO_REUSEPORT`).
pub(crate) fn listen_tcp(address: SocketAddr, count: usize) -> io::Result<Vec<TcpListener>> {
    let listen = || {
        let socket = bound(address, Type::STREAM, true)?;
        socket.listen(BACKLOG)?;
        Ok(socket.into())
    };
    (0..count).map(|_| listen()).collect()
}

/// The one UDP socket of a frontend. Replies sent through it come from the virtual IP.
pub(crate) fn bind_udp(address: SocketAddr) -> io::Result<UdpSocket> {
    Ok(bound(address, Type::DGRAM, false)?.into())
}

/// Closing this socket will send a reset, not a FIN: its peer must not take what came so far for the whole.
pub(crate) fn reset_on_close(stream: &tokio::net::TcpStream) {
    // It can fail only if the socket is gone already, and then there is nobody to tell.
    drop(SockRef::from(stream).set_linger(Some(Duration::ZERO)));
}

fn bound(address: SocketAddr, kind: Type, shared: bool) -> io::Result<Socket> {
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
