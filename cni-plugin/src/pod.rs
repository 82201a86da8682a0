//! Access to the pod: its network namespace and sockets in it.

use std::fs;
use std::io;

use attachment::{PortRange, RESERVED_PORTS};
use netns::NetNs;

use crate::announce::Advertiser;
use crate::error::{Code, Error, Result, kernel};
use crate::netlink::Netlink;
use crate::trace::{Span, span};

/// What ADD needs of a pod.
pub(crate) struct Pod {
    pub(crate) netns: NetNs,
    pub(crate) netlink: Netlink,
    /// Absent on a node without IPv6: there is nothing to advertise.
    pub(crate) advertiser: Option<Advertiser>,
    /// Absent if ports cannot be reserved: the proxy then does not preserve the source IP in this way.
    pub(crate) reserved_ports: Option<PortRange>,
}

impl Pod {
    /// Opens the pod's namespace and does everything there that needs no interface: entering a namespace
    /// takes a thread each time.
    pub(crate) fn prepare(path: &str, advertises: bool) -> Result<Self> {
        let (netns, (netlink, advertiser, reserved_ports)) = run_in(path, || {
            let advertiser = if advertises { Advertiser::open().ok() } else { None };
            Ok((Netlink::open()?, advertiser, reserve_ports().ok()))
        })?;
        Ok(Self { netns, netlink, advertiser, reserved_ports })
    }
}

/// Opens the pod's namespace and a netlink socket in it.
pub(crate) fn open(path: &str) -> Result<(NetNs, Netlink)> {
    run_in(path, Netlink::open)
}

/// Opens the pod's namespace, refuses the node's own, and runs `work` in it.
fn run_in<T: Send>(path: &str, work: impl FnOnce() -> io::Result<T> + Send) -> Result<(NetNs, T)> {
    span(Span::Netns, || {
        let unknown = |e: netns::Error| Error::new(Code::UnknownContainer, format!("CNI_NETNS: {e}"));
        let netns = NetNs::open(path).map_err(unknown)?;
        let own = NetNs::current().map_err(unknown)?;
        if netns.is_same_as(&own).map_err(unknown)? {
            let message = format!("CNI_NETNS: {path} is the node's own network namespace");
            return Err(Error::new(Code::UnknownContainer, message));
        }
        // Entering fails if it is not a network namespace.
        let done = netns.run(work).map_err(unknown)?.map_err(kernel("open a socket in the pod"))?;
        Ok((netns, done))
    })
}

/// Ports that the kernel excludes when it chooses one for an outgoing connection.
const LOCAL_RESERVED_PORTS: &str = "/proc/sys/net/ipv4/ip_local_reserved_ports";

/// Adds the ports from which the proxy connects with the pod's address to the reserved ports of the pod's
/// namespace.
fn reserve_ports() -> io::Result<PortRange> {
    let reserved = fs::read_to_string(LOCAL_RESERVED_PORTS)?;
    let separator = if reserved.trim().is_empty() { "" } else { "," };
    fs::write(LOCAL_RESERVED_PORTS, format!("{}{separator}{RESERVED_PORTS}", reserved.trim()))?;
    Ok(RESERVED_PORTS)
}
