//! The whole zone in messages (RFC 5936): the SOA record, every other record, the SOA record.

use std::collections::VecDeque;
use std::sync::Arc;

use super::service::Service;
use super::{Node, Zone};
use crate::message::{CLASS_IN, Edns, Encoder, Name, NameBuf, Query, Question, Section, flag, kind};

/// Bytes of a message: as far as names can be referred to (RFC 1035 §4.1.4).
const MESSAGE: usize = 16 * 1024;

/// A record on its way.
type Record = (NameBuf, u16, Vec<u8>);

/// What is still to be sent of one state of the zone.
pub(crate) struct Transfer {
    zone: Arc<Zone>,
    id: u16,
    flags: u16,
    question: (NameBuf, u16),
    /// Of the Services that were looked at.
    ready: VecDeque<Record>,
    /// The others; a Service's records are made when its turn comes.
    services: std::vec::IntoIter<Arc<Service>>,
    has_ended: bool,
    edns: Option<bool>,
}

impl Transfer {
    /// In answer to a query for the zone's apex.
    pub(crate) fn new(zone: Arc<Zone>, query: &Query<'_>) -> Self {
        let apex = zone.settings.domain.clone();
        let mut ready = VecDeque::from([(apex.clone(), kind::SOA, zone.soa.to_vec())]);
        let server = zone.name_server();
        let nodes = [
            (Node::Apex, apex.clone(), kind::NS),
            (Node::NameServer, server.clone(), kind::A),
            (Node::NameServer, server, kind::AAAA),
        ];
        for (node, name, kind) in nodes {
            zone.visit(node, kind, &mut |content, _| {
                ready.push_back((name.clone(), kind, content.to_vec()));
                true
            });
        }
        let mut version = NameBuf::default();
        if version.push_label(b"dns-version").is_ok() && version.push_name(apex.as_name()).is_ok() {
            ready.push_back((version, kind::TXT, super::SPECIFICATION.to_vec()));
        }
        let question = (query.question.name.to_buf(), query.question.kind);
        let flags = flag::QR | flag::AA | query.header.flags & flag::RD;
        let edns = query.edns.map(|edns| edns.dnssec_ok);
        let services: Vec<_> = zone.services.values().cloned().collect();
        let services = services.into_iter();
        Self { zone, id: query.header.id, flags, question, ready, services, has_ended: false, edns }
    }

    /// Appends the next message; none is left when this returns false.
    pub(crate) fn next_message(&mut self, out: &mut Vec<u8>) -> bool {
        if self.has_ended && self.ready.is_empty() {
            return false;
        }
        let start = out.len();
        let ttl = self.zone.settings.ttl;
        let mut encoder = Encoder::new(out, MESSAGE, self.id, self.flags);
        let (name, kind) = &self.question;
        encoder.question(Question { name: name.as_name(), kind: *kind, class: CLASS_IN }).ok();
        encoder.reserve(Edns::LENGTH);
        while let Some((owner, kind, content)) = self.ready.pop_front().or_else(|| self.refill()) {
            let record = (kind, CLASS_IN, ttl);
            let put = |encoder: &mut Encoder<'_>| encoder.put(&content);
            // A record alone is never larger than a message.
            if encoder.record(Section::Answer, owner.as_name(), record, put).is_err() {
                self.ready.push_front((owner, kind, content));
                break;
            }
        }
        encoder.finish();
        // With EDNS in each message, or in none (RFC 5936 §2.2.5).
        if let Some(dnssec_ok) = self.edns {
            Edns::reply(1232, 0, dnssec_ok).write(out);
            if let Some(count) = out.get_mut(start + 11) {
                *count += 1;
            }
        }
        true
    }

    /// The first record of the next Service, with the others behind it in line; at the end the SOA record
    /// again.
    fn refill(&mut self) -> Option<Record> {
        while self.ready.is_empty() && !self.has_ended {
            match self.services.next() {
                Some(service) => {
                    let ready = &mut self.ready;
                    service.records(&mut |owner: Name<'_>, kind, content: &[u8]| {
                        ready.push_back((owner.to_buf(), kind, content.to_vec()));
                    });
                }
                None => {
                    self.has_ended = true;
                    self.ready.push_back((
                        self.zone.settings.domain.clone(),
                        kind::SOA,
                        self.zone.soa.to_vec(),
                    ));
                }
            }
        }
        self.ready.pop_front()
    }
}
