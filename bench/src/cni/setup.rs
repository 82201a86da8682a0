//! A plugin on its own node, with a number of addresses in use.

use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context as _, Result};
use netns::NetNs;
use serde_json::{Value, json};
use testbed::{Binaries, Node};

use super::command::{Call, peak_memory, run};
use crate::interrupt;
use crate::peers;
use crate::record::Record;

/// Which plugin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Portolan {
        masquerade: bool,
    },
    /// bridge and host-local, with ipMasq.
    Bridge,
    /// ptp and host-local, without ipMasq.
    Ptp,
    /// `ip link add` and `ip link del` of a veth: one process and the kernel's own time.
    Kernel,
}

/// No other pod: before each round the node is reset, which is not timed.
pub(super) const FIRST_POD: usize = 0;

/// One other pod is attached.
pub(super) const ONE_OTHER_POD: usize = 1;

/// A plugin with its node and configuration.
pub(super) struct Setup {
    pub(super) node: Node,
    kind: Kind,
    /// Addresses in use by other pods.
    in_use: usize,
    binary: PathBuf,
    config: String,
}

const NETWORK: &str = "bench";

/// Commands with the milliseconds of each span.
pub(super) type Traced = Vec<(String, Vec<(String, f64)>)>;

pub(super) fn name(kind: Kind, in_use: usize) -> String {
    let name = match kind {
        Kind::Portolan { masquerade: true } => "portolan-cni",
        Kind::Portolan { masquerade: false } => "portolan-cni, no masquerade",
        Kind::Bridge => "bridge + host-local, ipMasq",
        Kind::Ptp => "ptp + host-local, no masquerade",
        Kind::Kernel => "ip link add/del of a veth",
    };
    match in_use {
        FIRST_POD if kind != Kind::Kernel => format!("{name}, first and last pod of a node"),
        FIRST_POD | ONE_OTHER_POD => name.to_owned(),
        _ => format!("{name}, {in_use} in use"),
    }
}

impl Kind {
    /// Returns the kinds that are installed. The record says how to install the missing ones.
    pub(super) fn available(record: &mut Record) -> Vec<Self> {
        let mut kinds =
            vec![Self::Portolan { masquerade: true }, Self::Portolan { masquerade: false }, Self::Kernel];
        for (kind, peer, package) in
            [(Self::Bridge, "reference bridge", peers::BRIDGE), (Self::Ptp, "reference ptp", peers::PTP)]
        {
            kinds.extend(peers::is_installed(record, peer, package).then_some(kind));
        }
        kinds
    }
}

impl Setup {
    pub(super) fn new(kind: Kind, in_use: usize) -> Result<Self> {
        let binary = match kind {
            Kind::Portolan { .. } => Binaries::find()?.path("portolan-cni"),
            Kind::Bridge => "/usr/lib/cni/bridge".into(),
            Kind::Ptp => "/usr/lib/cni/ptp".into(),
            Kind::Kernel => "/sbin/ip".into(),
        };
        let setup = Self { node: Node::new()?, kind, in_use, binary, config: config(kind).to_string() };
        setup.fill_addresses().with_context(|| format!("occupy addresses for {}", setup.name()))?;
        Ok(setup)
    }

    pub(super) fn name(&self) -> String {
        name(self.kind, self.in_use)
    }

    /// The network configuration.
    pub(super) fn config(&self) -> &str {
        &self.config
    }

    pub(super) fn is_ours(&self) -> bool {
        matches!(self.kind, Kind::Portolan { .. })
    }

    pub(super) fn call<'a>(&'a self, command: &'a str, container: &'a str, netns: &'a Path) -> Call<'a> {
        Call {
            binary: &self.binary,
            command,
            container,
            ifname: "eth0",
            netns,
            config: &self.config,
            trace: None,
        }
    }

    /// Runs ADD and DEL of one pod and returns their times, milliseconds.
    pub(super) fn round(&self) -> Result<(f64, f64)> {
        self.with_netns(|path| {
            if self.kind == Kind::Kernel {
                return kernel_round();
            }
            if self.in_use == FIRST_POD {
                self.reset_node()?;
            }
            let (_, add) = run(&self.call("ADD", "pod", path))?;
            let (_, del) = run(&self.call("DEL", "pod", path))?;
            Ok((add.as_secs_f64() * 1e3, del.as_secs_f64() * 1e3))
        })
    }

    /// Runs ADD and DEL of one pod and returns the spans of the plugin's trace.
    pub(super) fn traced_round(&self) -> Result<Traced> {
        self.with_netns(|path| {
            let trace = Path::new("/run/trace");
            let mut traced = Vec::new();
            for command in ["ADD", "DEL"] {
                let (_, took) = run(&Call { trace: Some(trace), ..self.call(command, "pod", path) })?;
                let line = std::fs::read_to_string(trace).context("the plugin has written no trace")?;
                std::fs::remove_file(trace)?;
                traced.push((
                    command.to_owned(),
                    spans(&serde_json::from_str(&line)?, took.as_secs_f64() * 1e3),
                ));
            }
            Ok(traced)
        })
    }

    /// Returns the peak memory of one ADD, MiB.
    pub(super) fn memory_of_add(&self) -> Result<f64> {
        self.with_netns(|path| {
            let peak = peak_memory(&self.call("ADD", "pod", path))?;
            run(&self.call("DEL", "pod", path))?;
            Ok(peak)
        })
    }

    fn with_netns<T: Send>(&self, work: impl FnOnce(&Path) -> Result<T> + Send) -> Result<T> {
        let path = self.node.add_netns("pod")?;
        self.node.run(|| {
            let result = work(&path);
            NetNs::remove_named(&path)?;
            result
        })
    }

    /// Resets the node to its state before the first pod.
    fn reset_node(&self) -> Result<()> {
        let mut command = match self.kind {
            Kind::Portolan { .. } => {
                let mut command = std::process::Command::new(&self.binary);
                command.arg("cleanup");
                command
            }
            Kind::Bridge => {
                let mut command = std::process::Command::new("/bin/sh");
                command.args(["-c", "ip link del bench0 2>/dev/null; true"]);
                command
            }
            Kind::Ptp | Kind::Kernel => return Ok(()),
        };
        anyhow::ensure!(command.status()?.success(), "{command:?}");
        Ok(())
    }

    /// Attaches one other pod and occupies the remaining addresses: as files of host-local, or as further
    /// interfaces of that pod with `portolan-cni`.
    fn fill_addresses(&self) -> Result<()> {
        if self.in_use == FIRST_POD || self.kind == Kind::Kernel {
            return Ok(());
        }
        let path = self.node.add_netns("occupant")?;
        let attached = if matches!(self.kind, Kind::Portolan { .. }) { self.in_use } else { 1 };
        self.node.run(|| {
            for number in 0..attached {
                interrupt::check()?;
                let (container, ifname) = (format!("occupant-{number}"), format!("eth{number}"));
                run(&Call { ifname: &ifname, ..self.call("ADD", &container, &path) })?;
            }
            let directory = Path::new("/var/lib/cni/networks").join(NETWORK);
            for number in attached..self.in_use {
                let address = format!("10.30.{}.{}", (number + 2) / 256, (number + 2) % 256);
                std::fs::write(directory.join(address), format!("occupant-{number}\r\neth0"))?;
            }
            Ok(())
        })
    }
}

fn config(kind: Kind) -> Value {
    let ranges = json!([[{ "subnet": "10.30.0.0/16" }]]);
    let (version, binary) = match kind {
        Kind::Portolan { .. } => ("1.1.0", "portolan-cni"),
        Kind::Bridge => ("1.0.0", "bridge"),
        Kind::Ptp | Kind::Kernel => ("1.0.0", "ptp"),
    };
    let mut config = json!({ "cniVersion": version, "name": NETWORK, "type": binary });
    config["ipMasq"] = (kind == Kind::Bridge || kind == Kind::Portolan { masquerade: true }).into();
    config["ipam"] = match kind {
        Kind::Portolan { .. } => json!({ "ranges": ranges }),
        _ => json!({ "type": "host-local", "ranges": ranges, "routes": [{ "dst": "0.0.0.0/0" }] }),
    };
    if kind == Kind::Bridge {
        config["bridge"] = "bench0".into();
        config["isGateway"] = true.into();
    }
    config
}

fn spans(line: &Value, all: f64) -> Vec<(String, f64)> {
    let milliseconds = |value: &Value| value.as_f64().unwrap_or(0.0) / 1e6;
    let inside = milliseconds(&line["ended"]) - milliseconds(&line["started"]);
    let spent = line["spent"].as_object().into_iter().flatten();
    let mut spans: Vec<(String, f64)> =
        spent.map(|(name, value)| (name.clone(), milliseconds(value))).collect();
    let traced: f64 = spans.iter().map(|(_, value)| value).sum();
    spans.extend([
        ("exec".to_owned(), all - inside),
        ("own".to_owned(), inside - traced),
        ("all".to_owned(), all),
    ]);
    spans
}

/// Creates and deletes a veth with `ip`: the minimum time of a plugin that runs as a process.
fn kernel_round() -> Result<(f64, f64)> {
    let timed = |arguments: &[&str]| -> Result<f64> {
        let began = Instant::now();
        let status = std::process::Command::new("/sbin/ip").args(arguments).process_group(0).status()?;
        anyhow::ensure!(status.success(), "ip {}", arguments.join(" "));
        Ok(began.elapsed().as_secs_f64() * 1e3)
    };
    let add = timed(&["link", "add", "bench0", "type", "veth", "peer", "name", "eth0", "netns", "pod"])?;
    Ok((add, timed(&["link", "del", "bench0"])?))
}
