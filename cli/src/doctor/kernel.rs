//! Kernel features, probed in a temporary network namespace.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use netns::NetNs;
use nftables::{Batch, Rule};
use socket2::{Domain, Socket, Type};

use super::Finding;
use crate::command;

const CHECK: &str = "kernel";

/// Any name: the namespace is private.
const TABLE: &str = "portolan-doctor";
const CHAIN: &str = "chain";

/// Feature and its purpose, the probe, and what the kernel needs.
type Probe = (&'static str, fn() -> io::Result<()>, &'static str);

const PROBES: [Probe; 9] = [
    ("veth interfaces (pods)", veth, "CONFIG_VETH, module veth"),
    ("nftables with TPROXY (virtual IPs)", tproxy, "CONFIG_NFT_TPROXY, module nft_tproxy"),
    ("nftables socket match (clients' addresses)", socket_match, "CONFIG_NFT_SOCKET, module nft_socket"),
    (
        "nftables reject (other ports of virtual IPs)",
        reject,
        "CONFIG_NFT_REJECT_INET, module nft_reject_inet",
    ),
    ("nftables notrack (virtual IPs beside published ports)", notrack, "CONFIG_NF_CONNTRACK, module nft_ct"),
    (
        "nftables fib and sets that rules fill (replies of the node's servers)",
        replies,
        "CONFIG_NFT_FIB_INET, modules nft_fib_inet, nft_fib_ipv4 and nft_fib_ipv6",
    ),
    ("nftables masquerade (pods to the outside)", masquerade, "CONFIG_NFT_MASQ, module nft_masq"),
    ("IP_TRANSPARENT sockets (clients' addresses)", transparent, "CAP_NET_ADMIN"),
    ("VXLAN (pods of nodes on other links)", vxlan, "CONFIG_VXLAN, module vxlan"),
];

pub(super) fn check() -> Vec<Finding> {
    if !nix::unistd::geteuid().is_root() {
        return vec![Finding::warning(CHECK, "not checked: this needs root", "sudo portolan doctor")];
    }
    let results = NetNs::create_unnamed()
        .and_then(|netns| netns.run(|| PROBES.map(|(feature, probe, needs)| (feature, probe(), needs))));
    let results = match results {
        Ok(results) => results,
        Err(error) => {
            let fix = "a container needs CAP_SYS_ADMIN and CAP_NET_ADMIN, and a kernel with CONFIG_NET_NS";
            return vec![Finding::error(CHECK, error.to_string(), fix)];
        }
    };
    let mut findings: Vec<Finding> = results
        .iter()
        .filter_map(|(feature, result, needs)| {
            let error = result.as_ref().err()?;
            Some(Finding::error(CHECK, format!("no {feature}: {error}"), format!("the kernel needs {needs}")))
        })
        .collect();
    if findings.is_empty() {
        let all: Vec<&str> = PROBES.iter().map(|(feature, ..)| *feature).collect();
        findings.push(Finding::ok(CHECK, format!("has {}", all.join(", "))));
    }
    findings
}

fn veth() -> io::Result<()> {
    let line = ["link", "add", "probed", "type", "veth", "peer", "name", "peer"];
    command::output("ip", &line).map(|_output| ())
}

fn vxlan() -> io::Result<()> {
    let line = ["link", "add", "tunnel", "type", "vxlan", "id", "1", "dstport", "8472", "dev", "lo"];
    command::output("ip", &line).map(|_output| ())
}

fn tproxy() -> io::Result<()> {
    let mut batch = table();
    batch.add_prerouting_chain(CHAIN);
    batch.add_socket_address_set("set", 1, true);
    let listener = SocketAddr::from(([127, 0, 0, 1], 1));
    batch.add_rule(CHAIN, &Rule::default().tcp_to("set", true).tproxy(listener).accept());
    batch.commit(&nftables::Netfilter::open()?)
}

fn socket_match() -> io::Result<()> {
    let mut batch = table();
    batch.add_prerouting_chain(CHAIN);
    batch.add_rule(CHAIN, &Rule::default().for_transparent_socket().set_mark_bit(1).accept());
    batch.commit(&nftables::Netfilter::open()?)
}

fn reject() -> io::Result<()> {
    let mut batch = table();
    batch.add_input_chain(CHAIN);
    batch.add_rule(CHAIN, &Rule::default().tcp().for_wildcard_socket().reset());
    batch.add_rule(CHAIN, &Rule::default().reject());
    batch.commit(&nftables::Netfilter::open()?)
}

fn notrack() -> io::Result<()> {
    let mut batch = table();
    batch.add_raw_prerouting_chain(CHAIN);
    batch.add_rule(CHAIN, &Rule::default().udp().notrack());
    batch.commit(&nftables::Netfilter::open()?)
}

fn replies() -> io::Result<()> {
    let mut batch = table();
    batch.add_prerouting_chain(CHAIN);
    batch.add_flow_set("set", 1, true, 16);
    let recorded = Rule::default().from_foreign_address().tcp();
    batch.add_rule(CHAIN, &recorded.record_reverse_flow("set", true, Duration::from_secs(1)));
    batch.commit(&nftables::Netfilter::open()?)
}

fn masquerade() -> io::Result<()> {
    let mut batch = table();
    batch.add_postrouting_nat_chain(CHAIN);
    batch.add_rule(CHAIN, &Rule::default().masquerade());
    batch.commit(&nftables::Netfilter::open()?)
}

/// Returns a batch that recreates the table, so that it is empty.
fn table() -> Batch<'static> {
    let mut batch = Batch::new(TABLE);
    batch.add_table();
    batch.delete_table();
    batch.add_table();
    batch
}

fn transparent() -> io::Result<()> {
    Socket::new(Domain::IPV4, Type::STREAM, None)?.set_ip_transparent_v4(true)
}
