//! libcni through its `cnitool`: ADD, CHECK, DEL, STATUS and GC as runtimes send them.

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
    /// A network `pods` of these plugins on a private node.
    pub(super) fn with_chain(version: &str, plugins: &[Value]) -> Self {
        let (node, directory) = (Node::new().unwrap(), TempDir::new().unwrap());
        link_plugins(&node, &directory.path().join("cni"));
        std::fs::create_dir(directory.path().join("net.d")).unwrap();
        let tool = Self { node, directory, binary: go_tool("cnitool").unwrap() };
        tool.configure(version, plugins);
        tool
    }

    /// Replaces the plugins of the network.
    pub(super) fn configure(&self, version: &str, plugins: &[Value]) {
        let conflist = json!({ "cniVersion": version, "name": "pods", "plugins": plugins });
        let path = self.directory.path().join("net.d/10-pods.conflist");
        std::fs::write(path, conflist.to_string()).unwrap();
    }

    /// Links a reference plugin, in place of a link to portolan-cni of the same name.
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

    /// Runs `add`, `check` or `del` for a pod's namespace.
    fn pod(&self, command: &str, name: &str) -> anyhow::Result<String> {
        self.run(&format!("{command} pods /run/netns/{name}"), "")
    }

    fn add(&self, name: &str) -> Value {
        self.node.add_netns(name).unwrap();
        serde_json::from_str(&self.pod("add", name).unwrap()).unwrap()
    }
}

pub(super) fn portolan_cni(range: &str) -> Value {
    json!({
        "type": "portolan-cni",
        "capabilities": { "ips": true, "mac": true },
        "ipam": { "ranges": [[{ "subnet": range }]] },
    })
}

#[test]
fn libcni_runs_add_check_and_repeated_del() {
    let tool = CniTool::with_chain("1.1.0", &[portolan_cni("10.22.0.0/24")]);
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
fn status_succeeds_before_the_first_pod_and_fails_without_free_addresses() {
    let tool = CniTool::with_chain("1.1.0", &[portolan_cni("10.22.0.0/30")]);
    tool.run("status pods any", "").unwrap();
    tool.add("a");
    // The range has only 10.22.0.1 and .2.
    tool.node.add_netns("b").unwrap();
    tool.pod("add", "b").unwrap();
    let exhausted = tool.run("status pods any", "").unwrap_err().to_string();
    assert!(exhausted.contains("10.22.0"), "{exhausted}");
    tool.pod("del", "a").unwrap();
    tool.pod("del", "b").unwrap();
    assert_nothing_left(&tool.node);
}

#[test]
fn gc_without_valid_attachments_deletes_nothing() {
    let tool = CniTool::with_chain("1.1.0", &[portolan_cni("10.22.0.0/24")]);
    tool.add("a");
    tool.add("unknown");
    // libcni deletes the attachments of its cache that its caller does not list, then calls GC. cnitool gives
    // no list. If portolan-cni treated that as an empty list, it would delete the pods of other runtimes on
    // the network.
    tool.node.shell("rm $(grep -l netns/unknown /var/lib/cni/results/*)").unwrap();
    let refused = tool.run("gc pods any", "").unwrap_err().to_string();
    assert!(refused.contains("cni.dev/valid-attachments is missing"), "{refused}");
    let attached = tool.node.shell("ls /run/portolan/attachments/pods").unwrap();
    assert_eq!(attached.lines().count(), 1, "{attached}");
    tool.node.shell("ping -c1 -W2 10.22.0.2").unwrap();
    tool.pod("del", "unknown").unwrap();
    assert_nothing_left(&tool.node);
}

#[test]
fn second_plugin_with_the_same_interface_fails_and_leaves_nothing() {
    let first = json!({ "type": "bridge", "bridge": "first0", "ipam": {} });
    let second = json!({ "type": "tuning", "sysctl": { "net.core.somaxconn": "500" } });
    // Two plugins that create an interface of the same name: ADD fails and leaves nothing.
    let tool = CniTool::with_chain("1.0.0", &[first, portolan_cni("10.22.0.0/24"), second]);
    tool.link("bridge");
    tool.node.add_netns("a").unwrap();
    let refused = tool.pod("add", "a").unwrap_err().to_string();
    assert!(refused.contains("eth0 is already in the pod"), "{refused}");
    tool.pod("del", "a").unwrap();
    assert_nothing_left(&tool.node);
}

/// The migration of docs/cni-install.md without stopping the pods first: portolan-cni deletes them, and the
/// commands of the guide remove the masquerading rules of the old plugins.
#[test]
fn pods_of_bridge_keep_working_after_migration_and_the_guide_removes_leftovers() {
    const PORTS: &str =
        r#"CAP_ARGS='{"portMappings":[{"hostPort":18080,"containerPort":8080,"protocol":"tcp"}]}'"#;
    let ipam = json!({
        "type": "host-local", "dataDir": "/run/host-local", "subnet": "10.22.0.0/24",
        "routes": [{ "dst": "0.0.0.0/0" }],
    });
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
    let no_veth = || {
        let left = tool.node.shell("ip -o link | grep veth || true")?;
        anyhow::ensure!(left.is_empty(), "{left}");
        Ok(())
    };
    testbed::wait_for("the removal of the old pod's interface with its namespace", no_veth).unwrap();
    assert_eq!(tool.node.shell("ls /run/host-local/pods | grep 10.22 || true").unwrap(), "");
    let rules = tool.node.shell("iptables-save | grep 10.22.0.2").unwrap();
    assert!(rules.lines().all(|rule| rule.starts_with("-A POSTROUTING -s 10.22.0.2/32")), "{rules}");
    let guide = include_str!("../../../docs/cni-install.md");
    for command in ["ip link del cni0", "iptables-save | grep -v CNI- | iptables-restore"] {
        assert!(guide.contains(&format!("`{command}`")), "the guide has {command}");
        tool.node.shell(command).unwrap();
    }
    assert_nothing_left(&tool.node);
    assert_eq!(tool.node.shell("iptables-save | grep CNI- || true").unwrap(), "");
}

#[test]
fn capabilities_need_no_other_plugin() {
    let mut plugin = portolan_cni("10.22.0.0/24");
    plugin["capabilities"] = json!({ "portMappings": true, "bandwidth": true });
    let tool = CniTool::with_chain("1.0.0", &[plugin]);
    tool.node.add_netns("a").unwrap();
    let arguments = r#"CAP_ARGS='{"portMappings":[{"hostPort":18080,"containerPort":8080,"protocol":"tcp"}],"bandwidth":{"ingressRate":8000000,"ingressBurst":800000,"egressRate":16000000,"egressBurst":800000}}'"#;
    tool.run("add pods /run/netns/a", arguments).unwrap();
    let limits = tool.node.shell("tc qdisc show").unwrap();
    assert!(limits.contains("rate 8Mbit burst 100000b") && limits.contains("rate 16Mbit"), "{limits}");
    tool.run("check pods /run/netns/a", arguments).unwrap();
    tool.node.shell("tc qdisc del dev $(ip -br link | grep -o 'ptl[0-9a-f]*') root").unwrap();
    let missing = tool.run("check pods /run/netns/a", arguments).unwrap_err().to_string();
    assert!(missing.contains("has lost its limit"), "{missing}");
    tool.run("del pods /run/netns/a", arguments).unwrap();
    assert_eq!(tool.node.shell("ip -o link | grep ptb || true").unwrap(), "");
    assert_nothing_left(&tool.node);
}
