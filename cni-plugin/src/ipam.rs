//! Which address a pod gets: the built-in allocator, or another plugin that was named in its place.

mod assignment;
mod delegate;
mod range;
mod resolv_conf;
mod slots;
mod store;

pub(crate) use assignment::{Assignment, Lease, assign};
pub(crate) use delegate::{delegate, delegate_check, delegate_del};
pub(crate) use range::RangeSet;
pub(crate) use store::{Delegated, Given, InUse, Owner, Store};
