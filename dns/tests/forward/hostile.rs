//! Forged, truncated and unrelated replies.

use std::collections::HashSet;
use std::time::Duration;

use crate::server::Server;
use crate::upstream::{Upstream, a, contains, now, record, reply, soa};

fn start(upstream: &Upstream, more: &[&str]) -> Server {
    let flag = format!("--upstream={}", upstream.address);
    Server::start(&[&[flag.as_str()], more].concat())
}

/// RFC 5452 §9, RFC 6056
#[test]
fn ids_and_ports_are_random_and_replies_that_do_not_match_are_ignored() {
    let upstream = Upstream::start(|received| {
        let good = reply(&received.query, 0, &[a(60, [192, 0, 2, 1])], &[]);
        let forged = reply(&received.query, 0, &[a(60, [203, 0, 113, 66])], &[]);
        let mut other_id = forged.clone();
        other_id[0] ^= 1;
        let mut other_name = forged.clone();
        other_name[13] ^= 1;
        let mut other_type = forged.clone();
        let end = 12 + forged[12..].iter().position(|byte| *byte == 0).unwrap();
        other_type[end + 2] = 28;
        let mut no_response = forged.clone();
        no_response[2] &= 0x7F;
        let mut two_questions = forged;
        two_questions[5] = 2;
        let forgeries = [other_id, other_name, other_type, no_response, two_questions, vec![0; 3]];
        let forgeries = forgeries.into_iter().map(|message| (Duration::ZERO, message));
        forgeries.chain([(Duration::from_millis(5), good)]).collect()
    });
    let server = start(&upstream, &[]);
    for n in 0..40 {
        assert_eq!(server.short(&format!("n{n}.test A")), "192.0.2.1");
    }
    upstream.with_seen(|seen| {
        let seen: Vec<_> = seen.iter().filter(|received| contains(&received.query, "test")).collect();
        let ids: HashSet<&[u8]> = seen.iter().map(|received| &received.query[..2]).collect();
        let ports: HashSet<u16> = seen.iter().map(|received| received.from.port()).collect();
        assert!(ids.len() > 36 && ports.len() > 36, "{} ids, {} ports", ids.len(), ports.len());
    });
}

/// Only an error may omit the question section.
#[test]
fn reply_without_a_question_section_is_ignored() {
    let upstream = Upstream::start(|received| {
        let forged = |code: u8| {
            let mut message = received.query[..12].to_vec();
            (message[2], message[3]) = (0x81, 0x80 | code);
            message[4..12].fill(0);
            (Duration::ZERO, message)
        };
        let good = reply(&received.query, 0, &[a(60, [192, 0, 2, 1])], &[]);
        vec![forged(3), forged(0), (Duration::from_millis(5), good)]
    });
    let server = start(&upstream, &[]);
    for n in 0..20 {
        assert_eq!(server.short(&format!("n{n}.test A")), "192.0.2.1");
    }
}

/// RFC 5452 §9.3: after several forged replies the query is repeated over TCP.
#[test]
fn flood_of_forged_replies_leads_to_tcp() {
    let upstream = Upstream::start(|received| {
        let good = reply(&received.query, 0, &[a(60, [192, 0, 2, 1])], &[]);
        if received.by_tcp || !contains(&received.query, "www") {
            return now(good);
        }
        let guess = |n: u8| {
            let mut guess = reply(&received.query, 0, &[a(60, [203, 0, 113, 66])], &[]);
            guess[0] ^= n + 1;
            (Duration::ZERO, guess)
        };
        (0..50).map(guess).collect()
    });
    let server = start(&upstream, &[]);
    assert_eq!(server.short("www.test A"), "192.0.2.1");
    upstream.with_seen(|seen| assert!(seen.iter().any(|received| received.by_tcp)));
}

#[test]
fn only_records_that_answer_the_question_are_kept() {
    let upstream = Upstream::start(|received| {
        let victim = record(b"\x06victim\x04test\0", 1, 60, &[203, 0, 113, 66]);
        let answers = match () {
            () if contains(&received.query, "victim") => vec![a(60, [192, 0, 2, 7])],
            () if contains(&received.query, "alias") => vec![
                victim.clone(),
                record(b"\x06target\x04test\0", 1, 60, &[192, 0, 2, 8]),
                record(b"\x05alias\x04test\0", 5, 60, b"\x06target\x04test\0"),
            ],
            () => vec![a(60, [192, 0, 2, 1]), victim.clone()],
        };
        now(reply(&received.query, 0, &answers, &[record(b"\x04test\0", 2, 60, b"\x02ns\x03bad\0"), victim]))
    });
    let server = start(&upstream, &[]);
    let all = server.dig("+noall +answer +authority +additional www.test A");
    assert_eq!(all.lines().count(), 1, "{all}");
    let alias = server.dig("+noall +answer alias.test A");
    let lines: Vec<&str> = alias.lines().collect();
    assert!(lines.len() == 2 && lines[0].contains("CNAME") && lines[1].contains("192.0.2.8"), "{alias}");
    assert_eq!(server.short("victim.test A"), "192.0.2.7");
}

/// Complaint 10: A=NOERROR while AAAA=NXDOMAIN for the same name.
#[test]
fn complaint_10_missing_family_does_not_hide_the_other() {
    let upstream = Upstream::start(|received| {
        let is_aaaa = contains(&received.query, "test\0\0\u{1c}");
        if is_aaaa {
            now(reply(&received.query, 3, &[], &[soa(60)]))
        } else {
            now(reply(&received.query, 0, &[a(60, [192, 0, 2, 1])], &[]))
        }
    });
    let server = start(&upstream, &[]);
    assert_eq!(server.short("www.test A"), "192.0.2.1");
    assert_eq!(server.status("www.test AAAA"), "NOERROR");
    assert_eq!(server.status("late.test AAAA"), "NXDOMAIN");
    assert_eq!(server.short("late.test A"), "192.0.2.1");
    assert_eq!(server.status("late.test AAAA"), "NOERROR");
}

#[test]
fn truncated_reply_is_retried_over_tcp() {
    let upstream = Upstream::start(|received| {
        if received.by_tcp {
            let many: Vec<_> = (0..200).map(|n| a(60, [192, 0, 2, n])).collect();
            return now(reply(&received.query, 0, &many, &[]));
        }
        let mut cut = reply(&received.query, 0, &[], &[]);
        cut[2] |= 2;
        now(cut)
    });
    let server = start(&upstream, &[]);
    assert_eq!(server.short("+tcp large.test A").lines().count(), 200);
}

/// draft-vixie-dnsext-dns0x20
#[test]
fn random_case_must_be_preserved_or_the_query_is_repeated_over_tcp() {
    let upstream = Upstream::start(|received| {
        let mut answer = reply(&received.query, 0, &[a(60, [192, 0, 2, 1])], &[]);
        if contains(&received.query, "careless") && !received.by_tcp {
            answer[12..].make_ascii_lowercase();
        }
        now(answer)
    });
    let server = start(&upstream, &["--random-case"]);
    assert_eq!(server.short("carefulcarefulcareful.test A"), "192.0.2.1");
    assert_eq!(server.short("carelesscarelesscareless.test A"), "192.0.2.1");
    upstream.with_seen(|seen| {
        let mixed = |received: &&crate::upstream::ReceivedQuery| {
            received.query[12..].iter().any(u8::is_ascii_uppercase)
        };
        assert!(seen.iter().filter(mixed).count() >= 2);
        let by_tcp: Vec<_> = seen.iter().filter(|received| received.by_tcp).collect();
        assert!(!by_tcp.is_empty() && by_tcp.iter().all(|received| contains(&received.query, "careless")));
    });
}

/// RFC 6891 §7
#[test]
fn server_without_edns_support_is_queried_without_edns() {
    let upstream = Upstream::start(|received| {
        let has_opt = received.query[11] == 1;
        let answers = if has_opt { vec![] } else { vec![a(60, [192, 0, 2, 1])] };
        now(reply(&received.query, u8::from(has_opt), &answers, &[]))
    });
    let server = start(&upstream, &[]);
    assert_eq!(server.short("www.test A"), "192.0.2.1");
}

#[test]
fn servfail_or_refused_of_one_server_leads_to_the_next() {
    for code in [2, 5] {
        // The loop probe is answered; otherwise the server would be excluded.
        let bad = Upstream::start(move |received| {
            let code = if contains(&received.query, "test") { code } else { 3 };
            now(reply(&received.query, code, &[], &[]))
        });
        // The slower of the two, so that the other one is queried first.
        let good = Upstream::start(|received| {
            vec![(Duration::from_millis(20), reply(&received.query, 0, &[a(60, [192, 0, 2, 1])], &[]))]
        });
        let server = Server::start(&[&format!("--upstream={},{}", bad.address, good.address)]);
        for n in 0..5 {
            assert_eq!(server.short(&format!("n{n}.test A")), "192.0.2.1");
        }
        assert!(bad.count("test") > 0, "the server that answers {code} was not queried");
    }
}

/// CoreDNS's CrashLoopBackOff with 127.0.0.53 (complaints, "also").
#[test]
fn forwarding_loop_is_detected_and_the_cluster_zone_is_served() {
    let address: std::net::SocketAddr = ([127, 0, 0, 1], testbed::free_port().unwrap()).into();
    // A server that forwards to the sender of the query: this server.
    let upstream = Upstream::start(move |received| {
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
        let mut buffer = [0; 4096];
        socket.send_to(&received.query, address).unwrap();
        socket.recv(&mut buffer).map_or_else(|_late| Vec::new(), |length| now(buffer[..length].to_vec()))
    });
    let server = Server::start_at(address, &[&format!("--upstream={}", upstream.address)]);
    testbed::wait_for("the loop to be found", || {
        anyhow::ensure!(server.metric("portolan_dns_looping_upstreams") >= 1.0);
        Ok(())
    })
    .unwrap();
    let reply = server.dig("+edns www.test A");
    assert!(reply.contains("SERVFAIL") && reply.contains("EDE: 0"), "{reply}");
    assert_eq!(server.status("dns-version.cluster.local TXT"), "NOERROR");
}

#[test]
fn upstreams_that_forward_back_are_refused_at_the_start_with_a_suggestion() {
    for (flag, hint) in [
        ("--upstream=127.0.0.53", "--allow-loopback-upstreams"),
        ("--upstream=127.0.0.1:5399", "it would query itself in a loop"),
        ("--stub=x=[::1]:53", "--allow-loopback-upstreams"),
    ] {
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_portolan-dns"))
            .args(["--listen=127.0.0.1:5399", "--manifests=/nonexistent", flag])
            .output()
            .unwrap();
        assert!(!output.status.success(), "{flag}");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(stderr.contains(hint), "{flag}: {stderr}");
    }
}
