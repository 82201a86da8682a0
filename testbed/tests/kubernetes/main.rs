//! The daemons with a real API server: applied objects are served, also during failures of the server.

#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

mod clocks;
mod events;
mod failures;
mod names;
mod nodes;
mod objects;
mod serving;

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use testbed::{Cluster, ControlPlane, HostnameServer, Pod};

/// A cluster of one node with a client pod.
struct Fixture {
    cluster: Cluster,
    client: Pod,
    control_plane: ControlPlane,
}

impl Fixture {
    fn new() -> Self {
        Self::with(&[])
    }

    /// With flags for the API server.
    fn with(flags: &[&str]) -> Self {
        Self::with_flags(flags, &[])
    }

    fn with_proxy_flags(flags: &[&str]) -> Self {
        Self::with_flags(&[], flags)
    }

    fn with_flags(server: &[&str], proxy: &[&str]) -> Self {
        let node = testbed::Node::new().unwrap();
        let control_plane = ControlPlane::start_with(&node, server).unwrap();
        let cluster = Cluster::start_with_control_plane(&control_plane, proxy).unwrap();
        let client = cluster.add_pod("client").unwrap();
        Self { cluster, client, control_plane }
    }

    fn apply(&self, manifests: &str) {
        self.control_plane.apply(manifests).unwrap();
    }

    fn replica(&self, name: &str) -> (Pod, HostnameServer) {
        let pod = self.cluster.add_pod(name).unwrap();
        let server = HostnameServer::start(&pod, 8080).unwrap();
        (pod, server)
    }

    /// Resolves a name in the client pod and returns the name of the pod that answers.
    fn ask(&self, name: &str) -> Result<String> {
        let script = format!("getent ahostsv4 {name} | awk 'NR == 1 {{ print $1 }}'");
        let ip = self.client.shell(&self.cluster.node, &script)?;
        ensure!(!ip.trim().is_empty(), "{name} is not known");
        self.client.ask(&format!("{}:80", ip.trim()))
    }

    /// Waits until this replica answers for a name.
    fn expect(&self, name: &str, replica: &str) {
        wait(&format!("{replica} to answer for {name}"), self, || {
            let answer = self.ask(name)?;
            ensure!(answer == replica, "{answer}");
            Ok(())
        });
    }

    /// Waits until a connection to an address is refused.
    fn expect_refusal(&self, address: &str) {
        wait(&format!("refusal by {address}"), self, || {
            let error = self.client.ask(address).err();
            let kind = error
                .as_ref()
                .and_then(|error| error.downcast_ref::<std::io::Error>())
                .map(std::io::Error::kind);
            ensure!(kind == Some(std::io::ErrorKind::ConnectionRefused), "{error:?}");
            Ok(())
        });
    }

    /// Returns an HTTP page.
    fn page(&self, address: &str) -> Result<String> {
        self.cluster.node.shell(&format!("curl -sS -m 2 'http://{address}'"))
    }

    /// Returns a metric of the proxy or the DNS server.
    fn metric(&self, address: &str, name: &str) -> Result<f64> {
        let page = self.page(&format!("{address}/metrics"))?;
        let line = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        Ok(line.ok_or_else(|| anyhow::anyhow!("no metric {name} in:\n{page}"))?.parse()?)
    }
}

/// Repeats an attempt for up to a minute: some steps take half a minute.
fn wait<T>(what: &str, fixture: &Fixture, mut attempt: impl FnMut() -> Result<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        match attempt() {
            Ok(value) => return value,
            Err(error) if Instant::now() > deadline => {
                panic!(
                    "waiting for {what}: {error:#}\n{}\n{}",
                    fixture.cluster.logs(),
                    fixture.control_plane.logs()
                )
            }
            Err(_) => std::thread::sleep(Duration::from_millis(20)),
        }
    }
}

/// Returns a Service without a selector, with further fields of its spec.
fn service(name: &str, more: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{ports: [{{port: 80}}]{more}}}\n\
         ---\n"
    )
}

/// Returns an EndpointSlice of a Service, as its controller writes it.
fn slice(service: &str, addresses: &[&str]) -> String {
    let mut text = format!(
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
         metadata: {{name: {service}-1, labels: {{kubernetes.io/service-name: {service}}}}}\n\
         addressType: IPv4\nports: [{{name: '', port: 8080}}]\nendpoints:\n"
    );
    for address in addresses {
        writeln!(text, "- {{addresses: [{address}], conditions: {{ready: true}}, nodeName: node-1}}")
            .unwrap();
    }
    text + "---\n"
}
