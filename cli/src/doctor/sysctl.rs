//! Kernel settings under `/proc/sys`, and the limit of open files.

use std::fs;
use std::io;

use super::Finding;

const CHECK: &str = "settings";

/// Above this use in per cent, conntrack may soon drop connections.
const CONNTRACK_PERCENT: u64 = 80;

/// Minimum limit of open files. A connection uses two; a busy node with fewer sheds connections.
const FILES: u64 = 16_384;

pub(super) fn check() -> Vec<Finding> {
    let mut findings = vec![forwarding()];
    findings.extend(router_advertisements());
    findings.extend(conntrack());
    findings.extend(files());
    findings
}

fn forwarding() -> Finding {
    match number("net/ipv4/ip_forward") {
        Ok(1) => Finding::ok(CHECK, "net.ipv4.ip_forward is 1"),
        Ok(_) => Finding::warning(
            CHECK,
            "net.ipv4.ip_forward is 0: pods reach nothing beyond the node",
            "portolan-cni sets it with the first pod; to keep it: echo net.ipv4.ip_forward=1 > \
             /etc/sysctl.d/90-portolan.conf && sysctl --system",
        ),
        Err(error) => Finding::warning(CHECK, format!("net.ipv4.ip_forward: {error}"), "mount /proc"),
    }
}

/// Checks accept_ra: a node that forwards IPv6 ignores router advertisements unless it is 2.
fn router_advertisements() -> Option<Finding> {
    if number("net/ipv6/conf/all/forwarding").ok()? == 0 {
        return None;
    }
    let routes = crate::command::json("ip", &["-6", "-j", "route", "show", "default"]).ok()?;
    let learned = routes.as_array()?.iter().find(|route| route["protocol"] == "ra")?;
    let dev = learned["dev"].as_str()?;
    (number(&format!("net/ipv6/conf/{dev}/accept_ra")).ok()? < 2).then(|| {
        Finding::error(
            CHECK,
            format!(
                "the node forwards IPv6, so the default route that {dev} learned from a router will expire"
            ),
            format!("sysctl -w net.ipv6.conf.{dev}.accept_ra=2"),
        )
    })
}

fn conntrack() -> Option<Finding> {
    let (count, max) =
        (number("net/netfilter/nf_conntrack_count").ok()?, number("net/netfilter/nf_conntrack_max").ok()?);
    let is_full = max > 0 && count * 100 / max >= CONNTRACK_PERCENT;
    Some(if is_full {
        let fix = format!("sysctl -w net.netfilter.nf_conntrack_max={}", max * 2);
        Finding::warning(CHECK, format!("{count} of {max} conntrack entries are in use"), fix)
    } else {
        Finding::ok(CHECK, format!("{count} of {max} conntrack entries are in use"))
    })
}

/// Checks the limit of the running proxy.
fn files() -> Option<Finding> {
    let proxy = crate::process::named("portolan-proxy").pop()?;
    let limits = fs::read_to_string(format!("/proc/{}/limits", proxy.pid)).ok()?;
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    let soft: u64 = line.split_whitespace().next()?.parse().ok()?;
    Some(if soft < FILES {
        Finding::warning(
            CHECK,
            format!("portolan-proxy may open {soft} files, two for each connection"),
            "LimitNOFILE=1048576 in its unit, or `ulimit -n 1048576` before it starts",
        )
    } else {
        Finding::ok(CHECK, format!("portolan-proxy may open {soft} files"))
    })
}

fn read(name: &str) -> io::Result<String> {
    fs::read_to_string(format!("/proc/sys/{name}"))
}

fn number(name: &str) -> io::Result<u64> {
    read(name)?.trim().parse().map_err(io::Error::other)
}
