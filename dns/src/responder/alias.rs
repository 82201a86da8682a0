//! ExternalName Services: an alias, and its target.

use std::net::IpAddr;

use super::handler::Draft;
use super::reply::Reason;
use super::{Responder, lowered, stale};
use crate::autopath;
use crate::message::{Ede, NameBuf, Query, kind, rcode, record};
use crate::zone::{Found, Node, Zone};

/// Maximum length of a chain of aliases.
const MAX_ALIASES: usize = 8;

impl Responder {
    /// Resolves aliases: first the aliases, then the records of the last one. The first alias is the queried
    /// name.
    pub(super) async fn follow(
        &self,
        zone: &Zone,
        query: &Query<'_>,
        mut aliases: Vec<NameBuf>,
        client: IpAddr,
    ) -> Draft {
        let failed = |code, text| Draft::new(rcode::SERVFAIL, Some(Reason(code, text)));
        let mut lower = Vec::new();
        let mut draft = loop {
            let Some(last) = aliases.last() else { break failed(Ede::Other as u16, "") };
            match self.find(zone, lowered(last.as_name(), &mut lower)) {
                Found::Here(Node::Service(service), _) if service.alias().is_some() => {
                    if aliases.len() > MAX_ALIASES {
                        break failed(Ede::Other as u16, "too many aliases");
                    }
                    aliases.extend(service.alias().cloned());
                }
                Found::Here(node, _) => break here(zone, query, last, node),
                Found::Missing(_) => {
                    // The code is that of the last name (RFC 6604 §3).
                    let is_coredns = zone.settings.names.is_coredns();
                    let code = if is_coredns { rcode::NOERROR } else { rcode::NXDOMAIN };
                    break negative(zone, Draft::new(code, stale(zone, Ede::StaleNxdomain)));
                }
                Found::NotReady => break failed(Ede::NotReady as u16, ""),
                Found::Elsewhere => {
                    let target = Query {
                        edns: None,
                        ..autopath::query_for(query, last.as_name(), query.question.kind)
                    };
                    match self.upstream(&target, client).await {
                        Ok(draft) => break Draft { reason: stale(zone, Ede::StaleAnswer), ..draft },
                        Err((_, Reason(code, text))) => break failed(code, text),
                    }
                }
            }
        };
        let cname = |pair: &[NameBuf]| match pair {
            [owner, target] => {
                record(owner.as_name(), kind::CNAME, zone.settings.ttl, target.as_name().wire())
            }
            _ => None,
        };
        draft.message.answers.splice(..0, aliases.windows(2).filter_map(cname));
        draft.message.metadata.authoritative = true;
        draft.message.metadata.authentic_data = false;
        draft
    }
}

/// The records at the end of the aliases, if there are any of this type.
fn here(zone: &Zone, query: &Query<'_>, owner: &NameBuf, node: Node<'_>) -> Draft {
    let mut draft = Draft::new(rcode::NOERROR, stale(zone, Ede::StaleAnswer));
    let (kind, ttl) = (query.question.kind, zone.settings.ttl);
    zone.visit(node, kind, &mut |content, _| {
        draft.message.answers.extend(record(owner.as_name(), kind, ttl, content));
        true
    });
    if draft.message.answers.is_empty() { negative(zone, draft) } else { draft }
}

fn negative(zone: &Zone, mut draft: Draft) -> Draft {
    let domain = zone.settings.domain.as_name();
    draft.message.authorities.extend(record(domain, kind::SOA, zone.settings.ttl, &zone.soa));
    draft
}
