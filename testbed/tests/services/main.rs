//! The upstream end-to-end tests of Services (`test/e2e/network`), by their titles, against the real programs.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod affinity;
mod agnhost;
mod changes;
mod datagrams;
mod entrances;
mod families;
mod granular;
mod host_ports;
mod lifecycle;
mod limits;
mod local_dns;
mod loops;
mod node_servers;
mod nodes;
mod pages;
mod policies;
mod rules;
mod slices;
mod terminating;

use std::collections::BTreeSet;
use std::io::{ErrorKind, Read as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use testbed::{Cluster, HostnameServer, Pod, Program, wait_for};

/// A replica that answers with its name on port 8080.
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
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, labels: {{app: {app}}}}}\nspec: {{containers: [{{name: c, ports: [{{name: http, containerPort: 8080}}]}}]}}\n{more}"
    )
}

/// A Service `web` for pods of app `web`, with this `spec` besides.
fn service(spec: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: web}}\nspec:\n  selector: {{app: web}}\n{spec}\n"
    )
}

const PORT_80: &str = "  ports: [{port: 80, targetPort: 8080}]";

/// An EndpointSlice `name` of Service `web`; an endpoint is its address and the rest of its fields.
fn slice(name: &str, endpoints: &[(&str, &str)]) -> String {
    let endpoints: String =
        endpoints.iter().map(|(ip, more)| format!("- {{addresses: [{ip}], {more}}}\n")).collect();
    format!(
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: {name}, labels: {{kubernetes.io/service-name: web}}}}\naddressType: IPv4\nports: [{{port: 8080}}]\nendpoints:\n{endpoints}"
    )
}

/// One request, from where the calling thread is.
fn ask(address: &str) -> Result<String> {
    let timeout = Duration::from_secs(10);
    let mut stream = TcpStream::connect_timeout(&address.parse::<SocketAddr>()?, timeout)?;
    stream.set_read_timeout(Some(timeout))?;
    let mut name = String::new();
    stream.read_to_string(&mut name)?;
    ensure!(!name.is_empty(), "an empty answer");
    Ok(name)
}

/// The names that answer twenty requests.
fn answering(pod: &Pod, address: &str) -> Result<BTreeSet<String>> {
    (0..20).map(|_| pod.ask(address)).collect()
}

/// Waits until exactly these answer.
fn expect_answers(pod: &Pod, address: &str, names: &[&str]) {
    let expected: BTreeSet<String> = names.iter().map(|name| (*name).to_owned()).collect();
    wait_for(&format!("answers of {names:?} at {address}"), || {
        let seen = answering(pod, address)?;
        ensure!(seen == expected, "{seen:?}");
        Ok(())
    })
    .unwrap();
}

/// Waits until a connection is refused: not accepted, not left without an answer.
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

/// A cluster with a client.
fn cluster() -> (Cluster, Pod) {
    let cluster = Cluster::start().unwrap();
    let client = cluster.add_pod("client").unwrap();
    (cluster, client)
}
