//! DNS queries over many UDP flows, from one thread that never sleeps.
//!
//! A flow is a connected socket with its own port: a server with SO_REUSEPORT sockets gets enough flows to
//! distribute, and answers need no route lookup here. The thread spins on the flow that has waited longest,
//! so servers do not pay for a wake-up. It checks every answer against its query: id, question, response
//! code, whether there are records.

use std::io::{self, IoSlice, IoSliceMut};
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, MultiHeaders, SockaddrIn, recvmmsg, sendmmsg};

use super::workload::Queries;
use crate::load::Block;

/// Number of flows: enough for a hash to distribute (dnsperf: `-c 128`).
pub(super) const FLOWS: usize = 128;

/// Queries that a flow sends together, as a resolver sends A and AAAA.
pub(super) const BURST: usize = 2;

/// Maximum size of an answer.
const ANSWER: usize = 1232;

/// A query in flight; `number` is its index among the queries.
#[derive(Clone, Copy, Debug, Default)]
struct Sent {
    id: u16,
    number: usize,
    is_answered: bool,
}

struct Flow {
    socket: UdpSocket,
    outgoing: [Vec<u8>; BURST],
    sent: [Sent; BURST],
    at: Instant,
    waiting: usize,
}

/// Flows to one server.
pub(super) struct Flows<'q> {
    queries: &'q Queries,
    flows: Vec<Flow>,
    receiving: MultiHeaders<SockaddrIn>,
    sending: MultiHeaders<SockaddrIn>,
    answers: [[u8; ANSWER]; BURST],
    next: usize,
    id: u16,
}

impl<'q> Flows<'q> {
    /// Opens the flows in the calling thread's network namespace; `from` is the first query to send.
    pub(super) fn open(server: SocketAddr, queries: &'q Queries, from: usize) -> io::Result<Self> {
        let flow = || {
            let socket = UdpSocket::bind("0.0.0.0:0")?;
            socket.connect(server)?;
            socket.set_nonblocking(true)?;
            let (outgoing, sent) = ([const { Vec::new() }; BURST], [Sent::default(); BURST]);
            Ok(Flow { socket, outgoing, sent, at: Instant::now(), waiting: 0 })
        };
        Ok(Self {
            queries,
            flows: (0..FLOWS).map(|_| flow()).collect::<io::Result<_>>()?,
            receiving: MultiHeaders::preallocate(BURST, None),
            sending: MultiHeaders::preallocate(BURST, None),
            answers: [[0; ANSWER]; BURST],
            next: from,
            id: 0,
        })
    }

    /// Closed loop: a flow whose queries are answered sends the next ones at once.
    pub(super) fn load(&mut self, block: &mut Block, length: Duration) -> Result<()> {
        // After this time an answer counts as lost. A waiting flow sends nothing, which makes the other flows
        // faster, so it must not wait for a whole block.
        let lost = length / 2;
        block.began = Instant::now();
        let end = block.began + length;
        for index in 0..FLOWS {
            self.send(index)?;
        }
        // Answers arrive nearly in the order of the queries, so the next flow is checked next.
        let (mut index, mut now) = (0, block.began);
        while now < end {
            let received = self.receive(index)?;
            now = Instant::now();
            let flow = &mut self.flows[index];
            if received > 0 {
                let latency = u64::try_from((now - flow.at).as_nanos())?;
                for _ in 0..received {
                    block.latencies.record(latency)?;
                }
                block.units += received as f64;
            }
            if flow.waiting > 0 && now - flow.at > lost {
                block.errors += flow.waiting as u64;
                flow.waiting = 0;
            }
            if flow.waiting == 0 {
                self.send(index)?;
            }
            index = (index + 1) % FLOWS;
        }
        block.took = now - block.began;
        self.drain(now, lost)?;
        block.errors += self.flows.iter().map(|flow| flow.waiting as u64).sum::<u64>();
        Ok(())
    }

    /// Receives the outstanding answers, so that a slow server is idle before another one is measured. The
    /// block is over: this wait does not count for the rate.
    fn drain(&mut self, since: Instant, lost: Duration) -> Result<()> {
        for index in (0..FLOWS).cycle() {
            if since.elapsed() > lost || self.flows.iter().all(|flow| flow.waiting == 0) {
                break;
            }
            self.receive(index)?;
        }
        Ok(())
    }

    /// Sends the next queries of a flow.
    fn send(&mut self, index: usize) -> Result<()> {
        let flow = &mut self.flows[index];
        for (message, sent) in flow.outgoing.iter_mut().zip(&mut flow.sent) {
            let number = self.next % self.queries.messages.len();
            self.next += 1;
            self.id = self.id.wrapping_add(1);
            message.clear();
            message.extend_from_slice(&self.queries.messages[number]);
            message[..2].copy_from_slice(&self.id.to_be_bytes());
            *sent = Sent { id: self.id, number, is_answered: false };
        }
        let slices: [[IoSlice<'_>; 1]; BURST] =
            std::array::from_fn(|slot| [IoSlice::new(&flow.outgoing[slot])]);
        let (to, flags) = ([None::<SockaddrIn>; BURST], MsgFlags::empty());
        flow.at = Instant::now();
        let sent = sendmmsg(flow.socket.as_raw_fd(), &mut self.sending, &slices, to, [], flags)?;
        ensure!(sent.count() == BURST, "not all of a burst was sent");
        flow.waiting = BURST;
        Ok(())
    }

    /// Receives the available answers of a flow. Returns the number of correct answers.
    fn receive(&mut self, index: usize) -> Result<usize> {
        let flow = &mut self.flows[index];
        let [one, two] = &mut self.answers;
        let mut slices: [[IoSliceMut<'_>; 1]; BURST] = [[IoSliceMut::new(one)], [IoSliceMut::new(two)]];
        let flags = MsgFlags::MSG_DONTWAIT;
        let received = recvmmsg(flow.socket.as_raw_fd(), &mut self.receiving, slices.iter_mut(), flags, None);
        let lengths: [usize; BURST] = match received {
            Ok(mut messages) => std::array::from_fn(|_| messages.next().map_or(0, |message| message.bytes)),
            Err(Errno::EAGAIN) => return Ok(0),
            Err(error) => return Err(error.into()),
        };
        let mut answered = 0;
        for (answer, length) in self.answers.iter().zip(lengths) {
            let answer = &answer[..length];
            let Some(id) = answer.first_chunk().map(|id| u16::from_be_bytes(*id)) else { continue };
            // An answer without a query arrived too late.
            let Some(sent) = flow.sent.iter_mut().find(|sent| sent.id == id && !sent.is_answered) else {
                continue;
            };
            ensure!(
                self.queries.is_answered_by(sent.number, id, answer),
                "a wrong answer: {:02x?} to {:02x?}",
                answer,
                self.queries.messages[sent.number]
            );
            sent.is_answered = true;
            flow.waiting = flow.waiting.saturating_sub(1);
            answered += 1;
        }
        Ok(answered)
    }
}
