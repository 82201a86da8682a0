//! Address assignment: the built-in IPAM, or another IPAM plugin.

mod assignment;
mod delegate;
mod range;
mod resolv_conf;
mod slots;
mod store;

pub(crate) use assignment::{Assignment, Lease, assign};
pub(crate) use delegate::{delegate, delegate_check, delegate_del};
pub(crate) use range::RangeSet;
pub(crate) use store::{Allocation, Delegated, InUse, Owner, Store};
