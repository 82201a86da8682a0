//! The way into the pod: its network namespace and sockets there.

use std::fs;
use std::io;

use attachment::{PortRange, RESERVED_PORTS};
use netns::NetNs;

use crate::error::{Code, Error, Result, kernel};
use crate::netlink::Netlink;
use crate::trace::{Span, span};

/// Opens the pod's namespace, which must be one and must not be the node's own, and a netlink socket in it.
pub(crate) fn open(path: &str) -> Result<(NetNs, Netlink)> {
    open_with(path, || Ok(())).map(|(netns, netlink, ())| (netns, netlink))
}

/// The same, and one more socket there: each way into a namespace takes a thread.
pub(crate) fn open_with<T: Send>(
    path: &str,
    open: impl FnOnce() -> io::Result<T> + Send,
) -> Result<(NetNs, Netlink, T)> {
    span(Span::Netns, || {
        let unknown = |e: netns::Error| Error::new(Code::UnknownContainer, format!("CNI_NETNS: {e}"));
        let netns = NetNs::open(path).map_err(unknown)?;
        let own = NetNs::current().map_err(unknown)?;
        if netns.is_same_as(&own).map_err(unknown)? {
            let message = format!("CNI_NETNS: {path} is the node's own network namespace");
            return Err(Error::new(Code::UnknownContainer, message));
        }
        // Entering tells whether it is a namespace of the network kind.
        let sockets = netns.run(|| Netlink::open().and_then(|netlink| Ok((netlink, open()?))));
        let (netlink, other) = sockets.map_err(unknown)?.map_err(kernel("open a socket in the pod"))?;
        Ok((netns, netlink, other))
    })
}

/// Ports that the kernel leaves out when it chooses one for an outgoing connection.
const LOCAL_RESERVED_PORTS: &str = "/proc/sys/net/ipv4/ip_local_reserved_ports";

/// Keeps the ports from which the proxy connects with the pod's address out of what the pod's own kernel chooses, besides those
/// that are reserved already. `None` where that cannot be done: then the proxy does without.
pub(crate) fn reserve_ports(netns: &NetNs) -> Option<PortRange> {
    let reserve = || -> io::Result<()> {
        let reserved = fs::read_to_string(LOCAL_RESERVED_PORTS)?;
        let separator = if reserved.trim().is_empty() { "" } else { "," };
        fs::write(LOCAL_RESERVED_PORTS, format!("{}{separator}{RESERVED_PORTS}", reserved.trim()))
    };
    span(Span::Netns, || netns.run(reserve)).ok()?.ok()?;
    Some(RESERVED_PORTS)
}
