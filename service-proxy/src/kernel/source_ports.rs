//! The source port of a connection with its client's address.
//!
//! The client's own kernel must never use the same port towards the same endpoint, or two connections would
//! have the same 5-tuple (kubernetes#90042, cilium#11810). A kernel chooses ports from
//! `net.ipv4.ip_local_port_range` except `net.ipv4.ip_local_reserved_ports`, both of the client's network
//! namespace:
//!
//! | the client | ports |
//! |---|---|
//! | this node | the kernel chooses, because it is the same kernel |
//! | a pod of portolan-cni | those that the plugin has reserved in the pod, by the attachment record |
//! | any other | 512 to 1023, which no kernel chooses; if all are in use, those of the next paragraph |
//!
//! Those are the ports that the plugin would reserve, unless the client was seen to use such low ports.

use std::cell::RefCell;
use std::collections::HashSet;
use std::hash::{BuildHasher as _, RandomState};
use std::net::{IpAddr, SocketAddr};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU32, Ordering};

use attachment::{PortRange, RESERVED_PORTS};

/// Privileged ports (`net.ipv4.ip_unprivileged_port_start`) without the lower half, which has the well-known
/// services.
const PRIVILEGED: PortRange = PortRange { first: 512, last: 1023 };

/// The first port of the kernel's default `ip_local_port_range`.
const FIRST_EPHEMERAL: u16 = 32_768;

/// Ports of a range that are tried before giving up.
const ATTEMPTS: usize = 8;

/// Maximum number of clients with low ports, twice: beyond it, the older half is removed.
const MOST_CLIENTS: usize = 32_768;

/// The client's address, and what is known of its ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Source {
    pub(crate) client: SocketAddr,
    pub(crate) owner: Owner,
}

/// The owner of the client's address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Owner {
    /// This node.
    Node,
    /// A pod in which these ports are reserved.
    Pod(PortRange),
    /// Any other host.
    Other,
}

/// A client uses ports in turn, so that one is reused as late as possible. Clients share a counter by a hash
/// of their address: with a single counter a busy client would lead others to ports that they still use.
static TURNS: [AtomicU32; 1024] = [const { AtomicU32::new(0) }; 1024];

/// Random per process: the previous process may still use the first ports.
static HASHER: LazyLock<RandomState> = LazyLock::new(RandomState::new);

thread_local! {
    static LOW_CLIENTS: RefCell<LowClients> = RefCell::new(LowClients::default());
}

/// Clients whose kernel chooses ports below the default range, as seen by this worker.
#[derive(Debug, Default)]
struct LowClients {
    recent: HashSet<IpAddr>,
    earlier: HashSet<IpAddr>,
}

impl LowClients {
    fn insert(&mut self, client: IpAddr) {
        if self.recent.len() >= MOST_CLIENTS {
            self.earlier = std::mem::take(&mut self.recent);
        }
        self.recent.insert(client);
    }

    fn contains(&self, client: &IpAddr) -> bool {
        self.recent.contains(client) || self.earlier.contains(client)
    }
}

impl Source {
    /// The ports to try, in order; 0 means that the kernel chooses. The source of a datagram may be forged,
    /// so only connections count as evidence about a client's ports.
    pub(crate) fn ports(&self, is_connection: bool) -> impl Iterator<Item = u16> {
        let (first, second) = match self.owner {
            Owner::Node => (None, None),
            Owner::Pod(reserved) => (Some(reserved), None),
            Owner::Other => {
                (Some(PRIVILEGED), (!self.chooses_low_ports(is_connection)).then_some(RESERVED_PORTS))
            }
        };
        let kernel = first.is_none().then_some(0);
        let client = self.client.ip();
        let of_range =
            move |range: PortRange| std::iter::repeat_with(move || next(range, client)).take(ATTEMPTS);
        kernel.into_iter().chain(first.into_iter().chain(second).flat_map(of_range))
    }

    /// Whether the client's kernel chooses ports below the default range.
    fn chooses_low_ports(&self, is_connection: bool) -> bool {
        let is_low = self.client.port() < FIRST_EPHEMERAL;
        LOW_CLIENTS.with_borrow_mut(|clients| {
            if is_low && is_connection {
                clients.insert(self.client.ip());
            }
            is_low || clients.contains(&self.client.ip())
        })
    }
}

fn next(range: PortRange, client: IpAddr) -> u16 {
    let [index, start] = turn(client);
    let turn = TURNS[index as usize].fetch_add(1, Ordering::Relaxed).wrapping_add(start);
    let length = u32::from(range.last.saturating_sub(range.first)) + 1;
    range.first.saturating_add(u16::try_from(turn % length).unwrap_or(0))
}

/// The counter of a client, and its offset.
fn turn(client: IpAddr) -> [u32; 2] {
    let hash = HASHER.hash_one(client).to_ne_bytes();
    let [a, b, c, d, e, f, g, h] = hash;
    [u32::from_ne_bytes([a, b, c, d]) % 1024, u32::from_ne_bytes([e, f, g, h])]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ports(client: &str, owner: Owner) -> Vec<u16> {
        Source { client: client.parse().unwrap(), owner }.ports(true).collect()
    }

    #[test]
    fn ports_of_a_pod_are_the_reserved_ones_in_turn() {
        let reserved = PortRange { first: 10_000, last: 10_003 };
        let tried = ports("10.22.0.2:40000", Owner::Pod(reserved));
        assert_eq!(tried.len(), ATTEMPTS);
        let all: HashSet<u16> = tried.into_iter().collect();
        assert_eq!(all, (10_000..=10_003).collect());
        assert_eq!(ports("192.0.2.2:40000", Owner::Node), [0]);
    }

    #[test]
    fn ports_of_an_unknown_client_are_privileged_unless_it_uses_low_ports() {
        let is_privileged = |port: &u16| (512..1024).contains(port);
        let tried = ports("198.51.100.7:40000", Owner::Other);
        assert!(tried[..ATTEMPTS].iter().all(is_privileged), "{tried:?}");
        assert!(tried[ATTEMPTS..].iter().all(|port| (10_000..30_000).contains(port)), "{tried:?}");
        assert_eq!(tried.len(), 2 * ATTEMPTS);
        // Its kernel has another range: from now on privileged ports only.
        for port in [20_000, 40_000] {
            let tried = ports(&format!("198.51.100.7:{port}"), Owner::Other);
            assert!(tried.iter().all(is_privileged), "{tried:?}");
        }
        assert_eq!(ports("198.51.100.8:40000", Owner::Other).len(), 2 * ATTEMPTS, "another client");
    }

    #[test]
    fn client_reuses_a_port_only_after_all_others_whatever_other_clients_do() {
        let client = IpAddr::from([198, 51, 100, 20]);
        let mut others = (21..).map(|last| IpAddr::from([198, 51, 100, last]));
        let busy = others.find(|other| turn(*other)[0] != turn(client)[0]).unwrap();
        let taken: HashSet<u16> = (512..1024)
            .map(|_| {
                for _ in 0..7 {
                    next(PRIVILEGED, busy);
                }
                next(PRIVILEGED, client)
            })
            .collect();
        assert_eq!(taken.len(), 512);
    }

    #[test]
    fn many_clients_with_low_ports_do_not_affect_others() {
        for number in 0..100_000_u32 {
            let client = SocketAddr::new(std::net::Ipv4Addr::from_bits(0x0b00_0000 + number).into(), 1024);
            Source { client, owner: Owner::Other }.ports(true).for_each(drop);
        }
        assert_eq!(ports("198.51.100.7:40000", Owner::Other).len(), 2 * ATTEMPTS);
        assert_eq!(ports("11.1.134.159:40000", Owner::Other).len(), ATTEMPTS, "the last one");
        assert!(LOW_CLIENTS.with_borrow(|clients| clients.recent.len()) <= MOST_CLIENTS);
    }

    #[test]
    fn forged_datagram_does_not_affect_the_ports_of_a_client() {
        let forged = Source { client: "198.51.100.9:1024".parse().unwrap(), owner: Owner::Other };
        assert_eq!(forged.ports(false).count(), ATTEMPTS);
        assert_eq!(ports("198.51.100.9:40000", Owner::Other).len(), 2 * ATTEMPTS);
    }
}
