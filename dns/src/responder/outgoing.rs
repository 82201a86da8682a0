//! Where the replies of the handler leave: encoded, counted, logged, and sent to the client.

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

/// The way to a client.
#[derive(Clone, Debug)]
pub(crate) enum Replies {
    /// By the socket of a UDP worker.
    Datagrams(Arc<UdpSocket>),
    /// To the task that writes to the client's connection. It takes no more than the client does.
    Connection(mpsc::Sender<Vec<u8>>),
}

impl Replies {
    /// Sends a reply that is encoded and accounted for.
    pub(super) async fn send(&self, client: SocketAddr, reply: Vec<u8>) {
        match self {
            Self::Datagrams(socket) => {
                // The workers' socket blocks, this thread must not: a datagram that finds no room is lost.
                let flags = libc::MSG_DONTWAIT;
                drop(SockRef::from(&**socket).send_to_with_flags(&reply, &client.into(), flags));
            }
            // The client may have closed its connection.
            Self::Connection(connection) => drop(connection.send(reply).await),
        }
    }
}

/// The replies to one query.
#[derive(Clone)]
pub(super) struct Outgoing {
    responder: Arc<Responder>,
    request: Arc<Request>,
    since: Instant,
    /// The messages of a transfer are one reply.
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
            let said = (info.response_code.into(), &reply[..]);
            let from = (request.protocol().into(), &(|| Some(client)) as Client<'_>);
            self.responder.account(from, (request.as_slice(), question), said, self.since);
        }
        self.replies.send(client, reply).await;
        Ok(info)
    }
}
