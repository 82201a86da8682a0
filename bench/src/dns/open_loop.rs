//! DNS queries over UDP at a fixed rate, whether answered or not. Latency counts from the scheduled time.

use std::collections::VecDeque;
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::flows::FLOWS;
use super::workload::Queries;
use crate::load::Block;

/// After this time an answer counts as lost.
pub(super) const LOST: Duration = Duration::from_secs(1);

/// A query in flight.
#[derive(Clone, Copy, Debug)]
struct Sent {
    id: u16,
    number: usize,
    intended: Instant,
    is_answered: bool,
}

/// Flows to one server, used in turn.
pub(super) struct OpenLoop<'q> {
    queries: &'q Queries,
    sockets: Vec<UdpSocket>,
    message: Vec<u8>,
    /// Queries in flight, in order. The socket of a query is its id modulo the number of sockets.
    in_flight: VecDeque<Sent>,
    next: usize,
    id: u16,
    cursor: usize,
}

impl<'q> OpenLoop<'q> {
    pub(super) fn open(server: SocketAddr, queries: &'q Queries, from: usize) -> io::Result<Self> {
        let socket = || {
            let socket = UdpSocket::bind("0.0.0.0:0")?;
            socket.connect(server)?;
            socket.set_nonblocking(true)?;
            Ok(socket)
        };
        let sockets = (0..FLOWS).map(|_| socket()).collect::<io::Result<_>>()?;
        let (message, in_flight) = (Vec::new(), VecDeque::new());
        Ok(Self { queries, sockets, message, in_flight, next: from, id: 0, cursor: 0 })
    }

    /// Sends `rate` queries a second for `length`. A query that is unanswered or does not fit into the socket
    /// buffer is an error.
    pub(super) fn load(&mut self, block: &mut Block, rate: u32, length: Duration) -> Result<()> {
        let end = Instant::now() + length;
        self.load_while(block, rate, |next| next < end)
    }

    /// As [`OpenLoop::load`], as long as `is_running` holds for the time of the next query.
    pub(super) fn load_while(
        &mut self,
        block: &mut Block,
        rate: u32,
        is_running: impl Fn(Instant) -> bool,
    ) -> Result<()> {
        let interval = Duration::from_secs(1) / rate;
        block.began = Instant::now();
        let mut next = block.began;
        loop {
            let now = Instant::now();
            let is_running = is_running(next);
            if now >= next && is_running {
                block.lag.record(u64::try_from((now - next).as_nanos())?)?;
                self.send(block, next)?;
                next += interval;
            }
            self.receive(block)?;
            while self.in_flight.front().is_some_and(|sent| sent.is_answered || now - sent.intended > LOST) {
                let sent = self.in_flight.pop_front();
                block.errors += u64::from(sent.is_some_and(|sent| !sent.is_answered));
            }
            // Lost queries leave the queue after `LOST`.
            if !is_running && self.in_flight.is_empty() {
                block.took = block.began.elapsed();
                return Ok(());
            }
        }
    }

    fn send(&mut self, block: &mut Block, intended: Instant) -> Result<()> {
        let number = self.next % self.queries.messages.len();
        self.message.clear();
        self.message.extend_from_slice(&self.queries.messages[number]);
        self.message[..2].copy_from_slice(&self.id.to_be_bytes());
        match self.sockets[usize::from(self.id) % FLOWS].send(&self.message) {
            Ok(_) => {
                self.in_flight.push_back(Sent { id: self.id, number, intended, is_answered: false });
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => block.errors += 1,
            Err(error) => return Err(error.into()),
        }
        self.next += 1;
        self.id = self.id.wrapping_add(1);
        Ok(())
    }

    /// Reads the socket of the oldest query; if it has no answer, reads one further socket.
    fn receive(&mut self, block: &mut Block) -> Result<()> {
        let Some(oldest) = self.in_flight.front() else { return Ok(()) };
        let due = usize::from(oldest.id) % FLOWS;
        if !self.receive_on(block, due)? {
            self.cursor = (self.cursor + 1) % FLOWS;
            self.receive_on(block, self.cursor)?;
        }
        Ok(())
    }

    /// Reads one socket. Returns whether it had a datagram.
    fn receive_on(&mut self, block: &mut Block, index: usize) -> Result<bool> {
        let mut answer = [0; 512];
        let length = match self.sockets[index].recv(&mut answer) {
            Ok(length) => length,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
            Err(error) => return Err(error.into()),
        };
        let answer = &answer[..length];
        let (Some(first), Some(id)) =
            (self.in_flight.front(), answer.first_chunk().map(|id| u16::from_be_bytes(*id)))
        else {
            return Ok(true);
        };
        // Ids are consecutive except for queries that were not sent.
        let guess = usize::from(id.wrapping_sub(first.id));
        let from = guess.min(self.in_flight.len() - 1);
        let found = (0..=from).rev().find(|at| self.in_flight[*at].id == id);
        let Some(sent) = found.and_then(|at| self.in_flight.get_mut(at)) else { return Ok(true) };
        if !std::mem::replace(&mut sent.is_answered, true) {
            ensure!(self.queries.is_answered_by(sent.number, id, answer), "a wrong answer: {answer:02x?}");
            block.answered(sent.intended)?;
        }
        Ok(true)
    }
}
