//! Returns the replies of servers on this node to connections with a preserved client address.
//!
//! The replies of a pod arrive from outside and are recognised by their socket (see
//! [`crate::kernel::policy_routing`]). The replies of a server on the node itself (a hostNetwork pod) are
//! routed to the client as soon as they are sent. So each of our packets to such a server records the flow
//! of the replies, and those are marked and rerouted: to this node, where the socket is. Neither direction
//! is tracked: a CNI plugin would masquerade packets from a pod's address.
//!
//! ```text
//! table inet portolan-proxy-replies {
//!     set tcp-v4 { type ipv4_addr . inet_service . ipv4_addr . inet_service
//!                  size 1048576; flags dynamic,timeout }
//!     chain note { type filter hook prerouting priority mangle
//!         meta mark & 0x40 == 0x40 fib saddr type != local meta l4proto tcp \
//!             update @tcp-v4 { ip daddr . th dport . ip saddr . th sport timeout 1m }
//!     }
//!     chain replies { type route hook output priority raw
//!         meta mark & 0x40 == 0x40 oif lo fib saddr type != local notrack accept
//!         meta l4proto tcp ip saddr . th sport . ip daddr . th dport @tcp-v4 \
//!             update @tcp-v4 { ... timeout 1m } meta mark set meta mark | 0x1000 notrack
//!     }
//! }
//! ```
//! and the same for UDP and IPv6. It is a separate table, because the other one is rewritten by each new
//! proxy, and the flows of the previous one continue.
//!
//! The keepalive probes of a connection ([`PROBES`]) refresh its flow in the set, so a flow outlives its
//! connection by [`TCP_TIMEOUT`]. A FIN does not shorten that: it ends one direction, and the last ACK, which
//! looks like any other, would extend it again. [`Limit`] prevents full sets: a connection whose flow is not
//! recorded would time out.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use nftables::{Batch, Family, Netfilter, Rule};

use crate::kernel::policy_routing::{MARK, PROXIED};
use crate::kernel::socket::Probes;

const TABLE: &str = "portolan-proxy-replies";
const NOTE: &str = "note";
const REPLIES: &str = "replies";

/// An idle connection sends a probe in a third of this time.
const TCP_TIMEOUT: Duration = Duration::from_secs(60);

/// The keepalive of connections with a client's address to servers of this node. On the loopback device
/// probes cost little.
pub(crate) const PROBES: Probes = Probes::new(Duration::from_secs(20), Duration::from_secs(20), 14);

/// Maximum number of flows in a set. The kernel allocates memory, some 100 bytes each, as they are added.
const SIZE: u32 = 1 << 20;

/// The part of a set for flows that are opened within one timeout. A second part is for a burst before it,
/// and half of the set for older flows and those of a previous proxy.
const SHARE: u64 = SIZE as u64 / 4;

/// Limits the flows of one protocol that are opened: [`SHARE`] at once, and as many per timeout.
#[derive(Debug)]
pub(crate) struct Limit {
    started: Instant,
    timeout: Duration,
    /// When the flows so far no longer fill their share, in nanoseconds since the start (generic cell rate
    /// algorithm).
    until: AtomicU64,
}

impl Limit {
    /// For connections.
    pub(crate) fn tcp() -> Self {
        Self::new(TCP_TIMEOUT)
    }

    /// For UDP flows, which expire after `idle_timeout`.
    pub(crate) fn udp(idle_timeout: Duration) -> Self {
        Self::new(udp_timeout(idle_timeout))
    }

    fn new(timeout: Duration) -> Self {
        Self { started: Instant::now(), timeout, until: AtomicU64::new(0) }
    }

    /// Whether one more flow may be recorded.
    pub(crate) fn admit(&self) -> bool {
        self.admit_at(self.started.elapsed())
    }

    fn admit_at(&self, now: Duration) -> bool {
        let nanoseconds = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        let (now, timeout) = (nanoseconds(now), nanoseconds(self.timeout));
        let next = |until: u64| {
            let until = until.max(now) + timeout / SHARE;
            (until <= now + timeout).then_some(until)
        };
        self.until.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next).is_ok()
    }
}

/// A flow lives at most a quarter longer than its idle timeout (see [`crate::udp`]).
fn udp_timeout(idle_timeout: Duration) -> Duration {
    idle_timeout + idle_timeout / 4
}

/// Writes the rules, replacing existing ones. The flows stay.
///
/// # Errors
/// An error of the kernel; nothing has changed.
pub(crate) fn install(netfilter: &Netfilter, udp_idle_timeout: Duration) -> io::Result<()> {
    let mut batch = Batch::new(TABLE);
    batch.add_table();
    batch.add_prerouting_chain(NOTE);
    batch.add_raw_output_route_chain(REPLIES);
    batch.flush_chain(NOTE);
    batch.flush_chain(REPLIES);
    let proxied = || Rule::default().with_mark_bit(PROXIED);
    batch.add_rule(REPLIES, &proxied().to_loopback().from_foreign_address().notrack().accept());
    let sets =
        [("tcp-v4", true, false), ("tcp-v6", false, false), ("udp-v4", true, true), ("udp-v6", false, true)];
    for ((set, v4, is_udp), id) in sets.into_iter().zip(1..) {
        let timeout = if is_udp { udp_timeout(udp_idle_timeout) } else { TCP_TIMEOUT };
        let of_protocol = |rule: Rule| if is_udp { rule.udp() } else { rule.tcp() };
        batch.add_flow_set(set, id, v4, SIZE);
        let noted = of_protocol(proxied().from_foreign_address());
        batch.add_rule(NOTE, &noted.record_reverse_flow(set, v4, timeout));
        let reply = of_protocol(Rule::default()).of_flow_in_set(set, v4, timeout);
        batch.add_rule(REPLIES, &reply.set_mark_bit(MARK).notrack());
    }
    batch.commit(netfilter)
}

/// Whether the rules exist.
///
/// # Errors
/// An error of the kernel.
pub(crate) fn is_installed(netfilter: &Netfilter) -> io::Result<bool> {
    netfilter.has_rules(Family::Inet, TABLE, REPLIES)
}

/// Removes the table. A missing one is fine.
///
/// # Errors
/// An error of the kernel.
pub(crate) fn remove(netfilter: &Netfilter) -> io::Result<()> {
    let mut batch = Batch::new(TABLE);
    // Add before delete: then deleting a missing table is no error.
    batch.add_table();
    batch.delete_table();
    batch.commit(netfilter)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flows_opened_within_one_timeout_fill_half_of_a_set() {
        let limit = Limit::tcp();
        let mut admitted = Vec::new();
        // 10,000 a second for two minutes, which is more than twice what is admitted.
        for number in 0..120 * 10_000_u64 {
            let now = Duration::from_micros(number * 100);
            if limit.admit_at(now) {
                admitted.push(now);
            }
        }
        let half = usize::try_from(2 * SHARE).unwrap() + 1;
        assert!(admitted[half..].iter().zip(&admitted).all(|(last, first)| *last - *first > TCP_TIMEOUT));
        assert!(admitted.len() > half, "{}", admitted.len());
    }

    #[test]
    fn three_thousand_flows_a_second_are_admitted_for_ever() {
        let limit = Limit::tcp();
        assert!((0..200 * 3000_u64).all(|number| limit.admit_at(Duration::from_micros(number * 333))));
    }
}
