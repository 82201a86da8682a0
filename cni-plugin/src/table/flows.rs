//! Conntrack entries of UDP flows that a change of host ports makes wrong.
//!
//! Conntrack keeps translating a flow as it did its first packet, and a UDP flow has no end. So ADD deletes
//! flows that began before a port led to the pod, and DEL deletes flows that are translated to the deleted
//! pod. All other flows stay: TCP, whose connections end by themselves; flows to the same port of other
//! machines; flows that the pod itself began.

use std::collections::HashMap;
use std::net::IpAddr;

use nftables::Netfilter;
use nftables::conntrack::{self, Filter, Flow};

use super::ports::{Holder, Range};
use crate::error::{Result, kernel};
use crate::netlink::Netlink;

/// Deletes flows to a pod's host ports that lead elsewhere. Call it after the rules were changed.
pub(super) fn delete_stale(
    netfilter: &Netfilter,
    netlink: &mut Netlink,
    holder: Option<&Holder>,
) -> Result<()> {
    let mut own = HashMap::new();
    for (address, ranges) in holder.into_iter().flat_map(Holder::udp) {
        let leads_elsewhere = |flow: &Flow| is_to(&ranges, flow) && !leads_to(address, &ranges, flow);
        let filter = Filter::to_port(address.is_ipv4(), only_port(&ranges));
        for flow in conntrack::list(&filter, leads_elsewhere).map_err(kernel("list conntrack entries"))? {
            // Other machines have ports of that number too.
            let to = flow.to.ip();
            let is_own = match own.get(&to) {
                Some(is_own) => *is_own,
                None => netlink.has_own(to).map_err(kernel(format!("look for {to}")))?,
            };
            own.insert(to, is_own);
            if is_own {
                flow.delete(netfilter).map_err(kernel("delete a conntrack entry"))?;
            }
        }
    }
    Ok(())
}

/// Deletes flows that the pod's host ports have translated to it.
pub(super) fn delete_translated(netfilter: &Netfilter, holder: &Holder) -> Result<()> {
    for (address, ranges) in holder.udp() {
        let is_translated = |flow: &Flow| flow.to != flow.replies_from && leads_to(address, &ranges, flow);
        let filter = Filter::replies_from(address);
        for flow in conntrack::list(&filter, is_translated).map_err(kernel("list conntrack entries"))? {
            flow.delete(netfilter).map_err(kernel("delete a conntrack entry"))?;
        }
    }
    Ok(())
}

/// The host port, if there is only one: conntrack can filter by one port, or by none.
fn only_port(ranges: &[&Range]) -> Option<u16> {
    if let [range] = ranges { range.only_port() } else { None }
}

/// Whether a flow is to one of the ports, given that its destination is this node.
fn is_to(ranges: &[&Range], flow: &Flow) -> bool {
    ranges.iter().any(|range| range.has(flow.to))
}

/// Whether the pod at `address` is the end of the flow, as one of the ports requires.
fn leads_to(address: IpAddr, ranges: &[&Range], flow: &Flow) -> bool {
    let is_end =
        |range: &&Range| range.has(flow.to) && range.port_of_pod(flow.to.port()) == flow.replies_from.port();
    flow.replies_from.ip() == address && ranges.iter().any(is_end)
}
