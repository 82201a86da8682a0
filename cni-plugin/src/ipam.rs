//! Which address a pod gets: the built-in allocator, or another plugin that was named in its place.

mod delegate;
mod range;
mod slots;
mod store;

pub(crate) use delegate::delegate;
pub(crate) use range::RangeSet;
pub(crate) use store::{Owner, Store};
