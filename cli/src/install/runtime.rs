//! Directories and settings of each container runtime.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};

use crate::command;

/// The defaults of containerd, CRI-O and podman alike.
const BIN_DIR: &str = "/opt/cni/bin";
const CONF_DIR: &str = "/etc/cni/net.d";

const CONTAINERD: &str = "/etc/containerd/config.toml";

/// The table of the CNI settings, in versions 2 and 3 of containerd's configuration.
const CONTAINERD_PLUGINS: [&str; 2] = ["io.containerd.grpc.v1.cri", "io.containerd.cri.v1.runtime"];

const CRIO: &str = "/etc/crio/crio.conf";
const CRIO_DIRECTORY: &str = "/etc/crio/crio.conf.d";

const PODMAN: &str = "/etc/containers/containers.conf.d/10-portolan.conf";
const PODMAN_SETTINGS: &str = "# Written by `portolan install`, removed by `portolan uninstall`.\n\
    [network]\nnetwork_backend = \"cni\"\n";

/// podman 5 supports only netavark.
const PODMAN_WITHOUT_CNI: u32 = 5;

/// A container runtime.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Runtime {
    /// podman 4
    Podman,
    /// containerd, with or without a kubelet
    Containerd,
    /// CRI-O
    Crio,
}

/// Directories and settings.
pub(super) struct Layout {
    pub(super) bin_dir: PathBuf,
    pub(super) conf_dir: PathBuf,
    /// A settings file that makes the runtime use CNI.
    pub(super) settings: Option<(PathBuf, String)>,
}

impl Runtime {
    /// Returns the layout from the runtime's configuration.
    ///
    /// # Errors
    /// When that cannot be read, or the runtime does not support CNI.
    pub(super) fn layout(self) -> anyhow::Result<Layout> {
        let mut layout = Layout { bin_dir: BIN_DIR.into(), conf_dir: CONF_DIR.into(), settings: None };
        match self {
            Self::Podman => {
                check_podman()?;
                layout.settings = Some((PODMAN.into(), PODMAN_SETTINGS.to_owned()));
            }
            Self::Containerd => layout.read_containerd()?,
            Self::Crio => layout.read_crio()?,
        }
        Ok(layout)
    }

    /// Returns the next step for the operator.
    pub(super) fn next(self) -> Option<String> {
        (self == Self::Podman)
            .then(|| "podman run --network portolan …; a container of another network keeps that".to_owned())
    }
}

impl fmt::Display for Runtime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Podman => "podman",
            Self::Containerd => "containerd",
            Self::Crio => "CRI-O",
        })
    }
}

/// Checks the version of podman, if it is installed.
fn check_podman() -> anyhow::Result<()> {
    let Ok(version) = command::output("podman", &["--version"]) else { return Ok(()) };
    let major =
        version.split_whitespace().last().and_then(|number| number.split('.').next()?.parse::<u32>().ok());
    ensure!(
        major.is_none_or(|major| major < PODMAN_WITHOUT_CNI),
        "{} does not support CNI, podman 4 was the last: use containerd (nerdctl)",
        version.trim()
    );
    Ok(())
}

impl Layout {
    fn read_containerd(&mut self) -> anyhow::Result<()> {
        let Some(config) = read(Path::new(CONTAINERD))? else { return Ok(()) };
        for plugin in CONTAINERD_PLUGINS {
            let Some(cni) = config.get("plugins").and_then(|p| p.get(plugin)?.get("cni")) else { continue };
            self.set(cni.get("bin_dir"), cni.get("conf_dir"));
            self.set(cni.get("bin_dirs").and_then(|dirs| dirs.get(0)), None);
        }
        Ok(())
    }

    /// Later files override earlier ones.
    fn read_crio(&mut self) -> anyhow::Result<()> {
        let entries = fs::read_dir(CRIO_DIRECTORY).into_iter().flatten().flatten();
        let mut files: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
        files.sort();
        files.insert(0, CRIO.into());
        for file in files {
            let Some(config) = read(&file)? else { continue };
            let Some(network) = config.get("crio").and_then(|crio| crio.get("network")) else { continue };
            self.set(network.get("plugin_dirs").and_then(|dirs| dirs.get(0)), network.get("network_dir"));
        }
        Ok(())
    }

    fn set(&mut self, bin_dir: Option<&toml::Value>, conf_dir: Option<&toml::Value>) {
        let path =
            |value: Option<&toml::Value>| value?.as_str().filter(|text| !text.is_empty()).map(PathBuf::from);
        self.bin_dir = path(bin_dir).unwrap_or_else(|| self.bin_dir.clone());
        self.conf_dir = path(conf_dir).unwrap_or_else(|| self.conf_dir.clone());
    }
}

fn read(file: &Path) -> anyhow::Result<Option<toml::Table>> {
    match fs::read_to_string(file) {
        Ok(text) => Ok(Some(text.parse().with_context(|| file.display().to_string())?)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e).context(format!("read {}", file.display())),
    }
}
