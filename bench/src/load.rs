//! The load generator: one thread, no timer on the measured path.

pub(crate) mod server;

use std::io::{self, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream, UdpSocket};
use std::os::fd::AsFd as _;
use std::time::{Duration, Instant};

use anyhow::Result;
use hdrhistogram::Histogram;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::resource::{UsageWho, getrusage};

/// Bytes of a request and of its answer.
pub(crate) const MESSAGE: usize = 64;

/// Connections of [`Shape::Many`].
const CONNECTIONS: usize = 64;

/// Longer than this is a failure, not a latency.
const DEADLINE: Duration = Duration::from_secs(5);

/// What one block of measurements has found.
#[derive(Debug)]
pub(crate) struct Block {
    /// Nanoseconds.
    pub(crate) latencies: Histogram<u64>,
    pub(crate) errors: u64,
    /// Requests, or mebibytes of a stream.
    pub(crate) units: f64,
    pub(crate) took: Duration,
    /// How often this thread was put off its core.
    pub(crate) preempted: u64,
}

/// The shapes of load.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Shape {
    /// Requests on one open connection (netperf's TCP_RR).
    #[value(name = "rr")]
    Requests,
    /// Requests on 64 open connections, each sent as soon as the one before is answered.
    #[value(name = "rr64")]
    Many,
    /// A connection for each request (netperf's TCP_CRR).
    #[value(name = "crr")]
    Connections,
    /// One stream, as fast as it goes.
    Stream,
    /// Requests by datagram (netperf's UDP_RR).
    #[value(name = "udp-rr")]
    Datagrams,
}

impl Shape {
    /// Its name in tables.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Requests => "RR",
            Self::Connections => "CRR",
            Self::Many => "RR x64",
            Self::Stream => "stream",
            Self::Datagrams => "UDP RR",
        }
    }
}

impl Block {
    fn new() -> Self {
        Self { latencies: histogram(), errors: 0, units: 0.0, took: Duration::ZERO, preempted: 0 }
    }

    fn record(&mut self, started: Instant, answered: &io::Result<()>) -> Result<()> {
        match answered {
            Ok(()) => {
                self.latencies.record(u64::try_from(started.elapsed().as_nanos())?)?;
                self.units += 1.0;
            }
            Err(_) => self.errors += 1,
        }
        Ok(())
    }
}

/// Loads `address` for `length`, from where the calling thread is.
pub(crate) fn run(shape: Shape, address: SocketAddr, length: Duration) -> Result<Block> {
    let mut block = Block::new();
    let preempted = preempted()?;
    let started = Instant::now();
    let end = started + length;
    match shape {
        Shape::Requests => {
            let mut stream = connect(address)?;
            repeat(&mut block, end, || exchange(&mut stream))?;
        }
        Shape::Connections => {
            repeat(&mut block, end, || connect(address).and_then(|mut stream| exchange(&mut stream)))?;
        }
        Shape::Many => many(&mut block, address, end)?,
        Shape::Stream => stream(&mut block, address, end)?,
        Shape::Datagrams => {
            let unspecified = if address.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
            let socket = UdpSocket::bind(unspecified)?;
            socket.connect(address)?;
            socket.set_read_timeout(Some(DEADLINE))?;
            let mut message = [7; MESSAGE];
            repeat(&mut block, end, || {
                socket.send(&message)?;
                socket.recv(&mut message).map(drop)
            })?;
        }
    }
    block.took = started.elapsed();
    block.preempted = self::preempted()? - preempted;
    Ok(block)
}

/// Nanoseconds up to a minute, three digits.
pub(crate) fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 60_000_000_000, 3).expect("valid bounds")
}

/// How often the calling thread was put off its core so far.
fn preempted() -> Result<u64> {
    Ok(u64::try_from(getrusage(UsageWho::RUSAGE_THREAD)?.involuntary_context_switches())?)
}

fn repeat(block: &mut Block, end: Instant, mut request: impl FnMut() -> io::Result<()>) -> Result<()> {
    loop {
        let started = Instant::now();
        if started >= end {
            return Ok(());
        }
        let answered = request();
        block.record(started, &answered)?;
    }
}

fn many(block: &mut Block, address: SocketAddr, end: Instant) -> Result<()> {
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    let mut streams = Vec::new();
    for number in 0..CONNECTIONS {
        let mut stream = connect(address)?;
        epoll.add(stream.as_fd(), EpollEvent::new(EpollFlags::EPOLLIN, number as u64))?;
        stream.write_all(&[7; MESSAGE])?;
        streams.push((stream, Instant::now()));
    }
    let mut events = [EpollEvent::empty(); CONNECTIONS];
    while Instant::now() < end {
        let count = epoll.wait(&mut events, EpollTimeout::try_from(DEADLINE)?)?;
        anyhow::ensure!(count > 0, "no answer within {DEADLINE:?}");
        for event in &events[..count] {
            let (stream, sent) = &mut streams[usize::try_from(event.data())?];
            let mut message = [0; MESSAGE];
            let answered = stream.read_exact(&mut message);
            block.record(*sent, &answered)?;
            *sent = Instant::now();
            stream.write_all(&message)?;
        }
    }
    Ok(())
}

/// The time counts until the receiver has said that it has everything.
fn stream(block: &mut Block, address: SocketAddr, end: Instant) -> Result<()> {
    let mut stream = connect(address)?;
    let buffer = vec![7; 256 * 1024];
    while Instant::now() < end {
        stream.write_all(&buffer)?;
    }
    stream.shutdown(Shutdown::Write)?;
    let mut total = [0; 8];
    stream.read_exact(&mut total)?;
    block.units = u64::from_be_bytes(total) as f64 / f64::from(1 << 20);
    Ok(())
}

fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&address, DEADLINE)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(DEADLINE))?;
    Ok(stream)
}

fn exchange(stream: &mut TcpStream) -> io::Result<()> {
    let mut message = [7; MESSAGE];
    stream.write_all(&message)?;
    stream.read_exact(&mut message)
}
