//! The codec against hickory's, on random messages and on broken ones.

use std::net::{Ipv4Addr, Ipv6Addr};

use hickory_server::proto::op::{Edns as TheirEdns, Message, MessageType, OpCode, Query as TheirQuery};
use hickory_server::proto::rr::rdata::{A, AAAA, CNAME, MX, PTR, SOA, SRV, TXT};
use hickory_server::proto::rr::{Name as TheirName, RData, Record as TheirRecord, RecordType};

use super::*;

fn name(random: &mut fastrand::Rng) -> TheirName {
    const LABELS: [&str; 7] =
        ["a", "web", "WEB", "default", "svc", "cluster", "a-label-of-some-length-0123456789"];
    let labels = (0..random.usize(0..6)).map(|_| LABELS[random.usize(..LABELS.len())].as_bytes());
    TheirName::from_labels(labels.collect::<Vec<_>>()).unwrap()
}

fn data(random: &mut fastrand::Rng) -> RData {
    match random.u8(..8) {
        0 => RData::A(A(Ipv4Addr::from(random.u32(..)))),
        1 => RData::AAAA(AAAA(Ipv6Addr::from(random.u128(..)))),
        2 => RData::CNAME(CNAME(name(random))),
        3 => RData::PTR(PTR(name(random))),
        4 => RData::SRV(SRV::new(random.u16(..), random.u16(..), random.u16(..), name(random))),
        5 => RData::TXT(TXT::new(vec!["some text".to_owned(); random.usize(1..4)])),
        6 => RData::MX(MX::new(random.u16(..), name(random))),
        _ => RData::SOA(SOA::new(name(random), name(random), random.u32(..), 1, 2, 3, 4)),
    }
}

fn message(random: &mut fastrand::Rng, kind: MessageType) -> Message {
    let mut message = Message::new(random.u16(..), kind, OpCode::Query);
    message.metadata.recursion_desired = random.bool();
    message.queries.push(TheirQuery::query(name(random), RecordType::from(random.u16(1..300))));
    if kind == MessageType::Response {
        for section in [&mut message.answers, &mut message.authorities, &mut message.additionals] {
            for _ in 0..random.usize(..8) {
                section.push(TheirRecord::from_rdata(name(random), random.u32(..), data(random)));
            }
        }
    }
    if random.bool() {
        let mut edns = TheirEdns::new();
        edns.set_max_payload(random.u16(512..));
        edns.set_dnssec_ok(random.bool());
        message.edns = Some(edns);
    }
    message
}

#[test]
fn what_hickory_writes_is_read_as_it_was_meant() {
    let mut random = fastrand::Rng::with_seed(1);
    for _ in 0..3000 {
        let theirs = message(&mut random, MessageType::Query);
        let wire = theirs.to_vec().unwrap();
        let ours = Query::parse(&wire).unwrap();
        assert_eq!(ours.header.id, theirs.metadata.id);
        assert_eq!(ours.header.has(flag::RD), theirs.metadata.recursion_desired);
        let asked = &theirs.queries[0];
        assert_eq!(ours.question.name.to_string(), asked.name().to_ascii());
        assert_eq!(ours.question.kind, u16::from(asked.query_type()));
        let edns = theirs.edns.as_ref().map(|edns| (edns.max_payload(), edns.flags().dnssec_ok));
        assert_eq!(ours.edns.map(|edns| (edns.payload, edns.dnssec_ok)), edns);
    }
}

#[test]
fn what_we_write_anew_is_read_by_hickory_as_it_was() {
    let mut random = fastrand::Rng::with_seed(2);
    let (mut ours, mut hickorys) = (0, 0);
    for _ in 0..3000 {
        let theirs = message(&mut random, MessageType::Response);
        let wire = theirs.to_vec().unwrap();
        let answer = Answer::parse(&wire).unwrap();
        let mut out = b"xx".to_vec();
        let mut encoder = Encoder::new(&mut out, 65535, answer.header.id, answer.header.flags);
        encoder.question(answer.question).unwrap();
        for record in answer.records() {
            encoder.copy(record.section, &record, record.ttl).unwrap().unwrap();
        }
        encoder.finish();
        let again = Message::from_vec(&out[2..]).unwrap();
        assert_eq!(again.queries, theirs.queries);
        for (section, expected) in [
            (again.answers, theirs.answers),
            (again.authorities, theirs.authorities),
            (again.additionals, theirs.additionals),
        ] {
            assert_eq!(section, expected);
            let cases = |records: &[TheirRecord]| records.iter().map(ToString::to_string).collect::<Vec<_>>();
            assert_eq!(cases(&section), cases(&expected), "letters keep their case");
        }
        ours += out.len() - 2;
        hickorys += wire.len();
    }
    assert!(ours <= hickorys + hickorys / 100, "we compress no worse: {ours} bytes, {hickorys}");
}

#[test]
fn a_record_that_does_not_fit_leaves_no_trace() {
    let mut random = fastrand::Rng::with_seed(3);
    for limit in 40..600 {
        let theirs = message(&mut random, MessageType::Response);
        let wire = theirs.to_vec().unwrap();
        let answer = Answer::parse(&wire).unwrap();
        let mut out = Vec::new();
        let mut encoder = Encoder::new(&mut out, limit, 7, flag::QR);
        let asked = encoder.question(answer.question);
        let mut written = 0;
        for record in answer.records().filter(|record| record.kind != kind::OPT) {
            written += usize::from(encoder.copy(Section::Answer, &record, 5).unwrap().is_ok());
        }
        encoder.finish();
        assert!(out.len() <= limit);
        let again = Message::from_vec(&out).unwrap();
        assert_eq!(again.answers.len(), written);
        assert_eq!(again.queries.len(), usize::from(asked.is_ok()));
    }
}

/// Whatever comes in: no panic, no endless loop, and what both accept means the same.
#[test]
fn broken_messages_are_refused_or_read_as_hickory_reads_them() {
    let mut random = fastrand::Rng::with_seed(4);
    let mut accepted = 0;
    for _ in 0..40_000 {
        let kind = if random.bool() { MessageType::Query } else { MessageType::Response };
        let mut wire = message(&mut random, kind).to_vec().unwrap();
        for _ in 0..random.usize(..4) {
            let at = random.usize(..wire.len());
            wire[at] = random.u8(..);
        }
        wire.truncate(random.usize(..wire.len() * 2));
        let Ok(answer) = Answer::parse(&wire) else {
            accepted += usize::from(Query::parse(&wire).is_ok());
            continue;
        };
        let mut out = Vec::new();
        let mut encoder = Encoder::new(&mut out, 65535, answer.header.id, answer.header.flags);
        let copied: Vec<_> =
            answer.records().map(|record| encoder.copy(record.section, &record, record.ttl)).collect();
        encoder.finish();
        accepted += usize::from(copied.iter().all(Result::is_ok));
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
fn odd_queries_have_the_codes_their_rfcs_want() {
    let formerr = Err(Some(rcode::FORMERR));
    assert_eq!(code(&query(WEB, [1, 0, 0, 0], b"")), Ok(()));
    assert_eq!(code(&query(WEB, [1, 0, 0, 1], OPT)), Ok(()));
    // RFC 6891 §6.1.1: two OPT records; one that is not of the root, or in another section.
    assert_eq!(code(&query(WEB, [1, 0, 0, 2], &[OPT, OPT].concat())), formerr);
    assert_eq!(code(&query(WEB, [1, 0, 0, 1], &[b"\x01x", OPT].concat())), formerr);
    assert_eq!(code(&query(WEB, [1, 1, 0, 0], OPT)), formerr);
    // RFC 6891 §6.1.3: a version there is not.
    let version_1 = [&OPT[..6], b"\x01", &OPT[7..]].concat();
    assert_eq!(code(&query(WEB, [1, 0, 0, 1], &version_1)), Err(Some(rcode::BADVERS)));
    // An option that breaks off.
    let option = [&OPT[..9], b"\x00\x05\x00\x03\x00\x04x"].concat();
    assert_eq!(code(&query(WEB, [1, 0, 0, 1], &option)), formerr);
    // RFC 9619: one question. Counts that lie.
    assert_eq!(code(&query(b"", [0, 0, 0, 0], b"")), formerr);
    assert_eq!(code(&query(WEB, [2, 0, 0, 0], WEB)), formerr);
    assert_eq!(code(&query(WEB, [65535, 0, 0, 0], b"")), formerr);
    assert_eq!(code(&query(WEB, [1, 65535, 65535, 65535], b"")), formerr);
    // A name that is a pointer to itself, one with a reserved length, one that is too long.
    assert_eq!(code(&query(b"\xc0\x0c\x00\x01\x00\x01", [1, 0, 0, 0], b"")), formerr);
    assert_eq!(code(&query(b"\x40web\x00\x00\x01\x00\x01", [1, 0, 0, 0], b"")), formerr);
    let long = [b"\x3f".as_slice(), &[b'a'; 63]].concat().repeat(4);
    assert_eq!(code(&query(&[&long, WEB].concat(), [1, 0, 0, 0], b"")), formerr);
    // Responses and scraps have no answer.
    let mut response = query(WEB, [1, 0, 0, 0], b"");
    response[2] |= 0x80;
    assert_eq!(code(&response), Err(None));
    assert_eq!(code(&response[..11]), Err(None));
    // Another opcode, with the header alone (RFC 8906 §8.1.4).
    let mut other = query(b"", [0, 0, 0, 0], b"");
    other[2] |= 15 << 3;
    assert_eq!(code(&other), Err(Some(rcode::NOTIMP)));
}

#[test]
fn compression_that_leads_forward_or_in_circles_is_refused() {
    let read = |message: &[u8], at| {
        let mut found = NameBuf::default();
        Cursor::at(message, at).name(&mut found).map(|()| found.to_string())
    };
    assert_eq!(read(b"\x01b\x00\x01a\xc0\x00", 3), Ok("a.b.".to_owned()));
    assert_eq!(read(b"\xc0\x00", 0), Err(Malformed));
    assert_eq!(read(b"\x01a\xc0\x00", 0), Err(Malformed));
    assert_eq!(read(b"\xc0\x02\x01a\x00", 0), Err(Malformed));
    assert_eq!(read(b"\xc0\x02\xc0\x00", 2), Err(Malformed));
    assert_eq!(read(b"\x01a", 0), Err(Malformed));
    // As many pointers as fit, each one step back: ends, and a name that grows too long does too.
    let steps: Vec<u8> =
        [0, 0].into_iter().chain((0..8000_u16).flat_map(|n| (0xc000 | (n * 2)).to_be_bytes())).collect();
    assert_eq!(read(&steps, 16_000), Ok(".".to_owned()));
}

#[test]
fn text_becomes_a_name_and_back() {
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
