//! Runs another IPAM plugin as the specification requires (CNI 1.1 §4).

use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::{Delegated, Owner};
use crate::args::Args;
use crate::error::{Code, Error, Result};
use crate::netconf::Config;
use crate::trace::{Span, span};

/// Timeout of a delegated plugin. Runtimes wait one or two minutes for this plugin.
const DEADLINE: Duration = Duration::from_secs(20);

/// Runs the plugin `kind` with `command` and the complete configuration. Only ADD returns a result.
pub(crate) fn delegate(kind: &str, command: &str, args: &Args, input: &str) -> Result<Option<Value>> {
    span(Span::Delegate, || run(kind, command, args, input))
}

/// Runs CHECK of the IPAM plugin that ADD called, with that plugin's own result as `prevResult`. Mode
/// `routed` returns a different result: a /32 or /128 address and the plugin's gateway.
pub(crate) fn delegate_check(
    kind: &str,
    given: Option<&Delegated>,
    args: &Args,
    config: &Config,
) -> Result<()> {
    let Some(result) = given.map(|given| &given.result).filter(|result| result["ips"].is_array()) else {
        delegate(kind, "CHECK", args, &config.text)?;
        return Ok(());
    };
    let mut config = config.complete();
    let mut ips = result["ips"].as_array().cloned().unwrap_or_default();
    let ours = config["prevResult"]["ips"].as_array().cloned().unwrap_or_default();
    let address = |ip: &Value| {
        let text = ip["address"].as_str().unwrap_or_default();
        text.split('/').next().unwrap_or_default().to_owned()
    };
    for ip in &mut ips {
        let same = ours.iter().find(|other| address(other) == address(ip));
        if let Some(interface) = same.map(|other| &other["interface"]).filter(|index| !index.is_null()) {
            ip["interface"] = interface.clone();
        }
    }
    config["prevResult"]["ips"] = ips.into();
    config["prevResult"]["routes"] = result["routes"].as_array().cloned().unwrap_or_default().into();
    delegate(kind, "CHECK", args, &config.to_string())?;
    Ok(())
}

/// Runs DEL of the IPAM plugin that ADD called, with the configuration of that ADD. DEL succeeds if the
/// plugin is no longer installed.
pub(crate) fn delegate_del(given: &Delegated, owner: &Owner, args: &Args) -> Result<()> {
    if find(&given.kind, args).is_none() {
        return Ok(());
    }
    // GC has no container in its environment.
    let mut args = args.clone();
    for (key, value) in [("CNI_CONTAINERID", &owner.container_id), ("CNI_IFNAME", &owner.ifname)] {
        args.environment.retain(|(other, _)| other != key);
        args.environment.push((key.into(), value.into()));
    }
    delegate(&given.kind, "DEL", &args, &given.config.to_string())?;
    Ok(())
}

fn find(kind: &str, args: &Args) -> Option<PathBuf> {
    args.path.iter().map(|directory| directory.join(kind)).find(|path| path.is_file())
}

fn run(kind: &str, command: &str, args: &Args, input: &str) -> Result<Option<Value>> {
    let failed =
        |message: String| Error::new(Code::Kernel, format!("IPAM plugin {kind} {command}: {message}"));
    if kind.contains('/') {
        return Err(Error::new(Code::InvalidConfig, format!("ipam.type: {kind:?} is not a plugin's name")));
    }
    let Some(program) = find(kind, args) else {
        let searched: Vec<_> = args.path.iter().map(|path| path.display().to_string()).collect();
        return Err(failed(format!("not found in CNI_PATH ({})", searched.join(":"))));
    };
    let mut child = Command::new(program)
        .env_clear()
        .envs(args.environment.iter().map(|(key, value)| (key, value)))
        .env("CNI_COMMAND", command)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .map_err(|e| failed(e.to_string()))?;
    if let Some(mut stdin) = child.stdin.take() {
        // A plugin that does not read its input may still answer.
        let _ = stdin.write_all(input.as_bytes());
    }
    let output = wait(child).map_err(failed)?;
    let text = String::from_utf8_lossy(&output.stdout);
    let json: Option<Value> = serde_json::from_str(&text).ok();
    if !output.status.success() {
        let relayed = json.as_ref().and_then(|json| json["msg"].as_str());
        let code =
            json.as_ref().and_then(|json| json["code"].as_u64()).and_then(|code| u32::try_from(code).ok());
        let message = relayed.map_or_else(|| format!("{}: {text}", output.status), str::to_owned);
        return Err(Error { code: code.unwrap_or(Code::Kernel as u32), ..failed(message) });
    }
    if command != "ADD" {
        return Ok(None);
    }
    json.map(Some).ok_or_else(|| failed(format!("its result is not JSON: {text:.200}")))
}

fn wait(mut child: Child) -> std::result::Result<Output, String> {
    let deadline = Instant::now() + DEADLINE;
    loop {
        match child.try_wait() {
            // A result is far smaller than a pipe's buffer, so the plugin does not block when it writes its
            // result.
            Ok(Some(_)) => return child.wait_with_output().map_err(|e| e.to_string()),
            Ok(None) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(1)),
            Ok(None) => {
                let _ = child.kill();
                let _ = child.wait();
                return Err(format!("no answer after {DEADLINE:?}, stopped"));
            }
            Err(e) => return Err(e.to_string()),
        }
    }
}
