//! Relays bytes in both directions between two sockets.
//!
//! One task polls both directions, and data is written in the same poll that read it: a small message costs
//! two system calls and no switch between tasks. It needs no buffer of its own, but the one that all
//! connections of a worker share. A connection has its own buffer while a write has left data, and once a
//! read has filled the shared one, until it is idle. A half-close is passed on as a half-close. If one side
//! fails, the data that it sent before is delivered first (see [`linger`]); then the caller resets both.

mod linger;
mod liveness;

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};

use tokio::io::AsyncWrite as _;
use tokio::net::TcpStream;
use tokio::net::tcp::{ReadHalf, WriteHalf};

use crate::worker::idle_timeout::Progress;
use crate::worker::poller::Poller;
use liveness::Liveness;

/// The shared buffer of all connections of a worker: enough for a small request or response.
const SHARED_BUFFER: usize = 4 * 1024;

/// The buffer of a bulk connection.
const BULK_BUFFER: usize = 256 * 1024;

thread_local! {
    static SHARED: RefCell<Box<[u8]>> = RefCell::new(vec![0; SHARED_BUFFER].into());
}

/// Bytes after which the metrics of an open connection are updated.
const COUNT_EVERY: u64 = 64 * 1024;

/// Relayed bytes, for the metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Sent {
    pub(super) to_upstream: u64,
    pub(super) to_client: u64,
}

/// Relays until both sides have finished or one fails. The bytes are counted periodically and at the end.
pub(super) async fn relay(
    client: &mut TcpStream,
    upstream: &mut TcpStream,
    poller: &Poller,
    progress: &Progress,
    count: impl Fn(Sent),
) -> io::Result<()> {
    let ((from_client, to_client), (from_upstream, to_upstream)) = (client.split(), upstream.split());
    let mut request = Direction::new(from_client, to_upstream);
    let mut response = Direction::new(from_upstream, to_client);
    let mut account = Account { count, counted: Sent::default() };
    let mut liveness = Liveness::default();
    let ended = poll_fn(|cx| {
        let before = request.carried + response.carried;
        if progress.check_due.load(Ordering::Relaxed) {
            progress.check_due.store(false, Ordering::Relaxed);
            liveness.check(request.from.as_ref(), response.from.as_ref(), before)?;
            if liveness.is_idle() {
                request.release_buffer();
                response.release_buffer();
            }
        }
        let result = poll_both(&mut request, &mut response, cx);
        let sent = sent(&request, &response);
        let carried = sent.to_upstream + sent.to_client;
        // In bulk the next bytes are there already.
        if (1..=SHARED_BUFFER as u64).contains(&(carried - before)) {
            poller.active();
        }
        progress.carried.store(carried, Ordering::Relaxed);
        progress.half_closed.store(request.finished || response.finished, Ordering::Relaxed);
        account.record(sent, result.is_ready());
        result
    })
    .await;
    let Err((failed, error)) = ended else { return Ok(()) };
    match failed {
        Side::Client => linger::deliver(&mut request, &mut response).await,
        Side::Upstream => linger::deliver(&mut response, &mut request).await,
    }
    account.record(sent(&request, &response), true);
    Err(error)
}

/// The two sockets of a connection.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    Client,
    Upstream,
}

/// An error in one direction does not wait for the other. The end of the last direction is passed on by
/// closing both sockets.
fn poll_both(
    request: &mut Direction<'_>,
    response: &mut Direction<'_>,
    cx: &mut Context<'_>,
) -> Poll<Result<(), (Side, io::Error)>> {
    let one =
        request.poll(cx, response.finished).map_err(|error| error.side(Side::Client, Side::Upstream))?;
    let other =
        response.poll(cx, request.finished).map_err(|error| error.side(Side::Upstream, Side::Client))?;
    match (one, other) {
        (Poll::Ready(()), Poll::Ready(())) => Poll::Ready(Ok(())),
        _ => Poll::Pending,
    }
}

fn sent(request: &Direction<'_>, response: &Direction<'_>) -> Sent {
    Sent { to_upstream: request.carried, to_client: response.carried }
}

/// Reports the relayed bytes, not with every message.
struct Account<F> {
    count: F,
    counted: Sent,
}

impl<F: Fn(Sent)> Account<F> {
    fn record(&mut self, sent: Sent, is_over: bool) {
        let new = Sent {
            to_upstream: sent.to_upstream - self.counted.to_upstream,
            to_client: sent.to_client - self.counted.to_client,
        };
        if is_over || new.to_upstream + new.to_client >= COUNT_EVERY {
            (self.count)(new);
            self.counted = sent;
        }
    }
}

/// An error of a direction, with the socket.
enum Error {
    Read(io::Error),
    Write(io::Error),
}

impl Error {
    /// The failed socket of a direction from one side to the other.
    fn side(self, from: Side, to: Side) -> (Side, io::Error) {
        match self {
            Self::Read(error) => (from, error),
            Self::Write(error) => (to, error),
        }
    }
}

/// One direction: at most one buffer of bytes that were read and not yet written, from `start` to `end`.
struct Direction<'a> {
    from: ReadHalf<'a>,
    to: WriteHalf<'a>,
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    at_end: bool,
    finished: bool,
    carried: u64,
}

impl<'a> Direction<'a> {
    fn new(from: ReadHalf<'a>, to: WriteHalf<'a>) -> Self {
        Self { from, to, buffer: Vec::new(), start: 0, end: 0, at_end: false, finished: false, carried: 0 }
    }

    /// Relays what is possible. Ready once the end has been passed on, or once it has arrived if this is the
    /// last direction.
    fn poll(&mut self, cx: &mut Context<'_>, is_last: bool) -> Poll<Result<(), Error>> {
        if self.finished {
            return Poll::Ready(Ok(()));
        }
        loop {
            ready!(self.flush(cx))?;
            if self.buffer.len() < SHARED_BUFFER {
                self.buffer = Vec::new();
            }
            if self.at_end {
                if !is_last {
                    // The other side may have closed both directions; that shows as an error of its own.
                    let _ = ready!(Pin::new(&mut self.to).poll_shutdown(cx));
                }
                self.finished = true;
                self.buffer = Vec::new();
                return Poll::Ready(Ok(()));
            }
            if self.buffer.is_empty() {
                ready!(self.pass_on(cx))?;
            } else {
                ready!(self.poll_read(cx))?;
            }
        }
    }

    /// Gives back the buffer of an idle direction.
    fn release_buffer(&mut self) {
        if self.start == self.end {
            self.buffer = Vec::new();
        }
    }

    fn flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        while self.start < self.end {
            let rest = &self.buffer[self.start..self.end];
            let written = ready!(Pin::new(&mut self.to).poll_write(cx, rest)).map_err(Error::Write)?;
            self.start += written;
            self.carried += written as u64;
        }
        Poll::Ready(Ok(()))
    }

    /// Reads into the shared buffer and leaves nothing in it. Data that cannot be written yet is kept: often
    /// the first message, because the event loop does not know the new connection yet.
    fn pass_on(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        SHARED.with_borrow_mut(|shared| {
            let read = ready!(poll_receive(&self.from, cx, shared)).map_err(Error::Read)?;
            let message = &shared[..read];
            if message.is_empty() {
                self.at_end = true;
                return Poll::Ready(Ok(()));
            }
            let written = match Pin::new(&mut self.to).poll_write(cx, message) {
                Poll::Ready(written) => written.map_err(Error::Write)?,
                Poll::Pending => 0,
            };
            self.carried += written as u64;
            if written < message.len() || message.len() == SHARED_BUFFER {
                self.buffer = message.to_vec();
                (self.start, self.end) = (written, message.len());
            }
            Poll::Ready(Ok(()))
        })
    }

    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.make_room();
        let read = ready!(poll_receive(&self.from, cx, &mut self.buffer)).map_err(Error::Read)?;
        (self.start, self.end, self.at_end) = (0, read, read == 0);
        Poll::Ready(Ok(()))
    }

    /// A read that filled the buffer means that more is waiting: use a buffer of four times the size.
    fn make_room(&mut self) {
        let size = self.buffer.len();
        if self.end == size && size < BULK_BUFFER {
            self.buffer = vec![0; size * 4];
        }
    }
}

/// Reads what has arrived. After a read that does not fill the buffer `poll_read` waits for the next event
/// instead of reading again. But the kernel ends a read before an urgent byte, and the data after it causes
/// no event. The second read does not delay the message, which is written before.
fn poll_receive(from: &ReadHalf<'_>, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
    let from: &TcpStream = from.as_ref();
    loop {
        ready!(from.poll_read_ready(cx))?;
        match from.try_read(buffer) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            result => return Poll::Ready(result),
        }
    }
}

#[cfg(test)]
mod tests;
