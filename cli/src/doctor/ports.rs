//! Ports of the daemons that another process uses.

use std::collections::HashMap;
use std::fs;
use std::net::IpAddr;

use super::Finding;
use crate::{admin_address, process};

const CHECK: &str = "ports";

/// Flags of listen addresses, with the default port.
const PAGES: [(&str, &str, u16); 5] = [
    ("portolan-proxy", "metrics-bind-address", 10249),
    ("portolan-proxy", "healthz-bind-address", 10256),
    ("portolan-dns", "metrics-bind-address", 10262),
    ("portolan-dns", "health-bind-address", 10263),
    ("portolan-dns", "ready-bind-address", 10264),
];

/// `TCP_LISTEN` of linux/tcp_states.h, as `/proc/net/tcp` writes it.
const LISTEN: &str = "0A";

pub(super) fn check(dns: IpAddr) -> Vec<Finding> {
    let listening = listening();
    let owners = owners();
    let pages =
        PAGES.map(|(program, flag, port)| (admin_address::configured(program, flag, port).port(), program));
    let mut findings: Vec<Finding> = [(53, "portolan-dns")]
        .iter()
        .chain(&pages)
        .filter_map(|(port, program)| {
            let conflicts =
                |(address, at, _): &&(String, u16, String)| *at == *port && may_conflict(address, *port, dns);
            let (_, _, inode) = listening
                .iter()
                .filter(conflicts)
                .find(|(_, _, inode)| owners.get(inode).is_none_or(|owner| owner != program))?;
            let owner = owners.get(inode).map_or("another process", String::as_str);
            Some(Finding::error(
                CHECK,
                format!("port {port}/tcp, which {program} needs, is taken by {owner}"),
                format!(
                    "stop it, or give {program} another address (`{program} --help`); `ss -lntp sport = \
                    {port}` shows it"
                ),
            ))
        })
        .collect();
    if findings.is_empty() {
        findings.push(Finding::ok(CHECK, "no other process uses the daemons' ports"));
    }
    findings
}

/// Returns whether a listener conflicts with the daemon's. Addresses are hexadecimal as in `/proc`; zeros are
/// the wildcard.
fn may_conflict(address: &str, port: u16, dns: IpAddr) -> bool {
    let is_any = address.chars().all(|digit| digit == '0');
    match dns {
        IpAddr::V4(ip) if port == 53 => {
            is_any || address == format!("{:08X}", u32::from_le_bytes(ip.octets()))
        }
        // 127.0.0.1 in the byte order of a little-endian machine.
        _ => is_any || address == "0100007F",
    }
}

/// Returns address, port and inode of all listening TCP sockets.
fn listening() -> Vec<(String, u16, String)> {
    let files = ["/proc/net/tcp", "/proc/net/tcp6"].map(|file| fs::read_to_string(file).unwrap_or_default());
    let lines = files.iter().flat_map(|file| file.lines().skip(1));
    lines
        .filter_map(|line| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let (address, port) = fields.get(1)?.split_once(':')?;
            let port = u16::from_str_radix(port, 16).ok()?;
            (*fields.get(3)? == LISTEN).then(|| (address.to_owned(), port, fields[9].to_owned()))
        })
        .collect()
}

/// Returns the name of the process of each socket, by inode.
fn owners() -> HashMap<String, String> {
    let mut owners = HashMap::new();
    for process in process::all() {
        let files = fs::read_dir(format!("/proc/{}/fd", process.pid)).into_iter().flatten().flatten();
        for target in files.filter_map(|file| fs::read_link(file.path()).ok()) {
            let inode = target.to_str().and_then(|text| text.strip_prefix("socket:[")?.strip_suffix(']'));
            owners.extend(inode.map(|inode| (inode.to_owned(), process.name.clone())));
        }
    }
    owners
}
