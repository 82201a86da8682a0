//! Asking the upstream servers.
//!
//! A query keeps its bytes but for a fresh random id, and leaves by a socket of its own, so by a random port
//! (RFC 5452 §9). A server that does not answer in time, or answers that it cannot, is followed by the next.

mod resolv_conf;

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use hickory_server::proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_server::proto::rr::{Name, RecordType};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::time::timeout;

pub(crate) use resolv_conf::upstreams;

/// What one server gets before the next is asked. All of them together stay below the 5 s of a client's patience.
const TRY_TIMEOUT: Duration = Duration::from_millis(1200);

/// Tries in all, however many servers there are.
const TRIES: usize = 3;

/// Queries that may be under way; one more is turned away at once, which is better than being late for all.
const MAX_QUERIES: usize = 1000;

/// The servers, and the room for queries.
pub(crate) struct Forwarder {
    upstreams: Vec<SocketAddr>,
    room: Semaphore,
}

impl Forwarder {
    pub(crate) fn new(upstreams: Vec<SocketAddr>) -> Self {
        Self { upstreams, room: Semaphore::new(MAX_QUERIES) }
    }

    pub(crate) fn has_upstreams(&self) -> bool {
        !self.upstreams.is_empty()
    }

    /// Asks for a name on our own behalf. `None` if nobody answers.
    pub(crate) async fn resolve(&self, name: &Name, kind: RecordType) -> Option<Message> {
        let mut message = Message::new(0, MessageType::Query, OpCode::Query);
        message.metadata.recursion_desired = true;
        message.queries.push(Query::query(name.clone(), kind));
        self.relay(&message.to_vec().ok()?).await
    }

    /// Passes a query on and returns the first answer that says something; if none does, one that at least answered.
    pub(crate) async fn relay(&self, query: &[u8]) -> Option<Message> {
        let Ok(_permit) = self.room.try_acquire() else { return None };
        let mut refused = None;
        for upstream in self.upstreams.iter().cycle().take(TRIES.min(self.upstreams.len() * 2)) {
            let asked = timeout(TRY_TIMEOUT, ask(*upstream, query)).await;
            match asked.unwrap_or_else(|_elapsed| Err(io::ErrorKind::TimedOut.into())) {
                Ok(answer) => match answer.metadata.response_code {
                    ResponseCode::ServFail | ResponseCode::Refused => refused = Some(answer),
                    _ => return Some(answer),
                },
                Err(error) => tracing::debug!(%upstream, %error, "no answer, trying the next server"),
            }
        }
        refused
    }
}

async fn ask(upstream: SocketAddr, query: &[u8]) -> io::Result<Message> {
    let mut query = query.to_vec();
    let id = fastrand::u16(..);
    let Some(header) = query.get_mut(..2) else { return Err(io::ErrorKind::InvalidInput.into()) };
    header.copy_from_slice(&id.to_be_bytes());
    let answer = ask_udp(upstream, &query).await?;
    if answer.metadata.truncation { ask_tcp(upstream, &query).await } else { Ok(answer) }
}

async fn ask_udp(upstream: SocketAddr, query: &[u8]) -> io::Result<Message> {
    let local: SocketAddr = match upstream {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = UdpSocket::bind(local).await?;
    // Connected, the kernel drops datagrams from anybody else.
    socket.connect(upstream).await?;
    socket.send(query).await?;
    let mut buffer = vec![0; 4096];
    loop {
        let length = socket.recv(&mut buffer).await?;
        // What does not match may be forged: wait for what does.
        if let Some(answer) = matching(query, &buffer[..length]) {
            return Ok(answer);
        }
    }
}

async fn ask_tcp(upstream: SocketAddr, query: &[u8]) -> io::Result<Message> {
    let mut stream = TcpStream::connect(upstream).await?;
    let length = u16::try_from(query.len()).map_err(io::Error::other)?;
    let framed: Vec<u8> = length.to_be_bytes().into_iter().chain(query.iter().copied()).collect();
    stream.write_all(&framed).await?;
    let length = stream.read_u16().await?;
    let mut answer = vec![0; usize::from(length)];
    stream.read_exact(&mut answer).await?;
    matching(query, &answer).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// The answer, if it is one to this query: same id, same question.
fn matching(query: &[u8], answer: &[u8]) -> Option<Message> {
    let answer = Message::from_vec(answer).ok()?;
    let query = Message::from_vec(query).ok()?;
    let is_answer =
        answer.metadata.message_type == MessageType::Response && answer.metadata.id == query.metadata.id;
    (is_answer && answer.queries == query.queries).then_some(answer)
}
