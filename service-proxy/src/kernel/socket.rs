//! Transparent TCP listeners, and upstream sockets that preserve a client's address.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::os::fd::AsFd;
use std::time::Duration;

use daemon::socket::bind;
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::IpBindAddressNoPort;
use socket2::{Domain, SockRef, Socket, TcpKeepalive, Type};

use crate::kernel::policy_routing::PROXIED;
use crate::kernel::source_ports::Source;

/// Connections that may wait to be accepted. `net.core.somaxconn` caps it.
const BACKLOG: i32 = 4096;

/// Keepalive settings for clients and endpoints.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Probes {
    /// Idle time before the first probe.
    idle: Duration,
    interval: Duration,
    /// Unanswered probes after which the peer is dead.
    count: u32,
}

/// The peer is dead after 5 minutes.
pub(crate) const DEFAULT_PROBES: Probes = Probes::new(Duration::from_secs(180), Duration::from_secs(20), 6);

impl Default for Probes {
    fn default() -> Self {
        DEFAULT_PROBES
    }
}

impl Probes {
    pub(crate) const fn new(idle: Duration, interval: Duration, count: u32) -> Self {
        Self { idle, interval, count }
    }

    /// Probes at the interval of the other side.
    pub(crate) fn every(interval: Duration) -> Self {
        let at_least = Duration::from_secs(1);
        Self { idle: interval.max(at_least), interval: (interval / 2).max(at_least), count: 4 }
    }

    /// The more frequent of both settings.
    pub(crate) fn at_most(self, other: Self) -> Self {
        Self { idle: self.idle.min(other.idle), interval: self.interval.min(other.interval), ..self }
    }

    /// The time without an answer after which the peer is dead.
    pub(crate) fn limit(self) -> Duration {
        self.idle + self.interval * self.count
    }
}

/// Returns one TCP listener per worker, on a port that the kernel chooses. The kernel spreads connections
/// over them (`SO_REUSEPORT`). They accept connections to other addresses (`IP_TRANSPARENT`).
pub(crate) fn listen_transparent(
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
    // Accepted sockets inherit the options. Nagle's algorithm with the peer's delayed ACK costs 40 ms per
    // request.
    socket.set_tcp_nodelay(true)?;
    // An urgent byte stays in its place in the stream; otherwise it would be lost here (RFC 6093 §6).
    socket.set_out_of_band_inline(true)?;
    // Keepalive: a client that vanished does not hold its connection for ever.
    probe(&socket, DEFAULT_PROBES)?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// `IP_TRANSPARENT`.
fn serve_any_address(socket: &Socket, v4: bool) -> io::Result<()> {
    if v4 { socket.set_ip_transparent_v4(true) } else { socket.set_ip_transparent_v6(true) }
}

/// Sets keepalive.
pub(crate) fn probe(socket: &impl AsFd, probes: Probes) -> io::Result<()> {
    let Probes { idle, interval, count } = probes;
    let keepalive = TcpKeepalive::new().with_time(idle).with_interval(interval).with_retries(count);
    SockRef::from(socket).set_tcp_keepalive(&keepalive)
}

/// Reads the keepalive settings.
pub(crate) fn probes(socket: &impl AsFd) -> io::Result<Probes> {
    let socket = SockRef::from(socket);
    let (idle, interval) = (socket.tcp_keepalive_time()?, socket.tcp_keepalive_interval()?);
    Ok(Probes::new(idle, interval, socket.tcp_keepalive_retries()?))
}

/// The options of an upstream connection.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct UpstreamOptions {
    /// The client's source to preserve, if not the node's address.
    pub(crate) source: Option<Source>,
    /// The TTL, if it is limited.
    pub(crate) hops: Option<u32>,
    /// The keepalive of a TCP connection.
    pub(crate) probes: Probes,
}

/// Starts connecting.
///
/// # Errors
/// An error of the kernel; `AddrInUse` or `AddrNotAvailable` if all ports of the source are in use towards
/// this endpoint.
pub(crate) fn connect(kind: Type, endpoint: SocketAddr, options: UpstreamOptions) -> io::Result<Socket> {
    let Some(source) = options.source else {
        let socket = upstream(kind, endpoint, options)?;
        return start_connect(&socket, endpoint).map(|()| socket);
    };
    let mut taken = io::ErrorKind::AddrInUse.into();
    for port in source.ports(kind == Type::STREAM) {
        let socket = upstream(kind, endpoint, options)?;
        let address = SocketAddr::new(source.client.ip(), port);
        match bind_source(&socket, kind, address).and_then(|()| start_connect(&socket, endpoint)) {
            Err(error) if is_taken(&error) => taken = error,
            other => return other.map(|()| socket),
        }
    }
    Err(taken)
}

/// Whether the source port is in use.
pub(crate) fn is_taken(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::AddrInUse | io::ErrorKind::AddrNotAvailable)
}

/// Binds to the client's address. Port 0 is for an address of the node.
fn bind_source(socket: &Socket, kind: Type, address: SocketAddr) -> io::Result<()> {
    if address.port() == 0 {
        // The kernel chooses the port when it knows the endpoint: several endpoints can share a port.
        setsockopt(socket, IpBindAddressNoPort, &true)?;
    } else {
        serve_any_address(socket, address.is_ipv4())?;
        if kind == Type::STREAM {
            // Several connections can share a port if they have different endpoints.
            socket.set_reuse_address(true)?;
        }
    }
    socket.bind(&address.into())
}

fn upstream(kind: Type, endpoint: SocketAddr, options: UpstreamOptions) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(endpoint), kind.nonblocking().cloexec(), None)?;
    if kind == Type::STREAM {
        socket.set_tcp_nodelay(true)?;
        socket.set_out_of_band_inline(true)?;
        probe(&socket, options.probes)?;
    }
    socket.set_mark(PROXIED)?;
    match options.hops {
        Some(hops) if endpoint.is_ipv4() => socket.set_ttl_v4(hops)?,
        Some(hops) => socket.set_unicast_hops_v6(hops)?,
        None => {}
    }
    Ok(socket)
}

/// The TTL or hop limit of the client's packets when they arrived. The kernel records it for each accepted
/// connection.
pub(crate) fn hops_left(client: &tokio::net::TcpStream, v4: bool) -> io::Result<u32> {
    let client = SockRef::from(client);
    if v4 { client.multicast_ttl_v4() } else { client.multicast_hops_v6() }
}

fn start_connect(socket: &Socket, endpoint: SocketAddr) -> io::Result<()> {
    match socket.connect(&endpoint.into()) {
        Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => Ok(()),
        other => other,
    }
}

/// Makes closing this socket send a RST, not a FIN: the peer must not take the data so far as complete.
pub(crate) fn reset_on_close(stream: &tokio::net::TcpStream) {
    // It can fail only if the socket is closed already.
    let _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
}
