//! What the proxy configures in the kernel: local addresses, interception, the way of replies.

pub(crate) mod conntrack;
pub(crate) mod datagram;
pub(crate) mod icmp_error;
pub(crate) mod interception;
pub(crate) mod local_dns;
pub(crate) mod local_replies;
pub(crate) mod local_route;
pub(crate) mod node_address;
pub(crate) mod policy_routing;
pub(crate) mod socket;
pub(crate) mod socket_diag;
pub(crate) mod source_ports;
pub(crate) mod tcp_info;
pub(crate) mod untracked;
