//! The upstream end-to-end tests of Services (`test/e2e/network`), by their titles, with the real programs.

#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

mod affinity;
mod agnhost;
mod changes;
mod datagrams;
mod families;
mod frontends;
mod granular_checks;
mod host_ports;
mod http_pages;
mod lifecycle;
mod limits;
mod local_dns;
mod nft_rules;
mod node_servers;
mod nodes;
mod policies;
mod proxy_loops;
mod slices;
mod terminating;

use std::collections::BTreeSet;
use std::io::{ErrorKind, Read as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use testbed::{Cluster, HostnameServer, Pod, Program, wait_for};

/// A pod that answers with its name on port 8080.
struct Replica {
    pod: Pod,
    _server: HostnameServer,
}

fn replica(cluster: &Cluster, name: &str, app: &str) -> Replica {
    let pod = cluster.add_pod(name).unwrap();
    let server = HostnameServer::start(&pod, 8080).unwrap();
    cluster.apply(&format!("pod-{name}.yaml"), &pod_manifest(name, app, "")).unwrap();
    Replica { pod, _server: server }
}

fn pod_manifest(name: &str, app: &str, more: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, labels: {{app: {app}}}}}\n\
         spec: {{containers: [{{name: c, ports: [{{name: http, containerPort: 8080}}]}}]}}\n{more}"
    )
}

/// Returns a Service `web` for pods of app `web`, with further fields of its spec.
fn service(spec: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: web}}\nspec:\n  selector: {{app: web}}\n{spec}\n"
    )
}

const PORT_80: &str = "  ports: [{port: 80, targetPort: 8080}]";

/// Returns an EndpointSlice of Service `web`. An endpoint is its address and its further fields.
fn slice(name: &str, endpoints: &[(&str, &str)]) -> String {
    let endpoints: String =
        endpoints.iter().map(|(ip, more)| format!("- {{addresses: [{ip}], {more}}}\n")).collect();
    format!(
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
         metadata: {{name: {name}, labels: {{kubernetes.io/service-name: web}}}}\naddressType: IPv4\n\
         ports: [{{port: 8080}}]\nendpoints:\n{endpoints}"
    )
}

/// Sends one request in the network namespace of the calling thread.
fn ask(address: &str) -> Result<String> {
    let timeout = Duration::from_secs(10);
    let mut stream = TcpStream::connect_timeout(&address.parse::<SocketAddr>()?, timeout)?;
    stream.set_read_timeout(Some(timeout))?;
    let mut name = String::new();
    stream.read_to_string(&mut name)?;
    ensure!(!name.is_empty(), "an empty answer");
    Ok(name)
}

/// Returns the names that answer twenty requests.
fn answering(pod: &Pod, address: &str) -> Result<BTreeSet<String>> {
    (0..20).map(|_| pod.ask(address)).collect()
}

/// Waits until exactly these names answer.
fn expect_answers(pod: &Pod, address: &str, names: &[&str]) {
    let expected: BTreeSet<String> = names.iter().map(|name| (*name).to_owned()).collect();
    wait_for(&format!("answers of {names:?} at {address}"), || {
        let seen = answering(pod, address)?;
        ensure!(seen == expected, "{seen:?}");
        Ok(())
    })
    .unwrap();
}

/// Waits until a connection is refused.
fn expect_refusal(pod: &Pod, address: &str) {
    wait_for(&format!("refusal at {address}"), || {
        let result = pod
            .netns
            .run(|| TcpStream::connect_timeout(&address.parse().unwrap(), Duration::from_secs(10)))?;
        let refused = result.as_ref().is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused);
        ensure!(refused, "{result:?}");
        Ok(())
    })
    .unwrap();
}

/// Starts a cluster with a client pod.
fn cluster() -> (Cluster, Pod) {
    let cluster = Cluster::start().unwrap();
    let client = cluster.add_pod("client").unwrap();
    (cluster, client)
}
