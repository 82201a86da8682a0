//! A program under test: portolan-proxy, portolan-dns or kube-proxy.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result};
use testbed::{Binaries, Program, go_tool};

use super::cluster::TestCluster;
use crate::processor::{Memory, Process};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Proxy,
    /// In its nftables mode.
    KubeProxy,
    Dns,
}

pub(super) struct Daemon {
    pub(super) kind: Kind,
    program: Program,
    log: PathBuf,
}

impl Kind {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Proxy => "portolan-proxy",
            Self::KubeProxy => "kube-proxy, nftables",
            Self::Dns => "portolan-dns",
        }
    }

    /// The Service whose changes are timed.
    pub(super) fn probe(self) -> &'static str {
        match self {
            Self::Proxy | Self::KubeProxy => "probe",
            Self::Dns => "names",
        }
    }
}

impl Daemon {
    pub(super) fn start(kind: Kind, cluster: &TestCluster) -> Result<Self> {
        let user = match kind {
            Kind::Proxy => "portolan-proxy",
            Kind::KubeProxy => "admin",
            Kind::Dns => "portolan-dns",
        };
        let kubeconfig = cluster.control_plane.kubeconfig(user)?.display().to_string();
        let own = format!("--kubeconfig={kubeconfig}");
        let (binary, flags) = match kind {
            Kind::Proxy => (Binaries::find()?.path("portolan-proxy"), vec![&*own, "--node-name=node-1"]),
            Kind::Dns => {
                let upstream = "--upstream=192.0.2.1";
                let listen = "--listen=127.0.0.1:53,10.96.0.10:53";
                (Binaries::find()?.path("portolan-dns"), vec![&*own, listen, upstream])
            }
            Kind::KubeProxy => {
                let flags = vec![
                    "kube-proxy",
                    &*own,
                    "--proxy-mode=nftables",
                    "--hostname-override=node-1",
                    "--cluster-cidr=10.22.0.0/16",
                    "--conntrack-max-per-core=0",
                ];
                (go_tool("control-plane")?, flags)
            }
        };
        let log = cluster.control_plane.directory().join(format!("{user}.log"));
        let program = Program::start(&cluster.node, &binary, &flags, &log)?;
        Ok(Self { kind, program, log })
    }

    /// Checks that the program serves this replica.
    pub(super) fn check_serving(&self, cluster: &TestCluster, replica: usize) -> Result<()> {
        let served = match self.kind {
            Kind::Dns => cluster.check_dns(replica),
            Kind::Proxy | Kind::KubeProxy => cluster.check_virtual_ip(replica),
        };
        served.with_context(|| {
            let log = std::fs::read_to_string(&self.log).unwrap_or_default();
            log.lines().rev().take(5).collect::<Vec<_>>().join("\n")
        })
    }

    /// Returns the CPU time used so far.
    pub(super) fn time(&self) -> Duration {
        Process(self.program.id()).time()
    }

    pub(super) fn memory(&self) -> Memory {
        Process(self.program.id()).memory()
    }

    /// Resets the peak of resident memory (`proc(5)`, `clear_refs`).
    pub(super) fn reset_peak(&self) -> Result<()> {
        Ok(std::fs::write(format!("/proc/{}/clear_refs", self.program.id()), "5")?)
    }

    /// Returns whether the program logs its lists.
    pub(super) fn logs_lists(&self) -> bool {
        self.kind != Kind::KubeProxy
    }

    /// Returns the number of lists of Services and EndpointSlices in the log.
    pub(super) fn lists(&self) -> usize {
        let log = std::fs::read_to_string(&self.log).unwrap_or_default();
        let is_list = |line: &&str| line.contains("listed") && !line.contains("/n");
        log.lines().filter(is_list).count()
    }

    /// Kills the program and removes its rules.
    pub(super) fn stop(mut self, cluster: &TestCluster) -> Result<()> {
        self.program.kill();
        match self.kind {
            Kind::Proxy => {
                let binary = Binaries::find()?.path("portolan-proxy");
                cluster.node.shell(&format!("{} --cleanup", binary.display())).map(|_output| ())
            }
            Kind::KubeProxy => cluster
                .node
                .shell("nft delete table ip kube-proxy; nft delete table ip6 kube-proxy")
                .map(|_output| ()),
            Kind::Dns => Ok(()),
        }
    }
}
