//! Answers queries: from the bytes of a query to the bytes of a reply.
//!
//! [`Responder::answer_now`] is the fast path: it answers what the snapshot or the cache holds, on the thread
//! that received the query, without waiting and without allocating. [`Responder::resolve`] hands every other
//! query, whatever its transport, to hickory-server's
//! [`RequestHandler`](hickory_server::server::RequestHandler) in [`handler`].

mod alias;
mod completion;
mod cookie;
mod handler;
mod options;
mod outgoing;
mod reply;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use arc_swap::ArcSwap;
use tokio::sync::mpsc;

use crate::acl::{Acl, Refusal};
use crate::autopath::Autopath;
use crate::dnstap::Dnstap;
use crate::forward::Forwarder;
use crate::message::{Ede, Edns, Invalid, Name, Query, Question, kind, rcode};
use crate::metrics::{Metrics, Protocol};
use crate::query_log::QueryLog;
use crate::zone::{Found, Node, Zone};
pub(crate) use cookie::Secret;
use options::EdnsReply;
pub(crate) use options::{IDLE, MAX_NSID, Options, Transport};
pub(crate) use outgoing::Replies;
pub(crate) use reply::Reply;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use reply::complete as complete_forwarded;
use reply::{Reason, reason};

/// Maximum number of target addresses in the reply to an SRV query; the client queries the others.
const MAX_ADDITIONALS: usize = 16;

/// ANY gets one small record (RFC 8482 §4.2) with a long TTL.
const ANY_CONTENT: &[u8] = b"\x07RFC8482\x00";
const ANY_TTL: u32 = 8482;

/// Answers every query; shared by all sockets.
pub(crate) struct Responder {
    pub(crate) zone: ArcSwap<Zone>,
    pub(crate) forwarder: Forwarder,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) autopath: Option<Arc<Autopath>>,
    pub(crate) options: Options,
    pub(crate) acl: Option<Acl>,
    pub(crate) log: Option<QueryLog>,
    pub(crate) dnstap: Option<Dnstap>,
}

/// Returns the client's address, computed only if it is needed.
pub(crate) type Client<'a> = &'a dyn Fn() -> Option<SocketAddr>;

/// The result of the fast path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// No answer: it is a response, or not a message.
    Silence,
    /// The reply is in the buffer.
    Done,
    /// The query needs [`Responder::resolve`].
    Deferred,
}

impl Responder {
    /// Appends the reply to `out` if it is available at once. `lower` is a buffer for a name.
    ///
    /// Every query passes this first, so the ACL and the rate limit apply here.
    pub(crate) fn answer_now(
        &self,
        message: &[u8],
        from: (Protocol, Client<'_>),
        now: Instant,
        lower: &mut Vec<u8>,
        out: &mut Vec<u8>,
    ) -> Step {
        let start = out.len();
        let (header, question, edns, query) = match Query::parse(message) {
            Ok(query) => (query.header, Some(query.question), query.edns, Ok(query)),
            Err(Invalid::Reply { header, rcode, question, edns }) => (header, question, edns, Err(rcode)),
            Err(Invalid::Ignore) => return Step::Silence,
        };
        let (protocol, client) = from;
        let granted = self.grant(edns, from);
        let transport = Transport { protocol, granted: granted.as_ref() };
        let fail = |out: &mut Vec<u8>, code, why| {
            Reply::new(out, message, header, question, edns, transport).finish(code, why)
        };
        let code = match (self.refusal(client, now), query) {
            (Some(why), _) => fail(out, rcode::REFUSED, Some(why)),
            (None, Err(code)) => fail(out, code, reason(code)),
            (None, Ok(query)) => match self.lookup(&query, message, (transport, client), now, lower, out) {
                Some(code) => code,
                None => {
                    out.truncate(start);
                    return Step::Deferred;
                }
            },
        };
        self.account(from, (message, question), (code, &out[start..]), now);
        Step::Done
    }

    /// The answers to the EDNS options of a query. Most queries have none.
    fn grant(&self, edns: Option<Edns<'_>>, (protocol, client): (Protocol, Client<'_>)) -> Option<EdnsReply> {
        let edns = edns.filter(Edns::has_options)?;
        Some(self.options.grant(|code| edns.option(code), protocol, client))
    }

    /// Counts every reply, logs it if enabled, and passes it to dnstap.
    fn account(
        &self,
        (protocol, client): (Protocol, Client<'_>),
        (message, question): (&[u8], Option<Question<'_>>),
        (code, reply): (u16, &[u8]),
        since: Instant,
    ) {
        self.metrics.count(protocol, question.map_or(0, |question| question.kind), code, since);
        if let Some(log) = &self.log {
            log.record((protocol, client), question, code, since.elapsed());
        }
        if let Some(dnstap) = &self.dnstap {
            dnstap.record((protocol, client()), message, reply, since);
        }
    }

    /// Looks up a name in lower case. A name of the cluster's domain that is in `--hosts`, or in a `--stub`
    /// below the domain, is answered by the forwarder, like with a plugin or a server block of CoreDNS.
    fn find<'z>(&self, zone: &'z Zone, lower: Name<'z>) -> Found<'z> {
        if self.forwarder.overrides(lower, zone.settings.domain.as_name()) {
            return Found::Elsewhere;
        }
        zone.find(lower)
    }

    /// Why the client is refused, if a limit applies.
    fn refusal(&self, client: Client<'_>, now: Instant) -> Option<Reason> {
        let acl = self.acl.as_ref()?;
        let refusal = acl.refuses(client()?.ip(), now)?;
        self.metrics.refused(refusal);
        let text = match refusal {
            Refusal::Client => "this client may not ask",
            Refusal::Rate => "this client sends too many queries",
        };
        Some(Reason(Ede::Prohibited as u16, text))
    }

    /// The reply's code; `None` if the query needs the handler.
    fn lookup(
        &self,
        query: &Query<'_>,
        message: &[u8],
        (transport, client): (Transport<'_>, Client<'_>),
        now: Instant,
        lower: &mut Vec<u8>,
        out: &mut Vec<u8>,
    ) -> Option<u16> {
        let kind = query.question.kind;
        if !query.question.is_in() {
            let reason = Reason(Ede::NotSupported as u16, "only class IN is served");
            return Some(Reply::to(query, message, out, transport).finish(rcode::REFUSED, Some(reason)));
        }
        let zone = self.zone.load();
        if matches!(kind, kind::AXFR | kind::IXFR) {
            if self.may_transfer(&zone, query, (transport.protocol, client)) {
                return None;
            }
            let reason = Reason(Ede::Prohibited as u16, "transfers are not for this client");
            return Some(Reply::to(query, message, out, transport).finish(rcode::REFUSED, Some(reason)));
        }
        let name = lowered(query.question.name, lower);
        match self.find(&zone, name) {
            Found::NotReady => {
                let reason = Reason(Ede::NotReady as u16, "the cluster's state has not been read yet");
                Some(Reply::to(query, message, out, transport).finish(rcode::SERVFAIL, Some(reason)))
            }
            Found::Missing(_) if self.is_first_of_search_list(query, client) => None,
            Found::Missing(apex) => Some(missing(Reply::to(query, message, out, transport), apex, &zone)),
            Found::Here(Node::Service(service), _)
                if service.alias().is_some() && !matches!(kind, kind::CNAME | kind::ANY) =>
            {
                None
            }
            Found::Here(node, apex) => {
                let mut reply = Reply::to(query, message, out, transport);
                reply.authoritative(&zone);
                write_node(&mut reply, &zone, node, apex, kind);
                Some(reply.finish(rcode::NOERROR, stale(&zone, Ede::StaleAnswer)))
            }
            Found::Elsewhere => {
                let start = out.len();
                if !self.forwarder.cached(query, now, out) {
                    return None;
                }
                Some(reply::complete(out, start, query, transport, None))
            }
        }
    }

    /// The reply to a query with its own stream; `None` without a reply.
    pub(crate) async fn answer(
        self: Arc<Self>,
        query: Vec<u8>,
        from: (Protocol, SocketAddr),
    ) -> Option<Vec<u8>> {
        let mut out = Vec::with_capacity(512);
        let client = (from.0, &(|| Some(from.1)) as Client<'_>);
        match self.answer_now(&query, client, Instant::now(), &mut Vec::new(), &mut out) {
            Step::Silence => None,
            Step::Done => Some(out),
            Step::Deferred => {
                let (reply, mut resolved) = mpsc::channel(1);
                self.resolve(query, from, Replies::Connection(reply)).await;
                resolved.recv().await
            }
        }
    }

    /// Whether the query is a zone transfer that the client is allowed.
    fn may_transfer(
        &self,
        zone: &Zone,
        query: &Query<'_>,
        (protocol, client): (Protocol, Client<'_>),
    ) -> bool {
        let allowed = &zone.settings.names.transfer_to;
        matches!(protocol, Protocol::Tcp | Protocol::Tls)
            && zone.synced
            && query.question.name.eq_ignore_case(zone.settings.domain.as_name())
            && client().is_some_and(|client| allowed.iter().any(|cidr| cidr.contains(client.ip())))
    }

    /// Appends the reply to a query that exceeds the limit of waiting queries.
    pub(crate) fn shed(&self, message: &[u8], from: (Protocol, Client<'_>), out: &mut Vec<u8>) {
        self.metrics.shed.inc();
        let reason = Reason(Ede::Other as u16, "too many queries are waiting for upstream servers");
        self.fail(message, from, (rcode::SERVFAIL, Some(reason)), out);
    }

    /// Appends a reply without records.
    fn fail(
        &self,
        message: &[u8],
        from: (Protocol, Client<'_>),
        (code, reason): (u16, Option<Reason>),
        out: &mut Vec<u8>,
    ) {
        let (now, start) = (Instant::now(), out.len());
        let Ok(query) = Query::parse(message) else { return };
        let granted = self.grant(query.edns, from);
        let transport = Transport { protocol: from.0, granted: granted.as_ref() };
        let code = Reply::to(&query, message, out, transport).finish(code, reason);
        self.account(from, (message, Some(query.question)), (code, &out[start..]), now);
    }
}

fn lowered<'l>(name: Name<'_>, lower: &'l mut Vec<u8>) -> Name<'l> {
    name.write_lower(lower);
    Name::from_wire_unchecked(lower)
}

/// NXDOMAIN with the SOA record of the zone (RFC 2308 §2.1).
fn missing(mut reply: Reply<'_>, apex: usize, zone: &Zone) -> u16 {
    reply.authoritative(zone);
    reply.soa(apex, zone);
    reply.finish(rcode::NXDOMAIN, stale(zone, Ede::StaleNxdomain))
}

/// The Extended DNS Error of an answer that may be out of date, because the source has failed.
fn stale(zone: &Zone, code: Ede) -> Option<Reason> {
    zone.is_stale.then_some(Reason(code as u16, "the cluster's state cannot be read, this is the last known"))
}

fn write_node(reply: &mut Reply<'_>, zone: &Zone, node: Node<'_>, apex: usize, kind: u16) {
    let ttl = zone.settings.ttl;
    if kind == kind::ANY && !zone.settings.names.is_coredns() {
        reply.answer(kind::HINFO, ANY_TTL, ANY_CONTENT);
        return;
    }
    let mut glue: Vec<(usize, Vec<IpAddr>)> = Vec::new();
    let mut room = MAX_ADDITIONALS;
    zone.visit(node, kind, &mut |content, addresses| {
        let Some(at) = reply.answer(kind, ttl, content) else { return false };
        if !addresses.is_empty() && room > 0 && !glue.iter().any(|(_, known)| known == addresses) {
            let some: Vec<IpAddr> = addresses.iter().take(room).copied().collect();
            room -= some.len();
            // The target follows priority, weight and port.
            glue.push((at + 6, some));
        }
        true
    });
    if reply.is_cut() && reply.is_stream() {
        write_first(reply, zone, node, kind);
    }
    if reply.is_empty() {
        reply.soa(apex, zone);
    }
    // The additional section is dropped before any answer is truncated (RFC 2181 §9).
    if !reply.is_cut() {
        for (target, addresses) in glue {
            reply.addresses(target, &addresses, ttl);
        }
    }
}

/// As many records as fit a message, always the same: there is no larger message to ask for.
fn write_first(reply: &mut Reply<'_>, zone: &Zone, node: Node<'_>, kind: u16) {
    let mut contents = Vec::new();
    zone.visit(node, kind, &mut |content, _| {
        contents.push(content.to_vec());
        true
    });
    contents.sort_unstable();
    reply.begin_again();
    contents.iter().all(|content| reply.answer(kind, zone.settings.ttl, content).is_some());
}
