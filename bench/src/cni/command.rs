//! One call of a plugin, timed from start to exit as a runtime sees it.

use std::io::{Read as _, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

/// A plugin, its command and its parameters.
#[derive(Clone, Copy, Debug)]
pub(super) struct Call<'a> {
    pub(super) binary: &'a Path,
    pub(super) command: &'a str,
    pub(super) container: &'a str,
    pub(super) ifname: &'a str,
    pub(super) netns: &'a Path,
    pub(super) config: &'a str,
    /// The file that `portolan-cni` writes its trace to.
    pub(super) trace: Option<&'a Path>,
}

/// Runs the call in the namespaces of the calling thread. Returns the plugin's result and how long the call
/// took.
pub(super) fn run(call: &Call<'_>) -> Result<(Value, Duration)> {
    let began = Instant::now();
    let mut child = start(call)?;
    let mut stdout = Vec::new();
    child.stdout.take().context("stdout is piped")?.read_to_end(&mut stdout)?;
    let status = child.wait()?;
    let took = began.elapsed();
    let text = String::from_utf8_lossy(&stdout);
    if !status.success() {
        bail!("{} {} of {}: {text}", call.binary.display(), call.command, call.container);
    }
    Ok((if text.is_empty() { Value::Null } else { serde_json::from_str(&text)? }, took))
}

/// Returns the peak resident memory of the plugin, MiB. It polls the process status: the value of `wait4`
/// would include the memory of this process before exec.
pub(super) fn peak_memory(call: &Call<'_>) -> Result<f64> {
    let mut child = start(call)?;
    let file = format!("/proc/{}/status", child.id());
    let own = call.binary.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let mut peak = 0.0_f64;
    while child.try_wait()?.is_none() {
        let status = std::fs::read_to_string(&file).unwrap_or_default();
        // `comm` has 15 characters. Before exec it is still the name of this program.
        if status.lines().next().is_some_and(|line| line.ends_with(own.get(..15).unwrap_or(&own))) {
            let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
            let kib = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<f64>().ok());
            peak = peak.max(kib.unwrap_or(0.0) / 1024.0);
        }
    }
    Ok(peak)
}

fn start(call: &Call<'_>) -> Result<Child> {
    let mut command = Command::new(call.binary);
    command.env_clear().env("CNI_COMMAND", call.command).env("CNI_CONTAINERID", call.container);
    command.env("CNI_NETNS", call.netns).env("CNI_IFNAME", call.ifname).env("CNI_PATH", "/usr/lib/cni");
    // The reference plugins search iptables in PATH.
    command.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
    command.envs(call.trace.map(|file| ("PORTOLAN_TRACE", file)));
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    // In its own process group, the plugin does not receive Ctrl-C: the run ends after this round.
    command.process_group(0);
    let mut child = command.spawn().with_context(|| format!("start {}", call.binary.display()))?;
    child.stdin.take().context("stdin is piped")?.write_all(call.config.as_bytes())?;
    Ok(child)
}
