//! The node, the pods and the Service that a measurement uses.

use std::net::SocketAddr;

use anyhow::Result;
use testbed::{Cluster, Pod};

use crate::interleave::Path;
use crate::load::{Destination, server};
use crate::processor::Process;
use crate::services;

/// A client and a server on one node with both daemons.
pub(crate) struct Topology {
    pub(crate) client: Pod,
    pub(crate) server: Pod,
    pub(crate) cluster: Cluster,
    pub(crate) virtual_ip: String,
}

/// Ports of the Service for the echo server and the sink.
pub(crate) const ECHO: u16 = 80;
pub(crate) const SINK: u16 = 81;

const MANIFEST: &str = "
apiVersion: v1
kind: Service
metadata: {name: server}
spec:
  selector: {app: server}
  ports:
  - {name: echo, port: 80, targetPort: 9090}
  - {name: echo-udp, port: 80, targetPort: 9090, protocol: UDP}
  - {name: sink, port: 81, targetPort: 9091}
---
apiVersion: v1
kind: Service
metadata: {name: headless}
spec:
  clusterIP: None
  selector: {app: server}
  ports: [{name: echo, port: 9090}]
---
apiVersion: v1
kind: Pod
metadata: {name: server, labels: {app: server}}
spec: {containers: []}
";

impl Topology {
    /// Starts a node whose proxy has these flags.
    pub(crate) fn new(proxy_flags: &[&str]) -> Result<Self> {
        let cluster = Cluster::start_with(proxy_flags)?;
        let (client, server) = (cluster.add_pod("client")?, cluster.add_pod("server")?);
        for ns in [&client.netns, &server.netns] {
            ns.run(reuse_ports)??;
        }
        cluster.node.run(reuse_ports)?;
        server::start(&server.netns, server.ip.parse()?)?;
        cluster.apply("server.yaml", MANIFEST)?;
        let virtual_ip = cluster.virtual_ip("server")?;
        let topology = Self { client, server, cluster, virtual_ip };
        topology.wait(&topology.virtual_ip, ECHO)?;
        Ok(topology)
    }

    /// Returns the path directly to the pod. Its name is that of a headless Service.
    pub(crate) fn direct(&self, name: &str) -> Result<Path<'_>> {
        self.path(name, &self.server.ip, (server::ECHO_PORT, server::SINK_PORT), "headless", None)
    }

    /// Returns the path through the virtual IP.
    pub(crate) fn through_proxy(&self, name: &str) -> Result<Path<'_>> {
        let proxy = Process(self.cluster.proxy.id());
        self.path(name, &self.virtual_ip, (ECHO, SINK), "server", Some(proxy))
    }

    /// Returns a path through any address, with the ports for the echo server and the sink.
    pub(crate) fn path(
        &self,
        name: &str,
        address: &str,
        (echo, sink): (u16, u16),
        service: &str,
        process: Option<Process>,
    ) -> Result<Path<'_>> {
        let ip = address.parse()?;
        let host = format!("{service}.default.svc.cluster.local");
        let to = Destination { echo: SocketAddr::new(ip, echo), sink: SocketAddr::new(ip, sink), host };
        Ok(Path { name: name.to_owned(), client: &self.client.netns, to, without: &[], process })
    }

    /// Waits until a connection to the address succeeds.
    pub(crate) fn wait(&self, address: &str, port: u16) -> Result<()> {
        services::wait(&self.client, address, port)
    }
}

/// Enables reuse of ports in TIME_WAIT. Otherwise CRR measures the kernel's search for a free port.
pub(crate) fn reuse_ports() -> std::io::Result<()> {
    std::fs::write("/proc/sys/net/ipv4/tcp_tw_reuse", "1")
}
