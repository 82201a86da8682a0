//! The load generator: one thread, no timer on the measured path.
//!
//! A closed loop sends when it has been answered, so a server that stalls is asked less while it stalls, and the stall
//! hardly shows in its percentiles (coordinated omission). An open loop sends when the schedule says so and counts from
//! that moment, whatever became of the requests before.

mod closed;
mod open;
mod resolve;
pub(crate) mod server;

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::Result;
use hdrhistogram::Histogram;
use nix::sys::resource::{UsageWho, getrusage};

/// Bytes of a request and of its answer, unless a load says otherwise.
pub(crate) const MESSAGE: usize = 64;

/// Longer than this is a failure, not a latency.
const DEADLINE: Duration = Duration::from_secs(5);

/// What one block of measurements has found.
#[derive(Debug)]
pub(crate) struct Block {
    /// Nanoseconds.
    pub(crate) latencies: Histogram<u64>,
    /// How late requests were sent, nanoseconds: empty in a closed loop, which has no schedule.
    pub(crate) lag: Histogram<u64>,
    pub(crate) errors: u64,
    /// Requests, or mebibytes of a stream.
    pub(crate) units: f64,
    pub(crate) began: Instant,
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
    /// Resolve a name, connect, one request: what a program that starts pays.
    Cold,
    /// Requests at a fixed rate, whether answered or not: latency counts from the intended moment.
    Open,
}

/// A load in every detail.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Load {
    pub(crate) shape: Shape,
    /// Bytes of a request and of its answer.
    pub(crate) message: usize,
    /// Open at a time.
    pub(crate) connections: usize,
    /// Requests a second of an open loop.
    pub(crate) rate: u32,
}

/// Where a load goes.
#[derive(Clone, Debug)]
pub(crate) struct Destination {
    /// What echoes.
    pub(crate) echo: SocketAddr,
    /// What swallows a stream.
    pub(crate) sink: SocketAddr,
    /// The name that leads to `echo`'s address.
    pub(crate) host: String,
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
    /// At a fixed rate, requests a second.
    pub(crate) fn open(rate: u32) -> Self {
        Self { rate, ..Shape::Open.into() }
    }

    /// Short, for a heading.
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

    /// In words.
    pub(crate) fn words(self) -> String {
        let bytes = format!("{} bytes each way", self.message);
        match self.shape {
            Shape::Requests | Shape::Many => {
                format!("closed loop, {bytes}, {} connections", self.connections)
            }
            Shape::Connections => format!("closed loop, {bytes}, a connection for each request"),
            Shape::Stream => {
                "one connection, as fast as it goes, until the receiver has everything".to_owned()
            }
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

    /// An answer that came now to a request of that moment.
    pub(crate) fn answered(&mut self, since: Instant) -> Result<()> {
        self.latencies.record(u64::try_from(since.elapsed().as_nanos())?)?;
        self.units += 1.0;
        Ok(())
    }
}

/// Loads `to` for `length`, from where the calling thread is.
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

/// What the generator itself costs: exchanges that do nothing. Its tail is the machine's.
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

/// Nanoseconds up to a minute, three digits.
pub(crate) fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 60_000_000_000, 3).expect("valid bounds")
}

/// How often the calling thread was put off its core so far.
pub(crate) fn preempted() -> Result<u64> {
    Ok(u64::try_from(getrusage(UsageWho::RUSAGE_THREAD)?.involuntary_context_switches())?)
}

#[cfg(test)]
mod tests;
