use super::super::group::request;
use super::*;
use crate::message::Query;

/// A query for `www.example. A`, with EDNS and DO if requested.
fn query(dnssec_ok: bool) -> Vec<u8> {
    let mut query = b"\x12\x34\x01\0\0\x01\0\0\0\0\0\x01\x03www\x07example\0\0\x01\0\x01".to_vec();
    query.extend([0, 0, 41, 4, 208, 0, 0, u8::from(dnssec_ok) << 7, 0, 0, 0]);
    query
}

type Wire<'w> = (&'w [u8], u16, u32, &'w [u8]);

fn response(code: u8, answers: &[Wire<'_>], authorities: &[Wire<'_>]) -> Vec<u8> {
    let mut message = query(false);
    message.truncate(message.len() - 11);
    (message[2], message[3]) = (0x81, 0x80 | code);
    message[7] = u8::try_from(answers.len()).unwrap();
    message[9] = u8::try_from(authorities.len()).unwrap();
    message[11] = 0;
    for (owner, kind, ttl, data) in answers.iter().chain(authorities) {
        message.extend(*owner);
        message.extend(kind.to_be_bytes());
        message.extend([0, 1]);
        message.extend(ttl.to_be_bytes());
        message.extend(u16::try_from(data.len()).unwrap().to_be_bytes());
        message.extend(*data);
    }
    message
}

/// The code, the TTL and the record types of the entry.
fn kept(message: &[u8], dnssec_ok: bool) -> Result<(u16, u32, Vec<u16>), InvalidReply> {
    let wire = query(dnssec_ok);
    let query = Query::parse(&wire).unwrap();
    let upstream_query = UpstreamQuery::by(&query);
    let malformed = |_error| InvalidReply::Malformed;
    let response = DnsResponse::from_buffer(message.to_vec()).map_err(malformed)?;
    check(&response, &request(&upstream_query, false).unwrap())?;
    let entry = read(response, &upstream_query, &Limits::default())?;
    let mut reply = Vec::new();
    entry.write(&query, 0, &mut reply);
    let reply = Message::from_vec(&reply).expect("what is kept can be read");
    let types =
        reply.answers.iter().chain(&reply.authorities).map(|record| record.record_type().into()).collect();
    Ok((reply.response_code.into(), entry.contents().ttl, types))
}

const WWW: &[u8] = b"\xC0\x0C";
const SOA: &[u8] =
    b"\x02ns\x07example\0\x02hm\x07example\0\0\0\0\x01\0\0\0\x02\0\0\0\x03\0\0\0\x04\0\0\0\x3C";
const SIGNATURE_OF_A: &[u8] = b"\0\x01\x0D\x02\0\0\0\x3C\0\0\0\0\0\0\0\0\0\0\x07example\0sig";

#[test]
fn signatures_are_kept_for_clients_that_request_them() {
    let answers: [Wire<'_>; 2] = [(WWW, 1, 60, &[192, 0, 2, 1]), (WWW, 46, 60, SIGNATURE_OF_A)];
    assert_eq!(kept(&response(0, &answers, &[]), false), Ok((0, 60, vec![1])));
    assert_eq!(kept(&response(0, &answers, &[]), true), Ok((0, 60, vec![1, 46])));
}

/// RFC 2308 §2.2, §5
#[test]
fn negative_answer_needs_the_soa_of_a_parent_zone_and_uses_the_smaller_ttl() {
    let soa: [Wire<'_>; 1] = [(b"\x07example\0", 6, 3600, SOA)];
    assert_eq!(kept(&response(3, &[], &soa), false), Ok((3, 60, vec![6])));
    let elsewhere: [Wire<'_>; 1] = [(b"\x07another\0", 6, 3600, SOA)];
    assert_eq!(kept(&response(3, &[], &elsewhere), false), Ok((3, 0, vec![])));
    let referral: [Wire<'_>; 1] = [(b"\x07example\0", 2, 3600, b"\x02ns\x07example\0")];
    let mut referred = response(0, &[], &referral);
    assert_eq!(kept(&referred, false), Ok((0, 0, vec![])), "a resolver knows that there is nothing");
    assert_eq!(kept(&response(3, &[], &referral), false), Ok((3, 0, vec![])));
    referred[3] &= 0x7f;
    assert_eq!(kept(&referred, false), Err(InvalidReply::Referral));
}

/// RFC 6672 §2.2, RFC 2308 §2.1
#[test]
fn aliases_are_followed_and_loops_are_refused() {
    let redirected: [Wire<'_>; 3] = [
        (b"\x07example\0", 39, 60, b"\x03org\0"),
        (WWW, 5, 60, b"\x03www\x03org\0"),
        (b"\x03WWW\x03org\0", 1, 30, &[192, 0, 2, 1]),
    ];
    assert_eq!(kept(&response(0, &redirected, &[]), false), Ok((0, 30, vec![39, 5, 1])));
    let dangling: [Wire<'_>; 1] = [(WWW, 5, 60, b"\x04gone\x07example\0")];
    let soa: [Wire<'_>; 1] = [(b"\x07example\0", 6, 3600, SOA)];
    assert_eq!(kept(&response(3, &dangling, &soa), false), Ok((3, 60, vec![5, 6])));
    let circle: [Wire<'_>; 2] = [(WWW, 5, 60, b"\x01x\0"), (b"\x01x\0", 5, 60, b"\x03www\x07example\0")];
    assert_eq!(kept(&response(0, &circle, &[]), false), Err(InvalidReply::Malformed));
}

#[test]
fn contradictory_and_failing_replies_are_invalid() {
    let answers: [Wire<'_>; 1] = [(WWW, 1, 60, &[192, 0, 2, 1])];
    assert_eq!(
        kept(&response(3, &answers, &[]), false),
        Err(InvalidReply::Malformed),
        "NXDOMAIN with a record"
    );
    assert_eq!(kept(&response(2, &[], &[]), false), Err(InvalidReply::Code(2, None)));
}

/// What fuzzing covers: no reply of an upstream server may crash the server or add unrelated records.
#[test]
fn broken_replies_are_refused_or_read_without_harm() {
    let answers: [Wire<'_>; 4] = [
        (WWW, 5, 60, b"\x05alias\xC0\x10"),
        (b"\x05alias\xC0\x10", 1, 60, &[192, 0, 2, 1]),
        (b"\x05alias\xC0\x10", 46, 60, SIGNATURE_OF_A),
        (b"\x06victim\0", 1, 60, &[203, 0, 113, 66]),
    ];
    let soa: [Wire<'_>; 1] = [(b"\x07example\0", 6, 3600, SOA)];
    let seeds = [response(0, &answers, &soa), response(3, &answers[..1], &soa), response(0, &[], &soa)];
    let mut random = fastrand::Rng::with_seed(5);
    for _ in 0..60_000 {
        let mut message = seeds[random.usize(..seeds.len())].clone();
        for _ in 0..random.usize(1..6) {
            let at = random.usize(..message.len());
            match random.u8(..4) {
                0 => message[at] = random.u8(..),
                1 => message.truncate(at.max(1)),
                2 => message[at] ^= 1 << random.u8(..8),
                _ => message.insert(at, random.u8(..)),
            }
        }
        let _read = kept(&message, random.bool());
    }
}

/// RFC 4035 §3.1.3.3: a validator rejects an answer from a wildcard without the proof that the name does not
/// exist.
#[test]
fn proofs_of_a_wildcard_are_kept_for_clients_that_request_them() {
    let signature_of_nsec = &[&b"\0\x2F"[..], &SIGNATURE_OF_A[2..]].concat()[..];
    let signature_of_ns = &[&b"\0\x02"[..], &SIGNATURE_OF_A[2..]].concat()[..];
    let answers: [Wire<'_>; 2] = [(WWW, 1, 60, &[192, 0, 2, 1]), (WWW, 46, 60, SIGNATURE_OF_A)];
    let example = b"\x07example\0";
    let authorities: [Wire<'_>; 4] = [
        (example, 47, 60, b"\x01z\x07example\0\0\x01\x40"),
        (example, 46, 60, signature_of_nsec),
        (example, 2, 60, b"\x02ns\x07example\0"),
        (example, 46, 60, signature_of_ns),
    ];
    assert_eq!(kept(&response(0, &answers, &authorities), true), Ok((0, 60, vec![1, 46, 47, 46])));
    assert_eq!(kept(&response(0, &answers, &authorities), false), Ok((0, 60, vec![1])));
}

/// RFC 3597 §4
#[test]
fn compressed_names_in_old_types_are_decompressed() {
    for (kind, before, names) in [(18_u16, 2, 1), (17, 0, 2), (26, 2, 2), (7, 0, 1), (39, 0, 1)] {
        let mut wire = b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0\x03www\x07example\0".to_vec();
        wire.extend(kind.to_be_bytes());
        wire.extend([0, 1]);
        let data = [vec![0; before], b"\x02ns\xC0\x10".repeat(names)].concat();
        let mut message = wire.clone();
        (message[2], message[3], message[7]) = (0x81, 0x80, 1);
        message.extend(WWW);
        message.extend(kind.to_be_bytes());
        message.extend([0, 1, 0, 0, 0, 60]);
        message.extend(u16::try_from(data.len()).unwrap().to_be_bytes());
        message.extend(&data);
        let query = Query::parse(&wire).unwrap();
        let response = DnsResponse::from_buffer(message).unwrap();
        let entry = read(response, &UpstreamQuery::by(&query), &Limits::default()).unwrap();
        let mut reply = Vec::new();
        entry.write(&query, 0, &mut reply);
        let whole = [vec![0; before], b"\x02ns\x07example\0".repeat(names)].concat();
        assert!(reply.ends_with(&whole), "{kind}: {reply:?}");
    }
}
