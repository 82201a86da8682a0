//! The sockets under hickory's client.
//!
//! hickory's own UDP socket is used but for four things that its client has no setting for: the socket is
//! connected, so that the kernel reports a server that is not there; a reply that is cut, or too long for the
//! buffer, is known to be cut even if its last record cannot be read; an error without a question section is
//! an answer; and a whole reply that is longer than the query allows is used.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hickory_resolver::net::runtime::{
    DnsUdpSocket, RuntimeProvider, TokioHandle, TokioRuntimeProvider, TokioTime,
};
use hickory_resolver::proto::op::{Header, Message, MessageType, Query};
use hickory_resolver::proto::serialize::binary::{BinDecodable as _, BinDecoder};
use tokio::io::{Interest, ReadBuf};
use tokio::net::UdpSocket;

/// Datagrams that are not the answer, before we conclude that an attacker is guessing and query over TCP,
/// where guessing does not help (RFC 5452 §9.3 speaks of this defence).
const MAX_FORGERIES: usize = 8;

/// What the OPT record of our queries says we can take: no fragments (DNS flag day 2020).
const PAYLOAD: u16 = 1232;

/// What we take of a server that sends more: as much as hickory's client ever does.
pub(super) const MAX_PAYLOAD: u16 = 4096;

/// More than any datagram that is not cut.
const BUFFER: usize = MAX_PAYLOAD as usize + 1;

/// tokio, with [`Datagrams`].
#[derive(Clone, Default)]
pub(super) struct Runtime(TokioRuntimeProvider);

impl RuntimeProvider for Runtime {
    type Handle = TokioHandle;
    type Timer = TokioTime;
    type Udp = Datagrams;
    type Tcp = <TokioRuntimeProvider as RuntimeProvider>::Tcp;

    fn create_handle(&self) -> TokioHandle {
        self.0.create_handle()
    }

    fn connect_tcp(
        &self,
        server: SocketAddr,
        local: Option<SocketAddr>,
        timeout: Option<Duration>,
    ) -> Pin<Box<dyn Send + Future<Output = io::Result<Self::Tcp>>>> {
        self.0.connect_tcp(server, local, timeout)
    }

    fn bind_udp(
        &self,
        local: SocketAddr,
        server: SocketAddr,
    ) -> Pin<Box<dyn Send + Future<Output = io::Result<Self::Udp>>>> {
        Box::pin(async move {
            let socket = UdpSocket::bind(local).await?;
            socket.connect(server).await?;
            Ok(Datagrams { socket, server, query: OnceLock::new(), forgeries: AtomicUsize::new(0) })
        })
    }
}

/// The socket of one query.
pub(super) struct Datagrams {
    socket: UdpSocket,
    server: SocketAddr,
    query: OnceLock<Message>,
    forgeries: AtomicUsize,
}

/// What is made of a datagram.
enum Datagram {
    /// For hickory's client, as it came.
    Reply,
    /// For hickory's client, in place of what came.
    Replaced(Vec<u8>),
    /// Not an answer to our query: an attacker may be guessing.
    Forged,
}

#[async_trait::async_trait]
impl DnsUdpSocket for Datagrams {
    type Time = TokioTime;

    fn poll_recv_from(
        &self,
        cx: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<(usize, SocketAddr)>> {
        let mut datagram = ReadBuf::new(buffer);
        ready!(self.socket.poll_recv(cx, &mut datagram))?;
        Poll::Ready(Ok((datagram.filled().len(), self.server)))
    }

    async fn recv_from(&self, buffer: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
        let mut room = [0; BUFFER];
        loop {
            let length = tokio::select! {
                received = self.socket.recv(&mut room) => received?,
                refused = self.error() => return refused,
            };
            let datagram = &room[..length];
            let replaced;
            let message = match self.judge(datagram, buffer.len()) {
                Datagram::Reply => datagram,
                Datagram::Replaced(message) => {
                    replaced = message;
                    &replaced
                }
                Datagram::Forged => continue,
            };
            let length = message.len().min(buffer.len());
            buffer[..length].copy_from_slice(&message[..length]);
            return Ok((length, self.server));
        }
    }

    fn poll_send_to(
        &self,
        cx: &mut Context<'_>,
        message: &[u8],
        _server: SocketAddr,
    ) -> Poll<io::Result<usize>> {
        // hickory's client takes no more than the query says.
        let mut query = Message::from_vec(message).map_err(io::Error::other)?;
        if let Some(edns) = &mut query.edns {
            edns.set_max_payload(PAYLOAD);
        }
        let sent = query.to_vec().map_err(io::Error::other)?;
        ready!(self.socket.poll_send(cx, &sent))?;
        self.query.get_or_init(|| query);
        Poll::Ready(Ok(message.len()))
    }
}

impl Datagrams {
    /// Ends with the error that the kernel has for the socket: connection refused, for example.
    async fn error<T>(&self) -> io::Result<T> {
        let take = || Err(self.socket.take_error()?.unwrap_or_else(|| io::ErrorKind::WouldBlock.into()));
        self.socket.async_io(Interest::ERROR, take).await
    }

    /// `room` is what hickory's client has room for.
    fn judge(&self, datagram: &[u8], room: usize) -> Datagram {
        let Some(query) = self.query.get() else { return Datagram::Forged };
        let mut decoder = BinDecoder::new(datagram);
        let header = Header::read(&mut decoder).ok();
        let header = header.filter(|h| h.id == query.id && h.message_type == MessageType::Response);
        // In any case: whether it has to be the same is for hickory's client to say.
        let is_ours = |header: &Header| match header.counts.queries {
            0 => super::answer::need_no_question(header.response_code),
            1 => Query::read(&mut decoder).is_ok_and(|question| query.queries.first() == Some(&question)),
            _ => false,
        };
        let mut reply = Message::response(query.id, query.op_code);
        match header.filter(is_ours) {
            None if self.forgeries.fetch_add(1, Relaxed) < MAX_FORGERIES => return Datagram::Forged,
            None => reply.metadata.truncation = true,
            Some(header) => {
                let is_cut = header.truncation || datagram.len() > room;
                if !is_cut && header.counts.queries > 0 {
                    return Datagram::Reply;
                }
                reply.metadata = header.metadata;
                reply.metadata.truncation = is_cut;
            }
        }
        reply.queries.clone_from(&query.queries);
        reply.to_vec().map_or(Datagram::Forged, Datagram::Replaced)
    }
}
