//! `portolan-cni`: the CNI plugin that gives every pod its own address, interface and port space.
//!
//! ```text
//! env + stdin ──> skel ──> command::{add, del, check, status, gc} ──> at most one JSON object on stdout
//!                               │ ipam      which address
//!                               │ routed, bridged  links, routes, neighbours (rtnetlink)
//!                               │ bandwidth what a pod may send and receive (traffic control)
//!                               │ table     one nftables table for the node (nfnetlink)
//!                               └ attachment  the record the daemons read
//! ```
//!
//! One short-lived, synchronous process: no runtime to start, no program to run, no dump of kernel tables on the way of
//! ADD and DEL (but for conntrack's before Linux 6.12). What ADD has done is undone in reverse if a later step fails, and DEL finds everything by names derived
//! from the attachment alone, so that it works when the pod, the configuration or half of an ADD is gone.

mod alias;
mod announce;
mod args;
mod bandwidth;
mod bridged;
mod by_hand;
mod command;
mod error;
mod host_local;
mod import;
mod ipam;
mod lock;
mod loopback;
mod netconf;
mod netlink;
mod pod;
mod result;
mod role;
mod rollback;
mod routed;
mod skel;
mod table;
mod trace;
mod veth;
mod whole;

pub use by_hand::run_by_hand;
pub use skel::{Output, run};
