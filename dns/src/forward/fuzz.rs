//! Invariants for any message from an upstream server.

use hickory_resolver::proto::op::{DnsResponse, Message, MessageType};

use super::answer;
use super::group::request;
use super::ttl::Limits;
use super::upstream_query::UpstreamQuery;
use crate::message::{Header, Query};
use crate::metrics::Protocol;
use crate::responder::{Transport, complete_forwarded};

/// `www.example.org`, A; the second with EDNS and DO.
const QUERIES: [&[u8]; 2] = [
    b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x03www\x07example\x03org\x00\x00\x01\x00\x01",
    b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x01\x03www\x07example\x03org\x00\x00\x01\x00\x01\
      \x00\x00\x29\x04\xd0\x00\x00\x80\x00\x00\x00",
];

/// Bytes of the header after the ID, which is ours: flags and counts.
const BEHIND_ID: usize = 10;

/// A reply to one of our queries: flags, counts, and everything after the question. What is kept of it must
/// be valid for any client; otherwise there is a failure.
///
/// # Panics
/// If an invariant does not hold.
pub fn upstream(content: &[u8]) {
    let Some((header, records)) = content.split_at_checked(BEHIND_ID) else { return };
    for message in QUERIES {
        let query = Query::parse(message).expect("a query of ours");
        let upstream_query = UpstreamQuery::by(&query);
        let question = &message[Header::LENGTH..][..query.question.name.wire().len() + 4];
        let answer = [&message[..2], header, question, records].concat();
        let Ok(response) = DnsResponse::from_buffer(answer) else { continue };
        let request = request(&upstream_query, false).expect("a request of ours");
        if answer::check(&response, &request).is_err() {
            continue;
        }
        let Ok(entry) = answer::read(response, &upstream_query, &Limits::default()) else { continue };
        assert!(entry.is_for(&upstream_query));
        for now in [0, 1_000, u64::MAX / 2] {
            for protocol in [Protocol::Udp, Protocol::Tcp] {
                let mut out = Vec::new();
                entry.write(&query, now, &mut out);
                complete_forwarded(&mut out, 0, &query, Transport { protocol, granted: None }, None);
                let reply = Message::from_vec(&out).expect("a whole message");
                assert!(reply.id == query.header.id && reply.recursion_available);
                assert_eq!(reply.message_type, MessageType::Response);
                assert!(protocol == Protocol::Tcp || out.len() <= 1232, "{} bytes", out.len());
                assert_eq!(reply.edns.is_some(), query.edns.is_some());
            }
        }
    }
}
