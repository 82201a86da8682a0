//! The load generator: one client, one server, blocking sockets, no timer on the measured path.

use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use netns::NetNs;

/// Bytes of a request and of its answer.
pub(crate) const MESSAGE: usize = 64;

/// Longer than this is a failure, not a latency.
const DEADLINE: Duration = Duration::from_secs(5);

/// What one block of measurements has found: nanoseconds.
#[derive(Debug)]
pub(crate) struct Block {
    pub(crate) latencies: Histogram<u64>,
    pub(crate) errors: u64,
}

/// The two shapes of load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    /// Requests on one open connection (netperf's TCP_RR).
    Requests,
    /// A connection for each request (netperf's TCP_CRR).
    Connections,
}

/// Answers every message with itself, in the pod, for as long as the process lives.
pub(crate) fn serve(pod: &NetNs, address: SocketAddr) -> anyhow::Result<()> {
    let listener = pod.run(|| TcpListener::bind(address))??;
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || echo(stream));
        }
    });
    Ok(())
}

/// Sends one request after the other for `length`, from where the calling thread is.
pub(crate) fn run(shape: Shape, address: SocketAddr, length: Duration) -> anyhow::Result<Block> {
    let mut block = Block { latencies: Histogram::new_with_bounds(1, 60_000_000_000, 3)?, errors: 0 };
    let mut stream = if shape == Shape::Requests { Some(connect(address)?) } else { None };
    let end = Instant::now() + length;
    loop {
        let started = Instant::now();
        if started >= end {
            return Ok(block);
        }
        let answered = match &mut stream {
            Some(stream) => exchange(stream),
            None => connect(address).and_then(|mut stream| exchange(&mut stream)),
        };
        let took = u64::try_from(started.elapsed().as_nanos())?;
        match answered {
            Ok(()) => block.latencies.record(took)?,
            Err(_) => block.errors += 1,
        }
    }
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

fn echo(mut stream: TcpStream) {
    let mut message = [0; MESSAGE];
    // It ends with its client.
    drop(stream.set_nodelay(true));
    while stream.read_exact(&mut message).is_ok() && stream.write_all(&message).is_ok() {}
}
