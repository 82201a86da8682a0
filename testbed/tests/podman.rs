//! podman 4 as the runtime: a pod of two containers on our network, and a third container that finds it by name.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::path::Path;

use anyhow::ensure;
use testbed::{Binaries, Cluster, wait_for};

const CONFLIST: &str = include_str!("../../deploy/10-portolan.conflist");

/// podman in the node, with storage, state and configuration of its own.
struct Podman<'a> {
    cluster: &'a Cluster,
}

impl<'a> Podman<'a> {
    fn set_up(cluster: &'a Cluster) -> Self {
        let directory = cluster.directory().display();
        let plugin = Binaries::find().unwrap().path("portolan-cni");
        let plugin = plugin.display();
        // Within the limits of a machine without CAP_SYS_RESOURCE, and locks off the machine's /dev/shm.
        let script = format!(
            r#"
            mkdir -p {directory}/cni {directory}/net.d {directory}/root/bin {directory}/tmp
            ln -s {plugin} {directory}/cni/portolan-cni
            ln -s /usr/lib/cni/portmap {directory}/cni/portmap
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
            cp /bin/busybox {directory}/root/bin/
            for applet in sh nc sleep cat nslookup; do ln -s busybox {directory}/root/bin/$applet; done
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

#[test]
fn containers_of_a_pod_share_one_address_and_port_space_and_a_third_finds_them_by_name() {
    let cluster = Cluster::start().unwrap();
    let podman = Podman::set_up(&cluster);
    podman.run("pod create --name shop-1 --infra-image local:test --network portolan").unwrap();
    let serve = "while true; do echo hello from the shop | nc -l -p 8080; done";
    podman.run(&format!("run -d --pod shop-1 --name one local:test /bin/sh -c '{serve}'")).unwrap();
    podman.run("run -d --pod shop-1 --name two local:test").unwrap();

    // One attachment for both, under the pod's name.
    let records = "cat /run/portolan/attachments/portolan/*.json";
    let record: serde_json::Value = serde_json::from_str(&cluster.node.shell(records).unwrap()).unwrap();
    assert_eq!(record["pod"]["name"], "shop-1");

    // They meet on localhost, and share the ports.
    let meet = || podman.run("exec two nc -w 2 127.0.0.1 8080");
    assert_eq!(wait_for("the other container", meet).unwrap(), "hello from the shop\n");
    let bound = podman.run("exec two nc -l -p 8080").unwrap_err().to_string();
    assert!(bound.contains("Address already in use"), "{bound}");

    // A third container, outside the pod, by the Service's name.
    let manifest = "apiVersion: v1\nkind: Service\nmetadata: {name: shop}\nspec: {selector: {app: shop}, ports: [{port: 80, targetPort: 8080}]}\n---\napiVersion: v1\nkind: Pod\nmetadata: {name: shop-1, labels: {app: shop}}\nspec: {containers: []}\n";
    cluster.apply("shop.yaml", manifest).unwrap();
    let vip = cluster.virtual_ip("shop").unwrap();
    podman.run("run -d --name third --network portolan local:test").unwrap();
    let resolved = podman.run("exec third nslookup shop.default.svc.cluster.local").unwrap();
    assert!(resolved.contains(&vip), "{resolved}");
    let by_name = || {
        let said = podman.run("exec third nc -w 2 shop 80")?;
        ensure!(said == "hello from the shop\n", "{said:?}");
        Ok(())
    };
    wait_for("the shop by name", by_name).unwrap();

    podman.run("rm -f -t 0 third").unwrap();
    podman.run("pod rm -f -t 0 shop-1").unwrap();
    let left = cluster
        .node
        .shell("ip -o link | grep ptl || true; nft list tables | grep -v portolan-proxy || true; ip route | grep 10.22 || true")
        .unwrap();
    assert_eq!(left, "");
}
