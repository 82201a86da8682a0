//! The listening sockets.

use std::io;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::os::fd::OwnedFd;

use daemon::socket::bind;
use nix::sys::socket::{setsockopt, sockopt};
use socket2::{Socket, Type};

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 1024;

/// The receive buffer in bytes: some thousands of queries.
const RECEIVE_BUFFER: usize = 4 << 20;

/// The send buffer in bytes. Replies to an unreachable client wait in the kernel for address resolution, up
/// to 200 KiB of them for three seconds; the buffer must be larger than that for a few such clients.
const SEND_BUFFER: usize = 4 << 20;

/// The sockets of the previous process. Those that are still needed are taken from it.
#[derive(Debug, Default)]
pub(crate) struct Inherited(Vec<Socket>);

impl Inherited {
    pub(crate) fn new(sockets: Vec<OwnedFd>) -> Self {
        Self(sockets.into_iter().map(Socket::from).collect())
    }

    fn take(&mut self, kind: Type, address: SocketAddr) -> Vec<Socket> {
        let is_wanted = |socket: &mut Socket| {
            let local = socket.local_addr().ok().and_then(|local| local.as_socket());
            local == Some(address) && socket.r#type().is_ok_and(|found| found == kind)
        };
        self.0.extract_if(.., is_wanted).collect()
    }
}

/// Opens the UDP sockets of an address, one per thread. All sockets of the previous process are used, even if
/// there are more, because queries may wait in them. The address may not be on an interface yet:
/// `portolan-proxy` may make it local later.
pub(crate) fn open_datagrams(
    address: SocketAddr,
    threads: usize,
    inherited: &mut Inherited,
) -> io::Result<Vec<UdpSocket>> {
    let mut sockets = inherited.take(Type::DGRAM, address);
    while sockets.len() < threads {
        // Port 0 means any port, but the same for all.
        let local = sockets.first().and_then(|first| first.local_addr().ok()?.as_socket());
        let new = bind(local.unwrap_or(address), Type::DGRAM, true);
        let new = new.map_err(|error| explain(address, &error))?;
        sockets.push(new);
    }
    sockets.iter().for_each(make_room);
    Ok(sockets.into_iter().map(UdpSocket::from).collect())
}

/// Beyond the system's limit, with CAP_NET_ADMIN.
fn make_room(socket: &Socket) {
    if setsockopt(socket, sockopt::RcvBufForce, &RECEIVE_BUFFER).is_err() {
        socket.set_recv_buffer_size(RECEIVE_BUFFER).ok();
    }
    if setsockopt(socket, sockopt::SndBufForce, &SEND_BUFFER).is_err() {
        socket.set_send_buffer_size(SEND_BUFFER).ok();
    }
}

/// Listens for connections without SO_REUSEPORT, so that two servers on one address are detected.
pub(crate) fn open_stream(address: SocketAddr, inherited: &mut Inherited) -> io::Result<TcpListener> {
    if let Some(socket) = inherited.take(Type::STREAM, address).pop() {
        return Ok(socket.into());
    }
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
