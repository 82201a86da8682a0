//! Which port a connection with its client's address leaves from.
//!
//! The client's own kernel must never use the same one towards the same endpoint, or two connections would be one to everybody on
//! the way (kubernetes#90042, cilium#11810). A kernel chooses ports from its `net.ipv4.ip_local_port_range` without its
//! `net.ipv4.ip_local_reserved_ports`, which are those of the client's network namespace:
//!
//! | the client | ports |
//! |---|---|
//! | this node | the kernel chooses: it is the same one |
//! | a pod of our CNI plugin | those that the plugin has reserved in the pod and noted in the attachment record |
//! | any other | 512 to 1023: no kernel chooses privileged ports. When those are in use, those that the plugin would reserve, unless the client has been seen to choose ports as low as these |

use std::cell::RefCell;
use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU32, Ordering};

use attachment::{PortRange, RESERVED_PORTS};

/// Privileged ports (`net.ipv4.ip_unprivileged_port_start`) without the lower half, where the well-known servers are.
const PRIVILEGED: PortRange = PortRange { first: 512, last: 1023 };

/// The first port of the kernel's default `ip_local_port_range`.
const FIRST_EPHEMERAL: u16 = 32_768;

/// How many ports of a range are tried before giving up.
const ATTEMPTS: usize = 8;

/// Clients remembered for choosing low ports. When there are more, every client is taken for one.
const MOST_CLIENTS: usize = 65_536;

/// The client's address, and what is known of its ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Source {
    pub(crate) client: SocketAddr,
    pub(crate) owner: Owner,
}

/// Whose the client's address is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Owner {
    /// This node's.
    Node,
    /// A pod's in which these ports are reserved.
    Pod(PortRange),
    /// Anybody's.
    Other,
}

/// Ports are taken in turn, so that one is used again as late as possible; not from the first one on, which the previous process
/// may still have.
static TURN: LazyLock<AtomicU32> = LazyLock::new(|| AtomicU32::new(fastrand::u32(..)));

thread_local! {
    static LOW_CLIENTS: RefCell<HashSet<IpAddr>> = RefCell::new(HashSet::new());
}

impl Source {
    /// The ports to try, in this order; 0 leaves the choice to the kernel.
    pub(crate) fn ports(&self) -> impl Iterator<Item = u16> {
        let (first, second) = match self.owner {
            Owner::Node => (None, None),
            Owner::Pod(reserved) => (Some(reserved), None),
            Owner::Other => (Some(PRIVILEGED), (!self.chooses_low_ports()).then_some(RESERVED_PORTS)),
        };
        let kernel = first.is_none().then_some(0);
        let of_range = |range: PortRange| std::iter::repeat_with(move || next(range)).take(ATTEMPTS);
        kernel.into_iter().chain(first.into_iter().chain(second).flat_map(of_range))
    }

    /// Whether the client's kernel chooses ports below the default range, as far as this worker has
    /// seen.
    fn chooses_low_ports(&self) -> bool {
        LOW_CLIENTS.with_borrow_mut(|clients| {
            if self.client.port() < FIRST_EPHEMERAL && clients.len() < MOST_CLIENTS {
                clients.insert(self.client.ip());
            }
            clients.len() >= MOST_CLIENTS || clients.contains(&self.client.ip())
        })
    }
}

fn next(range: PortRange) -> u16 {
    let turn = TURN.fetch_add(1, Ordering::Relaxed);
    let length = u32::from(range.last.saturating_sub(range.first)) + 1;
    range.first.saturating_add(u16::try_from(turn % length).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ports(client: &str, owner: Owner) -> Vec<u16> {
        Source { client: client.parse().unwrap(), owner }.ports().collect()
    }

    #[test]
    fn ports_of_a_pod_are_those_reserved_in_it_one_after_the_other() {
        let reserved = PortRange { first: 10_000, last: 10_003 };
        let tried = ports("10.22.0.2:40000", Owner::Pod(reserved));
        assert_eq!(tried.len(), ATTEMPTS);
        let all: HashSet<u16> = tried.into_iter().collect();
        assert_eq!(all, (10_000..=10_003).collect());
        assert_eq!(ports("192.0.2.2:40000", Owner::Node), [0]);
    }

    #[test]
    fn ports_of_an_unknown_client_are_privileged_unless_it_leaves_others_alone() {
        let is_privileged = |port: &u16| (512..1024).contains(port);
        let tried = ports("198.51.100.7:40000", Owner::Other);
        assert!(tried[..ATTEMPTS].iter().all(is_privileged), "{tried:?}");
        assert!(tried[ATTEMPTS..].iter().all(|port| (10_000..30_000).contains(port)), "{tried:?}");
        assert_eq!(tried.len(), 2 * ATTEMPTS);
        // Its kernel has another range: from now on.
        for port in [20_000, 40_000] {
            let tried = ports(&format!("198.51.100.7:{port}"), Owner::Other);
            assert!(tried.iter().all(is_privileged), "{tried:?}");
        }
        assert_eq!(ports("198.51.100.8:40000", Owner::Other).len(), 2 * ATTEMPTS, "another client");
    }
}
