//! podman 4: pods, published ports, several networks, and recovery after a kill.

use std::path::Path;

use anyhow::ensure;
use testbed::{Binaries, Cluster, Plugin, wait_for};

use super::{assert_nothing_left, link_plugins, make_root};

const CONFLIST: &str = include_str!("../../../deploy/10-portolan.conflist");

/// podman on a node, with its own storage, state and configuration.
struct Podman<'a> {
    cluster: &'a Cluster,
}

impl<'a> Podman<'a> {
    fn set_up(cluster: &'a Cluster) -> Self {
        let directory = cluster.directory().display();
        link_plugins(&cluster.node, &cluster.directory().join("cni"));
        make_root(&cluster.node, cluster.directory());
        // Limits for a machine without CAP_SYS_RESOURCE, and locks outside the machine's /dev/shm.
        let script = format!(
            r#"
            mkdir -p {directory}/net.d {directory}/tmp
            cat > /etc/containers/containers.conf <<END
[network]
network_backend = "cni"
cni_plugin_dirs = ["{directory}/cni"]
network_config_dir = "{directory}/net.d"
[engine]
cgroup_manager = "cgroupfs"
events_logger = "none"
lock_type = "file"
tmp_dir = "/run/libpod"
[containers]
default_ulimits = ["nofile=20000:20000", "nproc=4096:4096"]
END
            "#
        );
        cluster.node.shell(&script).unwrap();
        std::fs::write(cluster.directory().join("net.d/10-portolan.conflist"), CONFLIST).unwrap();
        let podman = Self { cluster };
        let import = podman.line("import --change 'CMD [\"/bin/sleep\", \"1000\"]' - local:test");
        cluster.node.shell(&format!("tar c -C {directory}/root . | {import}")).unwrap();
        podman
    }

    fn line(&self, arguments: &str) -> String {
        let storage = self.cluster.directory().join("storage");
        let options = "--runtime runc --runroot /run/podman --storage-driver vfs";
        format!("TMPDIR={} podman {options} --root {} {arguments}", self.tmp().display(), storage.display())
    }

    fn run(&self, arguments: &str) -> anyhow::Result<String> {
        self.cluster.node.shell(&self.line(arguments))
    }

    fn tmp(&self) -> std::path::PathBuf {
        Path::new(self.cluster.directory()).join("tmp")
    }
}

impl Drop for Podman<'_> {
    fn drop(&mut self) {
        // Kill the monitors of containers that podman has no record of: they would outlive the test.
        let storage = self.cluster.directory().join("storage");
        let script = format!(
            "for pid in $(pgrep -f '^/usr/bin/conmon.*{}' || true); do pkill -KILL -P $pid || true; kill -9 \
             $pid || true; done",
            storage.display()
        );
        let _ = self.cluster.node.shell(&script);
    }
}

#[test]
fn containers_of_a_pod_share_an_address_and_are_reachable_by_name() {
    let cluster = Cluster::start().unwrap();
    let podman = Podman::set_up(&cluster);
    podman.run("pod create --name shop-1 --infra-image local:test --network portolan").unwrap();
    podman.run(&format!("run -d --pod shop-1 --name one local:test /bin/sh -c '{SERVE}'")).unwrap();
    podman.run("run -d --pod shop-1 --name two local:test").unwrap();

    // Both containers share one attachment with the pod's name.
    let records = "cat /run/portolan/attachments/portolan/*.json";
    let record: serde_json::Value = serde_json::from_str(&cluster.node.shell(records).unwrap()).unwrap();
    assert_eq!(record["pod"]["name"], "shop-1");

    // They share localhost and its ports.
    let by_localhost = || podman.run("exec two nc -w 2 127.0.0.1 8080");
    assert_eq!(wait_for("the other container", by_localhost).unwrap(), "hello from the shop\n");
    let bound = podman.run("exec two nc -l -p 8080").unwrap_err().to_string();
    assert!(bound.contains("Address already in use"), "{bound}");

    // A third container, outside the pod, by the Service's name.
    let manifest = "apiVersion: v1\nkind: Service\nmetadata: {name: shop}\n\
        spec: {selector: {app: shop}, ports: [{port: 80, targetPort: 8080}]}\n---\napiVersion: v1\n\
        kind: Pod\nmetadata: {name: shop-1, labels: {app: shop}}\nspec: {containers: []}\n";
    cluster.apply("shop.yaml", manifest).unwrap();
    let vip = cluster.virtual_ip("shop").unwrap();
    podman.run("run -d --name third --network portolan local:test").unwrap();
    let resolved = podman.run("exec third nslookup shop.default.svc.cluster.local").unwrap();
    assert!(resolved.contains(&vip), "{resolved}");
    let by_name = || {
        let output = podman.run("exec third nc -w 2 shop 80")?;
        ensure!(output == "hello from the shop\n", "{output:?}");
        Ok(())
    };
    wait_for("the shop by name", by_name).unwrap();

    podman.run("rm -f -t 0 third").unwrap();
    podman.run("pod rm -f -t 0 shop-1").unwrap();
    assert_nothing_left(&cluster.node);
}

const SERVE: &str = "while true; do echo hello from the shop | nc -l -p 8080; done";

#[test]
fn published_port_reaches_the_container_after_network_reload() {
    let cluster = Cluster::start().unwrap();
    // When podman requests an address, as a reload does, it sends no other capability to the first plugin of
    // the chain (seen with 4.3.1). So the port mappings are those of the second plugin.
    let mut conflist: serde_json::Value = serde_json::from_str(CONFLIST).unwrap();
    conflist["plugins"][0]["capabilities"] = serde_json::json!({ "ips": true });
    let portmap = serde_json::json!({ "type": "portmap", "capabilities": { "portMappings": true } });
    conflist["plugins"].as_array_mut().unwrap().push(portmap);
    let podman = Podman::set_up(&cluster);
    std::fs::write(cluster.directory().join("net.d/10-portolan.conflist"), conflist.to_string()).unwrap();
    podman
        .run(&format!("run -d --name shop -p 8080:8080 --network portolan local:test /bin/sh -c '{SERVE}'"))
        .unwrap();
    wait_for("the container through the host port", || by_port(&cluster)).unwrap();

    // After all rules were flushed, `network reload` restores the container's ports.
    cluster.node.shell("nft flush ruleset").unwrap();
    podman.run("network reload shop").unwrap();
    wait_for("the container after the reload", || by_port(&cluster)).unwrap();
    podman.run("rm -f -t 0 shop").unwrap();
    assert_nothing_left(&cluster.node);
}

#[test]
fn published_port_needs_no_other_plugin() {
    let cluster = Cluster::start().unwrap();
    let podman = Podman::set_up(&cluster);
    let run = "run -d --name shop -p 8080:8080 --network portolan local:test";
    podman.run(&format!("{run} /bin/sh -c '{SERVE}'")).unwrap();
    wait_for("the container through the host port", || by_port(&cluster)).unwrap();
    podman.run("rm -f -t 0 shop").unwrap();
    assert_nothing_left(&cluster.node);
}

/// Connects from outside to the host port. Without DNAT rules, podman's own listener accepts and does not
/// answer.
fn by_port(cluster: &Cluster) -> anyhow::Result<()> {
    let script = format!("timeout 3 busybox nc -w 2 {} 8080", cluster.node.address());
    let ask = || std::process::Command::new("sh").args(["-ec", &script]).output();
    let output = cluster.node.outside().run(ask)??;
    ensure!(output.stdout == b"hello from the shop\n", "{output:?}");
    Ok(())
}

#[test]
fn container_can_have_two_networks() {
    let cluster = Cluster::start().unwrap();
    let podman = Podman::set_up(&cluster);
    let second =
        CONFLIST.replace("\"name\": \"portolan\"", "\"name\": \"second\"").replace("10.22.", "10.23.");
    std::fs::write(cluster.directory().join("net.d/20-second.conflist"), second).unwrap();
    // podman attaches the networks in any order, so the interface names are given. The default route must use
    // eth0.
    let networks = "--network portolan:interface_name=eth0 --network second:interface_name=eth1";
    podman.run(&format!("run -d --name both {networks} local:test")).unwrap();
    let default_route = || podman.run("exec both ip route get 198.51.100.1").unwrap();
    assert!(
        default_route().contains("dev eth0") && default_route().contains("src 10.22.0.1"),
        "{}",
        default_route()
    );
    let addresses = podman.run("exec both ip -4 address show").unwrap();
    assert!(addresses.contains("10.22.0.1/32") && addresses.contains("10.23.0.1/32"), "{addresses}");
    for address in ["10.22.0.1", "10.23.0.1"] {
        cluster.node.shell(&format!("ping -c1 -W2 {address}")).unwrap();
    }
    // A network can be disconnected and connected again while the container runs.
    podman.run("network disconnect second both").unwrap();
    let addresses = podman.run("exec both ip -4 address show").unwrap();
    assert!(addresses.contains("10.22.0.1/32") && !addresses.contains("10.23."), "{addresses}");
    podman.run("network connect second both").unwrap();
    assert!(default_route().contains("dev eth0"), "{}", default_route());
    assert!(podman.run("exec both ip -4 address show").unwrap().contains("10.23.0."));
    podman.run("rm -f -t 0 both").unwrap();
    assert_nothing_left(&cluster.node);
}

#[test]
fn gc_removes_attachments_of_a_killed_podman() {
    let cluster = Cluster::start().unwrap();
    let podman = Podman::set_up(&cluster);
    let mut statuses = Vec::new();
    for delay in ["0.05", "0.1", "0.2", "0.3", "0.4"] {
        let line = podman.line(&format!("run -d --name victim-{delay} --network portolan local:test"));
        let killed = line.replacen("podman", &format!("timeout -s KILL {delay} podman"), 1);
        // It exits with 137, or succeeds before the signal. podman may fail to clean up.
        let status = cluster.node.shell(&format!("env {killed} >&2 || echo $?")).unwrap();
        statuses.push(status.trim().to_owned());
        let _ = podman.run(&format!("rm -f -t 0 -i victim-{delay}"));
    }
    assert!(statuses.iter().any(|status| status == "137"), "none was killed: {statuses:?}");
    podman.run("run -d --name next --network portolan local:test").unwrap();
    podman.run("rm -f -t 0 next").unwrap();
    // Killed between ADD and storing its result, podman never calls DEL. GC with an empty list removes the
    // attachment.
    let plugin =
        Plugin { binary: Binaries::find().unwrap().path("portolan-cni"), node: cluster.node.clone() };
    let mut conflist: serde_json::Value = serde_json::from_str(CONFLIST).unwrap();
    let mut config = conflist["plugins"][0].take();
    config["cniVersion"] = "1.1.0".into();
    config["name"] = "portolan".into();
    config["cni.dev/valid-attachments"] = serde_json::json!([]);
    let variables = [("CNI_COMMAND", "GC"), ("CNI_PATH", "/usr/lib/cni")];
    plugin.call(&variables, &config.to_string()).unwrap().unwrap();
    assert_nothing_left(&cluster.node);
}

#[test]
fn networks_of_podman_network_create_work_with_portolan_cni() {
    let cluster = Cluster::start().unwrap();
    let podman = Podman::set_up(&cluster);
    let (plugin, directory) =
        (Binaries::find().unwrap().path("portolan-cni"), cluster.directory().join("cni"));
    let (plugin, directory) = (plugin.display(), directory.display());
    let link = format!("for name in bridge host-local; do ln -s {plugin} {directory}/$name; done");
    cluster.node.shell(&link).unwrap();
    podman.run("network create --disable-dns --subnet 10.22.77.0/24 made").unwrap();
    let written =
        cluster.node.shell(&format!("cat {}/net.d/made.conflist", cluster.directory().display())).unwrap();
    for kind in ["bridge", "host-local", "portmap", "firewall", "tuning"] {
        assert!(written.contains(&format!("\"type\": \"{kind}\"")), "{written}");
    }
    let run = "run -d --name shop -p 8080:8080 --network made local:test";
    podman.run(&format!("{run} /bin/sh -c '{SERVE}'")).unwrap();
    let addresses = podman.run("exec shop ip -4 address show dev eth0").unwrap();
    assert!(addresses.contains("10.22.77.2/24"), "{addresses}");
    wait_for("the container through the host port", || by_port(&cluster)).unwrap();
    podman.run("run -d --name other --network made local:test").unwrap();
    assert_eq!(podman.run("exec other nc -w 2 10.22.77.2 8080").unwrap(), "hello from the shop\n");
    // A container of the network reaches the outside.
    podman.run("exec other sh -c 'nc -w 2 192.0.2.1 7777 </dev/null || true'").unwrap();
    podman.run("rm -f -t 0 shop other").unwrap();
    podman.run("network rm made").unwrap();
    assert_nothing_left(&cluster.node);
}
