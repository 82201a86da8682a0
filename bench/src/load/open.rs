//! The open loop: requests are sent by a schedule. The thread spins, since a sleeping thread may wake late.

use std::collections::VecDeque;
use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::Result;

use super::closed::connect;
use super::{Block, DEADLINE, Load};

/// One connection with pipelined requests.
struct Connection {
    stream: TcpStream,
    /// Scheduled send times of the requests without an answer.
    intended: VecDeque<Instant>,
    /// Bytes of requests that are not written to the socket yet.
    unsent: usize,
    /// Bytes received of the current answer.
    received: usize,
}

pub(super) fn run(block: &mut Block, load: Load, address: SocketAddr, end: Instant) -> Result<()> {
    let mut connections = Vec::new();
    for _ in 0..load.connections {
        let stream = connect(address)?;
        stream.set_nonblocking(true)?;
        connections.push(Connection { stream, intended: VecDeque::new(), unsent: 0, received: 0 });
    }
    let interval = Duration::from_secs(1) / load.rate;
    let message = vec![7; load.message];
    let mut buffer = vec![0; 65_536];
    block.began = Instant::now();
    let mut next = block.began;
    let mut number = 0;
    loop {
        let now = Instant::now();
        if now >= next && next < end {
            block.lag.record(u64::try_from((now - next).as_nanos())?)?;
            let count = connections.len();
            let connection: &mut Connection = &mut connections[number % count];
            connection.intended.push_back(next);
            connection.unsent += message.len();
            number += 1;
            next += interval;
        }
        let mut waiting = 0;
        for connection in connections.iter_mut().filter(|connection| !connection.intended.is_empty()) {
            if connection.advance(block, &message, &mut buffer).is_err() {
                block.errors += connection.intended.drain(..).len() as u64;
            }
            waiting += connection.intended.len();
        }
        if next >= end && waiting == 0 {
            return Ok(());
        }
        if now > end + DEADLINE {
            block.errors += waiting as u64;
            return Ok(());
        }
    }
}

impl Connection {
    /// Sends due requests and reads available answers, without blocking.
    fn advance(&mut self, block: &mut Block, message: &[u8], buffer: &mut [u8]) -> Result<()> {
        while self.unsent > 0 {
            // All requests have the same bytes, so the sender need not track where one ends.
            let length = self.unsent.min(message.len());
            match self.stream.write(&message[..length]) {
                Ok(sent) => self.unsent -= sent,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error.into()),
            }
        }
        match self.stream.read(buffer) {
            Ok(0) => anyhow::bail!("closed by the server"),
            Ok(length) => self.received += length,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error.into()),
        }
        while self.received >= message.len() {
            self.received -= message.len();
            let Some(intended) = self.intended.pop_front() else {
                anyhow::bail!("more answers than requests")
            };
            block.answered(intended)?;
        }
        Ok(())
    }
}
