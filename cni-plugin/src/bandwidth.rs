//! Bandwidth limits of a pod: token buckets on the node's side, where the pod cannot remove them.
//!
//! ```text
//! to the pod    ptl<hash>  root tbf
//! from the pod  ptl<hash>  ingress, everything redirected to ptb<hash>, root tbf, then as before
//! ```
//! The kernel queues only outgoing packets. `ptb<hash>` is an ifb interface: incoming packets are redirected
//! to it and leave through its queue.

use nix::errno::Errno;

use crate::error::{Code, Error, Result, kernel};
use crate::netconf::{Bandwidth, Limit};
use crate::netlink::{Batch, Netlink};
use crate::veth;

/// Part of each packet's length.
const ETHERNET_HEADER: u32 = 14;

/// Limits the pod behind `host_name`. `ifb` is the interface for what the pod sends, `alias` its alias.
pub(crate) fn limit(
    host: &mut Netlink,
    host_name: &str,
    ifb: &str,
    alias: &str,
    bandwidth: &Bandwidth,
) -> Result<()> {
    let link = veth::required(host, host_name)?;
    for (field, limit) in [("ingressBurst", bandwidth.to_pod), ("egressBurst", bandwidth.from_pod)] {
        let packet = link.mtu + ETHERNET_HEADER;
        if let Some(Limit { burst, .. }) = limit.filter(|limit| limit.burst < packet) {
            let why = format!("{burst} bytes are less than one packet of {packet}: nothing could pass");
            return Err(Error::new(Code::InvalidConfig, format!("runtimeConfig.bandwidth.{field}: {why}")));
        }
    }
    let mut batch = Batch::default();
    if let Some(limit) = bandwidth.to_pod {
        batch.limit(link.index, limit, host_name);
    }
    if let Some(limit) = bandwidth.from_pod {
        // Left by a killed ADD; it limits no pod.
        host.delete_link(ifb).map_err(kernel(format!("delete a left-over {ifb}")))?;
        host.add_ifb(ifb, link.mtu).map_err(|e| match e.raw_os_error().map(Errno::from_raw) {
            Some(Errno::EOPNOTSUPP) => no_ifb(),
            _ => kernel(format!("create interface {ifb}"))(e),
        })?;
        veth::disable_ipv6(ifb);
        let mut up = Batch::default();
        up.set_alias(ifb, alias);
        up.get_link(ifb);
        up.set_up(ifb);
        let index = veth::only_link(up.commit(host)?.links, ifb)?.index;
        batch.limit(index, limit, ifb);
        batch.redirect(link.index, index, host_name);
    }
    batch.commit(host)?;
    Ok(())
}

fn no_ifb() -> Error {
    let why = "this kernel has no ifb interfaces (CONFIG_IFB), which egress limits need";
    let suggestion = "load the module ifb, or leave out egressRate";
    Error::new(Code::InvalidConfig, format!("runtimeConfig.bandwidth.egressRate: {why}; {suggestion}"))
}

/// Returns an error if a limit is missing or was changed.
pub(crate) fn check(host: &mut Netlink, host_name: &str, ifb: &str, bandwidth: &Bandwidth) -> Result<()> {
    let link = veth::required(host, host_name)?;
    if let Some(limit) = bandwidth.to_pod {
        check_limit(host, link.index, host_name, limit)?;
    }
    if let Some(limit) = bandwidth.from_pod {
        let other = veth::required(host, ifb)?;
        check_limit(host, other.index, ifb, limit)?;
        let leads = host.redirects(link.index, other.index).map_err(kernel("look for the redirection"))?;
        if !leads || !other.is_up {
            let message =
                format!("packets from {host_name} are no longer redirected to {ifb}: egress is not limited");
            return Err(Error::new(Code::Conflict, message));
        }
    }
    Ok(())
}

fn check_limit(host: &mut Netlink, index: u32, name: &str, limit: Limit) -> Result<()> {
    let found = host.rate_limit(index).map_err(kernel(format!("look for the limit of {name}")))?;
    match found {
        Some(found) if found.rate == limit.rate => Ok(()),
        Some(found) => {
            let message =
                format!("{name} is limited to {} bytes a second and not {}", found.rate, limit.rate);
            Err(Error::new(Code::Conflict, message))
        }
        None => Err(Error::new(Code::Conflict, format!("{name} has lost its limit"))),
    }
}
