//! The sockets queries come in by.

use std::io;
use std::net::{SocketAddr, TcpListener, UdpSocket};

use daemon::socket::bind;
use socket2::Type;

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 1024;

/// Opens both sockets of an address, which need not be on an interface yet: `portolan-proxy` may make it local later.
pub(crate) fn open(address: SocketAddr) -> io::Result<(UdpSocket, TcpListener)> {
    let explain = |e: io::Error| {
        let hint = match e.kind() {
            io::ErrorKind::AddrInUse => "; another process listens there: find it with `ss -lntup`",
            io::ErrorKind::PermissionDenied => "; ports below 1024 need root or CAP_NET_BIND_SERVICE",
            _ => "",
        };
        io::Error::new(e.kind(), format!("listen on {address}: {e}{hint}"))
    };
    let udp = bind(address, Type::DGRAM, false).map_err(explain)?;
    // Port 0 means any, but the same for both.
    let port = udp.local_addr()?.as_socket().map_or_else(|| address.port(), |bound| bound.port());
    let tcp = bind(SocketAddr::new(address.ip(), port), Type::STREAM, false).map_err(explain)?;
    tcp.listen(BACKLOG).map_err(explain)?;
    Ok((udp.into(), tcp.into()))
}
