//! Other programs for the same work: kube-proxy, CoreDNS, NodeLocal DNSCache, systemd-resolved.

use std::fs;
use std::net::IpAddr;

use super::Finding;
use crate::{process, tool};

const CHECK: &str = "conflicts";

/// Names as `/proc/<pid>/comm` has them: 15 bytes. What each is, and what to do.
const RIVALS: [(&str, &str, &str); 4] = [
    (
        "kube-proxy",
        "kube-proxy runs here: both would carry the same Services",
        "stop it (kubectl -n kube-system patch ds kube-proxy with a nodeSelector that matches no node), then `kube-proxy --cleanup`",
    ),
    ("coredns", "CoreDNS runs here", "stop it, or let portolan-dns listen elsewhere: --listen ADDR:PORT"),
    ("node-cache", "NodeLocal DNSCache runs here", "remove it: portolan-dns is local to the node already"),
    (
        "cilium-agent",
        "Cilium runs here: it may carry Services itself",
        "set kubeProxyReplacement to false in its configuration",
    ),
];

/// A few are told; the rest is the same.
const SHOWN: usize = 3;

pub(super) fn examine() -> Vec<Finding> {
    let running = process::all();
    let is_running = |name: &str| running.iter().any(|process| process.name == name);
    let mut findings: Vec<Finding> = RIVALS
        .iter()
        .filter(|(name, ..)| is_running(name))
        .map(|(_, seen, fix)| Finding::error(CHECK, *seen, *fix))
        .collect();
    if findings.is_empty() {
        findings.push(Finding::ok(CHECK, "neither kube-proxy nor CoreDNS runs here"));
    }
    findings.extend(left_rules());
    findings.push(resolver());
    findings
}

/// kube-proxy leaves its rules when it ends, and they go on translating virtual IPs.
fn left_rules() -> Option<Finding> {
    let chains = tool::json("nft", &["-j", "list", "chains"]).ok()?;
    let chains = chains["nftables"].as_array()?.iter().filter_map(|item| item.get("chain"));
    let left: Vec<String> = chains
        .filter(|chain| {
            chain["name"].as_str().is_some_and(|name| name.starts_with("KUBE-S"))
                || chain["table"] == "kube-proxy"
        })
        .filter_map(|chain| Some(format!("{} {}", chain["table"].as_str()?, chain["name"].as_str()?)))
        .collect();
    (!left.is_empty()).then(|| {
        Finding::error(
            CHECK,
            format!("rules of kube-proxy are in force: {}", left[..left.len().min(SHOWN)].join(", ")),
            "kube-proxy --cleanup (it knows all of them), or reboot",
        )
    })
}

/// A resolver on a loopback address would be asked by portolan-dns, and might ask it in turn.
fn resolver() -> Finding {
    let text = fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    let servers = text.lines().filter_map(|line| line.strip_prefix("nameserver")).map(str::trim);
    // As portolan-dns: it leaves out those that might ask it in turn.
    let (left_out, asked): (Vec<&str>, Vec<&str>) =
        servers.partition(|server| server.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback()));
    let has_behind = fs::read_to_string("/run/systemd/resolve/resolv.conf").is_ok();
    match left_out.first() {
        _ if !asked.is_empty() => {
            Finding::ok(CHECK, format!("other names are asked of {}", asked.join(", ")))
        }
        None => Finding::warning(
            CHECK,
            "/etc/resolv.conf names no server: names outside the cluster are not answered",
            "portolan-dns --upstream ADDR",
        ),
        Some(server) if has_behind => Finding::ok(
            CHECK,
            format!(
                "{server} is systemd-resolved; portolan-dns asks the servers behind it (/run/systemd/resolve/resolv.conf)"
            ),
        ),
        Some(server) => Finding::error(
            CHECK,
            format!(
                "/etc/resolv.conf names only {server}, which portolan-dns does not ask: it might be asked in turn"
            ),
            "portolan-dns --upstream ADDR, or --allow-loopback-upstreams if that server never asks portolan-dns",
        ),
    }
}
