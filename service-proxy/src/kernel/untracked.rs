//! Keeps packets of virtual IPs out of the node's NAT.
//!
//! AnyIP makes virtual IPs local to the node. Programs that publish ports (portolan-cni, netavark, Docker, the reference
//! plugin portmap) translate what goes to a local address, and would take a port of all virtual IPs with a port of the node.
//! NAT needs conntrack, so packets from and to virtual IPs are not tracked, as NodeLocal DNSCache does for its addresses:
//!
//! ```text
//! table inet portolan-virtual {
//!     chain arriving { type filter hook prerouting priority raw
//!         ip daddr <service range> notrack
//!     }
//!     chain leaving { type filter hook output priority raw
//!         ip daddr <service range> notrack              # from the node itself
//!         ip saddr <service range> notrack              # replies
//!     }
//! }
//! ```
//! It is a table of its own because it is there as long as the routes are: before the first state, and while an earlier proxy
//! still has the other table.

use std::io;

use ipnetwork::IpNetwork;
use nftables::{Batch, Family, Netfilter, Rule};

const TABLE: &str = "portolan-virtual";
const ARRIVING: &str = "arriving";
const LEAVING: &str = "leaving";

/// Writes the table for these service ranges, in the place of what an earlier proxy has written.
///
/// # Errors
/// What the kernel says; then nothing has changed.
pub(crate) fn write(ranges: &[IpNetwork]) -> io::Result<()> {
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
    batch.commit(&Netfilter::open()?)
}

/// Writes the table again if another program has deleted or flushed it.
///
/// # Errors
/// What the kernel says.
pub(crate) fn repair(ranges: &[IpNetwork]) -> io::Result<()> {
    let is_whole = ranges.is_empty() || Netfilter::open()?.has_rules(Family::Inet, TABLE, ARRIVING)?;
    if is_whole { Ok(()) } else { write(ranges) }
}

/// Removes the table. A table that was removed already is no error.
///
/// # Errors
/// What the kernel says.
pub(crate) fn remove() -> io::Result<()> {
    let mut batch = Batch::new(TABLE);
    // Adding before deleting makes deleting what is not there no error.
    batch.add_table();
    batch.delete_table();
    batch.commit(&Netfilter::open()?)
}
