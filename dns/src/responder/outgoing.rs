//! Encodes, counts, logs and sends the replies of the handler.

use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Instant;

use hickory_server::net::NetError;
use hickory_server::proto::rr::Record;
use hickory_server::proto::serialize::binary::BinEncoder;
use hickory_server::server::{Request, ResponseHandler, ResponseInfo};
use hickory_server::zone_handler::MessageResponse;
use socket2::SockRef;
use tokio::sync::mpsc;

use super::handler::query;
use super::{Client, Responder};

/// Where replies are sent.
#[derive(Clone, Debug)]
pub(crate) enum Replies {
    /// The socket of a UDP worker.
    Datagrams(Arc<UdpSocket>),
    /// The task that writes to the client's connection. It applies the client's back-pressure.
    Connection(mpsc::Sender<Vec<u8>>),
}

impl Replies {
    /// Sends a reply that is encoded and counted.
    pub(super) async fn send(&self, client: SocketAddr, reply: Vec<u8>) {
        match self {
            Self::Datagrams(socket) => {
                // The workers' socket blocks, but this thread must not: if the send buffer is full the
                // datagram is dropped.
                let flags = libc::MSG_DONTWAIT;
                let _ = SockRef::from(&**socket).send_to_with_flags(&reply, &client.into(), flags);
            }
            // The client may have closed its connection.
            Self::Connection(connection) => {
                let _ = connection.send(reply).await;
            }
        }
    }
}

/// The replies to one query.
#[derive(Clone)]
pub(super) struct Outgoing {
    responder: Arc<Responder>,
    request: Arc<Request>,
    since: Instant,
    /// All messages of a transfer count as one reply.
    is_accounted_for: bool,
    replies: Replies,
}

impl Outgoing {
    pub(super) fn new(responder: &Arc<Responder>, request: &Arc<Request>, replies: Replies) -> Self {
        Self {
            responder: Arc::clone(responder),
            request: Arc::clone(request),
            since: Instant::now(),
            is_accounted_for: false,
            replies,
        }
    }
}

#[async_trait::async_trait]
impl ResponseHandler for Outgoing {
    async fn send_response<'a>(
        &mut self,
        response: MessageResponse<
            '_,
            'a,
            impl Iterator<Item = &'a Record> + Send + 'a,
            impl Iterator<Item = &'a Record> + Send + 'a,
            impl Iterator<Item = &'a Record> + Send + 'a,
            impl Iterator<Item = &'a Record> + Send + 'a,
        >,
    ) -> Result<ResponseInfo, NetError> {
        let mut reply = Vec::with_capacity(512);
        let info = response.destructive_emit(&mut BinEncoder::new(&mut reply))?;
        let (request, client) = (&*self.request, self.request.src());
        if !std::mem::replace(&mut self.is_accounted_for, true) {
            let question = query(request).map(|query| query.question);
            let sent = (info.response_code.into(), &reply[..]);
            let from = (request.protocol().into(), &(|| Some(client)) as Client<'_>);
            self.responder.account(from, (request.as_slice(), question), sent, self.since);
        }
        self.replies.send(client, reply).await;
        Ok(info)
    }
}
