//! The pair of interfaces that connects a pod: one end in the pod, one on the node.

use std::io::Read as _;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;
use std::time::{Duration, Instant};

use ipnetwork::IpNetwork;

use crate::error::{Code, Error, Result, io, kernel};
use crate::netlink::{Batch, Link, Netlink, Outcome, Route, RouteTarget, Veth};
use crate::pod::Pod;

/// Interfaces of pods begin like this on the node.
pub(crate) const HOST_PREFIX: &str = "ptl";

/// So does the name of the ifb interface to which what a pod sends is redirected, where that is limited.
const IFB_PREFIX: &str = "ptb";

/// The node's end of an attachment is named after it, so that DEL and GC find it when nothing else is left.
pub(crate) fn host_interface(network: &str, container_id: &str, ifname: &str) -> String {
    format!("{HOST_PREFIX}{}", hash(network, container_id, ifname))
}

/// The attachment's ifb interface, if it has one.
pub(crate) fn ifb_interface(network: &str, container_id: &str, ifname: &str) -> String {
    format!("{IFB_PREFIX}{}", hash(network, container_id, ifname))
}

fn hash(network: &str, container_id: &str, ifname: &str) -> String {
    // FNV-1a, 48 bits of which fit: with 5,000 pods two names meet with a chance of 1 in 20 million.
    let text = format!("{network}/{container_id}/{ifname}");
    let hash = text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    format!("{:012x}", hash >> 16)
}

/// The pair of interfaces, the node's end set up first: the pod's end has a carrier from the start.
/// With a `master` that end is a port of this bridge.
///
/// When an interface with IPv6 comes up or changes, the kernel walks through every route of IPv6 on the node.
/// So that end has IPv6 only if packets are routed to it (`has_ipv6`), and then no link-local address, which
/// would be three more routes a pod. It is configured and queried while it is down, when nothing is walked
/// through.
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
        batch.set_note(veth.host, veth.note);
        if master.is_none() {
            // A pod whose hardware address is set (by the plugin `tuning`) loses its entry for the gateway,
            // and asks.
            batch.proxy_arp(veth.host);
        }
        batch.get_link(veth.host);
        if has_ipv6 {
            batch.without_link_local(veth.host);
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
            // An attachment of that name would have been found by its reservation: a killed ADD left this.
            host.delete_link(veth.host).map_err(kernel(format!("delete a left-over {}", veth.host)))?;
            try_once(host)?
        }
        other => other?,
    };
    only(created.links, veth.host)
}

/// The pod's end of a pair, by its index there.
pub(crate) fn peer(host: &Link, pod: &mut Netlink, ifname: &str) -> Result<u32> {
    host.peer.map_or_else(|| required(pod, ifname).map(|link| link.index), Ok)
}

/// Configures the pod's end. Where IPv6 is disabled there (Docker's sandboxes have `default.disable_ipv6=1`)
/// and the pod has an address of it, IPv6 is enabled on this interface and on `lo`, as the reference plugins
/// do.
pub(crate) fn configure(pod: &mut Pod, ifname: &str, changes: impl Fn() -> Batch) -> Result<Outcome> {
    match changes().commit(&mut pod.netlink) {
        Err(error) if error.code == Code::NotPermitted as u32 => {
            let enable = || {
                let set = |name| std::fs::write(format!("/proc/sys/net/ipv6/conf/{name}/disable_ipv6"), "0");
                set("lo").and_then(|()| set(ifname))
            };
            let enabled = pod.netns.run(enable).unwrap_or_else(|e| Err(std::io::Error::other(e)));
            enabled.map_err(kernel(format!("enable IPv6 on {ifname}")))?;
            // The routes of the first attempt go with it.
            pod.netlink.set_down(ifname).map_err(kernel(format!("set {ifname} down")))?;
            changes().commit(&mut pod.netlink)
        }
        other => other,
    }
}

/// How long the kernel's workers may take for what they do within a millisecond on a node that is not busy.
const WORKERS: Duration = Duration::from_secs(2);

/// The first pause between two looks at something the kernel does by itself, most often within this time.
/// Each is twice the one before.
const PAUSE: Duration = Duration::from_micros(100);

/// Waits until `is_done`, but not for ever: a pod that loses its first packets is better than none.
pub(crate) fn wait_for(mut is_done: impl FnMut() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + WORKERS;
    let mut pause = PAUSE;
    while !is_done()? && Instant::now() < deadline {
        std::thread::sleep(pause);
        pause *= 2;
    }
    Ok(())
}

/// Waits until addresses of IPv6 are usable. The kernel leaves to a worker what makes them so: joining the
/// group in which neighbours ask for them, and the local route, even where there is no duplicate address
/// detection.
pub(crate) fn await_ipv6(netlink: &mut Netlink, addresses: impl IntoIterator<Item = IpAddr>) -> Result<()> {
    let addresses: Vec<IpAddr> = addresses.into_iter().filter(IpAddr::is_ipv6).collect();
    if addresses.is_empty() {
        return Ok(());
    }
    wait_for(|| netlink.are_local(&addresses).map_err(kernel("look for the addresses of IPv6")))
}

/// Waits until packets leave by these interfaces: an interface drops them until the kernel has noticed its
/// carrier. From Linux 6.8 on it does so when the interface is queried, before that a worker does.
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

/// Best effort: with IPv6 everything works too.
pub(crate) fn disable_ipv6(name: &str) {
    let _ = std::fs::write(format!("/proc/sys/net/ipv6/conf/{name}/disable_ipv6"), "1");
}

/// Cuts a pod off before its interface goes: a routed one loses its routes, the port of a bridge is set down.
pub(crate) fn cut_off(host: &mut Netlink, link: &Link, addresses: &[IpAddr]) -> Result<()> {
    if link.master.is_some() {
        return host.set_down(&link.name).map(drop).map_err(kernel(format!("set {} down", link.name)));
    }
    for address in addresses {
        let target = RouteTarget::Link(link.index);
        let route = Route::new(IpNetwork::from(*address), target);
        host.delete_route(&route).map_err(kernel(format!("delete route {address} dev {}", link.name)))?;
    }
    Ok(())
}

/// A hardware address, unicast and locally administered.
pub(crate) fn random_mac() -> Result<[u8; 6]> {
    let path = Path::new("/dev/urandom");
    let mut mac = [0; 6];
    let read = std::fs::File::open(path).and_then(|mut random| random.read_exact(&mut mac));
    read.map_err(io("read", path))?;
    mac[0] = mac[0] & 0xfe | 0x02;
    Ok(mac)
}

/// As people write it.
pub(crate) fn format_mac(mac: &[u8]) -> String {
    mac.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(":")
}

/// The one link that was asked for.
pub(crate) fn only(mut links: Vec<Link>, name: &str) -> Result<Link> {
    links.pop().ok_or_else(|| Error::new(Code::Conflict, format!("interface {name} is not there")))
}

/// The interface of that name, or an error that it is not there.
pub(crate) fn required(netlink: &mut Netlink, name: &str) -> Result<Link> {
    let found = netlink.link(name).map_err(kernel(format!("look for interface {name}")))?;
    only(found.into_iter().collect(), name)
}
