//! Ports of the node that lead to a pod.
//!
//! `ports/<protocol>-<port>.json` says who has a port, so that a second one is told so instead of taking it over. In the
//! table it is an element of a map: `ports-v4` for every address of the node, `ports-at-v4` for one of them.

use std::fs;
use std::net::IpAddr;
use std::path::PathBuf;

use attachment::{Attachment, Key, PortMapping};
use nftables::{Batch, Data, Element, Family, Netfilter, Rule, Set, Type};
use serde::{Deserialize, Serialize};

use super::TABLE;
use super::elements::Elements;
use crate::error::{Code, Error, Result, io, kernel};
use crate::netconf::Header;
use crate::whole;

const PORTS: &str = "ports";
const ARRIVING: &str = "ports-prerouting";
const LEAVING: &str = "ports-output";
const SAME_INTERFACE: &str = "same-interface";

/// What packets of the node itself, to localhost, come from.
const LOCALHOST: &str = "127.0.0.0/8";

#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Holder {
    network: String,
    container_id: String,
    ifname: String,
    host_ip: Option<IpAddr>,
    /// Whether the pod has an address of the family.
    v4: bool,
    v6: bool,
}

/// One element: where it is, and what it says.
struct Translation {
    map: &'static str,
    key: nftables::Key,
    to: nftables::Key,
}

/// Takes the ports of an attachment, or none of them and says who has one.
pub(super) fn reserve(header: &Header, pod: &Attachment) -> Result<()> {
    let mut files = Vec::new();
    for mapping in &pod.port_mappings {
        let path = path(header, mapping);
        let mut holders = read(&path);
        let holder = holder(pod, mapping);
        if let Some(other) = holders.iter().find(|other| collides(other, &holder)) {
            let port = format!("{}/{}", mapping.host_port, mapping.protocol);
            let message = format!("port {port} of the node is taken by container {}", other.container_id);
            return Err(Error::new(Code::Conflict, message));
        }
        holders.push(holder);
        files.push((path, holders));
    }
    for (path, holders) in files {
        let directory = header.state_dir.join("ports");
        fs::create_dir_all(&directory).map_err(io("create", &directory))?;
        let json = serde_json::to_vec(&holders).expect("holders have string keys only");
        whole::write(&path, &json).map_err(io("write", &path))?;
    }
    Ok(())
}

/// Gives back what the attachment has of them.
pub(super) fn release(header: &Header, key: &Key, mappings: &[PortMapping]) -> Vec<Error> {
    let mut errors = Vec::new();
    for mapping in mappings {
        let path = path(header, mapping);
        let mut holders = read(&path);
        holders.retain(|other| {
            (&other.network, &other.container_id, &other.ifname)
                != (&key.network, &key.container_id, &key.ifname)
        });
        let written = if holders.is_empty() {
            whole::remove(&path)
        } else {
            whole::write(&path, &serde_json::to_vec(&holders).expect("holders have string keys only"))
        };
        errors.extend(written.err().map(io("write", &path)));
    }
    errors
}

/// The attachment with those of its ports that it has taken.
pub(super) fn owned(header: &Header, pod: &Attachment) -> Attachment {
    let has = |mapping: &&PortMapping| read(&path(header, mapping)).contains(&holder(pod, mapping));
    let port_mappings = pod.port_mappings.iter().filter(has).cloned().collect();
    Attachment { port_mappings, ..pod.clone() }
}

/// The chains and maps, still empty.
pub(super) fn write_chains(batch: &mut Batch<'_>) {
    let destination = |address| [address, Type::Service];
    for (id, v4, all, at) in [(11, true, "ports-v4", "ports-at-v4"), (13, false, "ports-v6", "ports-at-v6")] {
        let address = if v4 { Type::Ipv4Address } else { Type::Ipv6Address };
        let data = destination(address);
        let key = [address, Type::Protocol, Type::Service];
        batch.add_set(&Set { name: all, id, key: &key[1..], data: Data::Value(&data) });
        batch.add_set(&Set { name: at, id: id + 1, key: &key, data: Data::Value(&data) });
    }
    batch.add_chain(PORTS);
    for v4 in [true, false] {
        batch.add_rule(
            PORTS,
            &Rule::default().dnat_by(if v4 { "ports-at-v4" } else { "ports-at-v6" }, v4, true),
        );
        batch.add_rule(PORTS, &Rule::default().dnat_by(if v4 { "ports-v4" } else { "ports-v6" }, v4, false));
    }
    batch.add_prerouting_nat_chain(ARRIVING);
    batch.add_output_nat_chain(LEAVING);
    // Connections that portolan-proxy has intercepted stay with it: a Service has its node port, and its port of an external IP
    // that is an address of the node.
    batch.add_rule(ARRIVING, &Rule::default().to_local_address().for_transparent_socket().stop());
    for chain in [ARRIVING, LEAVING] {
        batch.add_rule(chain, &Rule::default().to_local_address().jump(PORTS));
    }
    let pair = [Type::InterfaceName, Type::InterfaceName];
    batch.add_set(&Set { name: SAME_INTERFACE, id: 15, key: &pair, data: Data::None });
}

/// Answers must come back this way: from a pod that reaches itself by the node's port, and to localhost.
pub(super) fn write_masquerade(batch: &mut Batch<'_>, chain: &str) {
    let translated = || Rule::default().destination_was_translated();
    batch.add_rule(chain, &translated().interfaces_in(SAME_INTERFACE).masquerade());
    let localhost = LOCALHOST.parse().expect("a constant");
    batch.add_rule(chain, &translated().source_in(localhost).masquerade());
}

/// Packets from pods to the node's localhost, which ports on localhost would let in.
pub(super) fn write_guard(batch: &mut Batch<'_>, chain: &str, from: Rule) {
    let localhost = LOCALHOST.parse().expect("a constant");
    batch.add_rule(chain, &from.destination_in(localhost).drop());
}

pub(super) fn add_pod(elements: &mut Elements, pod: &Attachment) {
    if pod.port_mappings.is_empty() {
        return;
    }
    for translation in translations(pod) {
        elements.add(translation.map, Element::Pair(translation.key, translation.to));
    }
    elements.add(SAME_INTERFACE, Element::Key(same_interface(pod)));
    if let Some(bridge) = &pod.bridge {
        // With bridge-nf-call-iptables the bridge itself passes it on, and says not where it came from.
        let key = nftables::Key::default().interface("").interface(bridge);
        elements.add(SAME_INTERFACE, Element::Key(key));
    }
}

/// Removes them; each on its own, since some may be gone already.
pub(super) fn remove_pod(netfilter: &Netfilter, pod: &Attachment) -> Vec<Error> {
    if pod.port_mappings.is_empty() {
        return Vec::new();
    }
    let mut elements: Vec<_> = translations(pod).into_iter().map(|t| (t.map, t.key)).collect();
    // Other pods of a bridge arrive by it too: it goes with the table.
    if pod.bridge.is_none() {
        elements.push((SAME_INTERFACE, same_interface(pod)));
    }
    let mut errors = Vec::new();
    for (set, key) in elements {
        let mut batch = Batch::new(TABLE);
        batch.delete_element(set, key);
        match batch.commit(netfilter) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                errors.push(kernel(format!("remove a port from nft map {set}"))(e));
            }
            _ => {}
        }
    }
    errors
}

/// A port that does not lead to the pod any more, if there is one.
pub(super) fn lost(netfilter: &Netfilter, pod: &Attachment) -> Result<Option<String>> {
    for mapping in &pod.port_mappings {
        let only = Attachment { port_mappings: vec![mapping.clone()], ..pod.clone() };
        let port = format!("{}/{}", mapping.host_port, mapping.protocol);
        for Translation { map, key, .. } in translations(&only) {
            let found = netfilter.contains(Family::Inet, TABLE, map, key);
            if !found.map_err(kernel(format!("look port {port} up in nft map {map}")))? {
                return Ok(Some(port));
            }
        }
    }
    Ok(None)
}

fn translations(pod: &Attachment) -> Vec<Translation> {
    let mut found = Vec::new();
    for mapping in &pod.port_mappings {
        let first = |v4: bool| pod.ips.iter().find(|ip| ip.is_ipv4() == v4);
        let of_family = |ip: &&IpAddr| mapping.host_ip.is_none_or(|at| at.is_ipv4() == ip.is_ipv4());
        for ip in [first(true), first(false)].into_iter().flatten().filter(of_family) {
            let at = mapping.host_ip.filter(|at| !at.is_unspecified());
            let map = match (at.is_some(), ip.is_ipv4()) {
                (false, true) => "ports-v4",
                (false, false) => "ports-v6",
                (true, true) => "ports-at-v4",
                (true, false) => "ports-at-v6",
            };
            let key = at.map_or_else(nftables::Key::default, |at| nftables::Key::default().address(at));
            found.push(Translation {
                map,
                key: key.protocol(protocol(mapping)).port(mapping.host_port),
                to: nftables::Key::default().address(*ip).port(mapping.container_port),
            });
        }
    }
    found
}

/// By which packets of the pod arrive and leave. From one pod of a bridge to another an answer would not pass the node.
fn same_interface(pod: &Attachment) -> nftables::Key {
    let interface = pod.bridge.as_ref().unwrap_or(&pod.host_interface);
    nftables::Key::default().interface(interface).interface(interface)
}

/// `IPPROTO_*`; the configuration allows no other.
fn protocol(mapping: &PortMapping) -> u8 {
    match &*mapping.protocol {
        "udp" => 17,
        "sctp" => 132,
        _ => 6,
    }
}

fn holder(pod: &Attachment, mapping: &PortMapping) -> Holder {
    let of = |v4: bool| {
        pod.ips.iter().any(|ip| ip.is_ipv4() == v4) && mapping.host_ip.is_none_or(|at| at.is_ipv4() == v4)
    };
    Holder {
        network: pod.network.clone(),
        container_id: pod.container_id.clone(),
        ifname: pod.ifname.clone(),
        host_ip: mapping.host_ip.filter(|at| !at.is_unspecified()),
        v4: of(true),
        v6: of(false),
    }
}

/// Two hold one port if they meet in a family, at the same address or one of them at all.
fn collides(a: &Holder, b: &Holder) -> bool {
    ((a.v4 && b.v4) || (a.v6 && b.v6))
        && (a.host_ip.is_none() || b.host_ip.is_none() || a.host_ip == b.host_ip)
}

fn path(header: &Header, mapping: &PortMapping) -> PathBuf {
    header.state_dir.join("ports").join(format!("{}-{}.json", mapping.protocol, mapping.host_port))
}

/// A file that is not there or not whole says that nobody has the port.
fn read(path: &std::path::Path) -> Vec<Holder> {
    fs::read(path).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default()
}
