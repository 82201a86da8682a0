//! Conflicting programs: kube-proxy, CoreDNS, NodeLocal DNSCache, Cilium, systemd-resolved.

use std::fs;
use std::net::IpAddr;

use super::Finding;
use crate::{command, process};

const CHECK: &str = "conflicts";

/// Names as in `/proc/<pid>/comm` (15 bytes), what to report, and the fix.
const CONFLICTING: [(&str, &str, &str); 4] = [
    (
        "kube-proxy",
        "kube-proxy runs here: both would proxy the same Services",
        "stop it (kubectl -n kube-system patch ds kube-proxy with a nodeSelector that matches no node), \
         then `kube-proxy --cleanup`",
    ),
    ("coredns", "CoreDNS runs here", "stop it, or give portolan-dns another address: --listen ADDR:PORT"),
    ("node-cache", "NodeLocal DNSCache runs here", "remove it: portolan-dns is local to the node already"),
    (
        "cilium-agent",
        "Cilium runs here: it may proxy Services itself",
        "set kubeProxyReplacement to false in its configuration",
    ),
];

/// Number of chains to list.
const SHOWN: usize = 3;

pub(super) fn check() -> Vec<Finding> {
    let running = process::all();
    let is_running = |name: &str| running.iter().any(|process| process.name == name);
    let mut findings: Vec<Finding> = CONFLICTING
        .iter()
        .filter(|(name, ..)| is_running(name))
        .map(|(_, seen, fix)| Finding::error(CHECK, *seen, *fix))
        .collect();
    if findings.is_empty() {
        findings.push(Finding::ok(CHECK, "neither kube-proxy nor CoreDNS runs here"));
    }
    findings.extend(leftover_rules());
    findings.push(resolver());
    findings
}

/// Finds rules of kube-proxy. It leaves them when it exits, and they still translate virtual IPs.
fn leftover_rules() -> Option<Finding> {
    let chains = command::json("nft", &["-j", "list", "chains"]).ok()?;
    let chains = chains["nftables"].as_array()?.iter().filter_map(|item| item.get("chain"));
    let leftover: Vec<String> = chains
        .filter(|chain| {
            chain["name"].as_str().is_some_and(|name| name.starts_with("KUBE-S"))
                || chain["table"] == "kube-proxy"
        })
        .filter_map(|chain| Some(format!("{} {}", chain["table"].as_str()?, chain["name"].as_str()?)))
        .collect();
    (!leftover.is_empty()).then(|| {
        Finding::error(
            CHECK,
            format!("rules of kube-proxy are active: {}", leftover[..leftover.len().min(SHOWN)].join(", ")),
            "kube-proxy --cleanup, or reboot",
        )
    })
}

/// Checks the upstream servers: a resolver on a loopback address may forward back to portolan-dns.
fn resolver() -> Finding {
    let text = fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    let servers = text.lines().filter_map(|line| line.strip_prefix("nameserver")).map(str::trim);
    // portolan-dns skips them for the same reason.
    let (skipped, upstream): (Vec<&str>, Vec<&str>) =
        servers.partition(|server| server.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback()));
    let has_resolved = fs::read_to_string("/run/systemd/resolve/resolv.conf").is_ok();
    match skipped.first() {
        _ if !upstream.is_empty() => {
            Finding::ok(CHECK, format!("other names are forwarded to {}", upstream.join(", ")))
        }
        None => Finding::warning(
            CHECK,
            "/etc/resolv.conf names no server: names outside the cluster are not answered",
            "portolan-dns --upstream ADDR",
        ),
        Some(server) if has_resolved => Finding::ok(
            CHECK,
            format!(
                "{server} is systemd-resolved; portolan-dns uses its servers \
                 (/run/systemd/resolve/resolv.conf)"
            ),
        ),
        Some(server) => Finding::error(
            CHECK,
            format!(
                "/etc/resolv.conf names only {server}, which portolan-dns does not use: it may forward back \
                 to portolan-dns"
            ),
            "portolan-dns --upstream ADDR, or --allow-loopback-upstreams if that server never queries \
             portolan-dns",
        ),
    }
}
