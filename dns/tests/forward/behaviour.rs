//! The cache, the choice of servers, and answers without an upstream query.

use std::time::{Duration, Instant};

use crate::server::Server;
use crate::upstream::{Upstream, a, contains, now, reply, soa};

fn upstream_flag(upstreams: &[&Upstream]) -> String {
    let addresses: Vec<String> = upstreams.iter().map(|upstream| upstream.address.to_string()).collect();
    format!("--upstream={}", addresses.join(","))
}

/// The same answer to every query.
fn steady(ttl: u32) -> Upstream {
    Upstream::start(move |received| now(reply(&received.query, 0, &[a(ttl, [192, 0, 2, 1])], &[])))
}

fn silent() -> Upstream {
    Upstream::start(|_| Vec::new())
}

#[test]
fn answer_is_queried_once_and_its_ttl_counts_down() {
    let upstream = steady(300);
    let server = Server::start(&[&upstream_flag(&[&upstream])]);
    assert_eq!(server.ttl("www.test A"), 300);
    let cased = server.dig("WwW.tEsT A");
    assert!(cased.contains("WwW.tEsT."), "the client's spelling comes back: {cased}");
    testbed::wait_for("the TTL to count down", || {
        let ttl = server.ttl("www.test A");
        anyhow::ensure!((290..300).contains(&ttl), "{ttl}");
        Ok(())
    })
    .unwrap();
    assert_eq!(server.exchanges(), 1.0);
    assert!(server.metric("coredns_cache_hits_total{type=\"success\"}") >= 2.0);
}

/// RFC 2308 §5
#[test]
fn negative_answer_is_cached_for_the_ttl_of_its_soa_and_not_without_one() {
    let upstream = Upstream::start(|received| {
        let authority = if contains(&received.query, "nosoa") { vec![] } else { vec![soa(60)] };
        now(reply(&received.query, if contains(&received.query, "nodata") { 0 } else { 3 }, &[], &authority))
    });
    let server = Server::start(&[&upstream_flag(&[&upstream])]);
    for (name, status, times) in
        [("missing", "NXDOMAIN", 1.0), ("nodata", "NOERROR", 1.0), ("nosoa", "NXDOMAIN", 3.0)]
    {
        let before = server.exchanges();
        for _ in 0..3 {
            assert_eq!(server.status(&format!("{name}.test A")), status);
        }
        assert_eq!(server.exchanges() - before, times, "{name}");
    }
    let soa = server.dig("+noall +authority missing.test A");
    let ttl: u32 = soa.split_whitespace().nth(1).unwrap().parse().unwrap();
    assert!(ttl <= 60 && soa.contains("SOA"), "{soa}");
}

#[test]
fn ttls_are_within_the_limits_of_their_type() {
    let upstream = steady(86_400);
    let server = Server::start(&[&upstream_flag(&[&upstream]), "--cache-ttl=A=5-60"]);
    assert_eq!(server.ttl("www.test A"), 60);
    let server = Server::start(&[&upstream_flag(&[&upstream])]);
    assert_eq!(server.ttl("www.test A"), 3600);
}

#[test]
fn equal_queries_are_coalesced() {
    let upstream = Upstream::start(|received| {
        vec![(Duration::from_millis(150), reply(&received.query, 0, &[a(60, [192, 0, 2, 1])], &[]))]
    });
    let server = Server::start(&[&upstream_flag(&[&upstream])]);
    std::thread::scope(|scope| {
        for _ in 0..20 {
            scope.spawn(|| assert_eq!(server.short("www.test A"), "192.0.2.1"));
        }
    });
    assert_eq!(server.exchanges(), 1.0);
}

/// Complaint 9: a dead upstream made every query wait for 2 s and more.
#[test]
fn complaint_9_dead_or_slow_upstream_costs_one_hedge_and_then_nothing() {
    let (dead, slow, good) = (
        silent(),
        Upstream::start(|received| {
            vec![(Duration::from_millis(700), reply(&received.query, 0, &[a(60, [192, 0, 2, 2])], &[]))]
        }),
        steady(60),
    );
    let server = Server::start(&[&upstream_flag(&[&dead, &slow, &good])]);
    let mut times: Vec<Duration> = (0..20)
        .map(|n| {
            let (answer, took) = server.timed(&format!("n{n}.test A"));
            assert!(answer.starts_with("192.0.2."), "{answer}");
            took
        })
        .collect();
    assert!(times[0] < Duration::from_millis(1500), "the first: {:?}", times[0]);
    times.sort();
    assert!(times[10] < Duration::from_millis(200), "the median: {times:?}");
}

/// Complaint 9: the client gives up after 5 s.
#[test]
fn complaint_9_client_gets_an_error_with_a_reason_before_its_timeout_if_no_server_answers() {
    let dead = silent();
    let server = Server::start(&[&upstream_flag(&[&dead])]);
    let started = Instant::now();
    let reply = server.dig("+edns www.test A");
    assert!(reply.contains("SERVFAIL") && reply.contains("EDE: 22"), "{reply}");
    assert!(started.elapsed() < Duration::from_millis(4900), "{:?}", started.elapsed());
    // RFC 9520: not again at once.
    let counts = dead.count("www");
    let reply = server.dig("+edns www.test A");
    assert!(reply.contains("SERVFAIL") && reply.contains("EDE: 13"), "{reply}");
    assert_eq!(dead.count("www"), counts);
    assert_eq!(server.status("dns-version.cluster.local TXT"), "NOERROR");
}

/// Complaint 9, RFC 8767: total outage when the cache expired.
#[test]
fn complaint_9_expired_answer_is_served_while_upstream_is_down() {
    let upstream = Upstream::start(|received| {
        // Answers once, and then never again.
        let first = contains(&received.query, "www") && received.number < 3;
        if first { now(reply(&received.query, 0, &[a(1, [192, 0, 2, 1])], &[])) } else { Vec::new() }
    });
    let server = Server::start(&[&upstream_flag(&[&upstream])]);
    assert_eq!(server.short("www.test A"), "192.0.2.1");
    testbed::wait_for("a stale answer", || {
        let reply = server.dig("+edns www.test A");
        anyhow::ensure!(reply.contains("EDE: 3") && reply.contains("192.0.2.1"), "{reply}");
        anyhow::ensure!(server.ttl("www.test A") == 30);
        Ok(())
    })
    .unwrap();
    // Once the failure is known, no query waits for it.
    testbed::wait_for("stale answers at once", || {
        let (answer, took) = server.timed("www.test A");
        anyhow::ensure!(answer == "192.0.2.1" && took < Duration::from_millis(900), "{answer} {took:?}");
        Ok(())
    })
    .unwrap();
    assert!(server.metric("coredns_cache_served_stale_total") >= 2.0);
}

#[test]
fn queries_beyond_the_limit_are_refused_at_once_with_a_reason() {
    let dead = silent();
    let server = Server::start(&[&upstream_flag(&[&dead]), "--max-concurrent=3"]);
    std::thread::scope(|scope| {
        for n in 0..3 {
            let server = &server;
            scope.spawn(move || assert_eq!(server.status(&format!("waits{n}.test A")), "SERVFAIL"));
        }
        testbed::wait_for("three queries that wait", || {
            anyhow::ensure!(dead.count("waits0") * dead.count("waits1") * dead.count("waits2") > 0);
            Ok(())
        })
        .unwrap();
        let started = Instant::now();
        let reply = server.dig("+edns one-more.test A");
        assert!(reply.contains("SERVFAIL") && reply.contains("EDE: 0 (Other): (too many"), "{reply}");
        assert!(started.elapsed() < Duration::from_secs(3), "{:?}", started.elapsed());
        assert_eq!(dead.count("one-more"), 0);
        assert!(server.metric("coredns_forward_max_concurrent_rejects_total") >= 1.0);
    });
}

#[test]
fn upstream_servers_may_have_ipv6_addresses() {
    let upstream = Upstream::start_at("[::1]:0", |received| {
        let mut answer = reply(&received.query, 0, &[a(60, [192, 0, 2, 1])], &[]);
        if contains(&received.query, "by-tcp") && !received.by_tcp {
            answer[2] |= 2;
        }
        now(answer)
    });
    let server = Server::start(&[&upstream_flag(&[&upstream])]);
    assert_eq!(server.short("www.test A"), "192.0.2.1");
    assert_eq!(server.short("by-tcp.test A"), "192.0.2.1");
    assert!(upstream.address.is_ipv6());
}

#[test]
fn without_a_cache_every_query_is_forwarded_and_without_stale_answers_none_is_served() {
    let times = std::sync::atomic::AtomicUsize::new(0);
    let upstream = Upstream::start(move |received| {
        let is_once = contains(&received.query, "once");
        let fails = is_once && times.fetch_add(1, std::sync::atomic::Ordering::SeqCst) > 0;
        if fails {
            now(reply(&received.query, 2, &[], &[]))
        } else {
            now(reply(&received.query, 0, &[a(1, [192, 0, 2, 1])], &[]))
        }
    });
    let server = Server::start(&[&upstream_flag(&[&upstream]), "--cache-size=0"]);
    for _ in 0..3 {
        assert_eq!(server.short("www.test A"), "192.0.2.1");
    }
    assert_eq!(server.exchanges(), 3.0);
    let server = Server::start(&[&upstream_flag(&[&upstream]), "--serve-stale=0"]);
    assert_eq!(server.short("once.test A"), "192.0.2.1");
    testbed::wait_for("the end of the answer", || {
        anyhow::ensure!(server.status("once.test A") == "SERVFAIL");
        Ok(())
    })
    .unwrap();
}

#[test]
fn popular_answer_is_prefetched_before_it_expires() {
    let upstream = steady(10);
    let server = Server::start(&[&upstream_flag(&[&upstream])]);
    testbed::wait_for("the second upstream query", || {
        let (answer, _) = server.timed("www.test A");
        assert_eq!(answer, "192.0.2.1");
        let ttl = server.ttl("www.test A");
        anyhow::ensure!(upstream.count("www") > 1, "TTL {ttl}");
        Ok(())
    })
    .unwrap();
    assert!(server.metric("coredns_cache_prefetch_total") >= 1.0);
}

#[test]
fn stub_domain_has_its_own_servers_and_the_longest_one_wins() {
    let (outer, inner, rest) = (steady(60), steady(60), steady(60));
    let server = Server::start(&[
        &upstream_flag(&[&rest]),
        &format!("--stub=internal={}", outer.address),
        &format!("--stub=deep.internal={}", inner.address),
    ]);
    for name in ["a.internal", "b.deep.internal", "c.test"] {
        assert_eq!(server.short(&format!("{name} A")), "192.0.2.1");
    }
    let counts = [&outer, &inner, &rest].map(|u| [u.count("\u{1}a"), u.count("\u{1}b"), u.count("\u{1}c")]);
    let queried = counts.map(|counts| counts.map(|count| count > 0));
    assert_eq!(queried, [[true, false, false], [false, true, false], [false, false, true]]);
}

/// RFC 6761 §6.3 and §6.4, RFC 6303 §4
#[test]
fn special_names_are_answered_locally() {
    let upstream = steady(60);
    let server = Server::start(&[&upstream_flag(&[&upstream])]);
    assert_eq!(server.short("localhost A"), "127.0.0.1");
    assert_eq!(server.short("a.LOCALHOST AAAA"), "::1");
    assert_eq!(server.short("-x 127.0.0.1"), "localhost.");
    for nothing in ["x.invalid A", "-x 0.0.0.1", "-x 127.1.2.3", "-x 255.255.255.255"] {
        assert_eq!(server.status(nothing), "NXDOMAIN", "{nothing}");
    }
    assert_eq!(server.short("www.test A"), "192.0.2.1");
    let counts = ["localhost", "invalid", "in-addr"].map(|label| upstream.count(label));
    assert_eq!(counts, [0; 3]);
}

#[test]
fn hosts_are_answered_from_the_file_and_changes_are_applied() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("hosts");
    std::fs::write(&file, "192.0.2.9 printer\n").unwrap();
    let upstream = steady(60);
    let flag = format!("--hosts={}", file.display());
    let server = Server::start(&[&upstream_flag(&[&upstream]), &flag]);
    assert_eq!(server.short("printer A"), "192.0.2.9");
    assert_eq!(server.short("printer AAAA"), "");
    assert_eq!(server.short("-x 192.0.2.9"), "printer.");
    std::fs::write(&file, "192.0.2.10 printer new\n").unwrap();
    testbed::wait_for("the new address", || {
        anyhow::ensure!(server.short("printer A") == "192.0.2.10");
        Ok(())
    })
    .unwrap();
    assert_eq!(upstream.count("printer"), 0);
}

#[test]
fn changed_resolv_conf_changes_the_servers() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("resolv.conf");
    std::fs::write(&file, "search x\n").unwrap();
    // resolv.conf has no ports, so the server needs port 53 of an address of its own.
    let node = testbed::Node::new().unwrap();
    let address = "127.0.0.9:53";
    let flag = format!("--resolv-conf={}", file.display());
    node.run(|| {
        let socket = std::net::UdpSocket::bind(address).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let server = Server::start_at("127.0.0.1:5300".parse().unwrap(), &[&flag]);
        assert_eq!(server.status("www.test A"), "REFUSED");
        std::fs::write(&file, "nameserver 127.0.0.9\n").unwrap();
        let mut buffer = [0; 512];
        std::thread::scope(|scope| {
            scope.spawn(|| {
                testbed::wait_for("the new server", || {
                    anyhow::ensure!(server.short("+time=1 www.test A") == "192.0.2.1");
                    Ok(())
                })
                .unwrap();
            });
            loop {
                let (length, from) = socket.recv_from(&mut buffer).unwrap();
                let query = &buffer[..length];
                socket.send_to(&reply(query, 0, &[a(60, [192, 0, 2, 1])], &[]), from).unwrap();
                if contains(query, "www") {
                    break;
                }
            }
        });
    });
}

/// A pod's search list of two more domains, whose servers take more than a second for each name.
#[test]
fn search_list_that_takes_too_long_is_left_to_the_client() {
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let file = directory.path().join(name);
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(&file, text).unwrap();
        file.display().to_string()
    };
    let resolv_conf = file("resolv.conf", "search one.test two.test\n");
    file(
        "attachments/net/pod-eth0.json",
        r#"{"network": "net", "containerID": "pod", "ifname": "eth0", "netns": "", "ips": ["127.0.0.1"], "mac": "",
            "hostInterface": "", "pod": {"namespace": "default", "name": "pod"}}"#,
    );
    let upstream = Upstream::start(|received| {
        vec![(Duration::from_millis(1200), reply(&received.query, 3, &[], &[soa(60)]))]
    });
    let server = Server::start(&[
        "--autopath",
        &format!("--upstream={}", upstream.address),
        &format!("--resolv-conf={resolv_conf}"),
        &format!("--attachments={}/attachments", directory.path().display()),
    ]);
    let started = Instant::now();
    assert_eq!(server.status("www.example.default.svc.cluster.local A"), "NXDOMAIN");
    assert!(upstream.count("example") > 1, "the list was tried");
    assert!(started.elapsed() < Duration::from_millis(4800), "{:?}", started.elapsed());
}
