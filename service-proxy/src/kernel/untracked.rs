//! Excludes packets of virtual IPs from the node's NAT.
//!
//! AnyIP makes virtual IPs local to the node. Programs that publish ports (portolan-cni, netavark, Docker,
//! the reference plugin portmap) translate packets to local addresses, and would take over a port of all
//! virtual IPs with a host port. NAT needs conntrack, so packets from and to virtual IPs are not tracked, as
//! NodeLocal DNSCache does for its addresses:
//!
//! ```text
//! table inet portolan-virtual {
//!     set single-v4 { type ipv4_addr }                 # cluster IPs outside of the ranges, if there are any
//!     chain arriving { type filter hook prerouting priority raw
//!         ip daddr <service range> notrack
//!         ip daddr @single-v4 notrack
//!     }
//!     chain leaving { type filter hook output priority raw
//!         ip daddr <service range> notrack              # from the node itself
//!         ip saddr <service range> notrack              # replies
//!         ip daddr @single-v4 notrack
//!         ip saddr @single-v4 notrack
//!     }
//! }
//! ```
//! It is a separate table because it exists as long as the routes: before the first state, and while the
//! previous proxy still owns the other table.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use nftables::{Batch, Data, Element, Family, Key, Netfilter, Rule, Set, Type};

const TABLE: &str = "portolan-virtual";
const ARRIVING: &str = "arriving";
const LEAVING: &str = "leaving";

/// Writes the table for these service ranges and single addresses, replacing an existing one.
///
/// # Errors
/// An error of the kernel; nothing has changed.
pub(crate) fn write(ranges: &[IpNetwork], singles: &BTreeSet<IpAddr>) -> io::Result<()> {
    let mut batch = Batch::new(TABLE);
    batch.add_table();
    batch.delete_table();
    batch.add_table();
    batch.add_raw_prerouting_chain(ARRIVING);
    batch.add_raw_output_chain(LEAVING);
    for range in ranges {
        batch.add_rule(ARRIVING, &Rule::default().destination_in(*range).notrack());
        batch.add_rule(LEAVING, &Rule::default().destination_in(*range).notrack());
        batch.add_rule(LEAVING, &Rule::default().source_in(*range).notrack());
    }
    for (set, v4, id) in [("single-v4", true, 1), ("single-v6", false, 2)] {
        let keys = singles.iter().filter(|address| address.is_ipv4() == v4);
        let elements: Vec<_> = keys.map(|address| Element::Key(Key::default().address(*address))).collect();
        // A look-up in an empty set would cost every packet.
        if elements.is_empty() {
            continue;
        }
        let key = [if v4 { Type::Ipv4Address } else { Type::Ipv6Address }];
        batch.add_set(&Set { name: set, id, key: &key, data: Data::None });
        batch.add_elements(set, &elements);
        batch.add_rule(ARRIVING, &Rule::default().destination_in_set(set, v4).notrack());
        batch.add_rule(LEAVING, &Rule::default().destination_in_set(set, v4).notrack());
        batch.add_rule(LEAVING, &Rule::default().source_in_set(set, v4).notrack());
    }
    batch.commit(&Netfilter::open()?)
}

/// Rewrites the table if another program has deleted or flushed it.
///
/// # Errors
/// An error of the kernel.
pub(crate) fn repair(ranges: &[IpNetwork], singles: &BTreeSet<IpAddr>) -> io::Result<()> {
    let is_empty = ranges.is_empty() && singles.is_empty();
    let is_complete = is_empty || Netfilter::open()?.has_rules(Family::Inet, TABLE, ARRIVING)?;
    if is_complete { Ok(()) } else { write(ranges, singles) }
}

/// Removes the table. A missing one is no error.
///
/// # Errors
/// An error of the kernel.
pub(crate) fn remove() -> io::Result<()> {
    let mut batch = Batch::new(TABLE);
    // Add before delete: then deleting a missing table is no error.
    batch.add_table();
    batch.delete_table();
    batch.commit(&Netfilter::open()?)
}
