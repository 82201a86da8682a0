//! Host ports that lead to pods.
//!
//! [`holders`] records the holder of each port, so that a second pod is refused. In the table a port is an
//! element of a map: `ports-v4` for every address of the node, `ports-at-v4` for one address. Consecutive
//! ports that lead to the same ports of a pod are one element of `ranges-v4` or `ranges-at-v4`.

mod holders;
mod range;

use attachment::{Attachment, Key};
use nftables::{Batch, Data, Element, Family, Netfilter, Rule, Set, Type};

use super::TABLE;
use super::elements::Elements;
use crate::error::{Code, Error, Result, kernel};
use crate::netconf::Header;

pub(super) use holders::{Holder, forget, read};
pub(super) use range::Range;

const PORTS: &str = "ports";
const ARRIVING: &str = "ports-prerouting";
const LEAVING: &str = "ports-output";
const SAME_INTERFACE: &str = "same-interface";

/// Source of the node's own packets to localhost.
const LOCALHOST: &str = "127.0.0.0/8";

/// Reserves the ports of an attachment, or none if one is taken, with an error that names the holder. A
/// holder without an interface (`is_abandoned`) loses its ports. Returns such holders, whose elements must be
/// removed.
pub(super) fn reserve(
    header: &Header,
    pod: &Attachment,
    mut is_abandoned: impl FnMut(&Key) -> Result<bool>,
) -> Result<Vec<Holder>> {
    let Some(own) = Holder::of(pod) else { return Ok(Vec::new()) };
    let (mut staying, mut abandoned) = (Vec::new(), Vec::new());
    // A killed ADD of the same pod may have left an entry.
    for other in holders::read_except(header, Some(&own.key))? {
        match other.common_port(&own) {
            None => staying.push(other),
            Some(_) if is_abandoned(&other.key)? => abandoned.push(other),
            Some(port) => {
                let container = &other.key.container_id;
                let message = format!("port {port} of the node is taken by container {container}");
                return Err(Error::new(Code::Conflict, message));
            }
        }
    }
    staying.push(own);
    holders::write(header, &staying)?;
    Ok(abandoned)
}

/// The host ports of the attachment.
pub(super) fn held(header: &Header, key: &Key, record: Option<&Attachment>) -> Result<Option<Holder>> {
    let holders = match holders::read_index(header)? {
        Some(holders) => holders,
        // The records have the same content, but a full node has many.
        None if record.is_some_and(|record| record.port_mappings.is_empty()) => Vec::new(),
        None => read(header)?,
    };
    Ok(holders.into_iter().find(|holder| holder.key == *key))
}

/// Releases the ports of the attachment.
pub(super) fn release(header: &Header, key: &Key) -> Result<()> {
    holders::write(header, &holders::read_except(header, Some(key))?)
}

/// The chains and the empty maps.
pub(super) fn write_chains(batch: &mut Batch<'_>) {
    batch.add_chain(PORTS);
    for (first_id, v4) in [(11, true), (21, false)] {
        write_maps(batch, first_id, v4);
    }
    batch.add_prerouting_nat_chain(ARRIVING);
    batch.add_output_nat_chain(LEAVING);
    // Connections that portolan-proxy intercepts stay with the proxy: a Service owns its node port, and its
    // port of an external IP that is an address of the node.
    batch.add_rule(ARRIVING, &Rule::default().to_local_address().for_transparent_socket().stop());
    for chain in [ARRIVING, LEAVING] {
        batch.add_rule(chain, &Rule::default().to_local_address().jump(PORTS));
    }
    let pair = [Type::InterfaceName, Type::InterfaceName];
    batch.add_set(&Set { name: SAME_INTERFACE, id: 31, key: &pair, data: Data::None });
}

/// The maps of one family and the rules that look ports up in them: those of one address first.
fn write_maps(batch: &mut Batch<'_>, first_id: u32, v4: bool) {
    let address = if v4 { Type::Ipv4Address } else { Type::Ipv6Address };
    let (end, key) = ([address, Type::Service], [address, Type::Protocol, Type::Service]);
    for (id, at) in [(first_id, true), (first_id + 2, false)] {
        let key = if at { &key[..] } else { &key[1..] };
        let (one, many) = (range::map(v4, at, false), range::map(v4, at, true));
        batch.add_set(&Set { name: one, id, key, data: Data::Value(&end) });
        batch.add_interval_set(&Set { name: many, id: id + 1, key, data: Data::Value(&end[..1]) });
        batch.add_rule(PORTS, &Rule::default().dnat_by(one, v4, at));
        batch.add_rule(PORTS, &Rule::default().dnat_to_address_by(many, v4, at));
    }
}

/// Masquerades a pod's connections to itself through the host port, and connections to localhost, so that the
/// replies pass the node.
pub(super) fn write_masquerade(batch: &mut Batch<'_>, chain: &str) {
    let translated = || Rule::default().destination_was_translated();
    batch.add_rule(chain, &translated().interfaces_in(SAME_INTERFACE).masquerade());
    let localhost = LOCALHOST.parse().expect("a constant");
    batch.add_rule(chain, &translated().source_in(localhost).masquerade());
}

/// Drops packets from pods to the node's localhost, which host ports on localhost would let in.
pub(super) fn write_guard(batch: &mut Batch<'_>, chain: &str, from: Rule) {
    let localhost = LOCALHOST.parse().expect("a constant");
    batch.add_rule(chain, &from.destination_in(localhost).drop());
}

pub(super) fn add_holder(elements: &mut Elements, holder: &Holder) {
    for (map, element) in holder.elements() {
        elements.add(map, element);
    }
}

/// The other elements of a pod with host ports.
pub(super) fn add_pod(elements: &mut Elements, pod: &Attachment) {
    if pod.port_mappings.is_empty() {
        return;
    }
    elements.add(SAME_INTERFACE, Element::Key(same_interface(pod)));
    if let Some(bridge) = &pod.bridge {
        // With bridge-nf-call-iptables the bridge itself forwards the packet and hides its input interface.
        let key = nftables::Key::default().interface("").interface(bridge);
        elements.add(SAME_INTERFACE, Element::Key(key));
    }
}

/// Removes ports and the other elements of their pod, all at once.
pub(super) fn remove(netfilter: &Netfilter, holder: Option<&Holder>, pod: Option<&Attachment>) -> Result<()> {
    let mut elements = Elements::default();
    if let Some(holder) = holder {
        add_holder(&mut elements, holder);
    }
    let has_ports = |pod: &&Attachment| holder.is_some() || !pod.port_mappings.is_empty();
    // Other pods of a bridge use the same element. It is removed with the table.
    if let Some(pod) = pod.filter(|pod| pod.bridge.is_none()).filter(has_ports) {
        elements.add(SAME_INTERFACE, Element::Key(same_interface(pod)));
    }
    elements.delete(netfilter, TABLE).map_err(kernel("remove ports from nft maps"))
}

/// Returns a port that no longer leads to the pod, if there is one.
pub(super) fn lost(netfilter: &Netfilter, pod: &Attachment) -> Result<Option<String>> {
    let Some(holder) = Holder::of(pod) else { return Ok(None) };
    for (range, map, element) in holder.elements_by_range() {
        let found = netfilter.contains(Family::Inet, TABLE, map, &element);
        if !found.map_err(kernel(format!("look port {range} up in nft map {map}")))? {
            return Ok(Some(range.to_string()));
        }
    }
    Ok(None)
}

/// The input and output interface of the pod's packets. A reply from one pod of a bridge to another would
/// bypass the node.
fn same_interface(pod: &Attachment) -> nftables::Key {
    let interface = pod.bridge.as_ref().unwrap_or(&pod.host_interface);
    nftables::Key::default().interface(interface).interface(interface)
}
