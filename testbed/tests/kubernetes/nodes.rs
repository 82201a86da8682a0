//! What a Node says: its pods' addresses, and the way to those of others.

use std::path::Path;

use super::*;

const CONFLIST: &str = "/etc/cni/net.d/10-portolan.conflist";

fn node(name: &str, address: &str, pods: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Node\nmetadata: {{name: {name}}}\nspec: {{podCIDR: {pods}, podCIDRs: [{pods}]}}\n\
         status: {{addresses: [{{type: InternalIP, address: {address}}}]}}\n---\n"
    )
}

#[test]
fn the_cni_configuration_is_written_from_the_node_and_removed_with_the_rest() {
    let flags = ["--cni-conflist", CONFLIST, "--cluster-cidr", "10.244.0.0/16"];
    let mut ground = Ground::with_proxy_flags(&flags);
    let on_node = |ground: &Ground, script: &str| ground.cluster.node.shell(script);
    // The proxy runs and is ready, but nobody has said yet which addresses pods get.
    assert!(on_node(&ground, &format!("cat {CONFLIST}")).is_err());
    ground.apply(&node("node-1", "192.0.2.2", "10.244.1.0/24"));
    wait("the configuration", &ground, || on_node(&ground, &format!("cat {CONFLIST}")));

    // libcni takes it, and a pod gets an address of the Node's range.
    let cni = |ground: &Ground, command: &str| {
        let tool = testbed::go_tool("cnitool")?;
        let plugins = ground.cluster.node.shell("mkdir -p /run/cni")?;
        let binary = testbed::Binaries::find()?.path("portolan-cni");
        let script = format!(
            "{plugins}ln -sf {} /run/cni/; NETCONFPATH={} CNI_PATH=/run/cni {} {command}",
            binary.display(),
            Path::new(CONFLIST).parent().unwrap().display(),
            tool.display()
        );
        ground.cluster.node.shell(&script)
    };
    ground.cluster.node.add_netns("pod").unwrap();
    let added = cni(&ground, "add portolan /run/netns/pod").unwrap();
    assert!(added.contains("\"10.244.1."), "{added}");
    cni(&ground, "status portolan any").unwrap();

    // STATUS reflects the proxy.
    ground.cluster.proxy.kill();
    let status = cni(&ground, "status portolan any").unwrap_err().to_string();
    assert!(status.contains("portolan-proxy at 127.0.0.1:10256"), "{status}");
    ground.cluster.restart_proxy().unwrap();
    cni(&ground, "status portolan any").unwrap();
    cni(&ground, "del portolan /run/netns/pod").unwrap();

    // It stays when the proxy stops, and goes when the node is given up.
    ground.cluster.proxy.terminate().unwrap();
    on_node(&ground, &format!("cat {CONFLIST}")).unwrap();
    let binary = testbed::Binaries::find().unwrap().path("portolan-proxy");
    on_node(&ground, &format!("{} --cleanup --cni-conflist {CONFLIST}", binary.display())).unwrap();
    assert_eq!(on_node(&ground, "ls -A /etc/cni/net.d | grep portolan || true").unwrap(), "");
}

#[test]
fn routes_to_other_nodes_follow_their_nodes() {
    let ground = Ground::new();
    let route = || ground.cluster.node.shell("ip route show proto 113");
    ground.apply(
        &(node("node-1", "192.0.2.2", "10.244.1.0/24") + &node("node-2", "192.0.2.3", "10.244.2.0/24")),
    );
    wait("the route", &ground, || {
        let routes = route()?;
        ensure!(routes.contains("10.244.2.0/24 via 192.0.2.3"), "{routes}");
        Ok(())
    });
    ground.control_plane.kubectl(&["delete", "node", "node-2"], "").unwrap();
    wait("the route to go", &ground, || {
        let routes = route()?;
        ensure!(routes.is_empty(), "{routes}");
        Ok(())
    });
}
