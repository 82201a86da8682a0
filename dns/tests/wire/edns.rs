//! EDNS: every row of RFC 8906's list, and the supported options.

use std::net::TcpStream;
use std::time::Duration;

use crate::message::{AA, Query, Reply, TC, receive, send};
use crate::server::Server;

const WEB: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec: {clusterIP: 10.96.0.9, ports: [{port: 80}]}\n";
const NAME: &str = "web.default.svc.cluster.local";
const APEX: &str = "cluster.local";

const A: u16 = 1;
const SOA: u16 = 6;

/// Header bits that a query may have.
const RD: u16 = 0x0100;
const Z: u16 = 0x0040;
const AD: u16 = 0x0020;
const CD: u16 = 0x0010;

/// DNSSEC OK.
const DO: u16 = 0x8000;

const NSID: u16 = 3;
const COOKIE: u16 = 10;
const KEEPALIVE: u16 = 11;
const UNKNOWN: u16 = 100;

const FORMERR: u16 = 1;
const NOTIMP: u16 = 4;
const REFUSED: u16 = 5;
const BADVERS: u16 = 16;

fn soa() -> Query {
    Query::new(APEX, SOA)
}

/// NOERROR with the SOA record, authoritative and not truncated.
#[track_caller]
fn assert_answered(reply: &Reply) {
    assert_eq!((reply.code(), &reply.answers[..], reply.flags & (AA | TC)), (0, &[SOA][..], AA), "{reply:?}");
}

/// BADVERS with the supported version and without an answer.
#[track_caller]
fn assert_bad_version(reply: &Reply) {
    let opt = reply.opt.as_ref().unwrap();
    assert_eq!(
        (reply.code(), opt.version, reply.counts[1], reply.counts[2]),
        (BADVERS, 0, 0, 0),
        "{reply:?}"
    );
    assert_eq!(opt.flags & !DO, 0);
    assert_eq!(reply.option(UNKNOWN), None);
}

/// RFC 8906 §8.1
#[test]
fn rfc_8906_queries_without_edns() {
    let server = Server::start(&[("web.yaml", WEB)], &[]);
    let at = server.address;
    // 8.1.1, and 8.1.5 over TCP: no EDNS in the reply to a query without it (RFC 6891 §6.1.1).
    for reply in [soa().ask(at), soa().ask_by_tcp(at)] {
        assert_answered(&reply);
        assert!(reply.opt.is_none());
    }
    // 8.1.2: an unknown type.
    let unknown = Query::new(APEX, 1000).ask(at);
    assert_eq!((unknown.code(), unknown.counts), (0, [1, 0, 1, 0]), "NODATA, with the SOA record");
    // 8.1.3: each bit alone. AD and the reserved bit are not returned, CD and RD are (RFC 4035 §3.2.2, RFC
    // 1035 §4.1.1).
    for (bit, back) in [(CD, CD), (AD, 0), (Z, 0), (RD, RD)] {
        let reply = soa().flags(bit).ask(at);
        assert_answered(&reply);
        assert_eq!(reply.flags & (CD | AD | Z | RD), back, "{bit:#x}");
    }
    // 8.1.4: another opcode, with a question and with the header only.
    for query in [soa(), soa().without_question()] {
        let reply = query.flags(15 << 11).ask(at);
        assert_eq!((reply.code(), reply.flags & 0x7800, &reply.counts[1..]), (NOTIMP, 15 << 11, &[0; 3][..]));
    }
}

/// RFC 8906 §8.2
#[test]
fn rfc_8906_queries_with_edns() {
    let server = Server::start(&[("web.yaml", WEB), ("large.yaml", &large())], &[]);
    let at = server.address;
    // 8.2.1
    let plain = soa().edns(4096, 0, 0).ask(at);
    assert_answered(&plain);
    let opt = plain.opt.as_ref().unwrap();
    assert_eq!((opt.payload, opt.version, opt.flags, opt.options.len()), (1232, 0, 0, 0));
    // 8.2.2, 8.2.5, 8.2.6, 8.2.9: an unknown version, alone and with other unknown things.
    for query in [
        soa().edns(4096, 1, 0),
        soa().edns(4096, 1, 0x40),
        soa().edns(4096, 1, 0).option(UNKNOWN, b"x"),
        soa().edns(4096, 255, DO).option(UNKNOWN, b""),
    ] {
        assert_bad_version(&query.ask(at));
    }
    // 8.2.3: an unknown option is ignored. 8.2.4: an unknown flag is not returned.
    let reply = soa().option(UNKNOWN, b"\x01\x02\x03\x04").ask(at);
    assert_answered(&reply);
    assert_eq!(reply.opt.unwrap().options, []);
    let reply = soa().edns(4096, 0, 0x0040).ask(at);
    assert_answered(&reply);
    assert_eq!(reply.opt.unwrap().flags, 0);
    // 8.2.7: a truncated reply keeps its OPT record.
    let cut = Query::new("large.default.svc.cluster.local", A).edns(512, 0, DO).ask(at);
    assert!(cut.flags & TC != 0 && cut.wire.len() <= 512 && cut.opt.is_some(), "{cut:?}");
    // 8.2.8: DO is returned (RFC 3225 §3).
    let reply = soa().edns(4096, 0, DO).ask(at);
    assert_answered(&reply);
    assert_eq!(reply.opt.unwrap().flags, DO);
    // 8.2.10: NSID, client subnet, expire and a cookie together.
    let many =
        soa().option(NSID, b"").option(8, b"\0\x01\x18\0\x7f\0\0").option(9, b"").option(COOKIE, b"12345678");
    let reply = many.ask(at);
    assert_answered(&reply);
    assert_eq!(reply.opt.unwrap().options.len(), 1, "of these there is only the cookie to answer");
}

fn large() -> String {
    let mut text = "apiVersion: v1\nkind: Service\nmetadata: {name: large}\nspec: {clusterIP: None}\n---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: large-1, labels: {kubernetes.io/service-name: large}}\naddressType: IPv4\nendpoints:\n".to_owned();
    for n in 0..200 {
        text += &format!("- {{addresses: [10.4.0.{}]}}\n", n + 1);
    }
    text
}

/// RFC 6891 §6.2.5: smaller sizes count as 512; ours is 1232. Options reduce the space for records.
#[test]
fn replies_with_all_options_are_within_the_size_of_the_client() {
    let server = Server::start(&[("large.yaml", &large())], &["--nsid=a-node-with-a-rather-long-name"]);
    let query = Query::new("large.default.svc.cluster.local", A);
    for (payload, limit) in [(0, 512), (511, 512), (512, 512), (700, 700), (1232, 1232), (65_535, 1232)] {
        let plain = query.clone().edns(payload, 0, 0);
        for query in [plain.clone(), plain.option(NSID, b"").option(COOKIE, b"12345678")] {
            let reply = query.ask(server.address);
            assert!(
                reply.wire.len() <= limit && reply.wire.len() > limit - 16,
                "{payload}: {}",
                reply.wire.len()
            );
            assert!(reply.flags & TC != 0 && reply.opt.is_some());
        }
    }
    let whole = query.option(COOKIE, b"12345678").ask_by_tcp(server.address);
    assert_eq!((whole.counts[1], whole.flags & TC), (200, 0));
}

/// RFC 7873, RFC 9018
#[test]
fn cookie_is_given_kept_and_recognised() {
    let server = Server::start(&[("web.yaml", WEB)], &[]);
    let at = server.address;
    let first = soa().option(COOKIE, b"12345678").ask(at);
    assert_answered(&first);
    let cookie = first.option(COOKIE).unwrap().to_vec();
    assert_eq!((cookie.len(), &cookie[..8], &cookie[8..12]), (24, &b"12345678"[..], &[1, 0, 0, 0][..]));
    assert_eq!(soa().option(COOKIE, &cookie).ask(at).option(COOKIE).unwrap(), cookie, "a good one stays");
    let mut forged = cookie.clone();
    forged[20] ^= 1;
    let reply = soa().option(COOKIE, &forged).ask(at);
    assert_answered(&reply);
    assert_ne!(reply.option(COOKIE).unwrap(), forged);
    let other = soa().option(COOKIE, b"87654321").ask(at);
    assert_ne!(other.option(COOKIE).unwrap()[16..], cookie[16..]);
    // §5.2.2: an invalid length of a cookie.
    for length in [0, 7, 9, 15, 41] {
        let reply = soa().option(COOKIE, &vec![b'x'; length]).ask(at);
        assert_eq!((reply.code(), reply.counts[1]), (FORMERR, 0), "{length}");
    }
    // §5.4: a cookie without a question.
    let fetched = soa().without_question().option(COOKIE, b"12345678").ask(at);
    assert_eq!((fetched.code(), fetched.counts), (0, [0, 0, 0, 1]));
    assert_eq!(fetched.option(COOKIE).unwrap().len(), 24);
    assert_eq!(soa().without_question().edns(1232, 0, 0).ask(at).code(), FORMERR);
    // The same for forwarded names, refusals and aliases.
    for query in [Query::new("www.example.org", A), Query::new("www.example.org", 252)] {
        assert_eq!(query.option(COOKIE, b"12345678").ask(at).option(COOKIE).unwrap().len(), 24);
    }
    assert!(server.dig(&format!("{NAME} A")).contains("(good)"), "dig keeps count of cookies too");
}

/// RFC 5001
#[test]
fn nsid_is_returned_on_request_if_it_is_configured() {
    let server = Server::start(&[("web.yaml", WEB)], &["--nsid=node-7"]);
    assert_eq!(soa().option(NSID, b"").ask(server.address).option(NSID), Some(&b"node-7"[..]));
    assert_eq!(soa().edns(1232, 0, 0).ask(server.address).option(NSID), None);
    assert!(server.dig(&format!("+nsid {NAME} A")).contains("(\"node-7\")"));
    let nameless = Server::start(&[("web.yaml", WEB)], &[]);
    assert_eq!(soa().option(NSID, b"").ask(nameless.address).option(NSID), None);
}

/// RFC 7828
#[test]
fn keepalive_is_returned_over_tcp_only_and_honoured() {
    let server = Server::start(&[("web.yaml", WEB)], &[]);
    let query = soa().option(KEEPALIVE, b"");
    assert_eq!(query.ask(server.address).option(KEEPALIVE), None);
    let mut stream = TcpStream::connect(server.address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    send(&mut stream, &query.wire(1));
    let reply = Reply::parse(&receive(&mut stream));
    let tenths = u16::from_be_bytes(reply.option(KEEPALIVE).unwrap().try_into().unwrap());
    // Idle for most of the time, and still served.
    std::thread::sleep(Duration::from_millis(u64::from(tenths) * 70));
    send(&mut stream, &query.wire(2));
    assert_eq!(receive(&mut stream)[..2], [0, 2]);
}

/// RFC 8914: every error has a reason.
#[test]
fn every_failure_has_its_reason() {
    let server = Server::start(&[("web.yaml", WEB)], &[]);
    let at = server.address;
    let edns = |query: Query| query.edns(1232, 0, 0);
    let chaos = Query::new("version.bind", 16).class(3);
    for (query, code, reason) in [
        (edns(Query::new(NAME, A)), 0, None),
        (edns(Query::new("none.default.svc.cluster.local", A)), 3, None),
        (edns(chaos), REFUSED, Some(21)),
        (edns(Query::new(APEX, 252)), REFUSED, Some(18)),
        (edns(Query::new(APEX, 251)), REFUSED, Some(18)),
        (edns(soa()).flags(4 << 11), NOTIMP, Some(21)),
        (edns(soa()).flags(5 << 11), NOTIMP, Some(21)),
        (soa().edns(1232, 1, 0), BADVERS, Some(21)),
        (edns(soa()).without_question(), FORMERR, Some(0)),
        (soa().option(COOKIE, b"x"), FORMERR, Some(0)),
        (edns(Query::new("www.example.org", A)), 2, Some(23)),
        (edns(Query::new("www.example.org", A)), 2, Some(13)),
    ] {
        let reply = query.ask(at);
        assert_eq!((reply.code(), reply.error().map(|(code, _)| code)), (code, reason), "{reply:?}");
        assert!(reply.error().is_none_or(|(_, text)| !text.is_empty()), "{reply:?}");
    }
    let without_upstream = Server::start(&[], &["--upstream=127.0.0.1:1", "--resolv-conf=/nonexistent"]);
    let reply = Query::new("www.example.org", A).ask(without_upstream.address);
    assert!(reply.code() == 2 && reply.opt.is_none(), "no reason without EDNS");
}

/// EDE 14 before the first state, EDE 3 and 19 when the source is lost.
#[test]
fn complaint_4_lost_source_adds_an_error_to_every_answer_and_unread_source_gives_no_nxdomain() {
    let unread = Server::start_unready(&[]);
    for name in [NAME, "9.0.96.10.in-addr.arpa"] {
        let reply = Query::new(name, A).edns(1232, 0, 0).ask(unread.address);
        assert_eq!((reply.code(), reply.error().unwrap().0), (2, 14), "{reply:?}");
    }
    let server = Server::start(&[("web.yaml", WEB)], &[]);
    let ask = |name: &str| {
        let reply = Query::new(name, A).edns(1232, 0, 0).ask(server.address);
        (reply.code(), reply.counts[1], reply.error().map(|(code, _)| code))
    };
    assert_eq!(ask(NAME), (0, 1, None));
    server.hide_manifests();
    testbed::wait_for("the loss to be noticed", || {
        anyhow::ensure!(ask(NAME) == (0, 1, Some(3)), "{:?}", ask(NAME));
        Ok(())
    })
    .unwrap();
    assert_eq!(ask("none.default.svc.cluster.local"), (3, 0, Some(19)));
    testbed::wait_for("its age to be reported", || {
        let age = server.metric("portolan_dns_source_stale_seconds{source=\"manifests\"}");
        anyhow::ensure!(age.parse::<f64>()? > 0.0, "{age}");
        Ok(())
    })
    .unwrap();
    server.show_manifests();
    testbed::wait_for("the source to be back", || {
        anyhow::ensure!(ask(NAME) == (0, 1, None), "{:?}", ask(NAME));
        Ok(())
    })
    .unwrap();
}
