//! Runs system programs that show the state of the kernel: `ip`, `nft`, `iptables-legacy`.

use std::io;
use std::process::{Command, Stdio};

use serde_json::Value;

/// Runs a program and returns its output.
///
/// # Errors
/// `NotFound` when it is not installed; otherwise with its standard error.
pub(crate) fn output(program: &str, arguments: &[&str]) -> io::Result<String> {
    let output = Command::new(program).args(arguments).stdin(Stdio::null()).output()?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let stderr = String::from_utf8_lossy(&output.stderr);
    Err(io::Error::other(format!("{program} {}: {}", arguments.join(" "), stderr.trim())))
}

/// As [`output`], parsed as JSON. Empty output is an empty list, as `ip -j` prints it.
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
