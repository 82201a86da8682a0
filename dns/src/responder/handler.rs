//! hickory-server's handler: every query that the fast path leaves, whatever its transport.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use hickory_server::net::runtime::{Time, TokioTime};
use hickory_server::proto::op::{Header, HeaderCounts, Message, OpCode};
use hickory_server::server::{Request, RequestHandler, ResponseHandler, ResponseInfo};
use hickory_server::zone_handler::MessageResponseBuilder;

use super::outgoing::{Outgoing, Replies};
use super::reply::{self, Reason, fit};
use super::{Responder, Transport, lowered, stale};
use crate::message::{Ede, Name, Query, kind, rcode, record};
use crate::metrics::Protocol;
use crate::zone::{Found, Transfer, Zone};

/// A reply before EDNS.
pub(super) struct Draft {
    pub(super) message: Message,
    pub(super) reason: Option<Reason>,
}

impl Draft {
    /// Without records.
    pub(super) fn new(query: &Query<'_>, code: u16, reason: Option<Reason>) -> Self {
        let mut message = Message::response(query.header.id, OpCode::Query);
        message.metadata.response_code = code.into();
        message.metadata.recursion_available = true;
        Self { message, reason }
    }

    fn name_error(query: &Query<'_>, apex: usize, zone: &Zone) -> Self {
        let mut draft = Self::new(query, rcode::NXDOMAIN, stale(zone, Ede::StaleNxdomain));
        let name = query.question.name.wire();
        let apex = Name::from_wire_unchecked(name.get(name.len() - apex..).unwrap_or_default());
        draft.message.metadata.authoritative = true;
        draft.message.metadata.recursion_available = !zone.settings.names.is_coredns();
        draft.message.authorities.extend(record(apex, kind::SOA, zone.settings.ttl, &zone.soa));
        draft
    }
}

#[async_trait::async_trait]
impl RequestHandler for Responder {
    async fn handle_request<R: ResponseHandler, T: Time>(
        &self,
        request: &Request,
        mut replies: R,
    ) -> ResponseInfo {
        // The fast path has read it.
        let Ok(query) = Query::parse(request.as_slice()) else {
            return Header { metadata: request.metadata, counts: HeaderCounts::default() }.into();
        };
        let (zone, client) = (self.zone.load_full(), request.src().ip());
        if matches!(query.question.kind, kind::AXFR | kind::IXFR) {
            return self.transfer(zone, request, &query, &mut replies).await;
        }
        let mut lower = Vec::new();
        let name = lowered(query.question.name, &mut lower);
        let draft = match self.find(&zone, name) {
            Found::Elsewhere => self.forward(&query, client).await,
            Found::Missing(apex) => match self.complete(&zone, &query, client).await {
                Some(draft) => draft,
                None => Draft::name_error(&query, apex, &zone),
            },
            _ => self.follow(&zone, &query, vec![query.question.name.to_buf()], client).await,
        };
        self.reply(request, &query, draft, &mut replies).await
    }
}

impl Responder {
    /// Answers what [`Responder::answer_now`] has left. Ends within 4 s, unless the client takes its replies
    /// more slowly.
    pub(crate) async fn resolve(
        self: Arc<Self>,
        query: Vec<u8>,
        from: (Protocol, SocketAddr),
        replies: Replies,
    ) {
        let (protocol, client) = from;
        let outgoing = Outgoing::new(&self, &query, from, replies);
        match Request::from_bytes(query.clone(), client, protocol.into()) {
            Ok(request) => _ = self.handle_request::<_, TokioTime>(&request, outgoing).await,
            // Records in a query are for hickory to read.
            Err(_malformed) => {
                let mut out = Vec::new();
                let said = (rcode::FORMERR, reply::reason(rcode::FORMERR));
                self.fail(&query, (protocol, &|| Some(client)), said, &mut out);
                outgoing.send(out).await;
            }
        }
    }

    async fn forward(&self, query: &Query<'_>, client: IpAddr) -> Draft {
        let answered = self.upstream(query, client).await;
        answered.unwrap_or_else(|(code, reason)| Draft::new(query, code, Some(reason)))
    }

    /// What the upstream servers say, or the code and reason of the failure.
    pub(super) async fn upstream(&self, query: &Query<'_>, client: IpAddr) -> Result<Draft, (u16, Reason)> {
        let answer = self.forwarder.resolve(query, client).await.map_err(|failure| {
            let (code, text) = failure.explain();
            (failure.rcode(), Reason(code, text))
        })?;
        let message = Message::from_vec(&answer.message)
            .map_err(|_malformed| (rcode::SERVFAIL, Reason(Ede::InvalidData as u16, "")))?;
        Ok(Draft { message, reason: answer.explanation.map(|code| Reason(code, "")) })
    }

    /// The whole zone, in as many messages as it takes (RFC 5936).
    async fn transfer(
        &self,
        zone: Arc<Zone>,
        request: &Request,
        query: &Query<'_>,
        replies: &mut impl ResponseHandler,
    ) -> ResponseInfo {
        let mut transfer = Transfer::new(zone);
        loop {
            let records = transfer.next_records();
            let mut draft = Draft::new(query, rcode::NOERROR, None);
            draft.message.metadata.authoritative = true;
            draft.message.metadata.recursion_available = false;
            draft.message.answers = records;
            let info = self.reply(request, query, draft, replies).await;
            if transfer.has_ended() {
                return info;
            }
        }
    }

    /// Makes a reply one for this client, within its limit and with EDNS if it speaks it, and sends it.
    async fn reply(
        &self,
        request: &Request,
        query: &Query<'_>,
        Draft { mut message, reason }: Draft,
        replies: &mut impl ResponseHandler,
    ) -> ResponseInfo {
        let protocol = Protocol::from(request.protocol());
        let granted = self.options.grant(query.edns, protocol, || Some(request.src()));
        let transport = Transport { protocol, granted: granted.as_ref() };
        let limit = reply::limit(query.edns, protocol);
        let dnssec_ok = query.edns.is_some_and(|edns| edns.dnssec_ok);
        message.metadata.recursion_desired = request.metadata.recursion_desired;
        message.metadata.checking_disabled = request.metadata.checking_disabled;
        message.queries = request.queries.queries().iter().map(|query| query.original().clone()).collect();
        let length =
            fit(&mut message, dnssec_ok, limit - transport.needs(query.edns)).map_or(limit, |m| m.len());
        let edns = query.edns.map(|_| transport.edns(dnssec_ok, reason, (length, limit)));
        let response = MessageResponseBuilder::new(&request.queries, edns.as_ref()).build(
            message.metadata,
            &message.answers,
            &message.authorities,
            None,
            None,
        );
        match replies.send_response(response).await {
            Ok(info) => info,
            Err(error) => {
                tracing::debug!(%error, client = %request.src(), "cannot send a reply");
                Header { metadata: message.metadata, counts: HeaderCounts::default() }.into()
            }
        }
    }
}
