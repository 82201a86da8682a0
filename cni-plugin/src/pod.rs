//! The way into the pod: its network namespace and sockets there.

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
    /// Absent where ports cannot be reserved: then the proxy does without.
    pub(crate) reserved_ports: Option<PortRange>,
}

impl Pod {
    /// Opens the pod's namespace, and does there all that needs no interface: each way into a namespace takes
    /// a thread.
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

/// Opens the pod's namespace, which must be one and must not be the node's own, and does `work` in it.
fn run_in<T: Send>(path: &str, work: impl FnOnce() -> io::Result<T> + Send) -> Result<(NetNs, T)> {
    span(Span::Netns, || {
        let unknown = |e: netns::Error| Error::new(Code::UnknownContainer, format!("CNI_NETNS: {e}"));
        let netns = NetNs::open(path).map_err(unknown)?;
        let own = NetNs::current().map_err(unknown)?;
        if netns.is_same_as(&own).map_err(unknown)? {
            let message = format!("CNI_NETNS: {path} is the node's own network namespace");
            return Err(Error::new(Code::UnknownContainer, message));
        }
        // Entering tells whether it is a namespace of the network kind.
        let done = netns.run(work).map_err(unknown)?.map_err(kernel("open a socket in the pod"))?;
        Ok((netns, done))
    })
}

/// Ports that the kernel leaves out when it chooses one for an outgoing connection.
const LOCAL_RESERVED_PORTS: &str = "/proc/sys/net/ipv4/ip_local_reserved_ports";

/// Keeps the ports from which the proxy connects with the pod's address out of what the pod's own kernel
/// chooses, besides those that are reserved already.
fn reserve_ports() -> io::Result<PortRange> {
    let reserved = fs::read_to_string(LOCAL_RESERVED_PORTS)?;
    let separator = if reserved.trim().is_empty() { "" } else { "," };
    fs::write(LOCAL_RESERVED_PORTS, format!("{}{separator}{RESERVED_PORTS}", reserved.trim()))?;
    Ok(RESERVED_PORTS)
}
