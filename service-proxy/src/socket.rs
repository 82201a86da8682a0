//! Listening sockets on addresses that no interface carries.

use std::io;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::time::Duration;

use daemon::socket::bind;
use socket2::{SockRef, Type};

/// Connections that may wait to be accepted. The kernel caps it at `net.core.somaxconn`.
const BACKLOG: i32 = 4096;

/// One TCP listener for each worker. The kernel spreads connections over them (`SO_REUSEPORT`).
pub(crate) fn listen_tcp(address: SocketAddr, count: usize) -> io::Result<Vec<TcpListener>> {
    let listen = || {
        let socket = bind(address, Type::STREAM, true)?;
        socket.listen(BACKLOG)?;
        Ok(socket.into())
    };
    (0..count).map(|_| listen()).collect()
}

/// The one UDP socket of a frontend. Replies sent through it come from the virtual IP.
pub(crate) fn bind_udp(address: SocketAddr) -> io::Result<UdpSocket> {
    Ok(bind(address, Type::DGRAM, false)?.into())
}

/// Closing this socket will send a reset, not a FIN: its peer must not take what came so far for the whole.
pub(crate) fn reset_on_close(stream: &tokio::net::TcpStream) {
    // It can fail only if the socket is gone already, and then there is nobody to tell.
    drop(SockRef::from(stream).set_linger(Some(Duration::ZERO)));
}
