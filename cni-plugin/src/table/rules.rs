//! The nft table itself.

use std::net::IpAddr;

use attachment::{Attachment, Store};
use ipnetwork::IpNetwork;
use nftables::{Batch, Data, Element, Key, Netfilter, Rule, Set, Type, conntrack};

use super::TABLE;
use super::network::{self, Network};
use super::ports;
use crate::error::{Error, Result, kernel};
use crate::netconf::Header;
use crate::veth::HOST_PREFIX;

const OWN_ADDRESSES: &str = "own-addresses";
const MASQUERADE: &str = "masquerade";
const PODS_V4: &str = "pods-v4";
const PODS_V6: &str = "pods-v6";

/// By one of these a pod could become the node's router (RFC 4861 §4.2, CVE-2020-13401).
const ROUTER_ADVERTISEMENT: u8 = 134;

/// Multicast leaves no node through here.
const MULTICAST: [&str; 2] = ["224.0.0.0/4", "ff00::/8"];

pub(super) fn pods(address: IpAddr) -> &'static str {
    if address.is_ipv4() { PODS_V4 } else { PODS_V6 }
}

pub(super) fn key(address: IpAddr) -> Key {
    Key::default().address(address)
}

/// What a pod adds to the table.
pub(super) fn add_pod(batch: &mut Batch<'_>, network: &Network, pod: &Attachment) {
    for address in &pod.ips {
        let element = if network.masquerade {
            Element::Jump(key(*address), chain(network))
        } else {
            Element::Return(key(*address))
        };
        batch.add_elements(pods(*address), &[element]);
    }
    ports::add_pod(batch, pod);
}

/// Connections of an address that the next pod may get.
pub(super) fn forget(netfilter: &Netfilter, address: IpAddr) -> Result<()> {
    conntrack::forget_address(netfilter, address).map_err(kernel(format!("forget connections of {address}")))
}

/// Removes it again, all at once; one by one if some of it is gone already.
pub(super) fn remove_pod(netfilter: &Netfilter, addresses: &[IpAddr]) -> Vec<Error> {
    let delete = |addresses: &[IpAddr]| {
        let mut batch = Batch::new(TABLE);
        for address in addresses {
            batch.delete_element(pods(*address), key(*address));
        }
        batch.commit(netfilter)
    };
    if addresses.is_empty() || delete(addresses).is_ok() {
        return Vec::new();
    }
    let mut errors = Vec::new();
    for address in addresses {
        match delete(std::slice::from_ref(address)) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                errors.push(kernel(format!("remove {address} from nft table inet {TABLE}"))(e));
            }
            _ => {}
        }
    }
    errors
}

/// Writes the whole table anew from what is on disk.
pub(super) fn rewrite(netfilter: &Netfilter, header: &Header) -> Result<()> {
    write(netfilter, &header.attachments(), &network::all(&header.state_dir)?)
}

/// Removes the table, if it is there.
pub(super) fn remove_table(netfilter: &Netfilter) -> Result<()> {
    let mut batch = Batch::new(TABLE);
    // Adding before deleting makes deleting what is not there no error.
    batch.add_table();
    batch.delete_table();
    batch.commit(netfilter).map_err(kernel(format!("delete nft table inet {TABLE}")))
}

/// Writes the whole table anew for these networks, or removes it if there is none.
pub(super) fn write(netfilter: &Netfilter, attachments: &Store, networks: &[Network]) -> Result<()> {
    if networks.is_empty() {
        return remove_table(netfilter);
    }
    let mut batch = Batch::new(TABLE);
    batch.add_table();
    batch.delete_table();
    batch.add_table();
    batch.add_raw_prerouting_chain(OWN_ADDRESSES);
    batch.add_rule(OWN_ADDRESSES, &Rule::default().from_interfaces(HOST_PREFIX).without_way_back().drop());
    let advertisement = Rule::default().from_interfaces(HOST_PREFIX).icmpv6_type(ROUTER_ADVERTISEMENT);
    batch.add_rule(OWN_ADDRESSES, &advertisement.drop());
    ports::write_guard(&mut batch, OWN_ADDRESSES, Rule::default().from_interfaces(HOST_PREFIX));
    for bridge in networks.iter().filter_map(|network| network.bridge.as_deref()) {
        ports::write_guard(&mut batch, OWN_ADDRESSES, Rule::default().from_interface(bridge));
    }
    ports::write_chains(&mut batch);
    batch.add_postrouting_nat_chain(MASQUERADE);
    ports::write_masquerade(&mut batch, MASQUERADE);
    for (name, id, kind, v4) in
        [(PODS_V4, 1, Type::Ipv4Address, true), (PODS_V6, 2, Type::Ipv6Address, false)]
    {
        batch.add_set(&Set { name, id, key: &[kind], data: Data::Verdict });
        batch.add_rule(MASQUERADE, &Rule::default().source_verdict(name, v4));
    }
    for network in networks {
        if network.masquerade {
            write_chain(&mut batch, network);
        }
        for pod in attachments.list(&network.name).0 {
            add_pod(&mut batch, network, &pod);
        }
    }
    batch.commit(netfilter).map_err(kernel(format!("write nft table inet {TABLE}")))
}

fn write_chain(batch: &mut Batch<'_>, network: &Network) {
    let chain = chain(network);
    batch.add_chain(&chain);
    let multicast = MULTICAST.map(|range| range.parse::<IpNetwork>().expect("a constant"));
    for range in network.exclusions.iter().chain(&multicast) {
        batch.add_rule(&chain, &Rule::default().destination_in(*range).stop());
    }
    batch.add_rule(&chain, &Rule::default().masquerade());
}

fn chain(network: &Network) -> String {
    format!("network-{}", network.name)
}
