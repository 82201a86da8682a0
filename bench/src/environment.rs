//! The machine that a figure was measured on.

use std::path::Path;
use std::process::Command;

use serde::{Deserialize, Serialize};

/// Properties of the machine that matter for a figure.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Environment {
    /// Model of the processor.
    pub cpu: String,
    /// Number of cores that the run may use.
    pub cores: usize,
    /// State of simultaneous multithreading, as the kernel reports it.
    pub smt: String,
    /// Frequency governor, if the kernel controls the frequency.
    pub governor: String,
    /// Whether it is a virtual machine, and the vendor.
    pub hypervisor: String,
    /// Memory, MiB.
    pub memory_mib: u64,
    /// Release of the kernel.
    pub kernel: String,
    /// Clock source of the kernel.
    pub clock_source: String,
    /// Distribution.
    pub system: String,
    /// Active mitigations of CPU vulnerabilities.
    pub mitigations: Vec<[String; 2]>,
    /// Kernel settings of the machine that affect the figures. The private nodes start with the kernel's
    /// defaults.
    pub sysctls: Vec<[String; 2]>,
    /// Version of Portolan.
    pub version: String,
    /// Commit it was built from, with `+` if the working tree had changes.
    pub commit: String,
    /// `release` or `debug`. Figures of a debug build are not meaningful.
    pub build: String,
    /// Load average of 1 minute, before and after the run.
    pub load: [f64; 2],
    /// CPU steal time since boot, seconds, before and after the run.
    pub steal_seconds: [f64; 2],
}

const SYSCTLS: [&str; 7] = [
    "net.core.somaxconn",
    "net.core.busy_poll",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.tcp_congestion_control",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_wmem",
    "kernel.sched_autogroup_enabled",
];

impl Environment {
    pub(crate) fn capture() -> Self {
        let info = read("/proc/cpuinfo");
        let line = |name: &str| info.lines().find_map(|line| line.strip_prefix(name)?.split_once(": "));
        let virtual_machine = line("flags").is_some_and(|(_, flags)| flags.contains(" hypervisor"));
        let vendor = read("/sys/class/dmi/id/sys_vendor");
        Self {
            cpu: line("model name").map_or_else(|| "unknown".to_owned(), |(_, model)| model.to_owned()),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            smt: or_unknown(read("/sys/devices/system/cpu/smt/control")),
            governor: or_unknown(read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")),
            hypervisor: if virtual_machine {
                format!("yes {vendor}").trim().to_owned()
            } else {
                "no".to_owned()
            },
            memory_mib: memory_mib(),
            kernel: read("/proc/sys/kernel/osrelease"),
            clock_source: read("/sys/devices/system/clocksource/clocksource0/current_clocksource"),
            system: system(),
            mitigations: mitigations(),
            sysctls: SYSCTLS.map(|name| [name.to_owned(), sysctl(name)]).into(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            commit: commit(),
            build: if cfg!(debug_assertions) { "debug" } else { "release" }.to_owned(),
            load: [load(); 2],
            steal_seconds: [steal_seconds(); 2],
        }
    }

    pub(crate) fn finish(&mut self) {
        self.load[1] = load();
        self.steal_seconds[1] = steal_seconds();
    }

    /// Returns one line: `2 x AMD EPYC (virtual machine), Linux 6.18.44`.
    pub fn summary(&self) -> String {
        let virtual_machine = if self.hypervisor == "no" { "" } else { " (virtual machine)" };
        format!("{} x {}{virtual_machine}, Linux {}", self.cores, self.cpu, self.kernel)
    }
}

fn read(file: impl AsRef<Path>) -> String {
    std::fs::read_to_string(file).unwrap_or_default().trim().to_owned()
}

fn or_unknown(text: String) -> String {
    if text.is_empty() { "not shown by the kernel".to_owned() } else { text }
}

fn sysctl(name: &str) -> String {
    or_unknown(read(Path::new("/proc/sys").join(name.replace('.', "/"))).replace('\t', " "))
}

fn memory_mib() -> u64 {
    let info = read("/proc/meminfo");
    let total = info.lines().find_map(|line| line.strip_prefix("MemTotal:")?.trim().strip_suffix(" kB"));
    total.and_then(|kib| kib.parse::<u64>().ok()).unwrap_or(0) / 1024
}

fn system() -> String {
    let release = read("/etc/os-release");
    let name = release.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
    or_unknown(name.unwrap_or_default().trim_matches('"').to_owned())
}

fn mitigations() -> Vec<[String; 2]> {
    let listed = std::fs::read_dir("/sys/devices/system/cpu/vulnerabilities").into_iter().flatten().flatten();
    let mut found: Vec<[String; 2]> = listed
        .map(|entry| [entry.file_name().to_string_lossy().into_owned(), read(entry.path())])
        .filter(|[_, state]| state != "Not affected")
        .collect();
    found.sort();
    found
}

/// Returns the commit of the working tree that contains the program.
fn commit() -> String {
    let Ok(own) = std::env::current_exe() else { return "unknown".to_owned() };
    let Some(directory) = own.parent() else { return "unknown".to_owned() };
    let git = |arguments: &[&str]| {
        let output = Command::new("git").arg("-C").arg(directory).args(arguments).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let Some(commit) = git(&["rev-parse", "--short=12", "HEAD"]) else { return "unknown".to_owned() };
    let clean =
        git(&["status", "--porcelain", "--untracked-files=no"]).is_some_and(|changes| changes.is_empty());
    if clean { commit } else { commit + "+" }
}

fn load() -> f64 {
    read("/proc/loadavg").split(' ').next().and_then(|load| load.parse().ok()).unwrap_or(0.0)
}

/// `steal` is the eighth figure of the line `cpu`, in ticks of 10 ms (USER_HZ is 100 on every architecture we
/// run on).
pub(crate) fn steal_seconds() -> f64 {
    let stat = read("/proc/stat");
    let cpu = stat.lines().next().unwrap_or_default();
    cpu.split_whitespace().nth(8).and_then(|ticks| ticks.parse::<f64>().ok()).unwrap_or(0.0) / 100.0
}
