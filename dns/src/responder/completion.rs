//! Walks the rest of a pod's search list at once: see [`crate::autopath`].

use std::net::IpAddr;

use hickory_server::proto::op::{Message, ResponseCode};

use super::handler::Draft;
use super::{Client, Responder, lowered};
use crate::autopath;
use crate::message::{Query, kind, record};
use crate::zone::{Found, Node, Zone};

/// TTL in seconds of an alias to a name without records of this type: as short as the cluster's own.
const EMPTY_TTL: u32 = 5;

impl Responder {
    /// Whether a missing name is the first of several that a pod tries.
    pub(super) fn is_first_of_search_list(&self, query: &Query<'_>, client: Client<'_>) -> bool {
        let Some((autopath, client)) = self.autopath.as_ref().zip(client()) else { return false };
        autopath.search_names(client.ip(), query, &[]).is_some()
    }

    /// The result of the rest of the client's search list, if there is one.
    pub(super) async fn complete(&self, zone: &Zone, query: &Query<'_>, client: IpAddr) -> Option<Draft> {
        let autopath = self.autopath.as_ref()?;
        let kind = query.question.kind;
        let mut lower = Vec::new();
        for name in autopath.search_names(client, query, &self.forwarder.search())? {
            match self.find(zone, lowered(name.as_name(), &mut lower)) {
                Found::NotReady => return None,
                Found::Here(node, _) if has_addresses(zone, node) => {
                    let aliases = vec![query.question.name.to_buf(), name];
                    return Some(self.follow(zone, query, aliases, client).await);
                }
                Found::Here(..) | Found::Missing(_) => {}
                Found::Elsewhere => {
                    let resolve = async |kind| {
                        self.upstream(&autopath::query_for(query, name.as_name(), kind), client).await.ok()
                    };
                    let mut draft = resolve(kind).await?;
                    let other = autopath::other_family(kind);
                    let exists = has(&draft.message, kind)
                        || resolve(other).await.is_some_and(|draft| has(&draft.message, other));
                    if exists {
                        let ttl = draft.message.answers.iter().map(|record| record.ttl).min();
                        let (alias, ttl) = (query.question.name, ttl.unwrap_or(EMPTY_TTL));
                        let alias = record(alias, kind::CNAME, ttl, name.as_name().wire());
                        draft.message.answers.splice(..0, alias);
                        return Some(Draft { reason: None, ..draft });
                    }
                }
            }
        }
        None
    }
}

/// Whether a reply has records of this type.
fn has(reply: &Message, kind: u16) -> bool {
    let mut answers = reply.answers.iter();
    reply.response_code == ResponseCode::NoError
        && answers.any(|record| u16::from(record.record_type()) == kind)
}

/// Of either family, or by an alias.
fn has_addresses(zone: &Zone, node: Node<'_>) -> bool {
    let mut found = matches!(node, Node::Service(service) if service.alias().is_some());
    for kind in [kind::A, kind::AAAA] {
        zone.visit(node, kind, &mut |_, _| {
            found = true;
            false
        });
    }
    found
}
