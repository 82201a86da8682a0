//! One call of a plugin, timed as a runtime waits for it.

use std::io::{Read as _, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

/// What to call.
#[derive(Clone, Copy, Debug)]
pub(super) struct Call<'a> {
    pub(super) binary: &'a Path,
    pub(super) command: &'a str,
    pub(super) container: &'a str,
    pub(super) ifname: &'a str,
    pub(super) netns: &'a Path,
    pub(super) config: &'a str,
    /// Where ours writes its trace.
    pub(super) trace: Option<&'a Path>,
}

/// Runs it where the calling thread is; returns what it printed and how long it took.
pub(super) fn run(call: &Call<'_>) -> Result<(Value, Duration)> {
    let began = Instant::now();
    let mut child = start(call)?;
    let mut printed = Vec::new();
    child.stdout.take().context("its output is piped")?.read_to_end(&mut printed)?;
    let status = child.wait()?;
    let took = began.elapsed();
    let text = String::from_utf8_lossy(&printed);
    if !status.success() {
        bail!("{} {} of {}: {text}", call.binary.display(), call.command, call.container);
    }
    Ok((if text.is_empty() { Value::Null } else { serde_json::from_str(&text)? }, took))
}

/// Peak resident memory, MiB: of the process's own memory map, read again and again while it runs. What `wait4` tells
/// would have ours in it, from before exec.
pub(super) fn peak_memory(call: &Call<'_>) -> Result<f64> {
    let mut child = start(call)?;
    let file = format!("/proc/{}/status", child.id());
    let own = call.binary.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let mut peak = 0.0_f64;
    while child.try_wait()?.is_none() {
        let status = std::fs::read_to_string(&file).unwrap_or_default();
        // Fifteen characters of the name; before exec it is still ours.
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
    // The reference plugins look for iptables there.
    command.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
    command.envs(call.trace.map(|file| ("PORTOLAN_TRACE", file)));
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    // Ctrl-C ends the measurement after this round, and not the plugin in it.
    command.process_group(0);
    let mut child = command.spawn().with_context(|| format!("start {}", call.binary.display()))?;
    child.stdin.take().context("its input is piped")?.write_all(call.config.as_bytes())?;
    Ok(child)
}
