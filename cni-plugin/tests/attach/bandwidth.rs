//! Bandwidth limits of pods: measured, and as `tc` shows them.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::fixture::{Fixture, address, config, merge};

/// Bits per second, and bits.
const RATE: u64 = 16_000_000;
const BURST: u64 = 400_000;

/// These bytes take a second at that rate, and far less without a limit.
const LOAD: usize = 2_000_000;

fn limited(bandwidth: Value) -> Value {
    merge(config("1.1.0"), json!({ "runtimeConfig": { "bandwidth": bandwidth } }))
}

fn bridge(config: Value) -> Value {
    merge(config, json!({ "bridge": "br0", "isDefaultGateway": true }))
}

fn open(fixture: &Fixture, name: &str) -> netns::NetNs {
    fixture.node().netns(Path::new(&format!("/run/netns/{name}"))).unwrap()
}

/// Transfers the load and returns the duration.
fn transfer(from: &netns::NetNs, to: &netns::NetNs, listen: SocketAddr) -> Duration {
    let listener = to.run(|| TcpListener::bind(listen).unwrap()).unwrap();
    let mut client = from.run(|| TcpStream::connect(listen).unwrap()).unwrap();
    let start = Instant::now();
    std::thread::spawn(move || client.write_all(&vec![0; LOAD]).unwrap());
    let mut received = Vec::new();
    listener.accept().unwrap().0.read_to_end(&mut received).unwrap();
    assert_eq!(received.len(), LOAD);
    start.elapsed()
}

#[test]
fn pod_receives_and_sends_at_its_limit() {
    let fixture = Fixture::new();
    let to_pod = limited(json!({ "ingressRate": RATE, "ingressBurst": BURST }));
    let from_pod = limited(json!({ "egressRate": RATE, "egressBurst": BURST }));
    for (slow, config) in [
        ("in", &to_pod),
        ("out", &from_pod),
        ("bin", &bridge(to_pod.clone())),
        ("bout", &bridge(from_pod.clone())),
    ] {
        let fast = format!("fast-{slow}");
        let config = merge(
            config.clone(),
            json!({ "name": slow, "ipam": { "ranges": [[{ "subnet": "10.22.0.0/24" }]], "cooldown": 0 } }),
        );
        let limited = address(&fixture.add(slow, &config));
        let free = merge(config.clone(), json!({ "runtimeConfig": {} }));
        let peer = address(&fixture.add(&fast, &free));
        let port = |ip: &str| SocketAddr::new(ip.parse().unwrap(), 7777);
        let (limited_pod, peer_pod) = (open(&fixture, slow), open(&fixture, &fast));
        let receiving = transfer(&peer_pod, &limited_pod, port(&limited));
        let sending = transfer(&limited_pod, &peer_pod, port(&peer));
        // 2 MB at 2 MB/s, of which the burst is 50 kB. The other direction has no limit.
        let (held, free_way) = if slow.ends_with("in") { (receiving, sending) } else { (sending, receiving) };
        let expected = Duration::from_millis(700)..Duration::from_secs(10);
        assert!(expected.contains(&held), "{slow}: {held:?} instead of one second");
        assert!(free_way < held / 2, "{slow}: {free_way:?} without a limit, {held:?} with one");
        fixture.quiet("DEL", slow, &config);
        fixture.quiet("DEL", &fast, &free);
        fixture.quiet("GC", "x", &merge(config, json!({ "cni.dev/valid-attachments": [] })));
    }
    fixture.assert_nothing_left();
    assert_eq!(fixture.node().shell("ip -o link | grep ptb || true").unwrap(), "");
}

#[test]
fn tc_shows_limits_check_reports_their_loss_and_del_and_gc_remove_them() {
    let fixture = Fixture::new();
    // As containerd writes it, with its default burst.
    let config = limited(
        json!({ "IngressRate": RATE, "IngressBurst": BURST, "EgressRate": RATE * 2, "EgressBurst": 4_294_967_295_u64 }),
    );
    let shown = |config: &Value, id: &str| {
        let result = fixture.add(id, config);
        let host = result["interfaces"][0]["name"].as_str().unwrap().to_owned();
        (merge(config.clone(), json!({ "prevResult": result })), host.clone(), host.replace("ptl", "ptb"))
    };
    let (_, host, detour) = shown(&config, "a");
    let qdisc = |name: &str| fixture.json(&format!("tc -j qdisc show dev {name}"));
    let of_host = qdisc(&host);
    let kinds: Vec<&Value> = of_host.as_array().unwrap().iter().map(|qdisc| &qdisc["kind"]).collect();
    assert_eq!(kinds, ["tbf", "ingress"]);
    assert_eq!(of_host[0]["options"]["rate"], RATE / 8, "{of_host}");
    assert_eq!(of_host[0]["options"]["burst"], BURST / 8, "{of_host}");
    assert_eq!(qdisc(&detour)[0]["options"]["rate"], RATE / 4);
    let filter = fixture.node().shell(&format!("tc filter show dev {host} ingress")).unwrap();
    assert!(filter.contains(&format!("Egress Redirect to device {detour}")), "{filter}");
    fixture.quiet("DEL", "a", &config);
    for (id, sabotage, expected) in [
        ("b", "tc qdisc del dev HOST root", "HOST has lost its limit"),
        (
            "c",
            "tc qdisc change dev HOST root tbf rate 1mbit burst 20k latency 20ms",
            "HOST is limited to 125000 bytes a second and not 2000000",
        ),
        ("d", "tc qdisc del dev DETOUR root", "DETOUR has lost its limit"),
        ("e", "tc qdisc del dev HOST ingress", "packets from HOST are no longer redirected to DETOUR"),
        ("f", "ip link set DETOUR down", "packets from HOST are no longer redirected to DETOUR"),
        ("g", "ip link del DETOUR", "interface DETOUR is not there"),
    ] {
        let (check, host, detour) = shown(&config, id);
        fixture.quiet("CHECK", id, &check);
        let fill = |text: &str| text.replace("HOST", &host).replace("DETOUR", &detour);
        fixture.node().shell(&fill(sabotage)).unwrap();
        let (_, text) = fixture.refused("CHECK", id, &format!("/run/netns/{id}"), &check);
        assert!(text.contains(&fill(expected)), "{sabotage}: {text}");
    }
    // Without the namespace, the interface is the only trace of the attachment.
    let detours = || fixture.node().shell("ip -o link | grep -c ptb || true").unwrap();
    fixture.node().shell("for pod in b c d e f; do ip netns del $pod; done; rm -r /run/portolan/*").unwrap();
    assert_eq!(detours(), "5\n");
    fixture.quiet("GC", "x", &merge(config.clone(), json!({ "cni.dev/valid-attachments": [] })));
    assert_eq!(detours(), "0\n");
    // The next ADD rewrites the rules; its DEL removes them.
    fixture.try_call("ADD", "g", "/run/netns/g", &config).unwrap();
    fixture.quiet("DEL", "g", &config);
    // A burst smaller than a packet is an error, and ADD is undone.
    let (code, text) = fixture.refused(
        "ADD",
        "g",
        "/run/netns/g",
        &limited(json!({ "egressRate": RATE, "egressBurst": 8000 })),
    );
    assert_eq!(code, 7, "{text}");
    assert!(text.contains("bandwidth.egressBurst: 1000 bytes are less than one packet of 1514"), "{text}");
    assert_eq!(detours(), "0\n");
    fixture.assert_nothing_left();
}
