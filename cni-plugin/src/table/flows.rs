//! UDP flows that a change of the node's ports makes wrong.
//!
//! Conntrack goes on translating a flow as it did its first packet, and UDP has no end of its own. So flows
//! are forgotten that began before a port led to a pod, and those that are translated to a pod that is
//! deleted. All others stay: TCP, whose connections end by themselves; flows to that port of other machines;
//! what the pod itself has begun.

use std::collections::HashMap;
use std::net::IpAddr;

use nftables::Netfilter;
use nftables::conntrack::{self, Filter, Flow};

use super::ports::{Holder, Range};
use crate::error::{Result, kernel};
use crate::netlink::Netlink;

/// Forgets flows to a pod's ports of this node that lead elsewhere: after the kernel has been told where the
/// ports lead now.
pub(super) fn forget_elsewhere(
    netfilter: &Netfilter,
    netlink: &mut Netlink,
    holder: Option<&Holder>,
) -> Result<()> {
    let mut own = HashMap::new();
    for (address, ranges) in holder.into_iter().flat_map(Holder::udp) {
        let leads_elsewhere = |flow: &Flow| is_to(&ranges, flow) && !leads_to(address, &ranges, flow);
        let filter = Filter::to_port(address.is_ipv4(), only_port(&ranges));
        for flow in conntrack::list(&filter, leads_elsewhere).map_err(kernel("list tracked flows"))? {
            // Other machines have ports of that number too.
            let to = flow.to.ip();
            let is_own = match own.get(&to) {
                Some(is_own) => *is_own,
                None => netlink.has_own(to).map_err(kernel(format!("look for {to}")))?,
            };
            own.insert(to, is_own);
            if is_own {
                flow.forget(netfilter).map_err(kernel("forget a tracked flow"))?;
            }
        }
    }
    Ok(())
}

/// Forgets flows that a pod's ports of this node have led to it.
pub(super) fn forget_translated(netfilter: &Netfilter, holder: &Holder) -> Result<()> {
    for (address, ranges) in holder.udp() {
        let is_translated = |flow: &Flow| flow.to != flow.replies_from && leads_to(address, &ranges, flow);
        let filter = Filter::replies_from(address);
        for flow in conntrack::list(&filter, is_translated).map_err(kernel("list tracked flows"))? {
            flow.forget(netfilter).map_err(kernel("forget a tracked flow"))?;
        }
    }
    Ok(())
}

/// The port of the node, if there is one only: the kernel looks for one, or for all.
fn only_port(ranges: &[&Range]) -> Option<u16> {
    if let [range] = ranges { range.only_port() } else { None }
}

/// Whether a flow is to one of the ports, if it is to an address of this node.
fn is_to(ranges: &[&Range], flow: &Flow) -> bool {
    ranges.iter().any(|range| range.has(flow.to))
}

/// Whether the pod at `address` is where a flow ends, as one of the ports says.
fn leads_to(address: IpAddr, ranges: &[&Range], flow: &Flow) -> bool {
    let is_end =
        |range: &&Range| range.has(flow.to) && range.port_of_pod(flow.to.port()) == flow.replies_from.port();
    flow.replies_from.ip() == address && ranges.iter().any(is_end)
}
