//! What the kernel is told: which addresses are local, which connections are ours, how replies come back.

pub(crate) mod catcher;
pub(crate) mod conntrack;
pub(crate) mod divert;
pub(crate) mod local_route;
pub(crate) mod node_address;
pub(crate) mod socket;
pub(crate) mod unreachable;
pub(crate) mod untracked;
