//! The veth pair that connects a pod: one end in the pod, one on the node.

use std::hash::Hasher as _;
use std::io::Read as _;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;
use std::time::{Duration, Instant};

use fnv::FnvHasher;
use ipnetwork::IpNetwork;

use crate::error::{Code, Error, Result, io, kernel};
use crate::netlink::{Batch, Link, Netlink, Outcome, Route, RouteTarget, Veth};
use crate::pod::Pod;

/// Prefix of pod interfaces on the node.
pub(crate) const HOST_PREFIX: &str = "ptl";

/// Prefix of ifb interfaces, to which the packets of a pod with an egress limit are redirected.
const IFB_PREFIX: &str = "ptb";

/// The name of the node's end, derived from the attachment so that DEL and GC find it without any state.
pub(crate) fn host_interface(network: &str, container_id: &str, ifname: &str) -> String {
    format!("{HOST_PREFIX}{}", hash(network, container_id, ifname))
}

/// The name of the attachment's ifb interface.
pub(crate) fn ifb_interface(network: &str, container_id: &str, ifname: &str) -> String {
    format!("{IFB_PREFIX}{}", hash(network, container_id, ifname))
}

fn hash(network: &str, container_id: &str, ifname: &str) -> String {
    let mut hash = FnvHasher::default();
    hash.write(format!("{network}/{container_id}/{ifname}").as_bytes());
    // Of 48 bits: with 5,000 pods the probability of a collision is 1 in 20 million.
    format!("{:012x}", hash.finish() >> 16)
}

/// Creates the veth pair. The node's end is set up first, so the pod's end has a carrier from the start. With
/// a `master` the node's end is a port of this bridge.
///
/// When an interface with IPv6 comes up or changes, the kernel walks every IPv6 route of the node. So the
/// node's end has IPv6 only if packets are routed to it (`has_ipv6`), and then no link-local address, which
/// would add three routes per pod. It is configured and queried while it is down, when the kernel does not
/// walk the routes.
pub(crate) fn create(
    host: &mut Netlink,
    pod: &mut Pod,
    veth: &Veth<'_>,
    master: Option<u32>,
    has_ipv6: bool,
) -> Result<Link> {
    let try_once = |host: &mut Netlink| {
        let mut batch = Batch::default();
        batch.add_veth(veth, pod.netns.as_fd().as_raw_fd(), master);
        batch.set_alias(veth.host, veth.note);
        if master.is_none() {
            // A pod whose MAC address is changed (by the plugin `tuning`) loses its gateway entry and sends
            // ARP requests.
            batch.proxy_arp(veth.host);
        }
        batch.get_link(veth.host);
        if has_ipv6 {
            batch.disable_link_local(veth.host);
            batch.set_up(veth.host);
            return batch.commit(host);
        }
        let created = batch.commit(host)?;
        disable_ipv6(veth.host);
        let mut batch = Batch::default();
        batch.set_up(veth.host);
        batch.commit(host).map(|_| created)
    };
    let created = match try_once(host) {
        Err(error) if error.code == Code::Conflict as u32 => {
            let existing = pod.netlink.link(veth.pod);
            let existing = existing.map_err(kernel(format!("look for {} in the pod", veth.pod)))?;
            if existing.is_some() {
                let message = format!("interface {} is already in the pod", veth.pod);
                return Err(Error::new(Code::Conflict, message));
            }
            // A known attachment of that name would have a reservation: a killed ADD left this interface.
            host.delete_link(veth.host).map_err(kernel(format!("delete a left-over {}", veth.host)))?;
            try_once(host)?
        }
        other => other?,
    };
    only_link(created.links, veth.host)
}

/// The index of the pod's end.
pub(crate) fn peer(host: &Link, pod: &mut Netlink, ifname: &str) -> Result<u32> {
    host.peer.map_or_else(|| required(pod, ifname).map(|link| link.index), Ok)
}

/// Configures the pod's end. If IPv6 is disabled there (Docker's sandboxes have `default.disable_ipv6=1`) and
/// the pod has an IPv6 address, enables IPv6 on this interface and on `lo`, as the reference plugins do.
pub(crate) fn configure(pod: &mut Pod, ifname: &str, changes: impl Fn() -> Batch) -> Result<Outcome> {
    match changes().commit(&mut pod.netlink) {
        Err(error) if error.code == Code::NotPermitted as u32 => {
            let enable = || {
                let set = |name| std::fs::write(format!("/proc/sys/net/ipv6/conf/{name}/disable_ipv6"), "0");
                set("lo").and_then(|()| set(ifname))
            };
            let enabled = pod.netns.run(enable).unwrap_or_else(|e| Err(std::io::Error::other(e)));
            enabled.map_err(kernel(format!("enable IPv6 on {ifname}")))?;
            // Setting the interface down removes the routes of the first attempt.
            pod.netlink.set_down(ifname).map_err(kernel(format!("set {ifname} down")))?;
            changes().commit(&mut pod.netlink)
        }
        other => other,
    }
}

/// Timeout for work that the kernel does in the background, within a millisecond on an idle node.
const WORKERS: Duration = Duration::from_secs(2);

/// The first interval between two checks. Each interval is twice the previous one.
const PAUSE: Duration = Duration::from_micros(100);

/// Waits until `is_done`, up to the timeout: a pod that loses its first packets is better than none.
pub(crate) fn wait_for(mut is_done: impl FnMut() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + WORKERS;
    let mut pause = PAUSE;
    while !is_done()? && Instant::now() < deadline {
        std::thread::sleep(pause);
        pause *= 2;
    }
    Ok(())
}

/// Waits until IPv6 addresses are usable. A kernel worker joins the solicited-node multicast group and adds
/// the local route, even without duplicate address detection.
pub(crate) fn await_ipv6(netlink: &mut Netlink, addresses: impl IntoIterator<Item = IpAddr>) -> Result<()> {
    let addresses: Vec<IpAddr> = addresses.into_iter().filter(IpAddr::is_ipv6).collect();
    if addresses.is_empty() {
        return Ok(());
    }
    wait_for(|| netlink.are_local(&addresses).map_err(kernel("look for the addresses of IPv6")))
}

/// Waits until packets leave by these interfaces: an interface drops them until the kernel has noticed its
/// carrier. Since Linux 6.8 the kernel does so when the interface is queried; before that, a worker does.
pub(crate) fn await_carrier(
    netlink: &mut Netlink,
    names: &[&str],
    is_ready: impl Fn(&Link) -> bool,
) -> Result<()> {
    wait_for(|| {
        let mut batch = Batch::default();
        names.iter().for_each(|name| batch.get_link(name));
        Ok(batch.commit(netlink)?.links.iter().all(|link| link.is_operational && is_ready(link)))
    })
}

/// Best effort: everything also works with IPv6.
pub(crate) fn disable_ipv6(name: &str) {
    let _ = std::fs::write(format!("/proc/sys/net/ipv6/conf/{name}/disable_ipv6"), "1");
}

/// Disconnects a pod before its interface is deleted: removes the routes of a routed pod, sets the port of a
/// bridged one down.
pub(crate) fn cut_off(host: &mut Netlink, link: &Link, addresses: &[IpAddr]) -> Result<()> {
    if link.master.is_some() {
        host.set_down(&link.name).map_err(kernel(format!("set {} down", link.name)))?;
        return Ok(());
    }
    for address in addresses {
        let target = RouteTarget::Link(link.index);
        let route = Route::new(IpNetwork::from(*address), target);
        host.delete_route(&route).map_err(kernel(format!("delete route {address} dev {}", link.name)))?;
    }
    Ok(())
}

/// A random MAC address, unicast and locally administered.
pub(crate) fn random_mac() -> Result<[u8; 6]> {
    let path = Path::new("/dev/urandom");
    let mut mac = [0; 6];
    let read = std::fs::File::open(path).and_then(|mut random| random.read_exact(&mut mac));
    read.map_err(io("read", path))?;
    mac[0] = mac[0] & 0xfe | 0x02;
    Ok(mac)
}

/// Formats a MAC address.
pub(crate) fn format_mac(mac: &[u8]) -> String {
    mac.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(":")
}

/// The one link that was requested.
pub(crate) fn only_link(mut links: Vec<Link>, name: &str) -> Result<Link> {
    links.pop().ok_or_else(|| Error::new(Code::Conflict, format!("interface {name} is not there")))
}

/// Returns the interface with that name, or an error if it does not exist.
pub(crate) fn required(netlink: &mut Netlink, name: &str) -> Result<Link> {
    let found = netlink.link(name).map_err(kernel(format!("look for interface {name}")))?;
    only_link(found.into_iter().collect(), name)
}
