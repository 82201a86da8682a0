//! The nft table.

use std::io::ErrorKind;
use std::net::IpAddr;

use attachment::Attachment;
use ipnetwork::IpNetwork;
use nftables::{Batch, Data, Element, Family, Key, Netfilter, Rule, Set, Type};

use super::TABLE;
use super::elements::Elements;
use super::network::{self, Network};
use super::ports;
use crate::error::{Error, Result, kernel};
use crate::netconf::Header;
use crate::veth::HOST_PREFIX;

const OWN_ADDRESSES: &str = "own-addresses";
const MASQUERADE: &str = "masquerade";

/// First set ID of the pods within a batch, two per network, after the IDs of the port sets.
const FIRST_SET: u32 = 100;

/// With a router advertisement a pod could become the node's router (RFC 4861 §4.2, CVE-2020-13401).
const ROUTER_ADVERTISEMENT: u8 = 134;

/// Multicast is not masqueraded.
const MULTICAST: [&str; 2] = ["224.0.0.0/4", "ff00::/8"];

/// The set of the network's pods, of the address's family.
pub(super) fn pods(network: &str, address: IpAddr) -> String {
    pods_of(network, address.is_ipv4())
}

fn pods_of(network: &str, v4: bool) -> String {
    format!("pods-{}-{network}", if v4 { "v4" } else { "v6" })
}

pub(super) fn key(address: IpAddr) -> Key {
    Key::default().address(address)
}

/// Whether the table has its rules: `nft flush ruleset` removes the table, `nft flush table` only the rules.
pub(super) fn exist(netfilter: &Netfilter) -> Result<bool> {
    let found = netfilter.has_rules(Family::Inet, TABLE, OWN_ADDRESSES);
    found.map_err(kernel(format!("look for the rules of nft table inet {TABLE}")))
}

/// Returns the first chain with fewer rules than expected. It may have more if the settings of networks are
/// missing.
pub(super) fn lost(netfilter: &Netfilter, header: &Header) -> Result<Option<String>> {
    let networks = network::all(&header.state_dir)?;
    let mut batch = Batch::new(TABLE);
    write_rules(&mut batch, &networks);
    for (chain, written) in batch.rules() {
        let found = netfilter.count_rules(Family::Inet, TABLE, chain);
        let failed = kernel(format!("list the rules of {chain} in nft table inet {TABLE}"));
        if found.map_err(failed)? < *written {
            return Ok(Some(chain.clone()));
        }
    }
    Ok(None)
}

/// Adds a pod to the table.
pub(super) fn add(netfilter: &Netfilter, header: &Header, network: &Network, pod: &Attachment) -> Result<()> {
    if !exist(netfilter)? {
        return rewrite(netfilter, header);
    }
    let mut batch = Batch::new(TABLE);
    let mut elements = Elements::default();
    add_pod(&mut elements, network, pod);
    if let Some(holder) = ports::Holder::of(pod) {
        ports::add_holder(&mut elements, &holder);
    }
    elements.write(&mut batch);
    match batch.commit(netfilter) {
        // The ruleset was flushed, or the table has ports without a known holder.
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::AlreadyExists) => {
            rewrite(netfilter, header)
        }
        other => other.map_err(kernel(format!("add the pod to nft table inet {TABLE}"))),
    }
}

fn add_pod(elements: &mut Elements, network: &Network, pod: &Attachment) {
    for address in pod.ips.iter().filter(|_| network.masquerade) {
        elements.add(&pods(&network.name, *address), Element::Key(key(*address)));
    }
    ports::add_pod(elements, pod);
}

/// Removes a pod, all elements at once; one by one if some are missing.
pub(super) fn remove_pod(netfilter: &Netfilter, network: &str, addresses: &[IpAddr]) -> Vec<Error> {
    let delete = |addresses: &[IpAddr]| {
        let mut batch = Batch::new(TABLE);
        for address in addresses {
            batch.delete_element(&pods(network, *address), key(*address));
        }
        batch.commit(netfilter)
    };
    // The kernel waits for RCU, 14 ms, when it undoes a failed transaction: so leave missing elements out.
    let is_there = |address: &&IpAddr| {
        let element = Element::Key(key(**address));
        let found = netfilter.contains(Family::Inet, TABLE, &pods(network, **address), &element);
        found.unwrap_or(true)
    };
    let addresses: Vec<IpAddr> = addresses.iter().filter(is_there).copied().collect();
    if addresses.is_empty() || delete(&addresses).is_ok() {
        return Vec::new();
    }
    let mut errors = Vec::new();
    for address in &addresses {
        match delete(std::slice::from_ref(address)) {
            Err(e) if e.kind() != ErrorKind::NotFound => {
                errors.push(kernel(format!("remove {address} from nft table inet {TABLE}"))(e));
            }
            _ => {}
        }
    }
    errors
}

/// Rewrites the whole table from the state on disk.
pub(super) fn rewrite(netfilter: &Netfilter, header: &Header) -> Result<()> {
    write(netfilter, header, &network::all(&header.state_dir)?)
}

/// Removes the table, if it exists.
pub(super) fn remove_table(netfilter: &Netfilter) -> Result<()> {
    let mut batch = Batch::new(TABLE);
    // Add before delete: then deleting a missing table is no error.
    batch.add_table();
    batch.delete_table();
    batch.commit(netfilter).map_err(kernel(format!("delete nft table inet {TABLE}")))
}

/// Rewrites the whole table for these networks, or removes it if there is none.
pub(super) fn write(netfilter: &Netfilter, header: &Header, networks: &[Network]) -> Result<()> {
    if networks.is_empty() {
        return remove_table(netfilter);
    }
    let mut batch = Batch::new(TABLE);
    batch.add_table();
    batch.delete_table();
    write_rules(&mut batch, networks);
    let mut elements = Elements::default();
    for network in networks {
        for pod in header.attachments().list(&network.name).0 {
            add_pod(&mut elements, network, &pod);
        }
    }
    for holder in ports::read(header)? {
        ports::add_holder(&mut elements, &holder);
    }
    elements.write(&mut batch);
    batch.commit(netfilter).map_err(kernel(format!("write nft table inet {TABLE}")))
}

/// The table with its chains and sets, without pods.
fn write_rules(batch: &mut Batch<'_>, networks: &[Network]) {
    batch.add_table();
    batch.add_raw_prerouting_chain(OWN_ADDRESSES);
    batch
        .add_rule(OWN_ADDRESSES, &Rule::default().from_interfaces(HOST_PREFIX).without_reverse_path().drop());
    let advertisement = Rule::default().from_interfaces(HOST_PREFIX).icmpv6_type(ROUTER_ADVERTISEMENT);
    batch.add_rule(OWN_ADDRESSES, &advertisement.drop());
    ports::write_guard(batch, OWN_ADDRESSES, Rule::default().from_interfaces(HOST_PREFIX));
    for bridge in networks.iter().filter_map(|network| network.bridge.as_deref()) {
        ports::write_guard(batch, OWN_ADDRESSES, Rule::default().from_interface(bridge));
    }
    ports::write_chains(batch);
    batch.add_postrouting_nat_chain(MASQUERADE);
    ports::write_masquerade(batch, MASQUERADE);
    for (network, id) in networks.iter().zip((FIRST_SET..).step_by(2)) {
        if network.masquerade {
            write_network(batch, network, id);
        }
    }
}

/// The network's sets and its chain. A verdict map for all networks would need one rule only, but the kernel
/// validates the whole map with each change to it (0.3 ms at 2,500 pods).
fn write_network(batch: &mut Batch<'_>, network: &Network, id: u32) {
    let chain = chain(network);
    batch.add_chain(&chain);
    let multicast = MULTICAST.map(|range| range.parse::<IpNetwork>().expect("a constant"));
    for range in network.exclusions.iter().chain(&multicast) {
        batch.add_rule(&chain, &Rule::default().destination_in(*range).stop());
    }
    batch.add_rule(&chain, &Rule::default().masquerade());
    for (kind, v4, id) in [(Type::Ipv4Address, true, id), (Type::Ipv6Address, false, id + 1)] {
        let name = pods_of(&network.name, v4);
        batch.add_set(&Set { name: &name, id, key: &[kind], data: Data::None });
        batch.add_rule(MASQUERADE, &Rule::default().source_in_set(&name, v4).jump(&chain));
    }
}

fn chain(network: &Network) -> String {
    format!("network-{}", network.name)
}
