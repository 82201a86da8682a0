//! Recovery from a killed process, an emptied state directory and a reboot.

use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use testbed::{Plugin, wait_for};

use crate::fixture::{Fixture, address, config, merge};
use crate::killed::traced;
use crate::ports::with_ports;

#[test]
fn emptied_state_directory_leads_to_no_duplicate_address_and_del_works() {
    let fixture = Fixture::new();
    let a = address(&fixture.add("a", &config("1.1.0")));
    fixture.node().shell("rm -r /run/portolan/*").unwrap();
    let b = address(&fixture.add("b", &config("1.1.0")));
    assert_ne!(a, b);
    fixture.quiet("DEL", "a", &config("1.1.0"));
    fixture.quiet("DEL", "b", &config("1.1.0"));
    fixture.assert_nothing_left();
}

#[test]
fn gc_finds_pods_by_their_interfaces_if_the_state_directory_is_empty() {
    let fixture = Fixture::new();
    for id in ["a", "b"] {
        fixture.add(id, &config("1.1.0"));
    }
    fixture.add(
        "c",
        &merge(
            config("1.1.0"),
            json!({ "name": "other", "ipam": { "ranges": [[{ "subnet": "10.23.0.0/24" }]] } }),
        ),
    );
    fixture.node().shell("rm -r /run/portolan/*").unwrap();
    let keep_a = json!({ "cni.dev/valid-attachments": [{ "containerID": "a", "ifname": "eth0" }] });
    fixture.quiet("GC", "x", &merge(config("1.1.0"), keep_a));
    let links = fixture
        .node()
        .shell("ip -n a link show eth0 && ip -n c link show eth0 && ip -o link | grep -c ptl")
        .unwrap();
    assert!(links.ends_with("\n2\n"), "{links}");
}

/// Simulates a reboot: memory is lost, the disk stays.
fn reboot(fixture: &Fixture) {
    let script = "rm -r /run/portolan/*; ip route del unreachable 10.22.0.0/30; nft flush ruleset; \
        for p in a b; do ip netns del $p; done; \
        ip link | grep -o 'ptl[0-9a-f]*' | xargs -rn1 ip link del 2>/dev/null || true; \
        echo other > /run/boot; mount --bind /run/boot /proc/sys/kernel/random/boot_id";
    fixture.node().shell(script).unwrap();
}

#[test]
fn reservations_of_an_earlier_boot_are_ignored() {
    let fixture = Fixture::new();
    let config = merge(
        config("1.1.0"),
        json!({ "ipam": { "dataDir": "/run/kept", "ranges": [[{ "subnet": "10.22.0.0/30" }]] } }),
    );
    fixture.add("a", &config);
    fixture.add("b", &config);
    reboot(&fixture);
    fixture.add("c", &config);
    fixture.add("d", &config);
    for id in ["a", "b", "c", "d"] {
        fixture.quiet("DEL", id, &config);
    }
    fixture.assert_nothing_left();
}

#[test]
fn del_removes_the_ports_of_a_pod_whose_record_was_restored() {
    let fixture = Fixture::new();
    let mapping = |port: u16| json!({ "hostPort": port, "containerPort": port, "protocol": "tcp" });
    let config = with_ports(json!([mapping(8080), mapping(8081), mapping(90)]));
    fixture.add("a", &config);
    fixture.node().shell("rm /run/portolan/attachments/pods/a-eth0.json").unwrap();
    let keep = json!({ "cni.dev/valid-attachments": [{ "containerID": "a", "ifname": "eth0" }] });
    fixture.quiet("GC", "x", &merge(config.clone(), keep));
    assert!(fixture.json("cat /run/portolan/attachments/pods/a-eth0.json")["portMappings"].is_null());
    fixture.quiet("DEL", "a", &config);
    fixture.assert_nothing_left();
}

/// ADD finds the interface and restores its record after DEL has removed it.
#[test]
fn del_concurrent_with_an_add_that_restores_records_leaves_no_record() {
    let fixture = Fixture::new();
    let plain = config("1.1.0");
    fixture.add("a", &plain);
    let trace = |options: &str| traced(&fixture, &format!("-e trace=sendto -o /run/trace {options}"));
    let del = |plugin: Plugin| plugin.command("DEL", "a", Path::new("/run/netns/a"), &plain).unwrap();
    del(trace("")).unwrap();
    let requests = fixture.node().shell("cat /run/trace").unwrap();
    let deletion = 1 + requests.lines().position(|line| line.contains("RTM_DELLINK")).unwrap();
    fixture.try_call("ADD", "a", "/run/netns/a", &plain).unwrap();
    let slow = trace(&format!("-e inject=sendto:delay_enter=5000000:when={deletion}"));
    std::thread::scope(|scope| {
        let deleted = scope.spawn(|| del(slow));
        wait_for("DEL to remove the record", || {
            let records = fixture.node().shell("ls /run/portolan/attachments/pods 2>/dev/null || true")?;
            anyhow::ensure!(records.is_empty(), "{records}");
            Ok(())
        })
        .unwrap();
        // The network's settings have changed: all of its records are checked.
        fixture.add("b", &merge(plain.clone(), json!({ "nonMasqueradeCIDRs": ["10.99.0.0/16"] })));
        let records = fixture.node().shell("ls /run/portolan/attachments/pods").unwrap();
        assert_eq!(records, "a-eth0.json\nb-eth0.json\n", "while DEL waits");
        assert_eq!(deleted.join().unwrap(), Ok(Value::Null));
    });
    assert_eq!(fixture.node().shell("ls /run/portolan/attachments/pods").unwrap(), "b-eth0.json\n");
    fixture.quiet("DEL", "b", &plain);
    fixture.assert_nothing_left();
}

/// Damages the node, then runs each command.
#[test]
fn any_command_after_a_flush_or_an_emptied_state_directory_repairs_all_pods() {
    let flush = "nft flush ruleset";
    let empty = "rm -r /run/portolan/*";
    for (sabotage, next) in [
        (flush.to_owned(), "ADD"),
        (flush.to_owned(), "DEL"),
        (flush.to_owned(), "GC"),
        (empty.to_owned(), "ADD"),
        (empty.to_owned(), "GC"),
        (format!("{flush}; {empty}"), "ADD"),
    ] {
        let fixture = Fixture::new();
        let own = merge(
            config("1.1.0"),
            json!({ "bridge": "br0", "isDefaultGateway": true, "ipMasq": true, "macspoofchk": true, "name": "guarded",
                "ipam": { "ranges": [[{ "subnet": "10.23.0.0/24" }]] } }),
        );
        for (a, b, config) in [("a", "b", config("1.1.0")), ("c", "d", own)] {
            let keep = json!({ "cni.dev/valid-attachments": [{ "containerID": a, "ifname": "eth0" }] });
            let checked = merge(config.clone(), json!({ "prevResult": fixture.add(a, &config) }));
            fixture.add(b, &config);
            fixture.node().shell(&sabotage).unwrap();
            match next {
                "ADD" => drop(fixture.add("new", &config)),
                "DEL" => fixture.quiet("DEL", b, &config),
                _ => fixture.quiet("GC", "x", &merge(config.clone(), keep)),
            }
            fixture.quiet("CHECK", a, &checked);
            assert_eq!(seen_outside(&fixture, a), fixture.node().address(), "{sabotage}, then {next}");
            for id in [a, b, "new"] {
                fixture.quiet("DEL", id, &config);
            }
            fixture.node().shell("ip netns del new 2>/dev/null || true").unwrap();
            fixture.quiet("GC", "x", &merge(config, json!({ "cni.dev/valid-attachments": [] })));
        }
        fixture.assert_nothing_left();
    }
}

/// The source address that the outside sees when the pod connects.
fn seen_outside(fixture: &Fixture, pod: &str) -> String {
    let listener = fixture.node().outside().run(|| TcpListener::bind("192.0.2.1:7777").unwrap()).unwrap();
    let pod = fixture.node().netns(Path::new(&format!("/run/netns/{pod}"))).unwrap();
    let connect =
        || TcpStream::connect_timeout(&"192.0.2.1:7777".parse().unwrap(), Duration::from_secs(5)).unwrap();
    let _stream = pod.run(connect).unwrap();
    listener.accept().unwrap().1.ip().to_string()
}

/// A reboot with a full pool whose reservations are on disk.
#[test]
fn status_after_a_reboot_reports_free_addresses_and_gc_removes_old_reservations() {
    let fixture = Fixture::new();
    let config = merge(
        config("1.1.0"),
        json!({ "ipam": { "dataDir": "/run/kept", "ranges": [[{ "subnet": "10.22.0.0/30" }]] } }),
    );
    for id in ["a", "b"] {
        fixture.add(id, &config);
    }
    assert_eq!(fixture.refused("STATUS", "x", "", &config).0, 50);
    reboot(&fixture);
    fixture.quiet("STATUS", "x", &config);
    let no_attachments = merge(config, json!({ "cni.dev/valid-attachments": [] }));
    fixture.quiet("GC", "x", &no_attachments);
    assert_eq!(fixture.node().shell("find /run/kept -path '*owners/*'").unwrap(), "");
    fixture.assert_nothing_left();
}
