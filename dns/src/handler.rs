//! From a request to a reply.

use std::sync::Arc;
use std::time::Instant;

use arc_swap::ArcSwap;
use hickory_server::net::runtime::Time;
use hickory_server::proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_server::proto::rr::rdata::CNAME;
use hickory_server::proto::rr::{DNSClass, Name, RData, Record, RecordType};
use hickory_server::server::{Request, RequestHandler, ResponseHandler, ResponseInfo};

use crate::autopath::{self, Autopath};
use crate::forward::{Failure, Forwarder};
use crate::message::{self, Ede};
use crate::metrics::Metrics;
use crate::reply::Reply;
use crate::zone::{Answer, Found, Zone};

/// Answers every request; shared by all sockets.
pub(crate) struct Handler {
    pub(crate) zone: Arc<ArcSwap<Zone>>,
    pub(crate) forwarder: Forwarder,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) autopath: Option<Arc<Autopath>>,
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
            Answer::NotReady => Reply::new(request, ResponseCode::ServFail).explain(Ede::NotReady as u16),
            Answer::Elsewhere => self.forward(request).await,
            Answer::Ours(found) if found.code == ResponseCode::NXDomain => {
                match self.complete(request).await {
                    Some(reply) => reply,
                    None => self.ours(request, *found, query.query_type()).await,
                }
            }
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
        let mut message = Message::new(0, MessageType::Query, OpCode::Query);
        message.metadata.recursion_desired = true;
        message.queries.push(Query::query(target.clone(), kind));
        let asked = message.to_vec().unwrap_or_default();
        match self.resolve(&asked).await {
            Some(Ok((message, _explanation))) => {
                reply.metadata.response_code = message.metadata.response_code;
                reply.answers.extend(message.answers);
            }
            // The alias alone is still true, and all there is.
            _ => reply.metadata.response_code = ResponseCode::ServFail,
        }
    }

    /// What the rest of the client's search list leads to, if there is anything.
    async fn complete(&self, request: &Request) -> Option<Reply> {
        let autopath = self.autopath.as_ref()?;
        let query = message::Query::parse(request.as_slice()).ok()?;
        let kind = query.question.kind;
        for name in autopath.walk(request.src().ip(), &query, &self.forwarder.search())? {
            let ours = |kind: u16| {
                let name = Name::from_ascii(name.to_string()).ok()?;
                Some(self.zone.load().answer(&name, RecordType::from(kind)))
            };
            match ours(kind)? {
                Answer::NotReady => return None,
                Answer::Ours(found) => {
                    let exists = |kind: u16| matches!(ours(kind), Some(Answer::Ours(found)) if found.code == ResponseCode::NoError && !found.answers.is_empty());
                    if exists(kind) || exists(autopath::other(kind)) {
                        let target = Name::from_ascii(name.to_string()).ok()?;
                        let mut reply = self.ours(request, *found, RecordType::from(kind)).await;
                        let asked = request.queries.queries().first()?.original().name().clone();
                        let ttl = reply.answers.iter().map(|record| record.ttl).min().unwrap_or(5);
                        reply.answers.insert(0, Record::from_rdata(asked, ttl, RData::CNAME(CNAME(target))));
                        return Some(reply);
                    }
                }
                Answer::Elsewhere => {
                    let resolve = async |kind| {
                        let query = autopath::ask(&query, name.as_name(), kind);
                        self.forwarder.resolve(&query).await.ok().map(|reply| reply.message)
                    };
                    let reply = resolve(kind).await?;
                    let other = autopath::other(kind);
                    let exists = autopath::has(&reply, kind)
                        || resolve(other).await.is_some_and(|reply| autopath::has(&reply, other));
                    if exists {
                        let message = autopath::splice(&query, name.as_name(), &reply).ok()?;
                        let message = Message::from_vec(&message).ok()?;
                        let mut reply = Reply::new(request, message.metadata.response_code);
                        reply.answers = message.answers;
                        reply.authorities = message.authorities;
                        return Some(reply);
                    }
                }
            }
        }
        None
    }

    async fn forward(&self, request: &Request) -> Reply {
        let Some(resolved) = self.resolve(request.as_slice()).await else {
            return Reply::new(request, ResponseCode::FormErr);
        };
        match resolved {
            Ok((message, explanation)) => {
                let mut reply = Reply::new(request, message.metadata.response_code);
                reply.metadata.authentic_data = message.metadata.authentic_data;
                reply.answers = message.answers;
                reply.authorities = message.authorities;
                match explanation {
                    Some(code) => reply.explain(code),
                    None => reply,
                }
            }
            Err(failure) => {
                let code = ResponseCode::from(0, u8::try_from(failure.rcode()).unwrap_or_default());
                Reply::new(request, code).explain(failure.explain().0)
            }
        }
    }

    /// What the forwarder says to a query in wire form; `None` for what is no query.
    async fn resolve(&self, query: &[u8]) -> Option<Result<(Message, Option<u16>), Failure>> {
        let query = message::Query::parse(query).ok()?;
        match self.forwarder.resolve(&query).await {
            Ok(reply) => Some(Ok((Message::from_vec(&reply.message).ok()?, reply.explanation))),
            Err(failure) => Some(Err(failure)),
        }
    }
}
