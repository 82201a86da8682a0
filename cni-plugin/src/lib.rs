//! `portolan-cni`: the CNI plugin that gives every pod its own address, interface and port space.
//!
//! ```text
//! env + stdin ──> request ──> driver ──> command::{add, del, check, status, gc} ──> one JSON object on stdout
//!                               │ ipam      which address
//!                               │ routed, bridged  links, routes, neighbours (rtnetlink)
//!                               │ bandwidth what a pod may send and receive (traffic control)
//!                               │ table     one nftables table for the node (nfnetlink)
//!                               └ attachment  the record the daemons read
//! ```
//!
//! One short-lived, synchronous process: no runtime to start, no program to run, and no dump of kernel tables
//! in ADD and DEL (but for conntrack's, where a pod has UDP ports of the node). What ADD has done is undone
//! in reverse if a later step fails, and DEL finds everything by names derived from the attachment alone, so
//! that it works when the pod, the configuration or half of an ADD is missing.

mod alias;
mod announce;
mod args;
mod atomic_file;
mod bandwidth;
mod bridged;
mod cli;
mod command;
mod driver;
mod error;
mod host_local;
mod import;
mod ipam;
mod lock;
mod loopback;
mod mode;
mod netconf;
mod netlink;
mod pod;
mod request;
mod result;
mod role;
mod rollback;
mod routed;
mod skel;
mod table;
mod trace;
mod uplink;
mod veth;

pub use cli::run_by_hand;
pub use skel::{Output, run};
