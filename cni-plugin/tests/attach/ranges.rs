//! Ranges of host ports, and holders that no longer exist.

use std::io::Read as _;
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use testbed::wait_for;

use crate::fixture::{Fixture, merge};
use crate::killed::traced;
use crate::ports::with_ports;
use crate::tracked::{TRACKED, track};

const TIMEOUT: Duration = Duration::from_secs(3);

/// That many consecutive TCP and UDP ports, each mapped to the port `to` further on.
pub(crate) fn range(first: u16, count: u16, to: u16) -> Vec<Value> {
    let mapping = |protocol: &str, port: u16| json!({ "hostPort": first + port, "containerPort": to + port, "protocol": protocol });
    ["tcp", "udp"].iter().flat_map(|protocol| (0..count).map(move |port| mapping(protocol, port))).collect()
}

fn inside<T: Send>(fixture: &Fixture, pod: &str, work: impl FnOnce() -> T + Send) -> T {
    fixture.node().netns(Path::new(&format!("/run/netns/{pod}"))).unwrap().run(work).unwrap()
}

/// Sends its name and the port to each client that connects.
fn serve(fixture: &Fixture, pod: &'static str, ports: &[u16]) {
    for port in ports.iter().copied() {
        let listener = inside(fixture, pod, || TcpListener::bind(("::", port)).unwrap());
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                std::io::Write::write_all(&mut stream.unwrap(), format!("{pod} {port}").as_bytes()).ok();
            }
        });
    }
}

/// What answers from outside at a host port.
fn ask(fixture: &Fixture, port: u16) -> Option<String> {
    let address = SocketAddr::from(([192, 0, 2, 2], port));
    let answer = || {
        let mut stream = TcpStream::connect_timeout(&address, TIMEOUT).ok()?;
        stream.set_read_timeout(Some(TIMEOUT)).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok().map(|_| answer)
    };
    fixture.node().outside().run(answer).unwrap()
}

/// The number of elements of a map.
fn elements(fixture: &Fixture, map: &str) -> usize {
    let listed = fixture.json(&format!("nft -j list map inet portolan {map}"));
    listed["nftables"][1]["map"]["elem"].as_array().map_or(0, Vec::len)
}

#[test]
fn consecutive_ports_are_one_element_and_lead_to_the_pod_until_del() {
    let fixture = Fixture::new();
    let at = json!({ "hostPort": 600, "containerPort": 600, "protocol": "tcp", "hostIP": "192.0.2.2" });
    let beside = json!({ "hostPort": 601, "containerPort": 601, "protocol": "tcp", "hostIP": "192.0.2.2" });
    let mappings = [range(20_000, 3000, 20_000), range(500, 10, 700), vec![at, beside]].concat();
    // A duplicate mapping counts once.
    let config = with_ports([&mappings[..], &mappings[..1]].concat().into());
    let checked = merge(config.clone(), json!({ "prevResult": fixture.add("a", &config) }));
    serve(&fixture, "a", &[20_000, 21_500, 22_999, 700, 709, 600, 601]);
    let expect_all = |when: &str| {
        for (port, to) in [
            (20_000, 20_000),
            (21_500, 21_500),
            (22_999, 22_999),
            (500, 700),
            (509, 709),
            (600, 600),
            (601, 601),
        ] {
            assert_eq!(ask(&fixture, port), Some(format!("a {to}")), "{when}: port {port}");
        }
        for port in [19_999, 23_000, 499, 510, 602] {
            assert_eq!(ask(&fixture, port), None, "{when}: port {port}");
        }
    };
    expect_all("after ADD");
    // Two ranges per protocol, and one TCP range of a single address. The index of the records has the same.
    let record = fixture.json("cat /run/portolan/attachments/pods/a-eth0.json");
    assert_eq!(record["portMappings"].as_array().unwrap().len(), 5, "{record}");
    assert_eq!(
        fixture.json("cat /run/portolan/ports/holders.json")[0]["ranges"].as_array().unwrap().len(),
        5
    );
    for (map, count) in
        [("ranges-v4", 2), ("ranges-v6", 2), ("ranges-at-v4", 1), ("ports-v4", 20), ("ports-v6", 20)]
    {
        assert_eq!(elements(&fixture, map), count, "{map}");
    }
    fixture.quiet("CHECK", "a", &checked);
    fixture.node().shell("nft delete element inet portolan ranges-v4 { tcp . 20000-22999 }").unwrap();
    let (_, lost) = fixture.refused("CHECK", "a", "/run/netns/a", &checked);
    assert!(lost.contains("port 20000-22999/tcp of the node no longer leads to it"), "{lost}");
    fixture.node().shell("nft flush ruleset").unwrap();
    fixture.add("b", &with_ports(json!([])));
    expect_all("after a flush");
    fixture.quiet("DEL", "a", &config);
    assert_eq!(ask(&fixture, 20_000), None);
    fixture.quiet("DEL", "b", &config);
    fixture.assert_nothing_left();
}

#[test]
fn port_in_a_taken_range_and_overlapping_ranges_are_refused() {
    let fixture = Fixture::new();
    fixture.add("a", &with_ports(range(20_000, 100, 20_000).into()));
    fixture.netns("b");
    let refused = |ports: Vec<Value>, expected: &str| {
        let (code, text) = fixture.refused("ADD", "b", "/run/netns/b", &with_ports(ports.into()));
        assert!(text.contains(expected), "{text}");
        code
    };
    refused(range(20_050, 1, 80), "port 20050/tcp of the node is taken by container a");
    refused(range(19_990, 11, 80), "port 20000/tcp of the node is taken by container a");
    refused(range(20_099, 50, 80), "port 20099/tcp of the node is taken by container a");
    // holders.json is an index of the records.
    for sabotage in ["rm /run/portolan/ports/holders.json", "truncate -s 40 /run/portolan/ports/holders.json"]
    {
        fixture.node().shell(sabotage).unwrap();
        refused(range(20_050, 1, 80), "port 20050/tcp of the node is taken by container a");
    }
    let twice = [range(80, 1, 8080), range(80, 1, 8081)].concat();
    let code = refused(twice, "port 80/tcp of the node cannot lead to the pod's ports 8080 and 8081");
    assert_eq!(code, 7);
    let at = json!({ "hostPort": 80, "containerPort": 8081, "protocol": "tcp", "hostIP": "0.0.0.0" });
    let twice = [range(80, 1, 8080), vec![at]].concat();
    let code = refused(twice, "port 80/tcp of the node cannot lead to the pod's ports 8080 and 8081");
    assert_eq!(code, 7);
    let config = with_ports([range(19_900, 100, 80), range(20_100, 100, 80)].concat().into());
    fixture.try_call("ADD", "b", "/run/netns/b", &config).unwrap();
    for pod in ["a", "b"] {
        fixture.quiet("DEL", pod, &config);
    }
    fixture.assert_nothing_left();
}

/// A pod was attached by a version that stored each port as an element and as an entry of the record.
#[test]
fn del_of_consecutive_ports_right_after_an_upgrade_removes_them() {
    let fixture = Fixture::new();
    let config = with_ports(range(20_000, 3, 20_000).into());
    fixture.add("a", &config);
    fixture.add("b", &with_ports(json!([])));
    let record = "/run/portolan/attachments/pods/a-eth0.json";
    let mut old = fixture.json(&format!("cat {record}"));
    let address = old["ips"][0].as_str().unwrap().to_owned();
    old["portMappings"] = range(20_000, 3, 20_000).into();
    let mut network = fixture.json("cat /run/portolan/networks/pods.json");
    network.as_object_mut().unwrap().remove("layout");
    fixture.node().run(|| std::fs::write(record, old.to_string())).unwrap();
    fixture.node().run(|| std::fs::write("/run/portolan/networks/pods.json", network.to_string())).unwrap();
    fixture.node().shell("rm /run/portolan/ports/holders.json").unwrap();
    for map in ["ranges-v4", "ranges-v6"] {
        fixture.node().shell(&format!("nft flush map inet portolan {map}")).unwrap();
    }
    for port in 20_000..20_003 {
        let element = format!("tcp . {port} : {address} . {port}");
        fixture.node().shell(&format!("nft 'add element inet portolan ports-v4 {{ {element} }}'")).unwrap();
    }
    fixture.quiet("DEL", "a", &config);
    for map in ["ports-v4", "ranges-v4", "ranges-v6"] {
        assert_eq!(elements(&fixture, map), 0, "{map}");
    }
    fixture.quiet("DEL", "b", &config);
    fixture.assert_nothing_left();
}

/// The number of system calls of a command that contain a text.
fn calls(fixture: &Fixture, command: &str, config: &Value, texts: [&str; 2]) -> [usize; 2] {
    let plugin = traced(fixture, "-s 100 -e trace=sendto -o /run/trace");
    plugin.command(command, "a", Path::new("/run/netns/a"), config).unwrap().unwrap();
    let trace = fixture.node().shell("cat /run/trace").unwrap();
    // A message that does not fit into the socket's buffer is sent again after the buffer was enlarged.
    let sent = || trace.lines().filter(|line| !line.contains("EMSGSIZE"));
    texts.map(|text| sent().filter(|line| line.contains(text)).count())
}

#[test]
fn three_thousand_ports_cost_no_more_requests_than_one_beside_tracked_connections() {
    let fixture = Fixture::new();
    fixture.add("b", &with_ports(json!([])));
    track(&fixture, TRACKED);
    fixture.netns("a");
    for ports in [range(80, 1, 8080), range(20_000, 3000, 20_000), range(30_000, 3000, 20_000)] {
        let config = with_ports(ports.into());
        for command in ["ADD", "DEL"] {
            let found = calls(&fixture, command, &config, ["IPCTNL_MSG_CT_GET", "NFNL_MSG_BATCH_BEGIN"]);
            // Flows of each family: of the ports, and at DEL of the addresses.
            assert_eq!(found, [2, if command == "ADD" { 1 } else { 2 }], "{command}");
        }
    }
    let without = with_ports(json!([]));
    for (command, changes) in [("ADD", 1), ("DEL", 1)] {
        let found = calls(&fixture, command, &without, ["IPCTNL_MSG_CT_GET", "NFNL_MSG_BATCH_BEGIN"]);
        assert_eq!(found, [0, changes], "{command} of a pod without ports");
    }
}

#[test]
fn holder_without_a_network_namespace_loses_its_ports() {
    let fixture = Fixture::new();
    let config = with_ports([range(8080, 1, 80), range(20_000, 10, 20_000)].concat().into());
    fixture.add("a", &config);
    let client = fixture.node().outside().run(|| UdpSocket::bind("192.0.2.1:4444").unwrap()).unwrap();
    assert_eq!(client.send_to(b"x", "192.0.2.2:8080").unwrap(), 1);
    // The container crashed and its runtime calls no DEL. Another pod may have its port.
    fixture.node().shell("ip netns del a; ip netns add a").unwrap();
    wait_for("the kernel to delete the interface", || {
        let links = fixture.node().shell("ip -o link")?;
        anyhow::ensure!(!links.contains("ptl"), "{links}");
        Ok(())
    })
    .unwrap();
    fixture.add("b", &config);
    serve(&fixture, "b", &[80, 20_005]);
    let datagrams = inside(&fixture, "b", || UdpSocket::bind("0.0.0.0:80").unwrap());
    datagrams.set_read_timeout(Some(TIMEOUT)).unwrap();
    let expect_b = |when: &str| {
        assert_eq!(ask(&fixture, 8080), Some("b 80".to_owned()), "{when}");
        assert_eq!(ask(&fixture, 20_005), Some("b 20005".to_owned()), "{when}");
        client.send_to(b"x", "192.0.2.2:8080").unwrap();
        datagrams.recv_from(&mut [0; 8]).unwrap_or_else(|e| panic!("{when}: {e}"));
    };
    expect_b("after ADD");
    fixture.node().shell("nft flush ruleset").unwrap();
    fixture.add("c", &with_ports(json!([])));
    expect_b("after a flush, with the record of the first one still there");
    fixture.quiet("DEL", "a", &config);
    expect_b("after a late DEL of the first one");
    // An existing holder keeps its ports.
    fixture.netns("d");
    let (_, text) = fixture.refused("ADD", "d", "/run/netns/d", &config);
    assert!(text.contains("is taken by container b"), "{text}");
    for id in ["b", "c"] {
        fixture.quiet("DEL", id, &config);
    }
    fixture.assert_nothing_left();
}
