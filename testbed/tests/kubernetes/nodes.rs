//! Node objects: pod CIDRs for the CNI configuration, and routes to other nodes.

use std::path::Path;

use super::*;

const CONFLIST: &str = "/etc/cni/net.d/10-portolan.conflist";

fn node(name: &str, address: &str, pods: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Node\nmetadata: {{name: {name}}}\n\
         spec: {{podCIDR: {pods}, podCIDRs: [{pods}]}}\n\
         status: {{addresses: [{{type: InternalIP, address: {address}}}]}}\n---\n"
    )
}

#[test]
fn cni_configuration_is_written_from_the_node_and_removed_by_cleanup() {
    let flags = ["--cni-conflist", CONFLIST, "--cluster-cidr", "10.244.0.0/16"];
    let mut fixture = Fixture::with_proxy_flags(&flags);
    let on_node = |fixture: &Fixture, script: &str| fixture.cluster.node.shell(script);
    // The proxy is ready, but the Node has no pod CIDR yet.
    assert!(on_node(&fixture, &format!("cat {CONFLIST}")).is_err());
    fixture.apply(&node("node-1", "192.0.2.2", "10.244.1.0/24"));
    wait("the configuration", &fixture, || on_node(&fixture, &format!("cat {CONFLIST}")));

    // libcni accepts the configuration, and a pod gets an address of the Node's range.
    let cni = |fixture: &Fixture, command: &str| {
        let tool = testbed::go_tool("cnitool")?;
        let plugins = fixture.cluster.node.shell("mkdir -p /run/cni")?;
        let binary = testbed::Binaries::find()?.path("portolan-cni");
        let script = format!(
            "{plugins}ln -sf {} /run/cni/; NETCONFPATH={} CNI_PATH=/run/cni {} {command}",
            binary.display(),
            Path::new(CONFLIST).parent().unwrap().display(),
            tool.display()
        );
        fixture.cluster.node.shell(&script)
    };
    fixture.cluster.node.add_netns("pod").unwrap();
    let added = cni(&fixture, "add portolan /run/netns/pod").unwrap();
    assert!(added.contains("\"10.244.1."), "{added}");
    cni(&fixture, "status portolan any").unwrap();

    // STATUS reflects the proxy.
    fixture.cluster.proxy.kill();
    let status = cni(&fixture, "status portolan any").unwrap_err().to_string();
    assert!(status.contains("portolan-proxy at 127.0.0.1:10256"), "{status}");
    fixture.cluster.restart_proxy().unwrap();
    cni(&fixture, "status portolan any").unwrap();
    cni(&fixture, "del portolan /run/netns/pod").unwrap();

    // The configuration remains when the proxy stops, and is removed by --cleanup.
    fixture.cluster.proxy.terminate().unwrap();
    on_node(&fixture, &format!("cat {CONFLIST}")).unwrap();
    let binary = testbed::Binaries::find().unwrap().path("portolan-proxy");
    on_node(&fixture, &format!("{} --cleanup --cni-conflist {CONFLIST}", binary.display())).unwrap();
    assert_eq!(on_node(&fixture, "ls -A /etc/cni/net.d | grep portolan || true").unwrap(), "");
}

#[test]
fn routes_to_other_nodes_follow_node_objects() {
    let fixture = Fixture::new();
    let route = || fixture.cluster.node.shell("ip route show proto 113");
    fixture.apply(
        &(node("node-1", "192.0.2.2", "10.244.1.0/24") + &node("node-2", "192.0.2.3", "10.244.2.0/24")),
    );
    wait("the route", &fixture, || {
        let routes = route()?;
        ensure!(routes.contains("10.244.2.0/24 via 192.0.2.3"), "{routes}");
        Ok(())
    });
    fixture.control_plane.kubectl(&["delete", "node", "node-2"], "").unwrap();
    wait("the removal of the route", &fixture, || {
        let routes = route()?;
        ensure!(routes.is_empty(), "{routes}");
        Ok(())
    });
}
