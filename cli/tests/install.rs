//! `portolan install` and `uninstall`: which files they write and keep, and that uninstall leaves nothing.

#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

use std::collections::BTreeSet;
use std::process::{Command, Output};

use testbed::{Binaries, Network, Node, Plugin};

/// Lists all directories where files could be left.
const LISTING: &str = "find /etc /opt /var/lib /run -path /run/overlay -prune -o \\( -type d -printf '%p d \
    %m\\n' -o -printf '%p %y %m %s %l\\n' \\) | sort";

/// Returns a node with an empty private `/opt`.
fn node() -> Node {
    let node = Node::new().unwrap();
    node.shell("mount -t tmpfs tmpfs /opt; rm -rf /etc/cni /etc/portolan; rmdir /run/portolan").unwrap();
    node
}

fn portolan(node: &Node, arguments: &[&str]) -> Output {
    node.run(|| Command::new(env!("CARGO_BIN_EXE_portolan")).args(arguments).output()).unwrap()
}

fn succeed(node: &Node, arguments: &[&str]) -> String {
    let output = portolan(node, arguments);
    let output_text = text(&output);
    assert!(output.status.success(), "{arguments:?}: {output_text}");
    output_text
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// Returns the state of the node: files with modes and sizes, kernel state, and the runtimes' configurations.
fn state(node: &Node) -> String {
    node.shell(&format!(
        "{LISTING}; ip -o link; ip route show table all; nft list ruleset; cat \
        /etc/cni/net.d/* 2>/dev/null || true"
    ))
    .unwrap()
}

/// Asserts equality and shows only the lines that differ.
fn assert_same(now: &str, before: &str, what: &str) {
    let lines = |text: &str| text.lines().map(str::to_owned).collect::<BTreeSet<_>>();
    let (now, before) = (lines(now), lines(before));
    let differ: Vec<&String> = now.symmetric_difference(&before).collect();
    assert!(differ.is_empty(), "{what}: {differ:#?}");
}

#[test]
fn uninstall_restores_the_state_before_install_for_every_runtime() {
    for (runtime, expected) in [
        ("podman", &["/opt/cni/bin/portolan-cni", "/etc/containers/containers.conf.d/10-portolan.conf"][..]),
        // The directory of Debian's containerd.
        ("containerd", &["/usr/lib/cni/portolan-cni"]),
        ("crio", &["/opt/cni/bin/portolan-cni"]),
    ] {
        let node = node();
        node.shell("mkdir -p /run/usr-lib-cni; mount --bind /run/usr-lib-cni /usr/lib/cni").unwrap();
        node.shell(
            "mkdir -p /etc/cni/net.d; echo '{\"name\": \"other\", \"plugins\": []}' > \
            /etc/cni/net.d/87-other.conflist",
        )
        .unwrap();
        let before = state(&node);
        succeed(&node, &["install", "--runtime", runtime]);
        let installed = state(&node);
        for path in expected {
            node.shell(&format!("test -s {path}")).unwrap();
        }
        node.shell("grep -q portolan-cni /etc/cni/net.d/10-portolan.conflist").unwrap();
        // A second install changes nothing.
        let again = succeed(&node, &["install", "--runtime", runtime]);
        assert!(!again.contains("written") && again.contains("up to date"), "{again}");
        assert_same(&state(&node), &installed, "repeated");
        succeed(&node, &["uninstall"]);
        assert_same(&state(&node), &before, runtime);
        assert_eq!(succeed(&node, &["uninstall"]), "nothing to do\n");
    }
}

#[test]
fn conflist_equals_the_one_in_deploy_and_the_plugin_accepts_it() {
    let node = node();
    succeed(&node, &["install", "--runtime", "crio"]);
    let read = |text: &str| serde_json::from_str::<serde_json::Value>(text).unwrap();
    let written = read(&node.shell("cat /etc/cni/net.d/10-portolan.conflist").unwrap());
    assert_eq!(written, read(include_str!("../../deploy/10-portolan.conflist")));

    // Attach and detach a pod with the installed plugin; afterwards nothing is left.
    let mut config = written["plugins"][0].clone();
    config["cniVersion"] = "1.0.0".into();
    config["name"] = "portolan".into();
    let plugin = Plugin { binary: "/opt/cni/bin/portolan-cni".into(), node: node.clone() };
    let network = Network::with_config(plugin, config.clone());
    let pod = network.add("web-1").unwrap();
    let refused = portolan(&node, &["uninstall"]);
    assert!(!refused.status.success() && text(&refused).contains("pods are attached"), "{}", text(&refused));
    assert!(text(&refused).contains("default/web-1"), "{}", text(&refused));
    network.remove(&pod).unwrap();
    // A bridge has its own table, and is kept after its last pod is detached.
    config["name"] = "bridged".into();
    config["mode"] = "bridge".into();
    config["macspoofchk"] = true.into();
    config["ipam"] = serde_json::json!({ "ranges": [[{ "subnet": "10.23.0.0/24" }]] });
    let plugin = Plugin { binary: "/opt/cni/bin/portolan-cni".into(), node: node.clone() };
    let network = Network::with_config(plugin, config);
    let pod = network.add("web-2").unwrap();
    network.remove(&pod).unwrap();
    let tables = node.shell("nft list tables").unwrap();
    assert!(tables.contains("inet portolan") && tables.contains("bridge portolan"), "{tables}");
    succeed(&node, &["uninstall"]);
    let left = node
        .shell(
            "ip -o link | grep -e ptl -e bridge || true; ip route show table all | grep -e \
        10.22 -e 10.23 || true; nft list tables; ls -d /run/portolan /opt/cni /var/lib/portolan \
        2>/dev/null || true",
        )
        .unwrap();
    assert_eq!(left, "");
}

#[test]
fn files_of_other_origin_are_kept() {
    let node = node();
    node.shell("mkdir -p /opt/cni/bin /etc/cni/net.d; echo theirs > /opt/cni/bin/portolan-cni").unwrap();
    let before = state(&node);
    let refused = portolan(&node, &["install", "--runtime", "crio"]);
    assert!(
        !refused.status.success() && text(&refused).contains("/opt/cni/bin/portolan-cni already exists"),
        "{}",
        text(&refused)
    );
    assert_same(&state(&node), &before, "all files are checked before the first write");
    node.shell(
        "rm /opt/cni/bin/portolan-cni; echo '{\"name\": \"theirs\", \"plugins\": []}' > \
        /etc/cni/net.d/10-portolan.conflist",
    )
    .unwrap();
    let refused = portolan(&node, &["install", "--runtime", "crio"]);
    assert!(text(&refused).contains("10-portolan.conflist already exists"), "{}", text(&refused));
    node.shell("mv /etc/cni/net.d/10-portolan.conflist /etc/cni/net.d/05-theirs.conflist").unwrap();
    let output = succeed(&node, &["install", "--runtime", "crio"]);
    assert!(output.contains("next: /etc/cni/net.d/05-theirs.conflist comes first by name"), "{output}");

    // A file that the operator changed later is kept too.
    node.shell("sed -i s/10.22/10.99/ /etc/cni/net.d/10-portolan.conflist").unwrap();
    assert!(
        succeed(&node, &["install", "--runtime", "crio"])
            .contains("10-portolan.conflist: kept, it was changed after the installation")
    );
    assert!(
        succeed(&node, &["uninstall"])
            .contains("10-portolan.conflist: kept, it was changed after the installation")
    );
    assert_eq!(node.shell("ls /etc/cni/net.d").unwrap(), "05-theirs.conflist\n10-portolan.conflist\n");
}

#[test]
fn upgrade_replaces_the_plugin_atomically() {
    let node = node();
    let old = Binaries::find().unwrap().path("portolan-cni");
    succeed(&node, &["install", "--runtime", "podman", "--plugin", old.to_str().unwrap()]);
    // Another file stands for the new version.
    node.shell(&format!("cat {} > /run/new; echo new >> /run/new; chmod +x /run/new", old.display()))
        .unwrap();
    let running = node
        .shell(
            "exec 3< /opt/cni/bin/portolan-cni; readlink /proc/self/fd/3 >/dev/null; stat \
        -L -c %i /proc/self/fd/3",
        )
        .unwrap();
    let output = succeed(&node, &["install", "--plugin", "/run/new"]);
    assert_eq!(output, "/opt/cni/bin/portolan-cni: written\n");
    let now = node
        .shell(
            "stat -c %i /opt/cni/bin/portolan-cni; cmp /run/new /opt/cni/bin/portolan-cni; ls /opt/cni/bin",
        )
        .unwrap();
    assert!(
        now.ends_with("portolan-cni\n") && !now.starts_with(running.trim()),
        "{now}: a new file, and no other one"
    );
    // After a kill between receipt and file, both uninstall and the next install succeed.
    node.shell("rm /opt/cni/bin/portolan-cni; echo half > /opt/cni/bin/portolan-cni.new").unwrap();
    succeed(&node, &["install", "--plugin", "/run/new"]);
    succeed(&node, &["uninstall"]);
    assert_eq!(node.shell("ls -A /opt").unwrap(), "");
}

#[test]
fn install_without_runtime_and_receipt_fails_with_the_fix() {
    let node = node();
    let output = text(&portolan(&node, &["install"]));
    assert!(
        output.contains("nothing is installed yet: portolan install --runtime podman|containerd|crio"),
        "{output}"
    );
}
