//! The sockets of hickory's client.
//!
//! hickory's own UDP socket lacks four things that its client has no setting for: the socket is connected, so
//! that the kernel reports an unreachable server; a reply that is truncated, or too long for the buffer,
//! counts as truncated even if its last record cannot be decoded; an error without a question section is a
//! valid reply; and a complete reply that is longer than the query allows is used.

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

/// Datagrams that do not match, before we assume that an attacker is guessing and query over TCP, where
/// guessing does not help (RFC 5452 §9.3 mentions this defence).
const MAX_FORGERIES: usize = 8;

/// The payload size in the OPT record of our queries: no fragments (DNS flag day 2020).
const PAYLOAD: u16 = 1232;

/// The maximum size that we accept from a server that sends more: that of hickory's client.
pub(super) const MAX_PAYLOAD: u16 = 4096;

/// Larger than any datagram that is not truncated.
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

/// The result of checking a datagram.
enum Datagram {
    /// Pass it unchanged to hickory's client.
    Reply,
    /// Pass this to hickory's client instead.
    Replaced(Vec<u8>),
    /// It does not match our query: an attacker may be guessing.
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
        // hickory's client accepts no more than the query allows.
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
    /// Returns the socket's pending error: connection refused, for example.
    async fn error<T>(&self) -> io::Result<T> {
        let take = || Err(self.socket.take_error()?.unwrap_or_else(|| io::ErrorKind::WouldBlock.into()));
        self.socket.async_io(Interest::ERROR, take).await
    }

    /// `room` is the size of the buffer of hickory's client.
    fn judge(&self, datagram: &[u8], room: usize) -> Datagram {
        let Some(query) = self.query.get() else { return Datagram::Forged };
        let mut decoder = BinDecoder::new(datagram);
        let header = Header::read(&mut decoder).ok();
        let header = header.filter(|h| h.id == query.id && h.message_type == MessageType::Response);
        // Ignores case: hickory's client checks whether it must match.
        let is_ours = |header: &Header| match header.counts.queries {
            0 => super::answer::may_omit_question(header.response_code),
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
