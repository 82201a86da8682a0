//! ADD, CHECK, DEL, STATUS and GC with real namespaces; what is asserted is what the kernel says.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod addresses;
mod bandwidth;
mod bridged;
mod contract;
mod delegates;
mod families;
mod fixture;
mod imported;
mod inputs;
mod kept;
mod killed;
mod killed_addresses;
mod limits;
mod many;
mod migrations;
mod networks;
mod ports;
mod ranges;
mod recovery;
mod roles;
mod state;
mod tracked;
