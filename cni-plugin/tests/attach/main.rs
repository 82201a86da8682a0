//! ADD, CHECK, DEL, STATUS and GC with real namespaces; what is asserted is what the kernel says.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod bandwidth;
mod bridged;
mod contract;
mod delegates;
mod families;
mod fixture;
mod imported;
mod kept;
mod killed;
mod killed_addresses;
mod limits;
mod many;
mod ports;
mod ranges;
mod recovery;
mod roles;
mod tracked;
