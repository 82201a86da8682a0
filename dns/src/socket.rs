//! The sockets queries come in by.

use std::io;
use std::net::{SocketAddr, TcpListener, UdpSocket};

use daemon::socket::bind;
use socket2::Type;

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 1024;

/// What a burst may fill before the kernel drops, in bytes: some thousands of queries.
const RECEIVE_BUFFER: usize = 4 << 20;

/// Opens the sockets of an address, as many for UDP as there are threads. The address need not be on an interface yet: `portolan-proxy` may make it local later.
pub(crate) fn open(address: SocketAddr, threads: usize) -> io::Result<(Vec<UdpSocket>, TcpListener)> {
    let explain = |error| explain(address, &error);
    // Nobody else can share the TCP port, so two servers on one address are noticed.
    let first = bind(address, Type::DGRAM, true).map_err(explain)?;
    // Port 0 means any, but the same for all.
    let port = first.local_addr()?.as_socket().map_or_else(|| address.port(), |bound| bound.port());
    let address = SocketAddr::new(address.ip(), port);
    let tcp = open_stream(address)?;
    let others = (1..threads).map(|_| bind(address, Type::DGRAM, true).map_err(explain));
    let mut sockets = vec![first];
    sockets.extend(others.collect::<io::Result<Vec<_>>>()?);
    for socket in &sockets {
        // As much as the system allows.
        socket.set_recv_buffer_size(RECEIVE_BUFFER).ok();
    }
    Ok((sockets.into_iter().map(UdpSocket::from).collect(), tcp))
}

/// Listens for connections, alone.
pub(crate) fn open_stream(address: SocketAddr) -> io::Result<TcpListener> {
    let listening = bind(address, Type::STREAM, false).and_then(|socket| {
        socket.listen(BACKLOG)?;
        Ok(socket.into())
    });
    listening.map_err(|error| explain(address, &error))
}

fn explain(address: SocketAddr, error: &io::Error) -> io::Error {
    let hint = match error.kind() {
        io::ErrorKind::AddrInUse => "; another process listens there: find it with `ss -lntup`",
        io::ErrorKind::PermissionDenied => "; ports below 1024 need root or CAP_NET_BIND_SERVICE",
        _ => "",
    };
    io::Error::new(error.kind(), format!("listen on {address}: {error}{hint}"))
}
