//! One upstream server: asks it, and remembers how it did.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use prometheus::Histogram;
use tokio::net::UdpSocket;

use super::address::{Transport, Upstream};
use super::answer::{self, Useless};
use super::asked::Asked;
use super::entry::Entry;
use super::failure::Cause;
use super::latency::Latency;
use super::random;
use super::stream::Stream;
use super::ttl::Limits;
use crate::message::{Edns, Header, flag};

/// What our OPT says we can take: no fragments (DNS flag day 2020).
const PAYLOAD: u16 = 1232;

/// More than that no server sends whom we told so; and if it does, it is cut and so not whole.
const BUFFER: usize = 4096;

/// Datagrams that are not the answer, before we conclude that somebody is guessing and ask by TCP, where guessing
/// does not help (RFC 5452 §9.3 speaks of this defence).
const MAX_FORGERIES: usize = 8;

/// A server that was not the first choice is asked along once in so long.
const MEASURE_EVERY: Duration = Duration::from_secs(5);

/// A server.
pub(super) struct Server {
    pub(super) upstream: Upstream,
    pub(super) stream: Stream,
    pub(super) latency: Mutex<Latency>,
    pub(super) durations: Histogram,
    /// It has shown not to know EDNS.
    is_plain: AtomicBool,
    /// What we asked it has come back to us.
    pub(super) is_looping: AtomicBool,
    asked_at: Mutex<Option<Instant>>,
}

/// What an exchange is about.
#[derive(Clone, Copy)]
pub(super) struct Exchange<'a> {
    pub(super) asked: Asked<'a>,
    pub(super) limits: &'a Limits,
    /// Whether letters get a case by chance.
    pub(super) random_case: bool,
}

/// Counts an exchange that is dropped before its end.
struct Stopwatch<'a> {
    server: &'a Server,
    started: Instant,
    is_running: bool,
}

impl Server {
    pub(super) fn new(upstream: Upstream, stream: Stream, durations: Histogram) -> Self {
        let (is_plain, is_looping) = (AtomicBool::new(false), AtomicBool::new(false));
        let (latency, asked_at) = (Mutex::default(), Mutex::default());
        Self { upstream, stream, latency, durations, is_plain, is_looping, asked_at }
    }

    /// Whether it leads back to us.
    pub(super) fn is_looping(&self) -> bool {
        self.is_looping.load(Relaxed)
    }

    /// Whether it has not been asked for a while.
    pub(super) fn is_unmeasured(&self) -> bool {
        let asked_at = self.asked_at.lock().unwrap_or_else(PoisonError::into_inner);
        asked_at.is_none_or(|at| at.elapsed() > MEASURE_EVERY)
    }

    /// Microseconds.
    pub(super) fn expected(&self) -> u32 {
        self.with_latency(|latency| latency.expected())
    }

    /// What nineteen of twenty answers stayed below, if known.
    pub(super) fn p95(&self) -> Option<Duration> {
        self.with_latency(|latency| latency.p95()).map(|micros| Duration::from_micros(micros.into()))
    }

    fn with_latency<T>(&self, work: impl FnOnce(&mut Latency) -> T) -> T {
        work(&mut self.latency.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Asks once, by whatever transports it takes.
    pub(super) async fn ask(&self, exchange: Exchange<'_>) -> Result<Entry, Cause> {
        let mut watch = Stopwatch { server: self, started: Instant::now(), is_running: true };
        *self.asked_at.lock().unwrap_or_else(PoisonError::into_inner) = Some(watch.started);
        let result = self.answer(exchange).await;
        watch.is_running = false;
        let took = watch.started.elapsed();
        match &result {
            Ok(_) => {
                self.durations.observe(took.as_secs_f64());
                self.with_latency(|latency| latency.answered(micros(took)));
            }
            Err(error) => {
                tracing::debug!(upstream = %self.upstream, ?error, "no use");
                self.with_latency(Latency::failed);
            }
        }
        result
    }

    async fn answer(&self, exchange: Exchange<'_>) -> Result<Entry, Cause> {
        let is_plain = self.is_plain.load(Relaxed);
        let query = compose(exchange, !is_plain);
        let mut message = self.send(&query, exchange).await.map_err(network)?;
        if !is_plain && answer::is_form_error_to(&query, &message) {
            let query = compose(exchange, false);
            message = self.send(&query, exchange).await.map_err(network)?;
            if !answer::is_form_error_to(&query, &message) {
                self.is_plain.store(true, Relaxed);
            }
        }
        match answer::read(&message, &exchange.asked, exchange.limits) {
            Err(Useless::Truncated) if self.upstream.transport == Transport::Plain => {
                let query = compose(exchange, !is_plain);
                let message = self.send_stream(&query, exchange).await.map_err(network)?;
                answer::read(&message, &exchange.asked, exchange.limits).map_err(Cause::Useless)
            }
            result => result.map_err(Cause::Useless),
        }
    }

    async fn send(&self, query: &[u8], exchange: Exchange<'_>) -> io::Result<Vec<u8>> {
        if self.upstream.transport != Transport::Plain {
            return self.send_stream(query, exchange).await;
        }
        match self.send_datagram(query, exchange).await? {
            Some(message) => Ok(message),
            None => self.send_stream(query, exchange).await,
        }
    }

    async fn send_stream(&self, query: &[u8], exchange: Exchange<'_>) -> io::Result<Vec<u8>> {
        let message = self.stream.ask(query).await?;
        let is_ours = answer::is_answer_to(query, &message, exchange.random_case)
            || answer::is_form_error_to(query, &message);
        if is_ours { Ok(message) } else { Err(io::ErrorKind::InvalidData.into()) }
    }

    /// By a socket of its own, so by a port that the kernel chose at random. `None` if what comes looks forged.
    async fn send_datagram(&self, query: &[u8], exchange: Exchange<'_>) -> io::Result<Option<Vec<u8>>> {
        let any: SocketAddr = match self.upstream.address {
            SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
            SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
        };
        let socket = UdpSocket::bind(any).await?;
        // Connected, the kernel drops what others send, and tells us when nobody is there.
        socket.connect(self.upstream.address).await?;
        socket.send(query).await?;
        let mut buffer = vec![0; BUFFER];
        for _ in 0..MAX_FORGERIES {
            let length = socket.recv(&mut buffer).await?;
            let message = &buffer[..length];
            if answer::is_answer_to(query, message, exchange.random_case)
                || answer::is_form_error_to(query, message)
            {
                buffer.truncate(length);
                return Ok(Some(buffer));
            }
            if exchange.random_case && answer::is_answer_to(query, message, false) {
                // The server, or one on the way, does not keep case; or somebody guesses.
                return Ok(None);
            }
        }
        Ok(None)
    }
}

impl Drop for Stopwatch<'_> {
    fn drop(&mut self) {
        if self.is_running {
            let after = micros(self.started.elapsed());
            self.server.with_latency(|latency| latency.overtaken(after));
        }
    }
}

fn micros(took: Duration) -> u32 {
    u32::try_from(took.as_micros()).unwrap_or(u32::MAX)
}

fn network(error: io::Error) -> Cause {
    match error.kind() {
        io::ErrorKind::InvalidData => Cause::Useless(Useless::Malformed),
        _ => Cause::Network,
    }
}

/// Our own query: nothing of the client's but the question and its two bits goes on.
fn compose(exchange: Exchange<'_>, with_edns: bool) -> Vec<u8> {
    let Exchange { asked, random_case, .. } = exchange;
    // RFC 6840 §5.7: AD in a query asks for AD in the answer, without signatures.
    let checking = if asked.checking_disabled { flag::CD } else { flag::AD };
    let (flags, additionals) = (flag::RD | checking, u16::from(with_edns));
    let header = Header { id: random::id(), flags, questions: 1, additionals, ..Header::default() };
    let mut query = header.to_wire().to_vec();
    query.extend(asked.name.wire().iter().map(u8::to_ascii_lowercase));
    if random_case {
        random::spell(&mut query[Header::LENGTH..]);
    }
    query.extend(asked.kind.to_be_bytes());
    query.extend([0, 1]);
    if with_edns {
        Edns::reply(PAYLOAD, 0, asked.dnssec_ok).write(&mut query);
    }
    query
}
