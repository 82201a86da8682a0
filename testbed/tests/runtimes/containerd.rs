//! containerd 1.6 through its Container Runtime Interface, as the kubelet uses it.

use std::path::Path;

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use testbed::{Cluster, Node, Program, containerd_config, go_tool, import_image, wait_for};

use super::{assert_nothing_left, link_plugins, make_root};

const CONFLIST: &str = include_str!("../../../deploy/10-portolan.conflist");

const IMAGE: &str = "localhost/local:test";

/// containerd on a node, with its own storage, state and configuration.
pub(super) struct Containerd<'a> {
    node: &'a Node,
    directory: &'a Path,
    daemon: Program,
}

impl<'a> Containerd<'a> {
    fn start(cluster: &'a Cluster) -> Self {
        Self::start_with(cluster, CONFLIST)
    }

    fn start_with(cluster: &'a Cluster, conflist: &str) -> Self {
        let directory = cluster.directory().join("net.d");
        std::fs::create_dir(&directory).unwrap();
        std::fs::write(directory.join("10-portolan.conflist"), conflist).unwrap();
        Self::start_with_plugins(cluster, &directory)
    }

    /// Starts without a CNI configuration; the proxy writes it.
    pub(super) fn start_bare(cluster: &'a Cluster) -> Self {
        Self::start_with_plugins(cluster, "/etc/cni/net.d".as_ref())
    }

    fn start_with_plugins(cluster: &'a Cluster, configurations: &Path) -> Self {
        let plugins = cluster.directory().join("cni");
        link_plugins(&cluster.node, &plugins);
        Self::launch(&cluster.node, cluster.directory(), (&plugins, configurations))
    }

    /// Starts without a CNI configuration and without plugins.
    pub(super) fn start_empty(node: &'a Node, directory: &'a Path) -> Self {
        Self::launch(node, directory, ("/opt/cni/bin".as_ref(), "/etc/cni/net.d".as_ref()))
    }

    fn launch(node: &'a Node, directory: &'a Path, cni: (&Path, &Path)) -> Self {
        make_root(node, directory);
        std::fs::write(directory.join("containerd.toml"), containerd_config(IMAGE, cni.0, cni.1)).unwrap();
        let mut containerd = Self { node, directory, daemon: daemon(node, directory) };
        containerd.wait();
        containerd.import_image(IMAGE, directory);
        containerd
    }

    /// Kills containerd and starts it again. Containers keep running.
    fn restart(&mut self) {
        self.daemon.kill();
        self.daemon = daemon(self.node, self.directory);
        self.wait();
    }

    fn wait(&mut self) {
        wait_for("containerd", || self.crictl("version")).unwrap();
    }

    /// Imports an image of `directory/root`.
    pub(super) fn import_image(&self, name: &str, directory: &Path) {
        let socket = self.directory.join("containerd.sock");
        self.node.shell(&import_image(directory, name, &socket)).unwrap();
    }

    pub(super) fn crictl(&self, arguments: &str) -> Result<String> {
        let socket = self.directory.join("containerd.sock");
        let tool = go_tool("crictl")?;
        let line = format!("{} -t 20s -r unix://{} {arguments} 2>&1", tool.display(), socket.display());
        let output = self.node.shell(&line)?;
        // crictl warns about configuration that it does not need.
        Ok(output
            .lines()
            .filter(|line| !line.starts_with("time="))
            .map(|line| line.to_owned() + "\n")
            .collect())
    }

    /// Runs a sandbox with further fields. Returns its ID.
    fn run_sandbox(&self, name: &str, more: Value) -> Result<String> {
        let directory = self.directory;
        let mut sandbox = json!({
            "metadata": { "name": name, "namespace": "default", "uid": format!("uid-{name}"), "attempt": 0 },
            "hostname": name, "log_directory": directory.join("logs"), "linux": {},
            "dns_config": {
                "servers": ["10.96.0.10"], "searches": ["default.svc.cluster.local"], "options": ["ndots:5"],
            },
        });
        sandbox.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let file = directory.join(format!("{name}.json"));
        std::fs::write(&file, sandbox.to_string())?;
        Ok(self.crictl(&format!("runp {}", file.display()))?.trim().to_owned())
    }

    /// Starts a container in a sandbox. Returns its ID.
    fn start_container(&self, sandbox: (&str, &str), name: &str, script: &str) -> String {
        let directory = self.directory;
        let container = format!(
            r#"{{"metadata": {{"name": "{name}"}}, "image": {{"image": "{IMAGE}"}}, "command": ["/bin/sh", "-c", "{script}"],
            "log_path": "{name}.log", "linux": {{}}}}"#
        );
        let file = directory.join(format!("container-{name}.json"));
        std::fs::write(&file, container).unwrap();
        let (id, pod) = sandbox;
        let create =
            format!("create {id} {} {}", file.display(), directory.join(format!("{pod}.json")).display());
        let container = self.crictl(&create).unwrap().trim().to_owned();
        self.crictl(&format!("start {container}")).unwrap();
        container
    }

    fn remove_sandbox(&self, id: &str) {
        self.crictl(&format!("stopp {id}")).unwrap();
        self.crictl(&format!("rmp -f {id}")).unwrap();
    }
}

impl Drop for Containerd<'_> {
    fn drop(&mut self) {
        // Shims are no children of containerd. Remove the sandboxes, and kill remaining shims of a failed
        // test.
        let _ = self.crictl("rmp -a -f");
        let directory = self.directory.display();
        let script = format!(
            "for pid in $(pgrep -f 'containerd-shim.*{directory}' || true); do kill -9 $pid || true; done"
        );
        let _ = self.node.shell(&script);
    }
}

fn daemon(node: &Node, directory: &Path) -> Program {
    let file = |name: &str| directory.join(name).display().to_string();
    let (config, root, socket) = (file("containerd.toml"), file("containerd"), file("containerd.sock"));
    let arguments = ["--config", &config, "--root", &root, "--address", &socket];
    Program::start(node, Path::new("/usr/bin/containerd"), &arguments, &directory.join("containerd.log"))
        .unwrap()
}

fn with_port() -> Value {
    json!({ "port_mappings": [{ "container_port": 8080, "host_port": 18080, "protocol": 0 }] })
}

const SERVE: &str = "while true; do echo hello from the shop | nc -l -p 8080; done";

#[test]
fn containers_of_a_sandbox_share_localhost_and_a_host_port() {
    let cluster = Cluster::start().unwrap();
    let containerd = Containerd::start(&cluster);
    let sandbox = containerd.run_sandbox("shop-1", with_port()).unwrap();
    containerd.start_container((&sandbox, "shop-1"), "one", SERVE);
    let two = containerd.start_container((&sandbox, "shop-1"), "two", "sleep 1000");

    let localhost = || {
        let output = containerd.crictl(&format!("exec {two} nc -w 2 127.0.0.1 8080"))?;
        ensure!(output == "hello from the shop\n", "{output:?}");
        Ok(())
    };
    wait_for("the other container on localhost", localhost).unwrap();
    let resolv_conf = containerd.crictl(&format!("exec {two} cat /etc/resolv.conf")).unwrap();
    assert_eq!(resolv_conf, "search default.svc.cluster.local\nnameserver 10.96.0.10\noptions ndots:5\n");

    let by_port = || {
        let script = format!("timeout 3 busybox nc -w 2 {} 18080", cluster.node.address());
        let output = cluster
            .node
            .outside()
            .run(|| std::process::Command::new("sh").args(["-ec", &script]).output())??;
        ensure!(output.stdout == b"hello from the shop\n", "{output:?}");
        Ok(())
    };
    wait_for("the sandbox through the host port", by_port).unwrap();

    // From another sandbox, by the name of the Service.
    let manifest = "apiVersion: v1\nkind: Service\nmetadata: {name: shop}\n\
        spec: {selector: {app: shop}, ports: [{port: 80, targetPort: 8080}]}\n---\napiVersion: v1\n\
        kind: Pod\nmetadata: {name: shop-1, labels: {app: shop}}\nspec: {containers: []}\n";
    cluster.apply("shop.yaml", manifest).unwrap();
    let client = containerd.run_sandbox("client", json!({})).unwrap();
    let container = containerd.start_container((&client, "client"), "client", "sleep 1000");
    let by_name = || {
        let output = containerd.crictl(&format!("exec {container} nc -w 2 shop 80"))?;
        ensure!(output == "hello from the shop\n", "{output:?}");
        Ok(())
    };
    wait_for("the shop by name", by_name).unwrap();

    containerd.remove_sandbox(&client);
    containerd.remove_sandbox(&sandbox);
    assert_nothing_left(&cluster.node);
}

#[test]
fn sandbox_is_removed_after_its_namespace_was_destroyed_and_after_a_restart_of_containerd() {
    let cluster = Cluster::start().unwrap();
    let mut containerd = Containerd::start(&cluster);
    let first = containerd.run_sandbox("first", json!({})).unwrap();
    let second = containerd.run_sandbox("second", json!({})).unwrap();
    let one = containerd.start_container((&second, "second"), "one", "sleep 1000");

    // Replace the namespace's mount by a plain file, as after a crash between mount and open.
    let record =
        cluster.node.shell(&format!("cat /run/portolan/attachments/portolan/{first}-eth0.json")).unwrap();
    let record: Value = serde_json::from_str(&record).unwrap();
    let path = record["netns"].as_str().unwrap();
    cluster.node.shell(&format!("umount -l {path} && rm {path} && touch {path}")).unwrap();
    containerd.remove_sandbox(&first);

    containerd.restart();
    let output = containerd.crictl(&format!("exec {one} ip address show dev eth0")).unwrap();
    assert!(output.contains("10.22.0."), "the pod has kept its address: {output}");
    let third = containerd.run_sandbox("third", json!({})).unwrap();
    containerd.remove_sandbox(&second);
    containerd.remove_sandbox(&third);
    assert_nothing_left(&cluster.node);
}

#[test]
fn failed_sandbox_is_rolled_back_and_the_next_one_works() {
    let cluster = Cluster::start().unwrap();
    let mut conflist: Value = serde_json::from_str(CONFLIST).unwrap();
    conflist["plugins"].as_array_mut().unwrap().push(json!({ "type": "tuning" }));
    let containerd = Containerd::start_with(&cluster, &conflist.to_string());
    // The second plugin of the chain fails after portolan-cni has attached the pod.
    let tuning = cluster.directory().join("cni/tuning");
    cluster.node.shell(&format!("ln -sf /bin/false {}", tuning.display())).unwrap();
    let failed = containerd.run_sandbox("shop-1", with_port()).unwrap_err().to_string();
    assert!(failed.contains("tuning"), "{failed}");
    cluster.node.shell(&format!("ln -sf /usr/lib/cni/tuning {}", tuning.display())).unwrap();
    containerd.crictl("rmp -a -f").unwrap();
    assert_nothing_left(&cluster.node);
    let sandbox = containerd.run_sandbox("shop-1", with_port()).unwrap();
    containerd.remove_sandbox(&sandbox);
    assert_nothing_left(&cluster.node);
}

#[test]
fn bandwidth_annotations_of_a_pod_are_applied() {
    let cluster = Cluster::start().unwrap();
    let containerd = Containerd::start(&cluster);
    let annotations =
        json!({ "kubernetes.io/ingress-bandwidth": "8M", "kubernetes.io/egress-bandwidth": "16M" });
    let sandbox = containerd.run_sandbox("slow", json!({ "annotations": annotations })).unwrap();
    let limits = cluster.node.shell("tc qdisc show | grep tbf").unwrap();
    for (interface, rate) in [("ptl", "rate 8Mbit"), ("ptb", "rate 16Mbit")] {
        let is_limit = |line: &str| line.contains(&format!("dev {interface}")) && line.contains(rate);
        assert!(limits.lines().any(is_limit), "{interface}, {rate}: {limits}");
    }
    containerd.remove_sandbox(&sandbox);
    assert_nothing_left(&cluster.node);
}
