//! UDP flows that a change of the node's ports makes wrong.
//!
//! Conntrack goes on translating a flow as it did its first packet, and UDP has no end of its own. So flows are forgotten that
//! began before a port led to a pod, and those that are translated to a pod that is deleted. All others stay: TCP, whose
//! connections end by themselves; flows to that port of other machines; what the pod itself has begun.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};

use attachment::{Attachment, PortMapping};
use nftables::Netfilter;
use nftables::conntrack::{self, Filter, Flow};

use crate::error::{Result, kernel};
use crate::netlink::Netlink;

/// The ports of a pod's address that UDP ports of the node lead to.
struct Published<'a> {
    address: IpAddr,
    mappings: Vec<&'a PortMapping>,
}

/// Forgets flows to the pod's ports of this node that lead elsewhere: after the kernel has been told where the ports lead now.
pub(super) fn forget_elsewhere(netfilter: &Netfilter, netlink: &mut Netlink, pod: &Attachment) -> Result<()> {
    let mut own = HashMap::new();
    for published in published(pod) {
        let leads_elsewhere = |flow: &Flow| published.has(flow.to) && !published.is_end(flow);
        let filter = Filter::to_port(published.address.is_ipv4(), published.only_port());
        for flow in conntrack::list(&filter, leads_elsewhere).map_err(kernel("list tracked flows"))? {
            // Other machines have ports of that number too.
            let address = flow.to.ip();
            let is_own = match own.get(&address) {
                Some(is_own) => *is_own,
                None => netlink.has_own(address).map_err(kernel(format!("look for {address}")))?,
            };
            own.insert(address, is_own);
            if is_own {
                flow.forget(netfilter).map_err(kernel("forget a tracked flow"))?;
            }
        }
    }
    Ok(())
}

/// Forgets flows that the pod's ports of this node have led to it.
pub(super) fn forget_translated(netfilter: &Netfilter, pod: &Attachment) -> Result<()> {
    for published in published(pod) {
        let is_translated =
            |flow: &Flow| flow.to != flow.replies_from && published.has(flow.to) && published.is_end(flow);
        let filter = Filter::replies_from(published.address);
        for flow in conntrack::list(&filter, is_translated).map_err(kernel("list tracked flows"))? {
            flow.forget(netfilter).map_err(kernel("forget a tracked flow"))?;
        }
    }
    Ok(())
}

/// What of the pod is published over UDP, for each family.
fn published(pod: &Attachment) -> impl Iterator<Item = Published<'_>> {
    let first = |v4: bool| pod.ips.iter().find(|ip| ip.is_ipv4() == v4);
    [first(true), first(false)].into_iter().flatten().filter_map(|address| {
        let is_of_family = |at: IpAddr| at.is_ipv4() == address.is_ipv4();
        let mappings: Vec<&PortMapping> = pod
            .port_mappings
            .iter()
            .filter(|mapping| mapping.protocol == "udp" && mapping.host_ip.is_none_or(is_of_family))
            .collect();
        (!mappings.is_empty()).then_some(Published { address: *address, mappings })
    })
}

impl Published<'_> {
    /// The port of the node, if there is one only.
    fn only_port(&self) -> Option<u16> {
        let first = self.mappings[0].host_port;
        self.mappings.iter().all(|mapping| mapping.host_port == first).then_some(first)
    }

    /// Whether an address and port, if it is of this node, is published.
    fn has(&self, end: SocketAddr) -> bool {
        self.mappings.iter().any(|mapping| {
            mapping.host_port == end.port()
                && mapping.host_ip.is_none_or(|at| at.is_unspecified() || at == end.ip())
        })
    }

    /// Whether the pod is where a flow to a published port is to end.
    fn is_end(&self, flow: &Flow) -> bool {
        flow.replies_from.ip() == self.address
            && self.mappings.iter().any(|mapping| {
                (mapping.host_port, mapping.container_port) == (flow.to.port(), flow.replies_from.port())
            })
    }
}
