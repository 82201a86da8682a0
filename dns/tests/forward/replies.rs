//! Replies of old, faulty and unusual servers.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, UdpSocket};
use std::time::{Duration, Instant};

use crate::server::Server;
use crate::upstream::{Upstream, a, contains, now, record, reply, soa};

fn start(upstream: &Upstream, more: &[&str]) -> Server {
    let flag = format!("--upstream={}", upstream.address);
    Server::start(&[&[flag.as_str()], more].concat())
}

/// Like Consul: TC is set, and the last record is truncated.
#[test]
fn truncated_reply_that_ends_inside_a_record_is_retried_over_tcp() {
    let upstream = Upstream::start(|received| {
        let mut answer = reply(&received.query, 0, &vec![a(60, [192, 0, 2, 1]); 30], &[]);
        if !received.by_tcp {
            answer[2] |= 2;
            answer.truncate(answer.len() - 7);
        }
        now(answer)
    });
    let server = start(&upstream, &[]);
    assert_eq!(server.short("+tcp www.test A").lines().next(), Some("192.0.2.1"));
}

#[test]
fn datagram_longer_than_we_take_is_retried_over_tcp() {
    let upstream = Upstream::start(|received| {
        let many: Vec<_> =
            (0..400_u16).map(u16::to_be_bytes).map(|[high, low]| a(60, [192, high, 2, low])).collect();
        now(reply(&received.query, 0, &many, &[]))
    });
    let server = start(&upstream, &[]);
    assert_eq!(server.short("+tcp large.test A").lines().count(), 400);
}

/// A server that ignores the size in the query.
#[test]
fn datagram_longer_than_we_say_that_is_whole_is_used() {
    let upstream = Upstream::start(|received| {
        let answers: Vec<_> = (0..200).map(|n| a(60, [192, 0, 2, n])).collect();
        now(reply(&received.query, 0, &answers, &[]))
    });
    let server = start(&upstream, &[]);
    assert_eq!(server.short("+tcp large.test A").lines().count(), 200);
    upstream.with_seen(|seen| {
        assert!(seen.iter().all(|received| !received.by_tcp));
        let opt = seen.iter().find(|received| contains(&received.query, "large")).unwrap();
        assert!(opt.query.ends_with(&[41, 0x04, 0xd0, 0, 0, 0, 0, 0, 0]), "1,232: {:?}", opt.query);
    });
}

/// RFC 6891 §7
#[test]
fn server_that_answers_formerr_or_notimp_to_edns_is_queried_without_it() {
    for code in [1, 4] {
        let upstream = Upstream::start(move |received| {
            let has_opt = received.query[11] == 1;
            let answers = if has_opt { vec![] } else { vec![a(60, [192, 0, 2, 1])] };
            now(reply(&received.query, if has_opt { code } else { 0 }, &answers, &[]))
        });
        let server = start(&upstream, &[]);
        for n in 0..3 {
            assert_eq!(server.short(&format!("n{n}.test A")), "192.0.2.1", "code {code}");
        }
        assert_eq!(upstream.count("\u{2}n2"), 1, "the server is remembered");
    }
}

#[test]
fn one_formerr_does_not_cost_dnssec() {
    let upstream = Upstream::start(|received| {
        let has_opt = received.query[11] == 1;
        let fails = has_opt && contains(&received.query, "odd");
        now(reply(&received.query, u8::from(fails), &[a(60, [192, 0, 2, 1])], &[]))
    });
    let server = start(&upstream, &[]);
    assert_eq!(server.short("odd.test A"), "192.0.2.1");
    assert_eq!(server.short("+dnssec www.test A"), "192.0.2.1");
    upstream.with_seen(|seen| {
        let received = seen.iter().find(|received| contains(&received.query, "www")).unwrap();
        assert_eq!(received.query[11], 1, "with EDNS");
    });
}

#[test]
fn error_without_question_section_is_an_answer() {
    for (code, status) in [(2, "SERVFAIL"), (5, "REFUSED")] {
        let upstream = Upstream::start(move |received| {
            let mut message = received.query[..12].to_vec();
            (message[2], message[3]) = (0x81, 0x80 | code);
            message[4..12].fill(0);
            now(message)
        });
        let server = start(&upstream, &[]);
        let started = Instant::now();
        assert_eq!(server.status("www.test A"), status);
        assert!(started.elapsed() < Duration::from_secs(3), "{:?}", started.elapsed());
    }
}

/// RFC 2308 §2.1 type 4, §2.2 type 3
#[test]
fn negative_answers_without_soa_are_passed_on() {
    let upstream = Upstream::start(|received| {
        let name_server = record(b"\x04test\0", 2, 60, b"\x02ns\x04test\0");
        let code = if contains(&received.query, "nodata") { 0 } else { 3 };
        now(reply(&received.query, code, &[], &[name_server]))
    });
    let server = start(&upstream, &[]);
    assert_eq!(server.status("missing.test A"), "NXDOMAIN");
    assert_eq!(server.status("nodata.test A"), "NOERROR");
}

#[test]
fn flags_and_unknown_types_are_passed_on() {
    let upstream = Upstream::start(|received| {
        let is_missing = contains(&received.query, "missing");
        let unknown = record(b"\xC0\x0C", 65_280, 60, &[1, 2, 3]);
        let answers = if is_missing { vec![] } else { vec![unknown] };
        let authorities = if is_missing { vec![soa(60)] } else { vec![] };
        let mut answer = reply(&received.query, if is_missing { 3 } else { 0 }, &answers, &authorities);
        answer[3] |= 0x20;
        now(answer)
    });
    let server = start(&upstream, &[]);
    for (question, status) in [("www.test TYPE65280", "NOERROR"), ("missing.test A", "NXDOMAIN")] {
        for _ in 0..2 {
            let reply = server.dig(&format!("+adflag {question}"));
            let flags = reply.split("flags: ").nth(1).and_then(|rest| rest.split(';').next()).unwrap();
            assert!(reply.contains(status) && flags.contains("ad"), "{reply}");
            assert!(status == "NXDOMAIN" || reply.contains("\\# 3 010203"), "{reply}");
        }
    }
}

/// A slow server that closes each connection after one answer.
#[test]
fn server_that_answers_one_query_per_connection_answers_all() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            std::thread::spawn(move || {
                let mut length = [0; 2];
                stream.read_exact(&mut length).ok()?;
                let mut query = vec![0; usize::from(u16::from_be_bytes(length))];
                stream.read_exact(&mut query).ok()?;
                std::thread::sleep(Duration::from_millis(30));
                let answer = reply(&query, 0, &[a(60, [192, 0, 2, 1])], &[]);
                let length = u16::try_from(answer.len()).unwrap().to_be_bytes();
                stream.write_all(&[&length, &answer[..]].concat()).ok()
            });
        }
    });
    let server = Server::start(&[&format!("--upstream=tcp://{address}")]);
    std::thread::scope(|scope| {
        for n in 0..40 {
            let server = &server;
            scope.spawn(move || assert_eq!(server.short(&format!("n{n}.test A")), "192.0.2.1"));
        }
    });
}

/// A closed port: the kernel reports an error at once.
#[test]
fn closed_port_fails_at_once() {
    let closed = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let server = Server::start(&[&format!("--upstream={closed}")]);
    let started = Instant::now();
    let reply = server.dig("+edns www.test A");
    assert!(reply.contains("SERVFAIL") && reply.contains("EDE: 23"), "{reply}");
    assert!(started.elapsed() < Duration::from_secs(3), "{:?}", started.elapsed());
}

#[test]
fn sequential_policy_queries_the_first_server_and_the_next_when_it_is_silent() {
    let steady = |last: u8| {
        Upstream::start(move |received| now(reply(&received.query, 0, &[a(60, [192, 0, 2, last])], &[])))
    };
    let slow = Upstream::start(|received| {
        if contains(&received.query, "silent") {
            return Vec::new();
        }
        vec![(Duration::from_millis(50), reply(&received.query, 0, &[a(60, [192, 0, 2, 1])], &[]))]
    });
    let fast = steady(2);
    let upstreams = format!("--upstream={},{}", slow.address, fast.address);
    let server = Server::start(&[&upstreams, "--upstream-policy=sequential"]);
    for n in 0..10 {
        assert_eq!(server.short(&format!("n{n}.test A")), "192.0.2.1");
    }
    assert_eq!(fast.count("\u{4}test"), 0);
    assert_eq!(server.short("silent.test A"), "192.0.2.2");
}

#[test]
fn silent_servers_of_one_domain_leave_other_domains_their_queries() {
    let dead = Upstream::start(|_| Vec::new());
    let good = Upstream::start(|received| now(reply(&received.query, 0, &[a(60, [192, 0, 2, 1])], &[])));
    let stub = format!("--stub=dead.test={}", dead.address);
    let server = start(&good, &["--max-concurrent=3", &stub]);
    std::thread::scope(|scope| {
        for n in 0..3 {
            let server = &server;
            scope.spawn(move || server.status(&format!("waits{n}.dead.test A")));
        }
        testbed::wait_for("three queries that wait", || {
            anyhow::ensure!(dead.count("waits0") * dead.count("waits1") * dead.count("waits2") > 0);
            Ok(())
        })
        .unwrap();
        assert_eq!(server.status("one-more.dead.test A"), "SERVFAIL");
        assert_eq!(server.short("www.test A"), "192.0.2.1");
    });
}

#[test]
fn one_client_leaves_others_their_queries() {
    let dead = Upstream::start(|received| {
        let good = contains(&received.query, "good");
        if good { now(reply(&received.query, 0, &[a(60, [192, 0, 2, 1])], &[])) } else { Vec::new() }
    });
    let server = start(&dead, &["--max-concurrent-per-client=2"]);
    std::thread::scope(|scope| {
        for n in 0..2 {
            let server = &server;
            scope.spawn(move || server.status(&format!("waits{n}.test A")));
        }
        testbed::wait_for("two queries that wait", || {
            anyhow::ensure!(dead.count("waits0") * dead.count("waits1") > 0);
            Ok(())
        })
        .unwrap();
        let refused = server.dig("+edns good1.test A");
        assert!(refused.contains("SERVFAIL") && refused.contains("of this client"), "{refused}");
        assert_eq!(server.short("-b 127.0.0.2 good2.test A"), "192.0.2.1");
    });
}

/// The first answer is fresh, the second one comes from the cache.
#[test]
fn answers_keep_to_the_size_the_client_can_take_first_and_later() {
    let upstream = Upstream::start(|received| {
        let answers: Vec<_> = (0..100).map(|n| a(60, [192, 0, 2, n])).collect();
        now(reply(&received.query, 0, &answers, &[]))
    });
    let server = start(&upstream, &[]);
    let name = |of: &str| format!("{of}.a-name-that-is-as-long-as-those-of-buckets-are.eu-central-1.test");
    for (flags, limit) in [("+noedns", 512), ("+bufsize=600", 600), ("+bufsize=1232 +nsid +cookie", 1232)] {
        for number in ["first", "second"] {
            let reply = server.dig(&format!("+ignore {flags} {} A", name(&format!("n{limit}"))));
            let size = reply.split("MSG SIZE  rcvd: ").nth(1).and_then(|rest| rest.lines().next()).unwrap();
            let size: usize = size.trim().parse().unwrap();
            // hickory needs room for a complete name while it compresses the name.
            assert!(size <= limit && size > limit - 16 - 80, "{number}: {size} of {limit}\n{reply}");
            assert!(reply.contains("flags: qr tc rd ra"), "{number}: {reply}");
            assert_eq!(reply.contains("OPT PSEUDOSECTION"), limit > 512, "{number}: {reply}");
        }
    }
}

/// Accepts every TCP connection and closes it.
#[test]
fn server_that_closes_every_connection_leaves_its_queries_to_the_next() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let closing = listener.local_addr().unwrap();
    std::thread::spawn(move || listener.incoming().for_each(drop));
    let good = Upstream::start(|received| now(reply(&received.query, 0, &[a(60, [192, 0, 2, 1])], &[])));
    let upstreams = format!("--upstream=tcp://{closing},tcp://{}", good.address);
    for policy in ["sequential", "fastest"] {
        let server = Server::start(&[&upstreams, &format!("--upstream-policy={policy}")]);
        for n in 0..10 {
            assert_eq!(server.short(&format!("{policy}{n}.test A")), "192.0.2.1");
        }
    }
}
