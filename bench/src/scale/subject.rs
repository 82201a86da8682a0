//! A program that is measured.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result};
use testbed::{Binaries, Program, go_tool};

use super::ground::Ground;
use crate::processor::{Memory, Process};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Proxy,
    /// In its nftables mode.
    KubeProxy,
    Dns,
}

pub(super) struct Subject {
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

    /// The Service that shows its changes.
    pub(super) fn probe(self) -> &'static str {
        match self {
            Self::Proxy | Self::KubeProxy => "probe",
            Self::Dns => "names",
        }
    }
}

impl Subject {
    pub(super) fn start(kind: Kind, ground: &Ground) -> Result<Self> {
        let user = match kind {
            Kind::Proxy => "portolan-proxy",
            Kind::KubeProxy => "admin",
            Kind::Dns => "portolan-dns",
        };
        let kubeconfig = ground.control_plane.kubeconfig(user)?.display().to_string();
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
        let log = ground.control_plane.directory().join(format!("{user}.log"));
        let program = Program::start(&ground.node, &binary, &flags, &log)?;
        Ok(Self { kind, program, log })
    }

    /// Whether it serves the replica that it should.
    pub(super) fn serves(&self, ground: &Ground, replica: usize) -> Result<()> {
        let served = match self.kind {
            Kind::Dns => ground.is_named(replica),
            Kind::Proxy | Kind::KubeProxy => ground.is_reached(replica),
        };
        served.with_context(|| {
            let log = std::fs::read_to_string(&self.log).unwrap_or_default();
            log.lines().rev().take(5).collect::<Vec<_>>().join("\n")
        })
    }

    /// Processor time so far.
    pub(super) fn time(&self) -> Duration {
        Process(self.program.id()).time()
    }

    pub(super) fn memory(&self) -> Memory {
        Process(self.program.id()).memory()
    }

    /// The peak is what comes from now on (`proc(5)`, `clear_refs`).
    pub(super) fn reset_peak(&self) -> Result<()> {
        Ok(std::fs::write(format!("/proc/{}/clear_refs", self.program.id()), "5")?)
    }

    /// Whether it says when it has listed.
    pub(super) fn tells_lists(&self) -> bool {
        self.kind != Kind::KubeProxy
    }

    /// How many lists of Services and EndpointSlices it has had.
    pub(super) fn lists(&self) -> usize {
        let log = std::fs::read_to_string(&self.log).unwrap_or_default();
        let is_list = |line: &&str| line.contains("listed") && !line.contains("/n");
        log.lines().filter(is_list).count()
    }

    /// Ends it and takes away what it has left.
    pub(super) fn stop(mut self, ground: &Ground) -> Result<()> {
        self.program.kill();
        match self.kind {
            Kind::Proxy => {
                let binary = Binaries::find()?.path("portolan-proxy");
                ground.node.shell(&format!("{} --cleanup", binary.display())).map(drop)
            }
            Kind::KubeProxy => {
                ground.node.shell("nft delete table ip kube-proxy; nft delete table ip6 kube-proxy").map(drop)
            }
            Kind::Dns => Ok(()),
        }
    }
}
