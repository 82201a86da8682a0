//! Carrying bytes both ways between two sockets.
//!
//! One task polls both directions, and what was read is written at once, in the same poll: a small message costs two
//! system calls and no hop between tasks. A half-close travels on as a half-close; an error on either side is an error
//! of the whole, which the caller turns into a reset of both.

use std::future::poll_fn;
use std::io;
use std::net::Shutdown;
use std::task::{Context, Poll, ready};

use socket2::SockRef;
use tokio::net::TcpStream;

/// Enough for a small request or answer.
const FIRST_BUFFER: usize = 4 * 1024;

/// What a connection that has proved to be bulk gets.
const BULK_BUFFER: usize = 256 * 1024;

/// Bytes carried, for the metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Sent {
    pub(super) to_upstream: u64,
    pub(super) to_client: u64,
}

/// Relays until both sides have finished, or one breaks.
pub(super) async fn relay(client: &TcpStream, upstream: &TcpStream) -> (Sent, io::Result<()>) {
    let mut request = Direction::default();
    let mut response = Direction::default();
    let result = poll_fn(|cx| {
        let one = request.poll(cx, client, upstream)?;
        let other = response.poll(cx, upstream, client)?;
        match (one, other) {
            (Poll::Ready(()), Poll::Ready(())) => Poll::Ready(Ok(())),
            _ => Poll::Pending,
        }
    })
    .await;
    (Sent { to_upstream: request.carried, to_client: response.carried }, result)
}

/// One direction: at most one buffer of bytes that were read and not yet written.
#[derive(Default)]
struct Direction {
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    at_end: bool,
    finished: bool,
    carried: u64,
}

impl Direction {
    /// Moves what can be moved. Ready once the end has been passed on.
    fn poll(&mut self, cx: &mut Context<'_>, from: &TcpStream, to: &TcpStream) -> Poll<io::Result<()>> {
        if self.finished {
            return Poll::Ready(Ok(()));
        }
        loop {
            while self.start < self.end {
                ready!(self.poll_write(cx, to))?;
            }
            if self.at_end {
                // The other side may have closed altogether; that shows as an error of its own.
                drop(SockRef::from(to).shutdown(Shutdown::Write));
                self.finished = true;
                self.buffer = Vec::new();
                return Poll::Ready(Ok(()));
            }
            ready!(self.poll_read(cx, from))?;
        }
    }

    fn poll_write(&mut self, cx: &mut Context<'_>, to: &TcpStream) -> Poll<io::Result<()>> {
        loop {
            ready!(to.poll_write_ready(cx))?;
            match to.try_write(&self.buffer[self.start..self.end]) {
                Ok(written) => {
                    self.start += written;
                    self.carried += written as u64;
                    return Poll::Ready(Ok(()));
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Err(e) => return Poll::Ready(Err(e)),
            }
        }
    }

    fn poll_read(&mut self, cx: &mut Context<'_>, from: &TcpStream) -> Poll<io::Result<()>> {
        loop {
            ready!(from.poll_read_ready(cx))?;
            self.make_room();
            match from.try_read(&mut self.buffer) {
                Ok(read) => {
                    (self.start, self.end, self.at_end) = (0, read, read == 0);
                    return Poll::Ready(Ok(()));
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Err(e) => return Poll::Ready(Err(e)),
            }
        }
    }

    /// A read that filled the buffer says that more was waiting: the next one gets four times the room.
    fn make_room(&mut self) {
        let size = match self.buffer.len() {
            0 => FIRST_BUFFER,
            size if self.end == size && size < BULK_BUFFER => size * 4,
            size => size,
        };
        if size != self.buffer.len() {
            self.buffer = vec![0; size];
        }
    }
}

#[cfg(test)]
mod tests;
