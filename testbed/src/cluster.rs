//! A node with both daemons and a pod network.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use tempfile::TempDir;

use crate::{Binaries, ControlPlane, Network, Node, Plugin, Pod, Program, wait_for};

/// A node with `portolan-proxy`, `portolan-dns` and a pod network.
#[derive(Debug)]
pub struct Cluster {
    /// The proxy.
    pub proxy: Program,
    /// The DNS server.
    pub dns: Program,
    /// The pods' network.
    pub network: Network,
    /// The node.
    pub node: Node,
    directory: TempDir,
    source: Source,
    proxy_flags: Vec<String>,
}

/// The source of the daemons' configuration.
#[derive(Debug)]
pub(crate) enum Source {
    /// A directory of manifests.
    Manifests(PathBuf),
    /// An API server, with a kubeconfig for each daemon.
    Api { proxy: PathBuf, dns: PathBuf },
}

/// The daemons' roles.
const RBAC: &str = include_str!("../../deploy/kubernetes/rbac.yaml");

/// The name of a single node.
const NODE_NAME: &str = "node-1";

/// The range of the pods' addresses.
const POD_CIDR: &str = "10.22.0.0/16";

/// The pods' DNS server.
const NAMESERVER: &str = "10.96.0.10";

impl Cluster {
    /// Starts the daemons and waits until they are ready.
    ///
    /// # Errors
    /// When a program is not built or does not become ready.
    pub fn start() -> Result<Self> {
        Self::start_with(&[])
    }

    /// As [`Cluster::start`], with more flags for the proxy.
    ///
    /// # Errors
    /// As [`Cluster::start`].
    pub fn start_with(proxy_flags: &[&str]) -> Result<Self> {
        let node = Node::new()?;
        let directory = TempDir::new()?;
        let manifests = directory.path().join("manifests");
        std::fs::create_dir(&manifests)?;
        Self::start_on(node, directory, Source::Manifests(manifests), &[POD_CIDR], proxy_flags)
    }

    /// Starts the daemons with a control plane as their source, on its node as `node-1`, with further flags
    /// for the proxy.
    ///
    /// # Errors
    /// As [`Cluster::start`].
    pub fn start_with_control_plane(control_plane: &ControlPlane, proxy_flags: &[&str]) -> Result<Self> {
        control_plane.apply(RBAC)?;
        let source = Source::Api {
            proxy: control_plane.kubeconfig("portolan-proxy")?,
            dns: control_plane.kubeconfig("portolan-dns")?,
        };
        let node = control_plane.node().clone();
        let proxy_flags = [&["--node-name", NODE_NAME], proxy_flags].concat();
        Self::start_on(node, TempDir::new()?, source, &[POD_CIDR], &proxy_flags)
    }

    /// Starts the daemons on a node. Logs are written to `directory`; pods get addresses of `pod_cidrs`.
    pub(crate) fn start_on(
        node: Node,
        directory: TempDir,
        source: Source,
        pod_cidrs: &[&str],
        proxy_flags: &[&str],
    ) -> Result<Self> {
        let binaries = Binaries::find()?;
        let log = |name: &str| directory.path().join(format!("{name}.log"));
        let read = source.flags("portolan-proxy");
        let arguments = [&read.each_ref().map(String::as_str)[..], proxy_flags].concat();
        let proxy = Program::start(&node, &binaries.path("portolan-proxy"), &arguments, &log("proxy"))?;
        let read = source.flags("portolan-dns");
        let arguments =
            [&read.each_ref().map(String::as_str)[..], &["--upstream", node.outside_address()]].concat();
        let dns = Program::start(&node, &binaries.path("portolan-dns"), &arguments, &log("dns"))?;
        let plugin = Plugin { binary: binaries.path("portolan-cni"), node: node.clone() };
        let network = Network::with_ranges(plugin, NAMESERVER, pod_cidrs);
        let proxy_flags = proxy_flags.iter().map(|flag| (*flag).to_owned()).collect();
        let cluster = Self { proxy, dns, network, node, directory, source, proxy_flags };
        cluster.wait_until_ready()?;
        Ok(cluster)
    }

    /// Kills the proxy if it runs, starts a new one and waits until it is ready.
    ///
    /// # Errors
    /// When it does not become ready.
    pub fn restart_proxy(&mut self) -> Result<()> {
        self.start_new_proxy()?;
        self.wait_until_ready()
    }

    /// As [`Cluster::restart_proxy`], without waiting.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start_new_proxy(&mut self) -> Result<()> {
        self.proxy.kill();
        self.proxy = self.start_proxy()?;
        Ok(())
    }

    /// Starts a second proxy for a hot restart, waits for the handover and returns the previous proxy.
    ///
    /// # Errors
    /// When the handover does not happen.
    pub fn hot_restart_proxy(&mut self) -> Result<Program> {
        let old = self.start_next_proxy()?;
        let own = self.proxy.id();
        wait_for("the handover to the new proxy", || {
            let serving = self.node.serving_proxy()?;
            ensure!(serving == own, "process {serving} serves");
            Ok(())
        })?;
        Ok(old)
    }

    /// Starts a proxy beside the one that runs, and returns that one.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start_next_proxy(&mut self) -> Result<Program> {
        let new = self.start_proxy()?;
        Ok(std::mem::replace(&mut self.proxy, new))
    }

    fn start_proxy(&self) -> Result<Program> {
        let mut logs =
            (1..).map(|number: u32| self.directory.path().join(format!("proxy-again-{number}.log")));
        let log = logs.find(|log| !log.exists()).context("no name is left")?;
        let binary = Binaries::find()?.path("portolan-proxy");
        let read = self.source.flags("portolan-proxy");
        let mut arguments: Vec<&str> = read.iter().map(String::as_str).collect();
        arguments.extend(self.proxy_flags.iter().map(String::as_str));
        Program::start(&self.node, &binary, &arguments, &log)
    }

    fn wait_until_ready(&self) -> Result<()> {
        for address in ["127.0.0.1:10256/readyz", "127.0.0.1:10264/ready"] {
            let ready = || self.node.shell(&format!("curl -fsS -m 2 http://{address}"));
            wait_for(address, ready).map_err(|error| error.context(self.logs()))?;
        }
        Ok(())
    }

    /// Writes a manifest by an atomic rename.
    ///
    /// # Errors
    /// As writing a file.
    pub fn apply(&self, name: &str, text: &str) -> Result<()> {
        let new = self.directory.path().join("new");
        std::fs::write(&new, text)?;
        std::fs::rename(&new, self.manifests().join(name))?;
        Ok(())
    }

    /// Deletes a manifest.
    ///
    /// # Errors
    /// As removing a file.
    pub fn delete(&self, name: &str) -> Result<()> {
        Ok(std::fs::remove_file(self.manifests().join(name))?)
    }

    /// Returns the virtual IP of a Service from DNS.
    ///
    /// # Errors
    /// When DNS has no address after the deadline of [`wait_for`].
    pub fn virtual_ip(&self, service: &str) -> Result<String> {
        let name = format!("{service}.default.svc.cluster.local");
        wait_for(&name, || {
            let ip = self
                .node
                .shell(&format!("dig +short +time=1 +tries=1 @{NAMESERVER} {name}"))?
                .trim()
                .to_owned();
            ensure!(ip.parse::<std::net::IpAddr>().is_ok(), "{ip:?}");
            Ok(ip)
        })
    }

    /// Returns a value of the proxy's `/metrics`.
    ///
    /// # Errors
    /// When the page or the metric is missing.
    pub fn proxy_metric(&self, name: &str) -> Result<f64> {
        let page = self.node.shell("curl -fsS -m 10 http://127.0.0.1:10249/metrics")?;
        let line = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        Ok(line.ok_or_else(|| anyhow::anyhow!("no metric {name}"))?.parse()?)
    }

    /// Attaches a pod.
    ///
    /// # Errors
    /// When the plugin fails.
    pub fn add_pod(&self, name: &str) -> Result<Pod> {
        self.network.add(name)
    }

    /// Returns the logs of both daemons.
    pub fn logs(&self) -> String {
        let read = |name: &str| std::fs::read_to_string(self.directory.path().join(name)).unwrap_or_default();
        format!("proxy:\n{}\ndns:\n{}", read("proxy.log"), read("dns.log"))
    }

    /// Returns the manifest directory, or the cluster's directory if it has none.
    pub fn manifests(&self) -> PathBuf {
        match &self.source {
            Source::Manifests(directory) => directory.clone(),
            Source::Api { .. } => self.directory.path().to_owned(),
        }
    }

    /// Returns the directory of logs and manifests.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }
}

impl Source {
    fn flags(&self, program: &str) -> [String; 2] {
        let (flag, path) = match self {
            Self::Manifests(directory) => ("--manifests", directory),
            Self::Api { proxy, .. } if program == "portolan-proxy" => ("--kubeconfig", proxy),
            Self::Api { dns, .. } => ("--kubeconfig", dns),
        };
        [flag.to_owned(), path.display().to_string()]
    }
}
