//! TCP listeners that connections to any address can be handed to, and sockets that preserve a client's address.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::os::fd::AsFd;
use std::time::Duration;

use daemon::socket::bind;
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::IpBindAddressNoPort;
use socket2::{Domain, SockRef, Socket, TcpKeepalive, Type};

use crate::kernel::divert::PROXIED;
use crate::kernel::source_ports::Source;

/// Connections that may wait to be accepted. The kernel caps it at `net.core.somaxconn`.
const BACKLOG: i32 = 4096;

/// What is asked of an idle peer, client or endpoint, to learn whether it is still there.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Probes {
    /// Idle for so long before the first one.
    idle: Duration,
    interval: Duration,
    /// Probes without an answer after which the peer counts as dead.
    count: u32,
}

/// Gone after 5 minutes.
pub(crate) const USUAL_PROBES: Probes = Probes::new(Duration::from_secs(180), Duration::from_secs(20), 6);

impl Default for Probes {
    fn default() -> Self {
        USUAL_PROBES
    }
}

impl Probes {
    pub(crate) const fn new(idle: Duration, interval: Duration, count: u32) -> Self {
        Self { idle, interval, count }
    }

    /// Probes at the interval at which the other side probes.
    pub(crate) fn every(interval: Duration) -> Self {
        let at_least = Duration::from_secs(1);
        Self { idle: interval.max(at_least), interval: (interval / 2).max(at_least), count: 4 }
    }

    /// The same, but no later and no more seldom than `other`.
    pub(crate) fn at_most(self, other: Self) -> Self {
        Self { idle: self.idle.min(other.idle), interval: self.interval.min(other.interval), ..self }
    }

    /// The time without an answer after which the peer counts as dead.
    pub(crate) fn limit(self) -> Duration {
        self.idle + self.interval * self.count
    }
}

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
    // So do they this: an urgent byte stays in its place in the stream, or it would be lost here (RFC 6093 §6).
    socket.set_out_of_band_inline(true)?;
    // And this: a client that vanished without a word does not hold its connection for ever.
    probe(&socket, USUAL_PROBES)?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// `IP_TRANSPARENT`.
fn serve_any_address(socket: &Socket, v4: bool) -> io::Result<()> {
    if v4 { socket.set_ip_transparent_v4(true) } else { socket.set_ip_transparent_v6(true) }
}

/// Ends the connection if the other side has gone without a word.
pub(crate) fn probe(socket: &impl AsFd, probes: Probes) -> io::Result<()> {
    let Probes { idle, interval, count } = probes;
    let keepalive = TcpKeepalive::new().with_time(idle).with_interval(interval).with_retries(count);
    SockRef::from(socket).set_tcp_keepalive(&keepalive)
}

/// How a socket is probed.
pub(crate) fn probes(socket: &impl AsFd) -> io::Result<Probes> {
    let socket = SockRef::from(socket);
    let (idle, interval) = (socket.tcp_keepalive_time()?, socket.tcp_keepalive_interval()?);
    Ok(Probes::new(idle, interval, socket.tcp_keepalive_retries()?))
}

/// How a connection leaves for its endpoint.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Departure {
    /// Whose address it has, if not the node's.
    pub(crate) source: Option<Source>,
    /// How many routers and proxies may still be on its way, if that matters.
    pub(crate) hops: Option<u32>,
    /// How the endpoint is probed over TCP.
    pub(crate) probes: Probes,
}

/// Starts connecting.
///
/// # Errors
/// What the kernel says; `AddrInUse` or `AddrNotAvailable` where every port of the source is taken towards this endpoint.
pub(crate) fn connect(kind: Type, endpoint: SocketAddr, departure: Departure) -> io::Result<Socket> {
    let Some(source) = departure.source else {
        let socket = upstream(kind, endpoint, departure)?;
        return start_connect(&socket, endpoint).map(|()| socket);
    };
    let mut taken = io::ErrorKind::AddrInUse.into();
    for port in source.ports(kind == Type::STREAM) {
        let socket = upstream(kind, endpoint, departure)?;
        let address = SocketAddr::new(source.client.ip(), port);
        match bind_source(&socket, kind, address).and_then(|()| start_connect(&socket, endpoint)) {
            Err(error) if is_taken(&error) => taken = error,
            other => return other.map(|()| socket),
        }
    }
    Err(taken)
}

/// Whether the port of a source is in use.
pub(crate) fn is_taken(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::AddrInUse | io::ErrorKind::AddrNotAvailable)
}

/// Binds to the client's address. Port 0 is for an address of the node's own.
fn bind_source(socket: &Socket, kind: Type, address: SocketAddr) -> io::Result<()> {
    if address.port() == 0 {
        // The kernel chooses when it knows the endpoint: a port may lead to several.
        setsockopt(socket, IpBindAddressNoPort, &true)?;
    } else {
        serve_any_address(socket, address.is_ipv4())?;
        if kind == Type::STREAM {
            // Several connections may share a port as long as they lead to different endpoints.
            socket.set_reuse_address(true)?;
        }
    }
    socket.bind(&address.into())
}

fn upstream(kind: Type, endpoint: SocketAddr, departure: Departure) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(endpoint), kind.nonblocking().cloexec(), None)?;
    if kind == Type::STREAM {
        socket.set_tcp_nodelay(true)?;
        socket.set_out_of_band_inline(true)?;
        probe(&socket, departure.probes)?;
    }
    socket.set_mark(PROXIED)?;
    match departure.hops {
        Some(hops) if endpoint.is_ipv4() => socket.set_ttl_v4(hops)?,
        Some(hops) => socket.set_unicast_hops_v6(hops)?,
        None => {}
    }
    Ok(socket)
}

/// How many hops the client's packets had left (TTL, hop limit). The kernel notes it for each connection that it accepts.
pub(crate) fn hops_left(client: &tokio::net::TcpStream, v4: bool) -> io::Result<u32> {
    let client = SockRef::from(client);
    if v4 { client.multicast_ttl_v4() } else { client.multicast_hops_v6() }
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
