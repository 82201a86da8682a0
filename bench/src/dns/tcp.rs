//! DNS queries over TCP, pipelined: each connection has several queries in flight (RFC 7766 §6.2.1.1).

use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::workload::Queries;
use crate::load::Block;

/// Connections and queries in flight on each: in total as many as over UDP.
pub(super) const CONNECTIONS: usize = 16;
pub(super) const PIPELINED: usize = 16;

#[derive(Clone, Copy, Debug)]
struct Sent {
    number: usize,
    at: Instant,
}

struct Connection {
    stream: TcpStream,
    /// Queries in flight by id. An id is free after its answer.
    in_flight: [Option<Sent>; PIPELINED],
    outgoing: Vec<u8>,
    incoming: Vec<u8>,
}

/// Connections to one server.
pub(super) struct TcpConnections<'q> {
    queries: &'q Queries,
    connections: Vec<Connection>,
    buffer: Vec<u8>,
    next: usize,
}

impl<'q> TcpConnections<'q> {
    /// Connects from the calling thread's network namespace.
    pub(super) fn open(server: SocketAddr, queries: &'q Queries, from: usize) -> io::Result<Self> {
        let connection = || {
            let stream = TcpStream::connect_timeout(&server, Duration::from_secs(5))?;
            stream.set_nodelay(true)?;
            stream.set_nonblocking(true)?;
            let (outgoing, incoming) = (Vec::new(), Vec::new());
            Ok(Connection { stream, in_flight: [None; PIPELINED], outgoing, incoming })
        };
        let connections = (0..CONNECTIONS).map(|_| connection()).collect::<io::Result<_>>()?;
        Ok(Self { queries, connections, buffer: vec![0; 65_536], next: from })
    }

    /// Closed loop: each answer frees an id for the next query.
    pub(super) fn load(&mut self, block: &mut Block, length: Duration) -> Result<()> {
        block.began = Instant::now();
        let end = block.began + length;
        let mut index = 0;
        while Instant::now() < end {
            self.send(index)?;
            self.receive(block, index)?;
            index = (index + 1) % CONNECTIONS;
        }
        block.took = block.began.elapsed();
        Ok(())
    }

    /// Sends a query for each free id, in one write.
    fn send(&mut self, index: usize) -> Result<()> {
        let connection = &mut self.connections[index];
        let at = Instant::now();
        for (id, place) in connection.in_flight.iter_mut().enumerate().filter(|(_, place)| place.is_none()) {
            let number = self.next % self.queries.messages.len();
            self.next += 1;
            let message = &self.queries.messages[number];
            connection.outgoing.extend_from_slice(&u16::try_from(message.len())?.to_be_bytes());
            connection.outgoing.extend_from_slice(&u16::try_from(id)?.to_be_bytes());
            connection.outgoing.extend_from_slice(&message[2..]);
            *place = Some(Sent { number, at });
        }
        if connection.outgoing.is_empty() {
            return Ok(());
        }
        match connection.stream.write(&connection.outgoing) {
            Ok(written) => {
                connection.outgoing.drain(..written);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }

    fn receive(&mut self, block: &mut Block, index: usize) -> Result<()> {
        let connection = &mut self.connections[index];
        let length = match connection.stream.read(&mut self.buffer) {
            Ok(0) => anyhow::bail!("closed by the server"),
            Ok(length) => length,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        connection.incoming.extend_from_slice(&self.buffer[..length]);
        let mut read = 0;
        while let Some((length, rest)) = connection.incoming[read..].split_first_chunk::<2>() {
            let Some(answer) = rest.get(..usize::from(u16::from_be_bytes(*length))) else { break };
            read += 2 + answer.len();
            let id = answer.first_chunk().map_or(u16::MAX, |id| u16::from_be_bytes(*id));
            let sent = connection.in_flight.get_mut(usize::from(id)).and_then(Option::take);
            let is_right = sent.is_some_and(|sent| self.queries.is_answered_by(sent.number, id, answer));
            ensure!(is_right, "a wrong answer: {answer:02x?}");
            if let Some(sent) = sent {
                block.answered(sent.at)?;
            }
        }
        connection.incoming.drain(..read);
        Ok(())
    }
}
