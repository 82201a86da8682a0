//! ExternalName Services: an alias, and what it leads to.

use std::net::IpAddr;

use super::options::Way;
use super::reply::{self, Reason};
use super::{Responder, lowered, stale};
use crate::message::{
    Answer, CLASS_IN, Ede, Encoder, Header, NameBuf, Query, Question, Section, flag, kind, rcode,
};
use crate::zone::{Found, Node, Zone};

/// Aliases of aliases that are followed before giving up.
const MAX_ALIASES: usize = 8;

/// What stands at the end of the aliases.
enum End<'z> {
    Here(Node<'z>),
    Missing,
    /// The forwarder's message, whole.
    Elsewhere(Vec<u8>),
    Failed(u16, Reason),
}

impl Responder {
    /// The aliases come first, then what the last one leads to. The first is the name that was asked for.
    pub(super) async fn follow(
        &self,
        zone: &Zone,
        query: &Query<'_>,
        mut aliases: Vec<NameBuf>,
        (way, client): (Way<'_>, IpAddr),
        out: &mut Vec<u8>,
    ) -> u16 {
        let mut lower = Vec::new();
        let end = loop {
            let Some(last) = aliases.last() else { return rcode::SERVFAIL };
            lower.clear();
            let found = self.find(zone, lowered(last.as_name(), &mut lower));
            match found {
                Found::Here(Node::Service(service), _) if service.alias().is_some() => {
                    if aliases.len() > MAX_ALIASES {
                        break End::Failed(rcode::SERVFAIL, Reason(Ede::Other as u16, "too many aliases"));
                    }
                    aliases.extend(service.alias().cloned());
                }
                Found::Here(..) => break End::Missing,
                Found::Missing(_) => break End::Missing,
                Found::NotReady => break End::Failed(rcode::SERVFAIL, Reason(Ede::NotReady as u16, "")),
                Found::Elsewhere => break self.elsewhere(&last.clone(), query, client).await,
            }
        };
        let mut lower = Vec::new();
        let end = match (end, aliases.last()) {
            (End::Missing, Some(last)) => match self.find(zone, lowered(last.as_name(), &mut lower)) {
                Found::Here(node, _) => End::Here(node),
                _ => End::Missing,
            },
            (end, _) => end,
        };
        write(zone, query, &aliases, &end, way, out)
    }

    async fn elsewhere<'z>(&self, target: &NameBuf, query: &Query<'_>, client: IpAddr) -> End<'z> {
        let mut message = Vec::new();
        let mut encoder =
            Encoder::new(&mut message, usize::from(u16::MAX), 0, query.header.flags & (flag::RD | flag::CD));
        encoder.question(Question { name: target.as_name(), ..query.question }).ok();
        encoder.finish();
        let Ok(query) = Query::parse(&message) else {
            return End::Failed(rcode::SERVFAIL, Reason(Ede::Other as u16, ""));
        };
        match self.forwarder.resolve(&query, client).await {
            Ok(reply) => End::Elsewhere(reply.message),
            Err(failure) => {
                let (code, text) = failure.explain();
                End::Failed(rcode::SERVFAIL, Reason(code, text))
            }
        }
    }
}

fn write(
    zone: &Zone,
    query: &Query<'_>,
    aliases: &[NameBuf],
    end: &End<'_>,
    way: Way<'_>,
    out: &mut Vec<u8>,
) -> u16 {
    let (ttl, asked) = (zone.settings.ttl, query.question.kind);
    let limit = reply::limit(query.edns, way.protocol) - way.needs(query.edns);
    let start = out.len();
    let flags = flag::QR | flag::AA | flag::RA | query.header.flags & (flag::RD | flag::CD);
    let mut encoder = Encoder::new(out, limit, query.header.id, flags);
    let mut fits = encoder.question(query.question).is_ok();
    for (owner, target) in aliases.iter().zip(aliases.iter().skip(1)) {
        let record = (kind::CNAME, CLASS_IN, ttl);
        let written = encoder.record(Section::Answer, owner.as_name(), record, |encoder| {
            encoder.put_name(target.as_name());
        });
        fits = fits && written.is_ok();
    }
    let mut negative = false;
    let (code, reason) = match end {
        End::Failed(code, reason) => (*code, Some(*reason)),
        End::Missing => {
            negative = true;
            // The code is that of the last name (RFC 6604 §3).
            let code = if zone.settings.names.is_coredns() { rcode::NOERROR } else { rcode::NXDOMAIN };
            (code, stale(zone, Ede::StaleNxdomain))
        }
        End::Here(node) => {
            negative = true;
            let Some(owner) = aliases.last() else { return rcode::SERVFAIL };
            zone.visit(*node, asked, &mut |content, _| {
                negative = false;
                let record = (asked, CLASS_IN, ttl);
                let put = |encoder: &mut Encoder<'_>| encoder.put(content);
                fits = fits && encoder.record(Section::Answer, owner.as_name(), record, put).is_ok();
                fits
            });
            (rcode::NOERROR, stale(zone, Ede::StaleAnswer))
        }
        End::Elsewhere(message) => match Answer::parse(message) {
            Ok(answer) => {
                for record in answer.records().filter(|record| record.section != Section::Additional) {
                    let copied = matches!(encoder.copy(record.section, &record, record.ttl), Ok(Ok(())));
                    fits = fits && (copied || record.section != Section::Answer);
                }
                (answer.rcode(), stale(zone, Ede::StaleAnswer))
            }
            Err(_malformed) => (rcode::SERVFAIL, Some(Reason(Ede::InvalidData as u16, ""))),
        },
    };
    if !fits {
        encoder.set(flag::TC);
    }
    if negative {
        let (domain, soa) = (zone.settings.domain.as_name(), &zone.soa);
        encoder
            .record(Section::Authority, domain, (kind::SOA, CLASS_IN, ttl), |encoder| encoder.put(soa))
            .ok();
    }
    encoder.set(code & 0xf);
    encoder.finish();
    reply::close(out, start, query.edns, way, (code, reason));
    debug_assert!(out.len() - start >= Header::LENGTH, "a message has a header");
    code
}
