//! The rest of a pod's search list, walked in one go: see [`crate::autopath`].

use std::net::IpAddr;

use super::options::Way;
use super::{Client, Responder, lowered, reply};
use crate::autopath;
use crate::message::{Query, kind};
use crate::zone::{Found, Node, Zone};

impl Responder {
    /// Whether a name that is not there is the first that a pod tries of several.
    pub(super) fn is_first_of_search_list(&self, query: &Query<'_>, client: Client<'_>) -> bool {
        let Some((autopath, client)) = self.autopath.as_ref().zip(client()) else { return false };
        autopath.walk(client.ip(), query, &[]).is_some()
    }

    /// What the rest of the client's search list leads to, if there is anything. Returns the code.
    pub(super) async fn complete(
        &self,
        zone: &Zone,
        query: &Query<'_>,
        (way, client): (Way<'_>, IpAddr),
        out: &mut Vec<u8>,
    ) -> Option<u16> {
        let autopath = self.autopath.as_ref()?;
        let kind = query.question.kind;
        let mut lower = Vec::new();
        for name in autopath.walk(client, query, &self.forwarder.search())? {
            match self.find(zone, lowered(name.as_name(), &mut lower)) {
                Found::NotReady => return None,
                Found::Here(node, _) if has_addresses(zone, node) => {
                    let aliases = vec![query.question.name.to_buf(), name];
                    return Some(self.follow(zone, query, aliases, (way, client), out).await);
                }
                Found::Here(..) | Found::Missing(_) => {}
                Found::Elsewhere => {
                    let resolve = async |kind| {
                        let query = autopath::ask(query, name.as_name(), kind);
                        self.forwarder.resolve(&query, client).await.ok().map(|reply| reply.message)
                    };
                    let answer = resolve(kind).await?;
                    let other = autopath::other(kind);
                    let exists = autopath::has(&answer, kind)
                        || resolve(other).await.is_some_and(|answer| autopath::has(&answer, other));
                    if exists {
                        let start = out.len();
                        out.extend(autopath::splice(query, name.as_name(), &answer).ok()?);
                        return Some(reply::complete(out, start, query, way, None));
                    }
                }
            }
        }
        None
    }
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
