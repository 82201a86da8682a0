//! Programs of the system that show what the kernel has: `ip`, `nft`, `iptables-legacy`.

use std::io;
use std::process::{Command, Stdio};

use serde_json::Value;

/// What a program printed.
///
/// # Errors
/// `NotFound` when it is not installed; otherwise what it said.
pub(crate) fn output(program: &str, arguments: &[&str]) -> io::Result<String> {
    let output = Command::new(program).args(arguments).stdin(Stdio::null()).output()?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(io::Error::other(format!("{program} {}: {}", arguments.join(" "), said.trim())))
}

/// The same, as JSON. Nothing at all is an empty list, as `ip -j` has it.
///
/// # Errors
/// As [`output`]; also when it is not JSON.
pub(crate) fn json(program: &str, arguments: &[&str]) -> io::Result<Value> {
    let text = output(program, arguments)?;
    if text.trim().is_empty() {
        return Ok(Value::Array(Vec::new()));
    }
    serde_json::from_str(&text).map_err(io::Error::other)
}
