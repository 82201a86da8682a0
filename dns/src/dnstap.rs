//! Sends every query with its reply to a collector on a unix socket: [dnstap](https://dnstap.info).
//!
//! ```text
//! Responder ──Exchange──> BackgroundThread ──Frame──> Stream ──> collector (fstrm_capture, dnscollector, Vector, ...)
//! ```
//! The collector may restart: while none listens, exchanges are dropped and counted.

mod frame;
mod stream;

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant, SystemTime};

use prometheus::IntCounter;

use crate::background::BackgroundThread;
use crate::metrics::Protocol;
use stream::Stream;

/// Pause before the next attempt to connect.
const PAUSE: Duration = Duration::from_secs(1);

/// A handle for recording exchanges.
pub(crate) struct Dnstap(BackgroundThread<Exchange>);

/// A query with its reply.
struct Exchange {
    protocol: Protocol,
    client: Option<SocketAddr>,
    asked_at: SystemTime,
    answered_at: SystemTime,
    query: Box<[u8]>,
    reply: Box<[u8]>,
}

impl Dnstap {
    /// Starts the thread that writes to the collector at this socket. `identity` is the name of this server
    /// in dnstap.
    ///
    /// # Errors
    /// As [`BackgroundThread::start`].
    pub(crate) fn start(socket: PathBuf, identity: String, lost: IntCounter) -> io::Result<Self> {
        let counted = lost.clone();
        BackgroundThread::start("dnstap", lost, move |queue| write(&socket, &identity, &queue, &counted))
            .map(Self)
    }

    /// Records a query of that time with its reply.
    pub(crate) fn record(
        &self,
        (protocol, client): (Protocol, Option<SocketAddr>),
        query: &[u8],
        reply: &[u8],
        since: Instant,
    ) {
        let answered_at = SystemTime::now();
        let asked_at = answered_at.checked_sub(since.elapsed()).unwrap_or(answered_at);
        let (query, reply) = (query.into(), reply.into());
        self.0.put(Exchange { protocol, client, asked_at, answered_at, query, reply });
    }
}

/// Runs until the queue has ended.
fn write(socket: &std::path::Path, identity: &str, queue: &Receiver<Exchange>, lost: &IntCounter) {
    let mut is_logged = false;
    loop {
        let error = match Stream::open(socket) {
            Ok(mut stream) => {
                tracing::info!(socket = %socket.display(), "the dnstap collector takes frames");
                is_logged = false;
                let mut unsent = 0;
                match copy(&mut stream, identity, queue, &mut unsent) {
                    Ok(()) => return stream.close(),
                    Err(error) => {
                        lost.inc_by(unsent);
                        error
                    }
                }
            }
            Err(error) => error,
        };
        if !is_logged {
            tracing::warn!(%error, socket = %socket.display(), "no dnstap collector takes frames");
            is_logged = true;
        }
        if let Err(RecvTimeoutError::Disconnected) = discard(queue, lost) {
            return;
        }
    }
}

/// Runs until the queue has ended. `unsent` counts exchanges that may not have been sent.
fn copy(stream: &mut Stream, identity: &str, queue: &Receiver<Exchange>, unsent: &mut u64) -> io::Result<()> {
    let mut frame = Vec::with_capacity(1024);
    loop {
        let exchange = match queue.try_recv() {
            Ok(exchange) => exchange,
            Err(_nothing) => {
                stream.flush()?;
                *unsent = 0;
                let Ok(exchange) = queue.recv() else { return Ok(()) };
                exchange
            }
        };
        *unsent += 1;
        for message_type in [frame::MessageType::Query, frame::MessageType::Reply] {
            frame.clear();
            frame::encode(&exchange, message_type, identity, &mut frame);
            stream.put(&frame)?;
        }
    }
}

/// Drops exchanges for a while.
fn discard(queue: &Receiver<Exchange>, lost: &IntCounter) -> Result<(), RecvTimeoutError> {
    let end = Instant::now() + PAUSE;
    loop {
        match queue.recv_timeout(end.saturating_duration_since(Instant::now())) {
            Ok(_exchange) => lost.inc(),
            Err(RecvTimeoutError::Timeout) => return Ok(()),
            Err(ended) => return Err(ended),
        }
    }
}
