//! hickory-server's handler: every query that the fast path leaves, whatever its transport.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use hickory_server::net::runtime::{Time, TokioTime};
use hickory_server::proto::op::{self, HeaderCounts, Message, OpCode};
use hickory_server::proto::rr::Record;
use hickory_server::proto::rr::rdata::opt::EdnsOption;
use hickory_server::proto::serialize::binary::BinEncoder;
use hickory_server::server::{Request, RequestHandler, ResponseHandler, ResponseInfo};
use hickory_server::zone_handler::{MessageResponse, MessageResponseBuilder};
use tokio::time::timeout;

use super::outgoing::{Outgoing, Replies};
use super::reply::{self, Reason, fit};
use super::{Responder, Transport, lowered, stale};
use crate::forward::BUDGET;
use crate::message::{CLASS_IN, Ede, Edns, Header, Name, Query, Question, flag, kind, rcode, record};
use crate::metrics::Protocol;
use crate::zone::{Found, Transfer, Zone};

/// A reply before EDNS.
pub(super) struct Draft {
    pub(super) message: Message,
    pub(super) reason: Option<Reason>,
}

impl Draft {
    /// Without records.
    pub(super) fn new(code: u16, reason: Option<Reason>) -> Self {
        // The id is the request's.
        let mut message = Message::response(0, OpCode::Query);
        message.metadata.response_code = code.into();
        message.metadata.recursion_available = true;
        Self { message, reason }
    }

    fn name_error(query: &Query<'_>, apex: usize, zone: &Zone) -> Self {
        let mut draft = Self::new(rcode::NXDOMAIN, stale(zone, Ede::StaleNxdomain));
        let name = query.question.name.wire();
        let apex = Name::from_wire_unchecked(name.get(name.len() - apex..).unwrap_or_default());
        draft.message.metadata.authoritative = true;
        draft.message.metadata.recursion_available = !zone.settings.names.is_coredns();
        draft.message.authorities.extend(record(apex, kind::SOA, zone.settings.ttl, &zone.soa));
        draft
    }
}

/// The query of a request that the fast path has left, as the zone and the cache look it up: of class IN, with its name
/// written out, and without its options.
pub(super) fn query(request: &Request) -> Option<Query<'_>> {
    let kind = request.queries.queries().first()?.query_type().into();
    // Behind the name are type and class.
    let (name, _) = request.queries.as_bytes().split_last_chunk::<4>()?;
    let question = Question { name: Name::from_wire_unchecked(name), kind, class: CLASS_IN };
    let op::Metadata { id, recursion_desired, authentic_data, checking_disabled, .. } = request.metadata;
    let set = |is_set, flag| if is_set { flag } else { 0 };
    let flags =
        set(recursion_desired, flag::RD) | set(authentic_data, flag::AD) | set(checking_disabled, flag::CD);
    let header = Header { id, flags, questions: 1, ..Header::default() };
    let edns = request.edns.as_ref().map(|edns| Edns::new(edns.max_payload(), 0, edns.flags().dnssec_ok));
    Some(Query { header, question, edns })
}

/// The content of an option that hickory keeps as it came; nothing is known of the others but that they are there.
fn option(edns: &op::Edns, code: u16) -> Option<&[u8]> {
    match edns.option(code.into())? {
        EdnsOption::Unknown(_, content) => Some(content),
        _ => Some(&[]),
    }
}

#[async_trait::async_trait]
impl RequestHandler for Responder {
    async fn handle_request<R: ResponseHandler, T: Time>(
        &self,
        request: &Request,
        mut replies: R,
    ) -> ResponseInfo {
        let Some(query) = query(request) else {
            return self.reply(request, Draft::new(rcode::FORMERR, None), &mut replies).await;
        };
        let (zone, client) = (self.zone.load_full(), request.src().ip());
        if matches!(query.question.kind, kind::AXFR | kind::IXFR) {
            return self.transfer(zone, request, &mut replies).await;
        }
        let mut lower = Vec::new();
        let name = lowered(query.question.name, &mut lower);
        let draft = match self.find(&zone, name) {
            Found::Elsewhere => self.forward(&query, client).await,
            Found::Missing(apex) => {
                // Each name of the list may take as long; then the client continues its search itself.
                let completed = timeout(BUDGET, self.complete(&zone, &query, client)).await;
                completed.ok().flatten().unwrap_or_else(|| Draft::name_error(&query, apex, &zone))
            }
            _ => self.follow(&zone, &query, vec![query.question.name.to_buf()], client).await,
        };
        self.reply(request, draft, &mut replies).await
    }
}

impl Responder {
    /// Answers what [`Responder::answer_now`] has left. Ends within 4 s, unless the client takes its replies
    /// more slowly.
    pub(crate) async fn resolve(
        self: Arc<Self>,
        query: Vec<u8>,
        (protocol, client): (Protocol, SocketAddr),
        replies: Replies,
    ) {
        match Request::from_bytes(query.clone(), client, protocol.into()) {
            Ok(request) => {
                let request = Arc::new(request);
                let outgoing = Outgoing::new(&self, &request, replies);
                _ = self.handle_request::<_, TokioTime>(&request, outgoing).await;
            }
            // Records in a query are for hickory to read.
            Err(_malformed) => {
                let mut out = Vec::new();
                let said = (rcode::FORMERR, reply::reason(rcode::FORMERR));
                self.fail(&query, (protocol, &|| Some(client)), said, &mut out);
                replies.send(client, out).await;
            }
        }
    }

    async fn forward(&self, query: &Query<'_>, client: IpAddr) -> Draft {
        let answered = self.upstream(query, client).await;
        answered.unwrap_or_else(|(code, reason)| Draft::new(code, Some(reason)))
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
        replies: &mut impl ResponseHandler,
    ) -> ResponseInfo {
        let mut transfer = Transfer::new(zone);
        loop {
            let records = transfer.next_records();
            let mut draft = Draft::new(rcode::NOERROR, None);
            draft.message.metadata.authoritative = true;
            draft.message.metadata.recursion_available = false;
            draft.message.answers = records;
            let info = self.reply(request, draft, replies).await;
            if transfer.has_ended() {
                return info;
            }
        }
    }

    /// Makes a reply one for this client, within its limit and with EDNS if it speaks it, and sends it.
    async fn reply(
        &self,
        request: &Request,
        Draft { mut message, reason }: Draft,
        replies: &mut impl ResponseHandler,
    ) -> ResponseInfo {
        let protocol = Protocol::from(request.protocol());
        let options = request.edns.as_ref().filter(|edns| !edns.options().options.is_empty());
        let granted = options
            .map(|edns| self.options.grant(|code| option(edns, code), protocol, || Some(request.src())));
        let transport = Transport { protocol, granted: granted.as_ref() };
        let asked = query(request).and_then(|query| query.edns);
        let limit = reply::limit(asked, protocol);
        let dnssec_ok = asked.is_some_and(|edns| edns.dnssec_ok);
        message.metadata.id = request.metadata.id;
        message.metadata.recursion_desired = request.metadata.recursion_desired;
        message.metadata.checking_disabled = request.metadata.checking_disabled;
        let emit = |message: &Message, encoder: &mut BinEncoder<'_>| {
            response(request, message, None).destructive_emit(encoder).map(|info| info.counts())
        };
        let fitted = fit(&mut message, dnssec_ok, limit - transport.needs(asked), emit);
        let length = fitted.map_or(limit, |bytes| bytes.len());
        let edns = asked.map(|_| transport.edns(dnssec_ok, reason, (length, limit)));
        match replies.send_response(response(request, &message, edns.as_ref())).await {
            Ok(info) => info,
            Err(error) => {
                tracing::debug!(%error, client = %request.src(), "cannot send a reply");
                op::Header { metadata: message.metadata, counts: HeaderCounts::default() }.into()
            }
        }
    }
}

/// As hickory-server sends it.
fn response<'q, 'm>(
    request: &'q Request,
    message: &'m Message,
    edns: Option<&'q op::Edns>,
) -> MessageResponse<
    'q,
    'm,
    impl Iterator<Item = &'m Record> + Send + 'm,
    impl Iterator<Item = &'m Record> + Send + 'm,
    impl Iterator<Item = &'m Record> + Send + 'm,
    impl Iterator<Item = &'m Record> + Send + 'm,
> {
    let Message { metadata, answers, authorities, .. } = message;
    MessageResponseBuilder::new(&request.queries, edns).build(*metadata, answers, authorities, None, None)
}
