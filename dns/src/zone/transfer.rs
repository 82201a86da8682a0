//! Zone transfers (RFC 5936): the SOA record, every other record, the SOA record.

use std::collections::VecDeque;
use std::sync::Arc;

use hickory_server::proto::rr::{RData, Record};

use super::service::Service;
use super::{Node, Zone};
use crate::message::{Name, NameBuf, kind, record};

/// Maximum bytes of a message's records without compression.
const MESSAGE: usize = 16 * 1024;

/// The remaining records of one state of the zone.
pub(crate) struct Transfer {
    zone: Arc<Zone>,
    /// Records of the Services that were processed.
    ready: VecDeque<Record>,
    /// The other Services; their records are created when needed.
    services: std::vec::IntoIter<Arc<Service>>,
    is_at_end: bool,
}

impl Transfer {
    /// A transfer of the complete zone. Without a history of changes it also answers IXFR (RFC 1995 §4).
    pub(crate) fn new(zone: Arc<Zone>) -> Self {
        let apex = zone.settings.domain.clone();
        let server = zone.name_server();
        let mut version = NameBuf::default();
        let has_version = version.push_label(b"dns-version").and_then(|()| version.push_name(apex.as_name()));
        let nodes = [
            (Node::Apex, apex.as_name(), kind::SOA),
            (Node::Apex, apex.as_name(), kind::NS),
            (Node::NameServer, server.as_name(), kind::A),
            (Node::NameServer, server.as_name(), kind::AAAA),
            (Node::Version, version.as_name(), kind::TXT),
        ];
        let mut ready = VecDeque::new();
        // A domain may have the maximum length of names.
        for (node, name, kind) in nodes.into_iter().take(if has_version.is_ok() { 5 } else { 4 }) {
            zone.visit(node, kind, &mut |content, _| {
                ready.extend(record(name, kind, zone.settings.ttl, content));
                true
            });
        }
        let services: Vec<_> = zone.services.values().cloned().collect();
        Self { zone, ready, services: services.into_iter(), is_at_end: false }
    }

    /// The records of the next message.
    pub(crate) fn next_records(&mut self) -> Vec<Record> {
        let (mut records, mut length) = (Vec::new(), 0);
        while length < MESSAGE
            && let Some(record) = self.ready.pop_front().or_else(|| self.refill())
        {
            let content =
                if let RData::Unknown { rdata, .. } = &record.data { rdata.anything.len() } else { 0 };
            // Type, class, TTL and length are in between.
            length += record.name.len() + 10 + content;
            records.push(record);
        }
        records
    }

    /// Whether the last record was taken.
    pub(crate) fn has_ended(&self) -> bool {
        self.is_at_end && self.ready.is_empty()
    }

    /// Returns the first record of the next Service and queues the others; at the end the SOA record again.
    fn refill(&mut self) -> Option<Record> {
        let ttl = self.zone.settings.ttl;
        while self.ready.is_empty() && !self.is_at_end {
            let ready = &mut self.ready;
            match self.services.next() {
                Some(service) => service.records(&mut |owner: Name<'_>, kind, content: &[u8]| {
                    ready.extend(record(owner, kind, ttl, content));
                }),
                None => {
                    self.is_at_end = true;
                    let apex = self.zone.settings.domain.as_name();
                    ready.extend(record(apex, kind::SOA, ttl, &self.zone.soa));
                }
            }
        }
        self.ready.pop_front()
    }
}
