//! A control plane on a node, with two replicas for the Services whose changes are timed.

use std::net::{Ipv4Addr, UdpSocket};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use testbed::{Binaries, ControlPlane, HostnameServer, Network, Node, Plugin, Pod};

/// The daemons' roles.
const RBAC: &str = include_str!("../../../deploy/kubernetes/rbac.yaml");

/// A Service with a virtual IP and a headless one. The measurement changes their only endpoint.
const PROBES: &str = "
apiVersion: v1
kind: Node
metadata: {name: node-1}
status: {addresses: [{type: InternalIP, address: 192.0.2.2}]}
---
apiVersion: v1
kind: Service
metadata: {name: probe}
spec: {clusterIP: 10.96.0.80, ports: [{name: http, port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: names}
spec: {clusterIP: None, ports: [{name: http, port: 80, targetPort: 8080}]}
";

const PROBE: &str = "10.96.0.80:80";

/// API path of EndpointSlices.
const SLICES: &str = "apis/discovery.k8s.io/v1/namespaces/default/endpointslices";

pub(super) struct TestCluster {
    pub(super) control_plane: ControlPlane,
    pub(super) node: Node,
    client: Pod,
    replicas: [(Pod, HostnameServer); 2],
}

impl TestCluster {
    pub(super) fn new() -> Result<Self> {
        let node = Node::new()?;
        let control_plane = ControlPlane::start(&node)?;
        let plugin = Plugin { binary: Binaries::find()?.path("portolan-cni"), node: node.clone() };
        let network = Network::new(plugin, "10.96.0.10");
        let replica = |name: &str| -> Result<_> {
            let pod = network.add(name)?;
            let server = HostnameServer::start(&pod, 8080)?;
            Ok((pod, server))
        };
        let (replicas, client) = ([replica("first")?, replica("second")?], network.add("client")?);
        control_plane.apply(RBAC)?;
        control_plane.apply(PROBES)?;
        let slices: String = ["probe", "names"].map(|name| slice(name, &replicas[0].0.ip)).concat();
        control_plane.apply(&slices)?;
        Ok(Self { control_plane, node, client, replicas })
    }

    /// Makes one replica the endpoint of a Service.
    pub(super) fn set_endpoint(&self, service: &str, replica: usize) -> Result<()> {
        let endpoints = json!([{
            "op": "replace",
            "path": "/endpoints",
            "value": [{ "addresses": [self.replicas[replica].0.ip], "conditions": { "ready": true } }],
        }]);
        let slice = format!("{SLICES}/{service}-1");
        self.call_api("PATCH", "application/json-patch+json", &slice, &endpoints)
    }

    /// Creates a Service with the first replica as its endpoint. Returns its full DNS name.
    pub(super) fn create_service(&self, number: usize) -> Result<String> {
        let name = format!("fresh-{number}");
        let ports = json!([{ "name": "http", "port": 80, "targetPort": 8080 }]);
        let service = json!({ "metadata": { "name": name }, "spec": { "ports": ports } });
        let slice = json!({
            "metadata": { "name": format!("{name}-1"), "labels": { "kubernetes.io/service-name": name } },
            "addressType": "IPv4",
            "ports": [{ "name": "http", "port": 8080 }],
            "endpoints": [{ "addresses": [self.replicas[0].0.ip], "conditions": { "ready": true } }],
        });
        self.call_api("POST", "application/json", "api/v1/namespaces/default/services", &service)?;
        self.call_api("POST", "application/json", SLICES, &slice)?;
        Ok(format!("{name}.default.svc.cluster.local"))
    }

    /// Calls the API server with `curl`, which exits sooner after the answer than `kubectl`.
    fn call_api(&self, method: &str, kind: &str, path: &str, body: &Value) -> Result<()> {
        let admin = self.control_plane.kubeconfig("admin")?;
        let file = |name: &str| admin.with_file_name(name).display().to_string();
        self.node
            .shell(&format!(
                "curl -fsS -m 10 -o /dev/null --cacert {} --cert {} --key {} -X {method} \
                 -H 'Content-Type: {kind}' -d '{body}' https://192.0.2.2:6443/{path}",
                file("ca.crt"),
                file("admin.crt"),
                file("admin.key"),
            ))
            .map(|_output| ())
    }

    /// Checks that a connection to the virtual IP reaches this replica.
    pub(super) fn check_virtual_ip(&self, replica: usize) -> Result<()> {
        let answer = self.client.ask(PROBE)?;
        ensure!(answer == self.replicas[replica].0.name, "{answer} answers");
        Ok(())
    }

    /// Checks that the name of the headless Service resolves to this replica.
    pub(super) fn check_dns(&self, replica: usize) -> Result<()> {
        let address = self.node.run(|| resolve("127.0.0.1:53", "names.default.svc.cluster.local"))?;
        ensure!(address.to_string() == self.replicas[replica].0.ip, "DNS answers {address}");
        Ok(())
    }

    /// Checks that a pod that resolves a name and connects to the address reaches the first replica.
    pub(super) fn check_by_name(&self, name: &str) -> Result<()> {
        let address = self.client.netns.run(|| resolve("10.96.0.10:53", name))??;
        let answer = self.client.ask(&format!("{address}:80"))?;
        ensure!(answer == self.replicas[0].0.name, "{answer} answers");
        Ok(())
    }
}

/// Returns the last address of a name, by one query.
fn resolve(server: &str, name: &str) -> Result<Ipv4Addr> {
    let mut query = vec![0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.').chain([""]) {
        query.push(u8::try_from(label.len())?);
        query.extend(label.bytes());
    }
    query.extend([0, 1, 0, 1]);
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.set_read_timeout(Some(Duration::from_millis(500)))?;
    socket.send_to(&query, server)?;
    let mut answer = [0; 512];
    let length = socket.recv(&mut answer)?;
    ensure!(answer[7] > 0, "no address");
    Ok(Ipv4Addr::from(*answer[..length].last_chunk::<4>().context("a short answer")?))
}

fn slice(service: &str, address: &str) -> String {
    format!(
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
         metadata: {{name: {service}-1, labels: {{kubernetes.io/service-name: {service}}}}}\n\
         addressType: IPv4\nports: [{{name: http, port: 8080}}]\n\
         endpoints: [{{addresses: [{address}], conditions: {{ready: true}}}}]\n---\n"
    )
}
