//! `portolan-cni`: the CNI plugin that gives every pod its own address, interface and port space.
//!
//! ```text
//! env + stdin ──> request ──> driver ──> command::{add, del, check, status, gc} ──> one JSON object
//!                               │ ipam      which address
//!                               │ routed, bridged  links, routes, neighbours (rtnetlink)
//!                               │ bandwidth what a pod may send and receive (traffic control)
//!                               │ table     one nftables table for the node (nfnetlink)
//!                               └ attachment  the record the daemons read
//! ```
//!
//! One short-lived, synchronous process. ADD and DEL start no async runtime, run no program, and dump no
//! kernel table (except conntrack's, for a pod with UDP host ports). If a step of ADD fails, the earlier
//! steps are undone in reverse order. DEL finds everything by names that are derived from the attachment
//! alone, so it works without the pod, without the configuration, and after half an ADD.

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

pub use cli::run_cli;
pub use skel::{Output, run};
