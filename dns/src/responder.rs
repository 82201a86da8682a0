//! From a query's bytes to a reply's bytes.
//!
//! [`Responder::now`] answers what is known already, on the core that got the query, without waiting and without
//! allocating; [`Responder::later`] answers everything else.

mod alias;
mod completion;
mod cookie;
mod options;
mod reply;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use arc_swap::ArcSwap;

use crate::autopath::Autopath;
use crate::dnstap::Dnstap;
use crate::forward::Forwarder;
use crate::gate::{Gate, Refusal};
use crate::message::{Ede, Invalid, Name, Query, Question, kind, rcode};
use crate::metrics::{Metrics, Protocol};
use crate::query_log::QueryLog;
use crate::zone::{Found, Node, Transfer, Zone};
pub(crate) use cookie::Secret;
pub(crate) use options::Way;
pub(crate) use options::{IDLE, MAX_NSID, Options};
pub(crate) use reply::Reply;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use reply::complete as complete_forwarded;
use reply::{Reason, reason};

/// Addresses of targets that are sent along with SRV records at most; the client asks for the others.
const MAX_ADDITIONALS: usize = 16;

/// ANY gets one small record (RFC 8482 §4.2), and may keep it for long.
const ANY_CONTENT: &[u8] = b"\x07RFC8482\x00";
const ANY_TTL: u32 = 8482;

/// Answers every query; shared by all sockets.
pub(crate) struct Responder {
    pub(crate) zone: ArcSwap<Zone>,
    pub(crate) forwarder: Forwarder,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) autopath: Option<Arc<Autopath>>,
    pub(crate) options: Options,
    pub(crate) gate: Option<Gate>,
    pub(crate) log: Option<QueryLog>,
    pub(crate) dnstap: Option<Dnstap>,
}

/// Where a query came from, worked out only if somebody wants to know.
pub(crate) type Client<'a> = &'a dyn Fn() -> Option<SocketAddr>;

/// What came of a query.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// It gets no answer: it is a response, or no message at all.
    Silence,
    /// The reply is in the buffer.
    Done,
    /// Somebody has to be asked: [`Responder::later`].
    Wait,
}

impl Responder {
    /// Appends the reply to `out` if it can be given at once. `lower` is room for a name.
    pub(crate) fn now(
        &self,
        message: &[u8],
        from: (Protocol, Client<'_>),
        now: Instant,
        lower: &mut Vec<u8>,
        out: &mut Vec<u8>,
    ) -> Step {
        let start = out.len();
        let (question, code) = match Query::parse(message) {
            Ok(query) => match self.try_now(&query, message, from, now, lower, out) {
                Some(code) => (Some(query.question), code),
                None => {
                    out.truncate(start);
                    return Step::Wait;
                }
            },
            Err(Invalid::Ignore) => return Step::Silence,
            Err(Invalid::Reply { header, rcode, question, edns }) => {
                let (protocol, client) = from;
                let granted = self.options.grant(edns, protocol, client);
                let way = Way { protocol, granted: granted.as_ref() };
                let (code, why) = match self.refusal(client, now) {
                    Some(why) => (rcode::REFUSED, Some(why)),
                    None => (rcode, reason(rcode)),
                };
                Reply::new(out, message, header, question, edns, way).finish(code, why);
                (question, code)
            }
        };
        self.account(from, (message, question), (code, &out[start..]), now);
        Step::Done
    }

    fn try_now(
        &self,
        query: &Query<'_>,
        message: &[u8],
        (protocol, client): (Protocol, Client<'_>),
        now: Instant,
        lower: &mut Vec<u8>,
        out: &mut Vec<u8>,
    ) -> Option<u16> {
        let granted = self.options.grant(query.edns, protocol, client);
        let way = Way { protocol, granted: granted.as_ref() };
        match self.refusal(client, now) {
            Some(reason) => Some(Reply::to(query, message, out, way).finish(rcode::REFUSED, Some(reason))),
            None => self.known(query, message, (way, client), now, lower, out),
        }
    }

    /// Where every reply leaves: it is counted, logged if that is wanted, and handed to the collector.
    fn account(
        &self,
        (protocol, client): (Protocol, Client<'_>),
        (message, question): (&[u8], Option<Question<'_>>),
        (code, reply): (u16, &[u8]),
        since: Instant,
    ) {
        self.metrics.count(protocol, question.map_or(0, |question| question.kind), code, since);
        if let Some(log) = &self.log {
            log.note((protocol, client), question, code, since.elapsed());
        }
        if let Some(dnstap) = &self.dnstap {
            dnstap.note((protocol, client()), message, reply, since);
        }
    }

    /// Looks a name up, in lower case. A name of the cluster's domain that `--hosts` has, or a `--stub` below the domain, is
    /// the forwarder's, as with a plugin or a server block of CoreDNS.
    fn find<'z>(&self, zone: &'z Zone, lower: Name<'z>) -> Found<'z> {
        if self.forwarder.overrides(lower, zone.settings.domain.as_name()) {
            return Found::Elsewhere;
        }
        zone.find(lower)
    }

    /// Why the client gets no answer, if there are limits and it is beyond them.
    fn refusal(&self, client: Client<'_>, now: Instant) -> Option<Reason> {
        let gate = self.gate.as_ref()?;
        let refusal = gate.refuses(client()?.ip(), now)?;
        self.metrics.refused(refusal);
        let text = match refusal {
            Refusal::Client => "this client may not ask",
            Refusal::Rate => "this client asks too often",
        };
        Some(Reason(Ede::Prohibited as u16, text))
    }

    fn known(
        &self,
        query: &Query<'_>,
        message: &[u8],
        (way, client): (Way<'_>, Client<'_>),
        now: Instant,
        lower: &mut Vec<u8>,
        out: &mut Vec<u8>,
    ) -> Option<u16> {
        let kind = query.question.kind;
        if !query.question.is_in() {
            let reason = Reason(Ede::NotSupported as u16, "only class IN is served");
            return Some(Reply::to(query, message, out, way).finish(rcode::REFUSED, Some(reason)));
        }
        let zone = self.zone.load();
        if matches!(kind, kind::AXFR | kind::IXFR) {
            let reason = Reason(Ede::Prohibited as u16, "transfers are not for this client");
            return Some(Reply::to(query, message, out, way).finish(rcode::REFUSED, Some(reason)));
        }
        let name = lowered(query.question.name, lower);
        match self.find(&zone, name) {
            Found::NotReady => {
                let reason = Reason(Ede::NotReady as u16, "the cluster's state has not been read yet");
                Some(Reply::to(query, message, out, way).finish(rcode::SERVFAIL, Some(reason)))
            }
            Found::Missing(_) if self.is_first_of_search_list(query, client) => None,
            Found::Missing(apex) => Some(missing(Reply::to(query, message, out, way), apex, &zone)),
            Found::Here(Node::Service(service), _)
                if service.alias().is_some() && !matches!(kind, kind::CNAME | kind::ANY) =>
            {
                None
            }
            Found::Here(node, apex) => {
                let mut reply = Reply::to(query, message, out, way);
                reply.authoritative(&zone);
                write_node(&mut reply, &zone, node, apex, kind);
                Some(reply.finish(rcode::NOERROR, stale(&zone, Ede::StaleAnswer)))
            }
            Found::Elsewhere => {
                let start = out.len();
                if !self.forwarder.cached(query, now, out) {
                    return None;
                }
                Some(reply::complete(out, start, query, way, None))
            }
        }
    }

    /// The whole zone, if this asks for it and the client may have it.
    pub(crate) fn transfer(&self, message: &[u8], client: SocketAddr) -> Option<Transfer> {
        let allowed = &self.zone.load().settings.names.transfer_to;
        if !allowed.iter().any(|cidr| cidr.contains(client.ip())) {
            return None;
        }
        let query = Query::parse(message).ok()?;
        // Without a history of changes, the answer to IXFR is the whole as well (RFC 1995 §4).
        let is_asked = query.question.is_in() && matches!(query.question.kind, kind::AXFR | kind::IXFR);
        let zone = self.zone.load_full();
        let is_ours = query.question.name.eq_ignore_case(zone.settings.domain.as_name());
        if !(is_asked && is_ours && zone.synced) {
            return None;
        }
        // Last: any other query passes the gate where it is answered.
        let is_refused = |gate: &Gate| gate.refuses(client.ip(), Instant::now()).is_some();
        let is_refused = self.gate.as_ref().is_some_and(is_refused);
        (!is_refused).then(|| Transfer::new(zone, &query))
    }

    /// Appends the reply to a query for which somebody has to be asked.
    pub(crate) async fn later(
        &self,
        message: &[u8],
        (protocol, client): (Protocol, SocketAddr),
        out: &mut Vec<u8>,
    ) {
        let (now, start) = (Instant::now(), out.len());
        let Ok(query) = Query::parse(message) else { return };
        let mut lower = Vec::new();
        let name = lowered(query.question.name, &mut lower);
        let zone = self.zone.load_full();
        let granted = self.options.grant(query.edns, protocol, || Some(client));
        let way = Way { protocol, granted: granted.as_ref() };
        let code = match self.find(&zone, name) {
            Found::Elsewhere => self.forward(&query, message, (way, client.ip()), out).await,
            Found::Missing(apex) => match self.complete(&zone, &query, (way, client.ip()), out).await {
                Some(code) => code,
                None => missing(Reply::to(&query, message, out, way), apex, &zone),
            },
            _ => {
                self.follow(&zone, &query, vec![query.question.name.to_buf()], (way, client.ip()), out).await
            }
        };
        let asked = (message, Some(query.question));
        self.account((protocol, &|| Some(client)), asked, (code, &out[start..]), now);
    }

    async fn forward(
        &self,
        query: &Query<'_>,
        message: &[u8],
        (way, client): (Way<'_>, IpAddr),
        out: &mut Vec<u8>,
    ) -> u16 {
        match self.forwarder.resolve(query, client).await {
            Ok(answer) => {
                let start = out.len();
                out.extend_from_slice(&answer.message);
                reply::complete(out, start, query, way, answer.explanation.map(|code| Reason(code, "")))
            }
            Err(failure) => {
                let (code, text) = failure.explain();
                Reply::to(query, message, out, way).finish(failure.rcode(), Some(Reason(code, text)))
            }
        }
    }

    /// The reply to a query that there is no room to wait for.
    pub(crate) fn refuse(&self, message: &[u8], from: (Protocol, Client<'_>), out: &mut Vec<u8>) {
        let (now, start) = (Instant::now(), out.len());
        let Ok(query) = Query::parse(message) else { return };
        let reason = Reason(Ede::Other as u16, "too many queries are waiting for upstream servers");
        let granted = self.options.grant(query.edns, from.0, from.1);
        let way = Way { protocol: from.0, granted: granted.as_ref() };
        let code = Reply::to(&query, message, out, way).finish(rcode::SERVFAIL, Some(reason));
        self.account(from, (message, Some(query.question)), (code, &out[start..]), now);
    }
}

fn lowered<'l>(name: Name<'_>, lower: &'l mut Vec<u8>) -> Name<'l> {
    name.write_lower(lower);
    Name::from_wire_unchecked(lower)
}

/// No such name, and its zone's SOA record (RFC 2308 §2.1).
fn missing(mut reply: Reply<'_>, apex: usize, zone: &Zone) -> u16 {
    reply.authoritative(zone);
    reply.soa(apex, zone);
    reply.finish(rcode::NXDOMAIN, stale(zone, Ede::StaleNxdomain))
}

/// What to say with an answer that may have been overtaken while the source is out of sight.
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
            // The target stands behind priority, weight and port.
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
    // What is additional goes before anything is cut (RFC 2181 §9).
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
