//! Brings back the replies of servers of this node to connections with a client's address.
//!
//! What a pod answers comes in from outside and is recognised by its socket (see [`crate::kernel::divert`]). What a server of the
//! node itself answers (a hostNetwork pod) is routed as soon as it is sent, to the client. So each packet of ours to such a server
//! notes the flow of the answers, and those are marked and routed anew: to this node, where the socket is. Neither is tracked:
//! a CNI plugin would masquerade what comes from a pod's address.
//!
//! ```text
//! table inet portolan-proxy-replies {
//!     set flows-v4 { type ipv4_addr . inet_service . ipv4_addr . inet_service . inet_proto; flags dynamic,timeout; timeout 5m; }
//!     chain note { type filter hook prerouting priority mangle
//!         meta mark & 0x40 == 0x40 fib saddr type != local \
//!             update @flows-v4 { ip daddr . th dport . ip saddr . th sport . meta l4proto }
//!     }
//!     chain replies { type route hook output priority raw
//!         meta mark & 0x40 == 0x40 oif lo fib saddr type != local notrack accept
//!         ip saddr . th sport . ip daddr . th dport . meta l4proto @flows-v4 update @flows-v4 { ... } \
//!             meta mark set meta mark | 0x1000 notrack
//!     }
//! }
//! ```
//! It is a table of its own, because the other one is written anew by each new proxy, and the flows of the previous one go on.

use std::io;
use std::time::Duration;

use nftables::{Batch, Netfilter, Rule};

use crate::kernel::divert::{MARK, PROXIED};

const TABLE: &str = "portolan-proxy-replies";
const NOTE: &str = "note";
const REPLIES: &str = "replies";
const SETS: [(u32, &str, bool); 2] = [(1, "flows-v4", true), (2, "flows-v6", false)];

/// Longer than a connection is idle before it is probed, or a flow of datagrams lives by default.
const TIMEOUT: Duration = Duration::from_secs(300);

/// Flows noted at most.
const SIZE: u32 = 262_144;

/// Writes the table unless it is there.
///
/// # Errors
/// What the kernel says.
pub(crate) fn install(netfilter: &Netfilter) -> io::Result<()> {
    if is_installed(netfilter)? {
        return Ok(());
    }
    let mut batch = Batch::new(TABLE);
    batch.add_table();
    batch.add_prerouting_chain(NOTE);
    batch.add_raw_output_route_chain(REPLIES);
    let proxied = || Rule::default().with_mark_bit(PROXIED);
    batch.add_rule(REPLIES, &proxied().to_loopback().from_foreign_address().notrack().accept());
    for (id, set, v4) in SETS {
        batch.add_flow_set(set, id, v4, TIMEOUT, SIZE);
        batch.add_rule(NOTE, &proxied().from_foreign_address().note_reverse_flow(set, v4));
        batch.add_rule(REPLIES, &Rule::default().of_flow_in_set(set, v4).set_mark_bit(MARK).notrack());
    }
    batch.commit(netfilter)
}

/// Whether the table is there.
///
/// # Errors
/// What the kernel says.
pub(crate) fn is_installed(netfilter: &Netfilter) -> io::Result<bool> {
    netfilter.has_table(TABLE)
}

/// Takes the table away. One that is not there is fine.
///
/// # Errors
/// What the kernel says.
pub(crate) fn remove(netfilter: &Netfilter) -> io::Result<()> {
    let mut batch = Batch::new(TABLE);
    // Adding before deleting makes deleting what is not there no error.
    batch.add_table();
    batch.delete_table();
    batch.commit(netfilter)
}
