//! Firewall rules that drop packets of pods: a FORWARD policy of `drop`, as Docker sets it.

use std::io;

use serde_json::Value;

use super::Finding;
use crate::command;

const CHECK: &str = "firewall";

pub(super) fn check() -> Vec<Finding> {
    let chains = command::json("nft", &["-j", "list", "chains"]);
    let mut findings = vec![match &chains {
        Ok(chains) => nftables(chains),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Finding::warning(CHECK, "nft is not installed: rules cannot be checked", "apt install nftables")
        }
        Err(error) => Finding::warning(CHECK, error.to_string(), "run as root"),
    }];
    findings.extend(legacy());
    findings
}

fn nftables(chains: &Value) -> Finding {
    let chains = chains["nftables"].as_array().into_iter().flatten().filter_map(|item| item.get("chain"));
    let dropping: Vec<String> = chains
        .filter(|chain| chain["hook"] == "forward" && chain["policy"] == "drop")
        .map(|chain| format!("{} {} {}", text(chain, "family"), text(chain, "table"), text(chain, "name")))
        .filter(|chain| !accepts_pods(chain))
        .collect();
    match dropping.first() {
        None => Finding::ok(CHECK, "no nftables chain drops packets from or to pods by policy"),
        Some(chain) => Finding::error(
            CHECK,
            format!(
                "the policy of {} is drop: packets from and to pods are lost unless a rule accepts them",
                dropping.join(", ")
            ),
            fix(chain),
        ),
    }
}

/// Returns whether the chain has rules like those of [`fix`].
fn accepts_pods(chain: &str) -> bool {
    let arguments: Vec<&str> = ["-j", "list", "chain"].into_iter().chain(chain.split(' ')).collect();
    let Ok(listed) = command::json("nft", &arguments) else { return false };
    let rules = || listed["nftables"].as_array().into_iter().flatten().map(|item| &item["rule"]["expr"]);
    let accepts = |key: &str, rule: &Value| {
        let parts = || rule.as_array().into_iter().flatten();
        let names_pods =
            |part: &Value| part["match"]["left"]["meta"]["key"] == key && part["match"]["right"] == "ptl*";
        parts().any(names_pods) && parts().any(|part| part.get("accept").is_some())
    };
    ["iifname", "oifname"].iter().all(|key| rules().any(|rule| accepts(key, rule)))
}

/// Returns the command that accepts pods' packets, for the firewall that drops them.
fn fix(chain: &str) -> String {
    match chain.split(' ').collect::<Vec<_>>()[..] {
        // The tables of iptables-nft.
        ["ip", "filter", "FORWARD"] => accept("iptables"),
        ["ip6", "filter", "FORWARD"] => accept("ip6tables"),
        _ => format!(
            "nft insert rule {chain} iifname \"ptl*\" accept; nft insert rule {chain} oifname \"ptl*\" accept"
        ),
    }
}

fn accept(program: &str) -> String {
    format!("{program} -I FORWARD -i ptl+ -j ACCEPT; {program} -I FORWARD -o ptl+ -j ACCEPT")
}

/// Checks iptables-legacy, whose rules are in no nftables table.
fn legacy() -> Option<Finding> {
    let tables = std::fs::read_to_string("/proc/net/ip_tables_names").ok()?;
    if !tables.lines().any(|table| table == "filter") {
        return None;
    }
    Some(match command::output("iptables-legacy", &["-S", "FORWARD"]) {
        Ok(rules) if rules.contains("-P FORWARD DROP") && !rules.contains("-o ptl+ -j ACCEPT") => {
            Finding::error(
                CHECK,
                "the policy of FORWARD in iptables-legacy is DROP",
                accept("iptables-legacy"),
            )
        }
        Ok(_) => Finding::ok(CHECK, "iptables-legacy drops no packets from or to pods by policy"),
        Err(error) => Finding::warning(
            CHECK,
            format!("legacy rules cannot be checked: {error}"),
            "apt install iptables",
        ),
    })
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_default()
}
