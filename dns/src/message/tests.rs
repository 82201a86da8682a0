//! Queries encoded by hickory, and broken ones.

use hickory_server::proto::op::{Edns as TheirEdns, Message, MessageType, OpCode, Query as TheirQuery};
use hickory_server::proto::rr::{Name as TheirName, RecordType};

use super::*;

fn name(random: &mut fastrand::Rng) -> TheirName {
    const LABELS: [&str; 7] =
        ["a", "web", "WEB", "default", "svc", "cluster", "a-label-of-some-length-0123456789"];
    let labels = (0..random.usize(0..6)).map(|_| LABELS[random.usize(..LABELS.len())].as_bytes());
    TheirName::from_labels(labels.collect::<Vec<_>>()).unwrap()
}

fn message(random: &mut fastrand::Rng) -> Message {
    let mut message = Message::new(random.u16(..), MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = random.bool();
    message.queries.push(TheirQuery::query(name(random), RecordType::from(random.u16(1..300))));
    if random.bool() {
        let mut edns = TheirEdns::new();
        edns.set_max_payload(random.u16(512..));
        edns.set_dnssec_ok(random.bool());
        message.edns = Some(edns);
    }
    message
}

#[test]
fn queries_encoded_by_hickory_are_decoded() {
    let mut random = fastrand::Rng::with_seed(1);
    for _ in 0..3000 {
        let theirs = message(&mut random);
        let wire = theirs.to_vec().unwrap();
        let ours = Query::parse(&wire).unwrap();
        assert_eq!(ours.header.id, theirs.metadata.id);
        assert_eq!(ours.header.has(flag::RD), theirs.metadata.recursion_desired);
        let question = &theirs.queries[0];
        assert_eq!(ours.question.name.to_string(), question.name().to_ascii());
        assert_eq!(ours.question.kind, u16::from(question.query_type()));
        let edns = theirs.edns.as_ref().map(|edns| (edns.max_payload(), edns.flags().dnssec_ok));
        assert_eq!(ours.edns.map(|edns| (edns.payload, edns.dnssec_ok)), edns);
    }
}

#[test]
fn broken_queries_are_refused_or_decoded() {
    let mut random = fastrand::Rng::with_seed(4);
    let mut accepted = 0;
    for _ in 0..40_000 {
        let mut wire = message(&mut random).to_vec().unwrap();
        for _ in 0..random.usize(..4) {
            let at = random.usize(..wire.len());
            wire[at] = random.u8(..);
        }
        wire.truncate(random.usize(..wire.len() * 2));
        accepted += usize::from(Query::parse(&wire).is_ok());
    }
    assert!(accepted > 1000, "{accepted}");
}

fn query(question: &[u8], counts: [u16; 4], rest: &[u8]) -> Vec<u8> {
    let [questions, answers, authorities, additionals] = counts;
    let header = Header { id: 0x1234, flags: flag::RD, questions, answers, authorities, additionals };
    [&header.to_wire()[..], question, rest].concat()
}

const WEB: &[u8] = b"\x03web\x00\x00\x01\x00\x01";
const OPT: &[u8] = b"\x00\x00\x29\x04\xd0\x00\x00\x80\x00\x00\x00";

fn code(message: &[u8]) -> Result<(), Option<u16>> {
    match Query::parse(message) {
        Ok(_) => Ok(()),
        Err(Invalid::Ignore) => Err(None),
        Err(Invalid::Reply { rcode, .. }) => Err(Some(rcode)),
    }
}

#[test]
fn unusual_queries_get_the_codes_of_their_rfcs() {
    let formerr = Err(Some(rcode::FORMERR));
    assert_eq!(code(&query(WEB, [1, 0, 0, 0], b"")), Ok(()));
    assert_eq!(code(&query(WEB, [1, 0, 0, 1], OPT)), Ok(()));
    // RFC 6891 §6.1.1: two OPT records; one that is not of the root, or in another section.
    assert_eq!(code(&query(WEB, [1, 0, 0, 2], &[OPT, OPT].concat())), formerr);
    assert_eq!(code(&query(WEB, [1, 0, 0, 1], &[b"\x01x", OPT].concat())), formerr);
    assert_eq!(code(&query(WEB, [1, 1, 0, 0], OPT)), formerr);
    // RFC 6891 §6.1.3: an unknown version.
    let version_1 = [&OPT[..6], b"\x01", &OPT[7..]].concat();
    assert_eq!(code(&query(WEB, [1, 0, 0, 1], &version_1)), Err(Some(rcode::BADVERS)));
    // A truncated option.
    let option = [&OPT[..9], b"\x00\x05\x00\x03\x00\x04x"].concat();
    assert_eq!(code(&query(WEB, [1, 0, 0, 1], &option)), formerr);
    // RFC 9619: one question. Wrong counts.
    assert_eq!(code(&query(b"", [0, 0, 0, 0], b"")), formerr);
    assert_eq!(code(&query(WEB, [2, 0, 0, 0], WEB)), formerr);
    assert_eq!(code(&query(WEB, [65535, 0, 0, 0], b"")), formerr);
    assert_eq!(code(&query(WEB, [1, 65535, 65535, 65535], b"")), formerr);
    // A name that is a pointer to itself, one with a reserved length, one that is too long.
    assert_eq!(code(&query(b"\xc0\x0c\x00\x01\x00\x01", [1, 0, 0, 0], b"")), formerr);
    assert_eq!(code(&query(b"\x40web\x00\x00\x01\x00\x01", [1, 0, 0, 0], b"")), formerr);
    let long = [b"\x3f".as_slice(), &[b'a'; 63]].concat().repeat(4);
    assert_eq!(code(&query(&[&long, WEB].concat(), [1, 0, 0, 0], b"")), formerr);
    // Responses and fragments are not answered.
    let mut response = query(WEB, [1, 0, 0, 0], b"");
    response[2] |= 0x80;
    assert_eq!(code(&response), Err(None));
    assert_eq!(code(&response[..11]), Err(None));
    // Another opcode, with the header only (RFC 8906 §8.1.4).
    let mut other = query(b"", [0, 0, 0, 0], b"");
    other[2] |= 15 << 3;
    assert_eq!(code(&other), Err(Some(rcode::NOTIMP)));
}

#[test]
fn text_is_parsed_and_formatted_as_a_name() {
    for (text, shown) in [("a.B.c", "a.B.c."), ("a.", "a."), (".", "."), ("", ".")] {
        assert_eq!(NameBuf::from_text(text).unwrap().to_string(), shown);
    }
    for wrong in ["a..b", ".a", &"a".repeat(64), &"a.".repeat(128)] {
        assert_eq!(NameBuf::from_text(wrong), Err(Malformed), "{wrong}");
    }
    let below = NameBuf::from_text("x.Cluster.local").unwrap();
    let zone = NameBuf::from_text("cluster.LOCAL").unwrap();
    assert!(below.as_name().is_within(zone.as_name()) && zone.as_name().is_within(zone.as_name()));
    assert!(!NameBuf::from_text("xcluster.local").unwrap().as_name().is_within(zone.as_name()));
}
