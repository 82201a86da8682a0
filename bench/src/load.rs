//! The load generator: one thread, no timer on the measured path.
//!
//! A closed loop sends the next request after the answer, so a stalled server gets fewer requests and the
//! stall hardly shows in the percentiles (coordinated omission). An open loop sends by a schedule and
//! measures from the scheduled time, whether earlier requests are answered or not.

mod closed;
mod open;
mod resolve;
pub(crate) mod server;

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::Result;
use hdrhistogram::Histogram;
use nix::sys::resource::{UsageWho, getrusage};

/// Default size of a request and of its answer, bytes.
pub(crate) const MESSAGE: usize = 64;

/// A request without an answer after this time is an error.
const DEADLINE: Duration = Duration::from_secs(5);

/// The result of one block.
#[derive(Debug)]
pub(crate) struct Block {
    /// Nanoseconds.
    pub(crate) latencies: Histogram<u64>,
    /// Delay from the scheduled to the actual send time, nanoseconds. Empty in a closed loop, which has no
    /// schedule.
    pub(crate) lag: Histogram<u64>,
    pub(crate) errors: u64,
    /// Requests, or mebibytes of a stream.
    pub(crate) units: f64,
    pub(crate) began: Instant,
    pub(crate) took: Duration,
    /// Involuntary context switches of this thread.
    pub(crate) preempted: u64,
}

/// The shapes of load.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Shape {
    /// Requests on one open connection (netperf's TCP_RR).
    #[value(name = "rr")]
    Requests,
    /// Requests on 64 open connections, each sent as soon as the previous one is answered.
    #[value(name = "rr64")]
    Many,
    /// A connection for each request (netperf's TCP_CRR).
    #[value(name = "crr")]
    Connections,
    /// One stream at full speed.
    Stream,
    /// Requests by datagram (netperf's UDP_RR).
    #[value(name = "udp-rr")]
    Datagrams,
    /// Resolve a name, connect, send one request: the cost for a program that has just started.
    Cold,
    /// Requests at a fixed rate, whether answered or not. Latency counts from the scheduled time.
    Open,
}

/// All parameters of a load.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Load {
    pub(crate) shape: Shape,
    /// Bytes of a request and of its answer.
    pub(crate) message: usize,
    /// Number of open connections.
    pub(crate) connections: usize,
    /// Requests a second of an open loop.
    pub(crate) rate: u32,
}

/// The target of a load.
#[derive(Clone, Debug)]
pub(crate) struct Destination {
    /// The echo server.
    pub(crate) echo: SocketAddr,
    /// The server that discards a stream.
    pub(crate) sink: SocketAddr,
    /// A name that resolves to `echo`'s address.
    pub(crate) host: String,
}

impl Shape {
    /// The name in tables.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Requests => "RR",
            Self::Connections => "CRR",
            Self::Many => "RR x64",
            Self::Stream => "stream",
            Self::Datagrams => "UDP RR",
            Self::Cold => "cold",
            Self::Open => "open loop",
        }
    }
}

impl From<Shape> for Load {
    fn from(shape: Shape) -> Self {
        let connections = if shape == Shape::Many { 64 } else { 1 };
        Self { shape, message: MESSAGE, connections, rate: 1000 }
    }
}

impl Load {
    /// An open loop of `rate` requests a second.
    pub(crate) fn open(rate: u32) -> Self {
        Self { rate, ..Shape::Open.into() }
    }

    /// A short title for headings.
    pub(crate) fn title(self) -> String {
        let mut title = self.shape.name().to_owned();
        if self.shape == Shape::Open {
            title += &format!(" {}/s", self.rate);
        }
        if self.message != MESSAGE {
            title += &format!(" {} B", self.message);
        }
        if self.connections > 1 && self.shape != Shape::Many {
            title += &format!(" x{}", self.connections);
        }
        title
    }

    /// A description in words.
    pub(crate) fn description(self) -> String {
        let bytes = format!("{} bytes each way", self.message);
        match self.shape {
            Shape::Requests | Shape::Many => {
                format!("closed loop, {bytes}, {} connections", self.connections)
            }
            Shape::Connections => format!("closed loop, {bytes}, a connection for each request"),
            Shape::Stream => "one connection at full speed, until the receiver has everything".to_owned(),
            Shape::Datagrams => format!("closed loop, {bytes}, by datagram"),
            Shape::Cold => format!("A and AAAA of the name, a connection, {bytes}"),
            Shape::Open => format!("{} a second, latency from the intended moment, {bytes}", self.rate),
        }
    }
}

impl Block {
    pub(crate) fn new() -> Self {
        Self {
            latencies: histogram(),
            lag: histogram(),
            errors: 0,
            units: 0.0,
            began: Instant::now(),
            took: Duration::ZERO,
            preempted: 0,
        }
    }

    /// Records an answer that arrived now for a request of that time.
    pub(crate) fn answered(&mut self, since: Instant) -> Result<()> {
        self.latencies.record(u64::try_from(since.elapsed().as_nanos())?)?;
        self.units += 1.0;
        Ok(())
    }
}

/// Runs the load against `to` for `length`, from the calling thread's network namespace.
pub(crate) fn run(load: Load, to: &Destination, length: Duration) -> Result<Block> {
    let mut block = Block::new();
    let preempted_before = preempted()?;
    let end = block.began + length;
    match load.shape {
        Shape::Open => open::run(&mut block, load, to.echo, end)?,
        _ => closed::run(&mut block, load, to, end)?,
    }
    block.took = block.began.elapsed();
    block.preempted = preempted()? - preempted_before;
    Ok(block)
}

/// Measures the generator's own cost: exchanges that do nothing. Their tail is the noise of the machine.
pub(crate) fn floor(length: Duration) -> Result<Histogram<u64>> {
    let mut block = Block::new();
    let end = block.began + length;
    loop {
        let started = Instant::now();
        if started >= end {
            return Ok(block.latencies);
        }
        block.answered(started)?;
    }
}

/// Returns a histogram for nanoseconds up to a minute with three significant digits.
pub(crate) fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 60_000_000_000, 3).expect("valid bounds")
}

/// Returns the involuntary context switches of the calling thread.
pub(crate) fn preempted() -> Result<u64> {
    Ok(u64::try_from(getrusage(UsageWho::RUSAGE_THREAD)?.involuntary_context_switches())?)
}

#[cfg(test)]
mod tests;
