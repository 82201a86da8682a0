//! Configures conntrack as kube-proxy does.
//!
//! The proxy's own connections are not tracked. Those that portolan-cni translates are: connections to host
//! ports, and masqueraded ones. By the kernel's default an entry of a half-closed connection expires after 60
//! seconds without a packet, and a later reply is lost.

use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::thread;

use jiff::SignedDuration;
use nftables::Netfilter;
use nftables::conntrack::{self, State};
use tracing::{info, warn};

/// The settings of this network namespace. `nf_conntrack_max` and the size of the hash table are global: only
/// the initial network namespace may write them.
const SYSCTLS: &str = "/proc/sys/net/netfilter";
const HASH_SIZE: &str = "/sys/module/nf_conntrack/parameters/hashsize";

/// The online processors, independent of the affinity of this process.
const PROCESSORS: &str = "/sys/devices/system/cpu/online";

/// The limit of the scaled `nf_conntrack_max`: an entry takes some 300 bytes that cannot be swapped.
const LARGEST_SCALED: u32 = 1024 * 1024;

/// Entries per bucket of the hash table.
const ENTRIES_PER_BUCKET: u32 = 4;

/// The flags of kube-proxy, with its defaults.
#[derive(Clone, Debug, clap::Args)]
#[group(skip)]
pub struct Settings {
    /// Maximum number of tracked connections per processor of the machine, 1048576 in total at most; 0 leaves
    /// nf_conntrack_max as it is. The proxy raises it and never lowers it
    #[arg(long, value_name = "N", default_value_t = 32 * 1024)]
    conntrack_max_per_core: u32,

    /// Minimum of nf_conntrack_max, however few processors there are
    #[arg(long, value_name = "N", default_value_t = 128 * 1024)]
    conntrack_min: u32,

    /// Seconds, or a duration such as 24h, after which conntrack removes an idle TCP connection; 0 leaves the
    /// setting as it is
    #[arg(long, value_name = "SECONDS", default_value = "86400", value_parser = seconds)]
    conntrack_tcp_timeout_established: u32,

    /// Seconds after which conntrack removes an idle half-closed TCP connection; 0 leaves the setting as it
    /// is
    #[arg(long, value_name = "SECONDS", default_value = "3600", value_parser = seconds)]
    conntrack_tcp_timeout_close_wait: u32,

    /// Let conntrack accept TCP segments outside of the window, which are INVALID otherwise
    #[arg(long, value_name = "true|false", num_args = 0..=1, require_equals = true, default_missing_value = "true",
          default_value_t = false, action = clap::ArgAction::Set)]
    conntrack_tcp_be_liberal: bool,

    /// Seconds after which conntrack removes a UDP flow without a reply; 0 leaves the setting as it is
    #[arg(long, value_name = "SECONDS", default_value = "0", value_parser = seconds)]
    conntrack_udp_timeout: u32,

    /// Seconds after which conntrack removes a UDP flow with replies; 0 leaves the setting as it is
    #[arg(long, value_name = "SECONDS", default_value = "0", value_parser = seconds)]
    conntrack_udp_timeout_stream: u32,
}

/// A number of seconds, or a duration in kube-proxy's format (`1h0m0s`). A fraction of a second is dropped.
fn seconds(text: &str) -> Result<u32, String> {
    if let Ok(seconds) = text.parse() {
        return Ok(seconds);
    }
    let duration: SignedDuration =
        text.parse().map_err(|e| format!("must be seconds, or a duration such as 1h30m: {e}"))?;
    u32::try_from(duration.as_secs()).map_err(|e| format!("must be 0 or more, and below 2^32 seconds: {e}"))
}

/// Applies the settings once.
#[derive(Debug)]
pub(crate) struct Conntrack {
    files: Files,
    /// Settings that were not tried yet.
    sysctls: Vec<Sysctl>,
    /// Whether it was logged that the kernel has no conntrack.
    has_reported_absence: bool,
}

/// The paths of the kernel's settings.
#[derive(Debug)]
struct Files {
    sysctls: PathBuf,
    hash_size: PathBuf,
}

/// One setting, a file of [`SYSCTLS`].
#[derive(Clone, Copy, Debug)]
struct Sysctl {
    name: &'static str,
    value: u32,
    kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// A larger value is kept. The hash table must fit the limit.
    Limit,
    Switch,
    /// Can also be set by netlink.
    Timeout(State),
}

impl Conntrack {
    /// Applies the settings now, or with a later [`Conntrack::apply`] if the kernel has no conntrack yet.
    pub(crate) fn new(settings: &Settings) -> Self {
        let files = Files { sysctls: SYSCTLS.into(), hash_size: HASH_SIZE.into() };
        let mut conntrack =
            Self { files, sysctls: settings.sysctls(processors()), has_reported_absence: false };
        conntrack.apply();
        conntrack
    }

    /// Applies the remaining settings once conntrack is loaded, which happens with the first rule that needs
    /// it. A setting that cannot be written is reported and not retried.
    pub(crate) fn apply(&mut self) {
        if self.sysctls.is_empty() {
            return;
        }
        if !self.files.sysctls.join("nf_conntrack_max").exists() {
            if !self.has_reported_absence {
                self.has_reported_absence = true;
                info!("the kernel tracks no connections: the conntrack settings are applied once it does");
            }
            return;
        }
        for Sysctl { name, value, kind } in std::mem::take(&mut self.sysctls) {
            if let Err(error) = self.files.set(name, value, kind) {
                warn!(setting = name, value, %error, "cannot set conntrack: set it on the node, and the flag to 0");
            }
        }
    }
}

impl Settings {
    /// The settings that are not left as they are.
    fn sysctls(&self, processors: u32) -> Vec<Sysctl> {
        let timeout = |state, name, seconds| Sysctl { name, value: seconds, kind: Kind::Timeout(state) };
        let all = [
            Sysctl { name: "nf_conntrack_max", value: self.limit(processors), kind: Kind::Limit },
            timeout(
                State::TcpEstablished,
                "nf_conntrack_tcp_timeout_established",
                self.conntrack_tcp_timeout_established,
            ),
            timeout(
                State::TcpCloseWait,
                "nf_conntrack_tcp_timeout_close_wait",
                self.conntrack_tcp_timeout_close_wait,
            ),
            Sysctl {
                name: "nf_conntrack_tcp_be_liberal",
                value: self.conntrack_tcp_be_liberal.into(),
                kind: Kind::Switch,
            },
            timeout(State::Udp, "nf_conntrack_udp_timeout", self.conntrack_udp_timeout),
            timeout(State::UdpStream, "nf_conntrack_udp_timeout_stream", self.conntrack_udp_timeout_stream),
        ];
        all.into_iter().filter(|sysctl| sysctl.value > 0).collect()
    }

    /// The minimum of `nf_conntrack_max`: kube-proxy's `getConntrackMax`.
    fn limit(&self, processors: u32) -> u32 {
        match self.conntrack_max_per_core.saturating_mul(processors) {
            0 => 0,
            scaled if scaled > LARGEST_SCALED => LARGEST_SCALED,
            scaled => scaled.max(self.conntrack_min),
        }
    }
}

impl Files {
    fn set(&self, name: &str, value: u32, kind: Kind) -> io::Result<()> {
        let file = self.sysctls.join(name);
        let before = read(&file)?;
        let is_set = if kind == Kind::Limit { before >= value } else { before == value };
        if !is_set {
            match (fs::write(&file, value.to_string()), kind) {
                (Err(e), Kind::Timeout(state)) if is_read_only(&e) => {
                    conntrack::set_timeout(&Netfilter::open()?, state, value)?;
                }
                (written, _) => written?,
            }
            info!(setting = name, before, now = value, "conntrack is set");
        }
        if kind == Kind::Limit { self.grow_hash_table(value / ENTRIES_PER_BUCKET) } else { Ok(()) }
    }

    fn grow_hash_table(&self, buckets: u32) -> io::Result<()> {
        let named = |e: io::Error| io::Error::new(e.kind(), format!("{}: {e}", self.hash_size.display()));
        if read(&self.hash_size).map_err(named)? < buckets {
            fs::write(&self.hash_size, buckets.to_string()).map_err(named)?;
            info!(buckets, "the hash table of conntrack is larger");
        }
        Ok(())
    }
}

/// `/proc/sys` is mounted read-only in most containers and hardened services.
fn is_read_only(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::ReadOnlyFilesystem | ErrorKind::PermissionDenied)
}

fn read(file: &Path) -> io::Result<u32> {
    fs::read_to_string(file)?.trim().parse().map_err(io::Error::other)
}

/// The number of online processors. The limit is global, so a cpuset of this process does not count.
fn processors() -> u32 {
    let online = fs::read_to_string(PROCESSORS).ok().and_then(|list| count(list.trim()));
    let usable = || thread::available_parallelism().ok().and_then(|n| u32::try_from(n.get()).ok());
    online.or_else(usable).unwrap_or(1)
}

/// The number of values in a list of ranges: `0-3,8`.
fn count(list: &str) -> Option<u32> {
    let range = |range: &str| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        Some(last.parse::<u32>().ok()?.checked_sub(first.parse().ok()?)? + 1)
    };
    list.split(',').map(range).sum()
}

#[cfg(test)]
mod tests;
