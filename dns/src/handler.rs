//! From a request to a reply.

use std::sync::Arc;
use std::time::Instant;

use arc_swap::ArcSwap;
use hickory_server::net::runtime::Time;
use hickory_server::proto::op::{MessageType, OpCode, ResponseCode};
use hickory_server::proto::rr::{DNSClass, Name, RecordType};
use hickory_server::server::{Request, RequestHandler, ResponseHandler, ResponseInfo};

use crate::forward::Forwarder;
use crate::metrics::Metrics;
use crate::reply::{Explanation, Reply};
use crate::zone::{Answer, Found, Zone};

/// Answers every request; shared by all sockets.
pub(crate) struct Handler {
    pub(crate) zone: Arc<ArcSwap<Zone>>,
    pub(crate) forwarder: Forwarder,
    pub(crate) metrics: Arc<Metrics>,
}

#[async_trait::async_trait]
impl RequestHandler for Handler {
    async fn handle_request<R: ResponseHandler, T: Time>(
        &self,
        request: &Request,
        response: R,
    ) -> ResponseInfo {
        // A response that comes as a query must not be answered: two servers would go on for ever.
        if request.metadata.message_type == MessageType::Response {
            return Reply::new(request, ResponseCode::FormErr).info();
        }
        let started = Instant::now();
        let reply = self.reply(request).await;
        self.metrics.count(request, reply.metadata.response_code, started.elapsed());
        reply.send(request, response).await
    }
}

impl Handler {
    async fn reply(&self, request: &Request) -> Reply {
        let [query] = request.queries.queries() else {
            // One question a message (RFC 9619).
            return Reply::new(request, ResponseCode::FormErr);
        };
        if request.version() > 0 {
            return Reply::new(request, ResponseCode::BADVERS);
        }
        if request.metadata.op_code != OpCode::Query {
            return Reply::new(request, ResponseCode::NotImp);
        }
        if query.query_class() != DNSClass::IN
            || matches!(query.query_type(), RecordType::AXFR | RecordType::IXFR)
        {
            return Reply::new(request, ResponseCode::Refused);
        }
        let name = query.original().name();
        let answer = self.zone.load().answer(name, query.query_type());
        match answer {
            Answer::NotReady => Reply::new(request, ResponseCode::ServFail).explain(Explanation::NotReady),
            Answer::Elsewhere => self.forward(request).await,
            Answer::Ours(found) => self.ours(request, *found, query.query_type()).await,
        }
    }

    async fn ours(&self, request: &Request, found: Found, kind: RecordType) -> Reply {
        let mut reply = Reply::new(request, found.code);
        reply.metadata.authoritative = true;
        reply.answers = found.answers;
        reply.additionals = found.additionals;
        reply.authorities.extend(found.soa);
        if let Some(target) = found.continue_at {
            self.continue_at(&mut reply, &target, kind).await;
        }
        reply
    }

    /// An ExternalName leads elsewhere: what is there goes behind the alias.
    async fn continue_at(&self, reply: &mut Reply, target: &Name, kind: RecordType) {
        match self.forwarder.resolve(target, kind).await {
            Some(message) => {
                reply.metadata.response_code = message.metadata.response_code;
                reply.answers.extend(message.answers);
            }
            // The alias alone is still true, and all there is.
            None => reply.metadata.response_code = ResponseCode::ServFail,
        }
    }

    async fn forward(&self, request: &Request) -> Reply {
        if !self.forwarder.has_upstreams() {
            return Reply::new(request, ResponseCode::Refused).explain(Explanation::NotSupported);
        }
        match self.forwarder.relay(request.as_slice()).await {
            Some(message) => {
                let mut reply = Reply::new(request, message.metadata.response_code);
                reply.metadata.authoritative = message.metadata.authoritative;
                reply.metadata.authentic_data = message.metadata.authentic_data;
                reply.answers = message.answers;
                reply.authorities = message.authorities;
                reply.additionals = message.additionals;
                reply
            }
            None => Reply::new(request, ResponseCode::ServFail).explain(Explanation::NoReachableAuthority),
        }
    }
}
