//! `portolan install` and `uninstall`: what they write, what they leave alone, and that nothing is left.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::BTreeSet;
use std::process::{Command, Output};

use testbed::{Binaries, Network, Node, Plugin};

/// Directories where anything could be left, but for what the kernel shows.
const LISTING: &str = "find /etc /opt /var/lib /run -path /run/overlay -prune -o \\( -type d -printf '%p d %m\\n' -o -printf '%p %y %m %s %l\\n' \\) | sort";

/// A node whose `/opt` is its own too, and empty.
fn node() -> Node {
    let node = Node::new().unwrap();
    node.shell("mount -t tmpfs tmpfs /opt; rm -rf /etc/cni /etc/portolan; rmdir /run/portolan").unwrap();
    node
}

fn portolan(node: &Node, arguments: &[&str]) -> Output {
    node.run(|| Command::new(env!("CARGO_BIN_EXE_portolan")).args(arguments).output()).unwrap()
}

fn done(node: &Node, arguments: &[&str]) -> String {
    let output = portolan(node, arguments);
    let said = text(&output);
    assert!(output.status.success(), "{arguments:?}: {said}");
    said
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// What is there: files with their modes and sizes, what the kernel has, and what runtimes read.
fn state(node: &Node) -> String {
    node.shell(&format!("{LISTING}; ip -o link; ip route show table all; nft list ruleset; cat /etc/cni/net.d/* 2>/dev/null || true"))
        .unwrap()
}

/// Only lines that differ are shown: a machine has many files.
fn assert_same(now: &str, before: &str, what: &str) {
    let lines = |text: &str| text.lines().map(str::to_owned).collect::<BTreeSet<_>>();
    let (now, before) = (lines(now), lines(before));
    let differ: Vec<&String> = now.symmetric_difference(&before).collect();
    assert!(differ.is_empty(), "{what}: {differ:#?}");
}

#[test]
fn uninstall_leaves_every_runtime_as_it_was() {
    for (runtime, expected) in [
        ("podman", &["/opt/cni/bin/portolan-cni", "/etc/containers/containers.conf.d/10-portolan.conf"][..]),
        // As Debian's containerd is configured.
        ("containerd", &["/usr/lib/cni/portolan-cni"]),
        ("crio", &["/opt/cni/bin/portolan-cni"]),
    ] {
        let node = node();
        node.shell("mkdir -p /run/usr-lib-cni; mount --bind /run/usr-lib-cni /usr/lib/cni").unwrap();
        node.shell("mkdir -p /etc/cni/net.d; echo '{\"name\": \"other\", \"plugins\": []}' > /etc/cni/net.d/87-other.conflist").unwrap();
        let before = state(&node);
        done(&node, &["install", "--runtime", runtime]);
        let installed = state(&node);
        for path in expected {
            node.shell(&format!("test -s {path}")).unwrap();
        }
        node.shell("grep -q portolan-cni /etc/cni/net.d/10-portolan.conflist").unwrap();
        // Repeating it changes nothing.
        let again = done(&node, &["install", "--runtime", runtime]);
        assert!(!again.contains("written") && again.contains("up to date"), "{again}");
        assert_same(&state(&node), &installed, "repeated");
        done(&node, &["uninstall"]);
        assert_same(&state(&node), &before, runtime);
        assert_eq!(done(&node, &["uninstall"]), "nothing to do\n");
    }
}

#[test]
fn the_conflist_is_what_deploy_has_and_the_plugin_takes_it() {
    let node = node();
    done(&node, &["install", "--runtime", "crio"]);
    let read = |text: &str| serde_json::from_str::<serde_json::Value>(text).unwrap();
    let written = read(&node.shell("cat /etc/cni/net.d/10-portolan.conflist").unwrap());
    assert_eq!(written, read(include_str!("../../deploy/10-portolan.conflist")));

    // A pod comes and goes by what was installed; then nothing of it is left either.
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
    // A bridge has a table of its own, and stays when its last pod goes.
    config["name"] = "bridged".into();
    config["mode"] = "bridge".into();
    config["macspoofchk"] = true.into();
    config["ipam"] = serde_json::json!({ "ranges": [[{ "subnet": "10.23.0.0/24" }]] });
    let plugin = Plugin { binary: "/opt/cni/bin/portolan-cni".into(), node: node.clone() };
    let network = Network::with_config(plugin, config);
    let pod = network.add("web-2").unwrap();
    network.remove(&pod).unwrap();
    let stays = node.shell("nft list tables").unwrap();
    assert!(stays.contains("inet portolan") && stays.contains("bridge portolan"), "{stays}");
    done(&node, &["uninstall"]);
    let left = node.shell("ip -o link | grep -e ptl -e bridge || true; ip route show table all | grep -e 10.22 -e 10.23 || true; nft list tables; ls -d /run/portolan /opt/cni /var/lib/portolan 2>/dev/null || true").unwrap();
    assert_eq!(left, "");
}

#[test]
fn what_others_wrote_is_left_alone() {
    let node = node();
    node.shell("mkdir -p /opt/cni/bin /etc/cni/net.d; echo theirs > /opt/cni/bin/portolan-cni").unwrap();
    let before = state(&node);
    let refused = portolan(&node, &["install", "--runtime", "crio"]);
    assert!(
        !refused.status.success() && text(&refused).contains("/opt/cni/bin/portolan-cni is there already"),
        "{}",
        text(&refused)
    );
    assert_same(&state(&node), &before, "nothing is written before everything was looked at");
    node.shell("rm /opt/cni/bin/portolan-cni; echo '{\"name\": \"theirs\", \"plugins\": []}' > /etc/cni/net.d/10-portolan.conflist").unwrap();
    let refused = portolan(&node, &["install", "--runtime", "crio"]);
    assert!(text(&refused).contains("10-portolan.conflist is there already"), "{}", text(&refused));
    node.shell("mv /etc/cni/net.d/10-portolan.conflist /etc/cni/net.d/05-theirs.conflist").unwrap();
    let said = done(&node, &["install", "--runtime", "crio"]);
    assert!(said.contains("next: /etc/cni/net.d/05-theirs.conflist comes first by name"), "{said}");

    // What was changed after is the operator's, too.
    node.shell("sed -i s/10.22/10.99/ /etc/cni/net.d/10-portolan.conflist").unwrap();
    assert!(
        done(&node, &["install", "--runtime", "crio"])
            .contains("10-portolan.conflist: kept, it was changed by hand")
    );
    assert!(done(&node, &["uninstall"]).contains("10-portolan.conflist: kept, it was changed by hand"));
    assert_eq!(node.shell("ls /etc/cni/net.d").unwrap(), "05-theirs.conflist\n10-portolan.conflist\n");
}

#[test]
fn an_upgrade_replaces_the_plugin_in_one_step() {
    let node = node();
    let old = Binaries::find().unwrap().path("portolan-cni");
    done(&node, &["install", "--runtime", "podman", "--plugin", old.to_str().unwrap()]);
    // A new version: any other program will do.
    node.shell(&format!("cat {} > /run/new; echo new >> /run/new; chmod +x /run/new", old.display()))
        .unwrap();
    let running = node.shell("exec 3< /opt/cni/bin/portolan-cni; readlink /proc/self/fd/3 >/dev/null; stat -L -c %i /proc/self/fd/3").unwrap();
    let said = done(&node, &["install", "--plugin", "/run/new"]);
    assert_eq!(said, "/opt/cni/bin/portolan-cni: written\n");
    let now = node
        .shell(
            "stat -c %i /opt/cni/bin/portolan-cni; cmp /run/new /opt/cni/bin/portolan-cni; ls /opt/cni/bin",
        )
        .unwrap();
    assert!(
        now.ends_with("portolan-cni\n") && !now.starts_with(running.trim()),
        "{now}: a new file, and nothing beside it"
    );
    // Killed between the receipt and the file: uninstall is content, and so is the next install.
    node.shell("rm /opt/cni/bin/portolan-cni; echo half > /opt/cni/bin/portolan-cni.new").unwrap();
    done(&node, &["install", "--plugin", "/run/new"]);
    done(&node, &["uninstall"]);
    assert_eq!(node.shell("ls -A /opt").unwrap(), "");
}

#[test]
fn without_a_runtime_and_a_receipt_the_way_out_is_named() {
    let node = node();
    let said = text(&portolan(&node, &["install"]));
    assert!(
        said.contains("nothing is installed yet: portolan install --runtime podman|containerd|crio"),
        "{said}"
    );
}
