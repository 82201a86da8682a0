//! Brings back the replies of servers of this node to connections with a client's address.
//!
//! What a pod answers comes in from outside and is recognised by its socket (see [`crate::kernel::divert`]).
//! What a server of the node itself answers (a hostNetwork pod) is routed as soon as it is sent, to the
//! client. So each packet of ours to such a server notes the flow of the answers, and those are marked and
//! routed anew: to this node, where the socket is. Neither is tracked: a CNI plugin would masquerade what
//! comes from a pod's address.
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
//! and the same for UDP and IPv6. It is a table of its own, because the other one is written anew by each new
//! proxy, and the flows of the previous one go on.
//!
//! A connection keeps its flow in the set by its keepalive probes ([`PROBES`]), so a flow outlives its
//! connection by [`TCP_TIMEOUT`]. A FIN does not shorten that: it ends one direction, and the last ACK, which
//! looks like any other, would lengthen it again. [`Limit`] keeps the sets from being full: a flow that is
//! not noted would be a connection that times out.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use nftables::{Batch, Family, Netfilter, Rule};

use crate::kernel::divert::{MARK, PROXIED};
use crate::kernel::socket::Probes;

const TABLE: &str = "portolan-proxy-replies";
const NOTE: &str = "note";
const REPLIES: &str = "replies";

/// An idle connection sends a probe in a third of the time.
const TCP_TIMEOUT: Duration = Duration::from_secs(60);

/// Of connections with a client's address to servers of this node. On the loopback device they cost little.
pub(crate) const PROBES: Probes = Probes::new(Duration::from_secs(20), Duration::from_secs(20), 14);

/// Flows that a set may have. The kernel takes memory, some 100 bytes each, as they come.
const SIZE: u32 = 1 << 20;

/// The part of a set that flows which are opened within one timeout may take; one more part goes to a burst
/// before it, half of the set to flows that are older, and to those of a previous proxy.
const SHARE: u64 = SIZE as u64 / 4;

/// Bounds the flows that are opened, of one protocol: [`SHARE`] at once, and as many within each timeout.
#[derive(Debug)]
pub(crate) struct Limit {
    started: Instant,
    timeout: Duration,
    /// Until when the flows so far fill their share, in nanoseconds since the start (generic cell rate
    /// algorithm).
    until: AtomicU64,
}

impl Limit {
    /// For connections.
    pub(crate) fn tcp() -> Self {
        Self::new(TCP_TIMEOUT)
    }

    /// For flows of datagrams, which end after `idle_timeout`.
    pub(crate) fn udp(idle_timeout: Duration) -> Self {
        Self::new(udp_timeout(idle_timeout))
    }

    fn new(timeout: Duration) -> Self {
        Self { started: Instant::now(), timeout, until: AtomicU64::new(0) }
    }

    /// Whether one more flow may be noted.
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

/// A flow lives a quarter longer than its idle timeout at most (see [`crate::udp`]).
fn udp_timeout(idle_timeout: Duration) -> Duration {
    idle_timeout + idle_timeout / 4
}

/// Writes the rules in the place of those that are there. The flows stay.
///
/// # Errors
/// What the kernel says; then nothing has changed.
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

/// Whether the rules are there.
///
/// # Errors
/// What the kernel says.
pub(crate) fn is_installed(netfilter: &Netfilter) -> io::Result<bool> {
    netfilter.has_rules(Family::Inet, TABLE, REPLIES)
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
