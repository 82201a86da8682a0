//! libcni as runtimes embed it, by its own `cnitool`: what it really sends for CHECK, STATUS and GC.

use std::path::PathBuf;

use serde_json::{Value, json};
use tempfile::TempDir;
use testbed::{Node, go_tool};

use super::{assert_nothing_left, link_plugins};

pub(super) struct CniTool {
    pub(super) node: Node,
    pub(super) directory: TempDir,
    binary: PathBuf,
}

impl CniTool {
    /// One network `pods` of these plugins in a node of its own.
    pub(super) fn with_chain(version: &str, plugins: &[Value]) -> Self {
        let (node, directory) = (Node::new().unwrap(), TempDir::new().unwrap());
        link_plugins(&node, &directory.path().join("cni"));
        std::fs::create_dir(directory.path().join("net.d")).unwrap();
        let tool = Self { node, directory, binary: go_tool("cnitool").unwrap() };
        tool.configure(version, plugins);
        tool
    }

    /// The network is of these plugins from now on.
    pub(super) fn configure(&self, version: &str, plugins: &[Value]) {
        let conflist = json!({ "cniVersion": version, "name": "pods", "plugins": plugins });
        let path = self.directory.path().join("net.d/10-pods.conflist");
        std::fs::write(path, conflist.to_string()).unwrap();
    }

    /// A reference plugin in the place of ours by that name, if there is one.
    pub(super) fn link(&self, kind: &str) {
        let directory = self.directory.path().join("cni");
        self.node.shell(&format!("ln -sf /usr/lib/cni/{kind} {}/", directory.display())).unwrap();
    }

    pub(super) fn run(&self, arguments: &str, environment: &str) -> anyhow::Result<String> {
        let directory = self.directory.path().display();
        let binary = self.binary.display();
        self.node.shell(&format!(
            "NETCONFPATH={directory}/net.d CNI_PATH={directory}/cni {environment} {binary} {arguments}"
        ))
    }

    /// `add`, `check` or `del` of a pod by its namespace's path, which is also what it is named by.
    fn pod(&self, command: &str, name: &str) -> anyhow::Result<String> {
        self.run(&format!("{command} pods /run/netns/{name}"), "")
    }

    fn add(&self, name: &str) -> Value {
        self.node.add_netns(name).unwrap();
        serde_json::from_str(&self.pod("add", name).unwrap()).unwrap()
    }
}

pub(super) fn ours(range: &str) -> Value {
    json!({
        "type": "portolan-cni",
        "capabilities": { "ips": true, "mac": true },
        "ipam": { "ranges": [[{ "subnet": range }]] },
    })
}

#[test]
fn libcni_adds_checks_and_deletes_and_every_later_delete_succeeds_too() {
    let tool = CniTool::with_chain("1.1.0", &[ours("10.22.0.0/24")]);
    let result = tool.add("a");
    assert_eq!(result["cniVersion"], "1.1.0");
    tool.pod("check", "a").unwrap();
    tool.node.shell("ip netns exec a ip address flush dev eth0").unwrap();
    let missing = tool.pod("check", "a").unwrap_err().to_string();
    assert!(missing.contains("address"), "{missing}");
    tool.pod("del", "a").unwrap();
    tool.pod("del", "a").unwrap();
    assert_nothing_left(&tool.node);
}

#[test]
fn status_is_asked_for_before_pods_are_and_says_when_no_address_is_left() {
    let tool = CniTool::with_chain("1.1.0", &[ours("10.22.0.0/30")]);
    tool.run("status pods any", "").unwrap();
    tool.add("a");
    // 10.22.0.1 and .2 are all there is.
    tool.node.add_netns("b").unwrap();
    tool.pod("add", "b").unwrap();
    let exhausted = tool.run("status pods any", "").unwrap_err().to_string();
    assert!(exhausted.contains("10.22.0"), "{exhausted}");
    tool.pod("del", "a").unwrap();
    tool.pod("del", "b").unwrap();
    assert_nothing_left(&tool.node);
}

#[test]
fn gc_without_a_list_of_what_to_keep_keeps_what_libcni_does_not_delete_itself() {
    let tool = CniTool::with_chain("1.1.0", &[ours("10.22.0.0/24")]);
    tool.add("a");
    tool.add("forgotten");
    // libcni deletes what its cache knows and its caller does not name, then calls GC. cnitool names nothing and so gives
    // no list: taking that for "keep nothing" would take the pods of every other runtime on the network.
    tool.node.shell("rm $(grep -l netns/forgotten /var/lib/cni/results/*)").unwrap();
    let refused = tool.run("gc pods any", "").unwrap_err().to_string();
    assert!(refused.contains("cni.dev/valid-attachments is missing"), "{refused}");
    let attached = tool.node.shell("ls /run/portolan/attachments/pods").unwrap();
    assert_eq!(attached.lines().count(), 1, "{attached}");
    tool.node.shell("ping -c1 -W2 10.22.0.2").unwrap();
    tool.pod("del", "forgotten").unwrap();
    assert_nothing_left(&tool.node);
}

#[test]
fn two_plugins_of_a_chain_cannot_make_the_same_interface_and_nothing_stays() {
    let first = json!({ "type": "bridge", "bridge": "first0", "ipam": {} });
    let second = json!({ "type": "tuning", "sysctl": { "net.core.somaxconn": "500" } });
    // An interface of one name cannot be made twice: what a chain with two makers gets is an error, and nothing stays.
    let tool = CniTool::with_chain("1.0.0", &[first, ours("10.22.0.0/24"), second]);
    tool.link("bridge");
    tool.node.add_netns("a").unwrap();
    let refused = tool.pod("add", "a").unwrap_err().to_string();
    assert!(refused.contains("eth0 is already in the pod"), "{refused}");
    tool.pod("del", "a").unwrap();
    assert_nothing_left(&tool.node);
}

/// What docs/cni-install.md says of somebody who does not stop the pods first: ours deletes them, and what the old plugins have
/// set up for masquerading is taken away as it is written there.
#[test]
fn pods_of_bridge_go_on_when_the_type_is_changed_and_the_guide_takes_away_what_del_leaves() {
    const PORTS: &str =
        r#"CAP_ARGS='{"portMappings":[{"hostPort":18080,"containerPort":8080,"protocol":"tcp"}]}'"#;
    let ipam = json!({ "type": "host-local", "dataDir": "/run/host-local", "subnet": "10.22.0.0/24", "routes": [{ "dst": "0.0.0.0/0" }] });
    let bridge =
        json!({ "type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": true, "ipam": ipam });
    let portmap = json!({ "type": "portmap", "capabilities": { "portMappings": true } });
    let tool = CniTool::with_chain("1.0.0", &[bridge.clone(), portmap.clone()]);
    ["bridge", "host-local"].iter().for_each(|kind| tool.link(kind));
    tool.node.add_netns("a").unwrap();
    tool.run("add pods /run/netns/a", PORTS).unwrap();

    let mut changed = bridge;
    changed["type"] = "portolan-cni".into();
    tool.configure("1.0.0", &[changed, portmap]);
    let result = tool.add("b");
    assert_eq!(result["ips"][0]["address"], "10.22.0.3/24");
    tool.node.shell("ip netns exec b ping -c1 -W5 10.22.0.2").unwrap();

    // DEL, and then the runtime removes the namespace.
    tool.run("del pods /run/netns/a", PORTS).unwrap();
    tool.node.shell("ip netns del a").unwrap();
    tool.pod("del", "b").unwrap();
    let gone = || {
        let left = tool.node.shell("ip -o link | grep veth || true")?;
        anyhow::ensure!(left.is_empty(), "{left}");
        Ok(())
    };
    testbed::wait_for("the old pod's interface to go with its namespace", gone).unwrap();
    assert_eq!(tool.node.shell("ls /run/host-local/pods | grep 10.22 || true").unwrap(), "");
    let rules = tool.node.shell("iptables-save | grep 10.22.0.2").unwrap();
    assert!(rules.lines().all(|rule| rule.starts_with("-A POSTROUTING -s 10.22.0.2/32")), "{rules}");
    let guide = include_str!("../../../docs/cni-install.md");
    for command in ["ip link del cni0", "iptables-save | grep -v CNI- | iptables-restore"] {
        assert!(guide.contains(&format!("`{command}`")), "the guide says {command}");
        tool.node.shell(command).unwrap();
    }
    assert_nothing_left(&tool.node);
    assert_eq!(tool.node.shell("iptables-save | grep CNI- || true").unwrap(), "");
}

#[test]
fn what_a_runtime_asks_for_by_capabilities_needs_no_other_plugin() {
    let mut plugin = ours("10.22.0.0/24");
    plugin["capabilities"] = json!({ "portMappings": true, "bandwidth": true });
    let tool = CniTool::with_chain("1.0.0", &[plugin]);
    tool.node.add_netns("a").unwrap();
    let asked = r#"CAP_ARGS='{"portMappings":[{"hostPort":18080,"containerPort":8080,"protocol":"tcp"}],"bandwidth":{"ingressRate":8000000,"ingressBurst":800000,"egressRate":16000000,"egressBurst":800000}}'"#;
    tool.run("add pods /run/netns/a", asked).unwrap();
    let limits = tool.node.shell("tc qdisc show").unwrap();
    assert!(limits.contains("rate 8Mbit burst 100000b") && limits.contains("rate 16Mbit"), "{limits}");
    tool.run("check pods /run/netns/a", asked).unwrap();
    tool.node.shell("tc qdisc del dev $(ip -br link | grep -o 'ptl[0-9a-f]*') root").unwrap();
    let missing = tool.run("check pods /run/netns/a", asked).unwrap_err().to_string();
    assert!(missing.contains("has lost its limit"), "{missing}");
    tool.run("del pods /run/netns/a", asked).unwrap();
    assert_eq!(tool.node.shell("ip -o link | grep ptb || true").unwrap(), "");
    assert_nothing_left(&tool.node);
}
