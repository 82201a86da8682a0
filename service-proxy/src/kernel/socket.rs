//! TCP listeners that connections to any address can be handed to, and sockets that borrow a client's address.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::ops::RangeInclusive;
use std::time::Duration;

use daemon::socket::bind;
use socket2::{Domain, SockRef, Socket, TcpKeepalive, Type};

/// Connections that may wait to be accepted. The kernel caps it at `net.core.somaxconn`.
const BACKLOG: i32 = 4096;

/// A silent client, or endpoint of another node, is asked whether it is still there after this time, so often and so many
/// times: gone after 5 minutes.
const SILENCE: Duration = Duration::from_secs(180);
const PROBE_INTERVAL: Duration = Duration::from_secs(20);
const PROBES: u32 = 6;

/// Ports from which connections with a borrowed address leave: below 32768, where `ip_local_port_range` begins.
const BORROWED_PORTS: RangeInclusive<u16> = 10_000..=29_999;

/// How many ports are tried before giving up.
const PORT_ATTEMPTS: usize = 8;

/// Connecting goes on in the background.
const EINPROGRESS: i32 = 115;

/// One TCP listener for each worker, on a port of the kernel's choice. The kernel spreads connections over them
/// (`SO_REUSEPORT`). Connections to other addresses can be handed to them (`IP_TRANSPARENT`).
pub(crate) fn listen_for_others(
    loopback: IpAddr,
    count: usize,
) -> io::Result<(SocketAddr, Vec<TcpListener>)> {
    let mut address = SocketAddr::new(loopback, 0);
    let mut listeners = Vec::new();
    for _ in 0..count {
        let socket = bind(address, Type::STREAM, true)?;
        serve_any_address(&socket, loopback.is_ipv4())?;
        let listener = listen(socket)?;
        address = listener.local_addr()?;
        listeners.push(listener);
    }
    Ok((address, listeners))
}

fn listen(socket: Socket) -> io::Result<TcpListener> {
    // Accepted sockets inherit it. Nagle's algorithm against the peer's delayed ACK costs 40 ms a request.
    socket.set_tcp_nodelay(true)?;
    // So do they this: a client that vanished without a word does not hold its connection for ever.
    notice_silence(&socket)?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// `IP_TRANSPARENT`.
fn serve_any_address(socket: &Socket, v4: bool) -> io::Result<()> {
    if v4 { socket.set_ip_transparent_v4(true) } else { socket.set_ip_transparent_v6(true) }
}

/// Ends the connection if the other side has gone without a word.
pub(crate) fn notice_silence(socket: &Socket) -> io::Result<()> {
    let probes = TcpKeepalive::new().with_time(SILENCE).with_interval(PROBE_INTERVAL).with_retries(PROBES);
    socket.set_tcp_keepalive(&probes)
}

/// Starts connecting from the node's own address.
pub(crate) fn connect_tcp(endpoint: SocketAddr) -> io::Result<Socket> {
    let socket = upstream(endpoint, Type::STREAM)?;
    start_connect(&socket, endpoint)?;
    Ok(socket)
}

/// Starts connecting from `source`, which may be an address of somebody else.
///
/// The port is ours to choose: one from below the range that the kernel takes for outgoing connections, so that it is
/// never one that the owner of the address uses itself.
pub(crate) fn connect_from(source: IpAddr, endpoint: SocketAddr) -> io::Result<Socket> {
    let mut attempts = PORT_ATTEMPTS;
    loop {
        let socket = upstream(endpoint, Type::STREAM)?;
        // Several connections may share a port as long as they lead to different endpoints.
        socket.set_reuse_address(true)?;
        borrow_address(&socket, source)?;
        match start_connect(&socket, endpoint) {
            Err(error) if error.kind() == io::ErrorKind::AddrNotAvailable && attempts > 1 => attempts -= 1,
            other => return other.map(|()| socket),
        }
    }
}

/// A UDP socket whose only peer is `endpoint`, with the address of `source` if that can be had.
pub(crate) fn connect_udp(source: Option<IpAddr>, endpoint: SocketAddr) -> io::Result<Socket> {
    let socket = upstream(endpoint, Type::DGRAM)?;
    if let Some(source) = source {
        borrow_address(&socket, source)?;
    }
    start_connect(&socket, endpoint)?;
    Ok(socket)
}

/// Binds to an address of somebody else and a port below the kernel's own range.
fn borrow_address(socket: &Socket, source: IpAddr) -> io::Result<()> {
    serve_any_address(socket, source.is_ipv4())?;
    let mut attempts = PORT_ATTEMPTS;
    loop {
        match socket.bind(&SocketAddr::new(source, fastrand::u16(BORROWED_PORTS)).into()) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && attempts > 1 => attempts -= 1,
            other => return other,
        }
    }
}

fn upstream(endpoint: SocketAddr, kind: Type) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(endpoint), kind.nonblocking().cloexec(), None)?;
    if kind == Type::STREAM {
        socket.set_tcp_nodelay(true)?;
    }
    Ok(socket)
}

fn start_connect(socket: &Socket, endpoint: SocketAddr) -> io::Result<()> {
    match socket.connect(&endpoint.into()) {
        Err(error) if error.raw_os_error() == Some(EINPROGRESS) => Ok(()),
        other => other,
    }
}

/// Closing this socket will send a reset, not a FIN: its peer must not take what came so far for the whole.
pub(crate) fn reset_on_close(stream: &tokio::net::TcpStream) {
    // It can fail only if the socket is gone already, and then there is nobody to tell.
    drop(SockRef::from(stream).set_linger(Some(Duration::ZERO)));
}
