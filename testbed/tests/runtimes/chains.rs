//! Chains of portolan-cni and the reference plugins `portmap`, `bandwidth`, `tuning` and `firewall`, called
//! by libcni: the effect of each is checked in the kernel, CHECK succeeds, and DEL leaves nothing.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::time::Duration;

use netns::NetNs;
use serde_json::{Value, json};

use super::assert_nothing_left;
use super::libcni::{CniTool, portolan_cni};

const RANGE: &str = "10.22.0.0/24";

const PORTS: &str =
    r#"CAP_ARGS='{"portMappings":[{"hostPort":18080,"containerPort":8080,"protocol":"tcp"}]}'"#;

/// Returns the configuration of a reference plugin in a chain.
fn reference(kind: &str) -> Value {
    match kind {
        "portmap" => json!({ "type": kind, "capabilities": { "portMappings": true } }),
        "bandwidth" => json!({ "type": kind, "ingressRate": 8_000_000, "ingressBurst": 8_000_000,
            "egressRate": 16_000_000, "egressBurst": 8_000_000 }),
        "tuning" => json!({ "type": kind, "sysctl": { "net.core.somaxconn": "500" } }),
        "firewall" => json!({ "type": kind, "backend": "iptables" }),
        other => json!({ "type": other }),
    }
}

fn chain(kinds: &[&str]) -> CniTool {
    let plugin = |kind: &&str| if *kind == "portolan-cni" { portolan_cni(RANGE) } else { reference(kind) };
    let tool = CniTool::with_chain("1.0.0", &kinds.iter().map(plugin).collect::<Vec<_>>());
    // CHECK of `portmap` (1.1.1) searches the IPv4 rules in ip6tables too, if that is installed; so hide it.
    let script =
        "#!/bin/sh\\n[ $CNI_COMMAND != CHECK ] || export PATH=/run/ipv4\\nexec /usr/lib/cni/portmap\\n";
    let path = tool.directory.path().join("cni/portmap");
    let write = format!("rm {0}; printf '{script}' > {0}; chmod +x {0}", path.display());
    tool.node.shell(&format!("{write}; mkdir /run/ipv4; ln -s $(command -v iptables) /run/ipv4/")).unwrap();
    tool
}

fn pod(tool: &CniTool) -> NetNs {
    tool.node.netns(Path::new("/run/netns/a")).unwrap()
}

/// Returns whether a server at `to` answers a client in `from`.
fn is_answered(from: &NetNs, to: &str) -> bool {
    let to: SocketAddr = to.parse().unwrap();
    let ask = || TcpStream::connect_timeout(&to, Duration::from_secs(1))?.read_exact(&mut [0]);
    from.run(ask).unwrap().is_ok()
}

fn answer(server: &NetNs, listen: &str) {
    let listener = server.run(|| TcpListener::bind(listen).unwrap()).unwrap();
    std::thread::spawn(move || {
        // The client may have closed the connection.
        for mut client in listener.incoming().map(Result::unwrap) {
            let _ = client.write_all(b"x");
        }
    });
}

/// Checks the effect of a reference plugin. `host` is the pod's interface on the node.
fn assert_works(tool: &CniTool, kind: &str, host: &str) {
    let shell = |script: &str| tool.node.shell(script).unwrap();
    match kind {
        "portmap" => {
            answer(&pod(tool), "0.0.0.0:8080");
            assert!(is_answered(tool.node.outside(), "192.0.2.2:18080"), "through the host port");
        }
        "bandwidth" => {
            let limit = shell(&format!("tc qdisc show dev {host} root"));
            assert!(limit.contains("tbf") && limit.contains("rate 8Mbit"), "{limit}");
            let limit = shell("tc qdisc show | grep bwp");
            assert!(limit.contains("tbf") && limit.contains("rate 16Mbit"), "{limit}");
        }
        "tuning" => assert_eq!(shell("ip netns exec a cat /proc/sys/net/core/somaxconn"), "500\n"),
        "firewall" => {
            // With a FORWARD policy of DROP, the plugin's rules let the pod reach the outside.
            let outside = tool.node.outside();
            answer(outside, "192.0.2.1:7777");
            shell("iptables -P FORWARD DROP");
            assert!(is_answered(&pod(tool), "192.0.2.1:7777"), "from a pod with rules of the plugin");
            let chain = shell("iptables -S CNI-FORWARD");
            shell("iptables -F CNI-FORWARD");
            assert!(!is_answered(&pod(tool), "192.0.2.1:7777"), "from a pod without rules");
            for rule in chain.lines().filter(|line| line.starts_with("-A")) {
                shell(&format!("iptables {rule}"));
            }
            shell("iptables -P FORWARD ACCEPT");
        }
        _ => {}
    }
}

#[test]
fn every_reference_plugin_works_after_portolan_cni_in_any_order() {
    for kinds in [
        &["portolan-cni", "portmap"][..],
        &["portolan-cni", "bandwidth"],
        &["portolan-cni", "tuning"],
        &["portolan-cni", "firewall"],
        &["portolan-cni", "portmap", "bandwidth", "tuning", "firewall"],
        &["portolan-cni", "firewall", "tuning", "bandwidth", "portmap"],
    ] {
        let tool = chain(kinds);
        tool.node.add_netns("a").unwrap();
        let result: Value = serde_json::from_str(&tool.run("add pods /run/netns/a", PORTS).unwrap()).unwrap();
        assert_eq!(result["ips"][0]["address"], "10.22.0.1/32", "{kinds:?}");
        let host = result["interfaces"][0]["name"].as_str().unwrap();
        kinds.iter().for_each(|kind| assert_works(&tool, kind, host));
        tool.run("check pods /run/netns/a", PORTS).unwrap();
        tool.run("del pods /run/netns/a", PORTS).unwrap();
        tool.run("del pods /run/netns/a", PORTS).unwrap();
        assert_nothing_left(&tool.node);
    }
}

#[test]
fn no_reference_plugin_can_be_the_first_of_a_chain() {
    for (kind, why) in [
        ("portmap", "must be called as chained plugin"),
        ("bandwidth", "must be called as chained plugin"),
        ("tuning", "Required prevResult missing"),
        ("firewall", "missing prevResult from earlier plugin"),
    ] {
        let tool = chain(&[kind, "portolan-cni"]);
        tool.node.add_netns("a").unwrap();
        let refused = tool.run("add pods /run/netns/a", PORTS).unwrap_err().to_string();
        assert!(refused.contains(why), "{kind}: {refused}");
        tool.run("del pods /run/netns/a", PORTS).unwrap();
        assert_nothing_left(&tool.node);
    }
}

/// `loopback` comes first and creates no interface. `portmap` and `bandwidth` need the interface of
/// portolan-cni, so they come after it.
#[test]
fn tuning_and_firewall_work_before_portolan_cni_and_the_others_after_it() {
    let tool = chain(&["loopback", "tuning", "portolan-cni", "portmap", "bandwidth"]);
    tool.link("loopback");
    tool.node.add_netns("a").unwrap();
    let result: Value = serde_json::from_str(&tool.run("add pods /run/netns/a", PORTS).unwrap()).unwrap();
    let names: Vec<&Value> = result["interfaces"].as_array().unwrap().iter().map(|i| &i["name"]).collect();
    assert_eq!((names[0], names[2]), (&json!("lo"), &json!("eth0")));
    let host = names[1].as_str().unwrap();
    ["tuning", "portmap", "bandwidth"].iter().for_each(|kind| assert_works(&tool, kind, host));
    tool.run("check pods /run/netns/a", PORTS).unwrap();
    tool.run("del pods /run/netns/a", PORTS).unwrap();
    assert_nothing_left(&tool.node);

    // `firewall` has rules for the addresses of earlier plugins only, and its CHECK expects rules for all
    // addresses.
    let tool = chain(&["loopback", "tuning", "firewall", "portolan-cni"]);
    tool.link("loopback");
    tool.node.add_netns("a").unwrap();
    tool.run("add pods /run/netns/a", PORTS).unwrap();
    let rules = tool.node.shell("iptables -S CNI-FORWARD").unwrap();
    assert!(rules.contains("-s 127.0.0.1/32") && !rules.contains("10.22."), "{rules}");
    let refused = tool.run("check pods /run/netns/a", PORTS).unwrap_err().to_string();
    assert!(refused.contains("expected rule [-d 10.22.0.1/32"), "{refused}");
    answer(&pod(&tool), "10.22.0.1:8080");
    assert!(tool.node.run(|| TcpStream::connect("10.22.0.1:8080")).is_ok());
    tool.run("del pods /run/netns/a", PORTS).unwrap();
    assert_nothing_left(&tool.node);
}

/// As a meta plugin calls them: the reference plugins attach the pod with an interface `net0`, and
/// portolan-cni comes last and creates `eth0`.
#[test]
fn all_four_work_before_portolan_cni_for_another_interface() {
    let ptp = json!({ "type": "net0-ptp", "ipMasq": true,
        "ipam": { "type": "host-local", "dataDir": "/run/host-local", "subnet": "10.40.0.0/24",
            "routes": [{ "dst": "0.0.0.0/0" }] } });
    let for_net0 = |kind: &str| {
        let mut plugin = reference(kind);
        plugin["type"] = format!("net0-{kind}").into();
        plugin
    };
    let reference = ["portmap", "bandwidth", "tuning", "firewall"];
    let plugins: Vec<Value> = std::iter::once(ptp)
        .chain(reference.map(for_net0))
        .chain(std::iter::once(portolan_cni(RANGE)))
        .collect();
    let tool = CniTool::with_chain("1.0.0", &plugins);
    tool.link("host-local");
    for kind in ["ptp", "portmap", "bandwidth", "tuning", "firewall"] {
        let path = tool.directory.path().join(format!("cni/net0-{kind}"));
        let script = format!("#!/bin/sh\\nCNI_IFNAME=net0 exec /usr/lib/cni/{kind}\\n");
        let write = format!("printf '{script}' > {0}; chmod +x {0}", path.display());
        tool.node.shell(&write).unwrap();
    }
    tool.node.add_netns("a").unwrap();
    let result: Value = serde_json::from_str(&tool.run("add pods /run/netns/a", PORTS).unwrap()).unwrap();
    let interfaces = result["interfaces"].as_array().unwrap();
    assert_eq!(
        (&interfaces[1]["name"], &interfaces[4]["name"]),
        (&json!("net0"), &json!("eth0")),
        "{result}"
    );
    assert_eq!((&result["ips"][0]["interface"], &result["ips"][1]["interface"]), (&json!(1), &json!(4)));
    let host = interfaces[0]["name"].as_str().unwrap();
    reference.iter().for_each(|kind| assert_works(&tool, kind, host));

    // The pod is reachable through eth0 too, and answers through it, although the default route uses net0.
    answer(&pod(&tool), "10.22.0.1:8081");
    assert!(tool.node.run(|| TcpStream::connect("10.22.0.1:8081")).is_ok());
    let answers = tool.node.shell("ip -n a route get 192.0.2.1 from 10.22.0.1").unwrap();
    assert!(answers.contains("dev eth0"), "{answers}");
    tool.run("del pods /run/netns/a", PORTS).unwrap();
    assert_nothing_left(&tool.node);
}

/// Node and pod have permanent neighbour entries for each other's MAC address, so portolan-cni must set it.
#[test]
fn portolan_cni_sets_the_mac_address_and_check_detects_a_change_by_tuning() {
    const MAC: &str = "02:00:00:00:00:07";
    let tuning = json!({ "type": "tuning", "mtu": 1400, "promisc": true, "mac": MAC });
    let tool = CniTool::with_chain("1.0.0", &[portolan_cni(RANGE), tuning]);
    tool.node.add_netns("a").unwrap();
    let link = || tool.node.shell("ip -n a link show eth0").unwrap();
    tool.run("add pods /run/netns/a", "").unwrap();
    assert!(link().contains("mtu 1400") && link().contains("PROMISC"), "{}", link());
    let refused = tool.run("check pods /run/netns/a", "").unwrap_err().to_string();
    assert!(refused.contains("another hardware address than the node sends to"), "{refused}");
    tool.run("del pods /run/netns/a", "").unwrap();

    // When `tuning` sets the same address, the kernel flushes the pod's neighbour entries. The pod resolves
    // its gateway again.
    let with_mac = format!(r#"CAP_ARGS='{{"mac":"{MAC}"}}'"#);
    tool.run("add pods /run/netns/a", &with_mac).unwrap();
    assert!(link().contains(MAC), "{}", link());
    assert_eq!(tool.node.shell("ip -n a neigh show 169.254.1.1").unwrap(), "");
    tool.run("check pods /run/netns/a", &with_mac).unwrap();
    tool.node.shell("ping -c1 -W5 10.22.0.2").unwrap();
    tool.run("del pods /run/netns/a", &with_mac).unwrap();
    assert_nothing_left(&tool.node);
}
