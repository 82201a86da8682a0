//! ADD, CHECK, DEL, STATUS and GC with real namespaces. The assertions are about the kernel's state.

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
