//! Clusters of several nodes: pods and Services across them.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::BTreeSet;

use anyhow::{Result, ensure};
use testbed::{Fleet, NameServer, Pod, wait_for};

/// A replica of `web` on one of the nodes, which answers with its name.
fn replica(fleet: &Fleet, index: usize, name: &str) -> (Pod, NameServer) {
    let pod = fleet.members[index].add_pod(name).unwrap();
    let server = NameServer::start(&pod, 8080).unwrap();
    let manifest = format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, labels: {{app: web}}}}\nspec: {{nodeName: node-{}, containers: []}}\nstatus: {{podIP: {}}}\n",
        index + 1,
        pod.ip
    );
    fleet.members[index].apply(&format!("{name}.yaml"), &manifest).unwrap();
    (pod, server)
}

const SERVICE: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec: {selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}\n";

#[test]
fn a_service_reaches_its_pods_on_every_node_from_every_node() {
    let fleet = Fleet::start(&[0, 0]).unwrap();
    let _replicas = [replica(&fleet, 0, "web-1"), replica(&fleet, 1, "web-2")];
    fleet.route_pods().unwrap();
    fleet.members[0].apply("web.yaml", SERVICE).unwrap();
    for (index, member) in fleet.members.iter().enumerate() {
        let client = member.add_pod(&format!("client-{index}")).unwrap();
        let address = format!("{}:80", member.virtual_ip("web").unwrap());
        wait_for("both replicas", || {
            let seen = (0..20).map(|_| client.ask(&address)).collect::<Result<BTreeSet<_>>>()?;
            ensure!(seen == ["web-1", "web-2"].map(str::to_owned).into(), "{seen:?}");
            Ok(())
        })
        .unwrap();
    }
}
