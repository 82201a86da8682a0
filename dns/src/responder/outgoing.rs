//! Where the replies of the handler leave: encoded, counted, logged, and sent to the client.

use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Instant;

use hickory_server::net::NetError;
use hickory_server::proto::rr::Record;
use hickory_server::proto::serialize::binary::BinEncoder;
use hickory_server::server::{ResponseHandler, ResponseInfo};
use hickory_server::zone_handler::MessageResponse;
use socket2::SockRef;
use tokio::sync::mpsc;

use super::Responder;
use crate::message::Query;
use crate::metrics::Protocol;

/// The way to a client.
#[derive(Clone, Debug)]
pub(crate) enum Replies {
    /// By the socket of a UDP worker.
    Datagrams(Arc<UdpSocket>),
    /// To the task that writes to the client's connection. It takes no more than the client does.
    Connection(mpsc::Sender<Vec<u8>>),
}

/// The replies to one query.
#[derive(Clone)]
pub(super) struct Outgoing {
    responder: Arc<Responder>,
    from: (Protocol, SocketAddr),
    /// Until it has been accounted for: the messages of a transfer are one reply.
    query: Option<Arc<[u8]>>,
    since: Instant,
    replies: Replies,
}

impl Outgoing {
    pub(super) fn new(
        responder: &Arc<Responder>,
        query: &[u8],
        from: (Protocol, SocketAddr),
        replies: Replies,
    ) -> Self {
        Self {
            responder: Arc::clone(responder),
            from,
            query: Some(query.into()),
            since: Instant::now(),
            replies,
        }
    }

    /// Sends a reply that is encoded and accounted for.
    pub(super) async fn send(&self, reply: Vec<u8>) {
        match &self.replies {
            Replies::Datagrams(socket) => {
                // The workers' socket blocks, this thread must not: a datagram that finds no room is lost.
                let flags = libc::MSG_DONTWAIT;
                drop(SockRef::from(&**socket).send_to_with_flags(&reply, &self.from.1.into(), flags));
            }
            // The client may have closed its connection.
            Replies::Connection(connection) => drop(connection.send(reply).await),
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
        if let Some(query) = self.query.take() {
            let question = Query::parse(&query).ok().map(|query| query.question);
            let (protocol, client) = self.from;
            let said = (info.response_code.into(), &reply[..]);
            self.responder.account((protocol, &|| Some(client)), (&query, question), said, self.since);
        }
        self.send(reply).await;
        Ok(info)
    }
}
