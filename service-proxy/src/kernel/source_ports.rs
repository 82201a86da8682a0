//! Which port a connection with its client's address leaves from.
//!
//! The client's own kernel must never use the same one towards the same endpoint, or two connections would be
//! one to everybody on the way (kubernetes#90042, cilium#11810). A kernel chooses ports from its
//! `net.ipv4.ip_local_port_range` without its `net.ipv4.ip_local_reserved_ports`, which are those of the
//! client's network namespace:
//!
//! | the client | ports |
//! |---|---|
//! | this node | the kernel chooses: it is the same one |
//! | a pod of our CNI plugin | those that the plugin has reserved in the pod and noted in the attachment record |
//! | any other | 512 to 1023: no kernel chooses privileged ports. When those are in use, those that the plugin would reserve, unless the client has been seen to choose ports as low as these |

use std::cell::RefCell;
use std::collections::HashSet;
use std::hash::{BuildHasher as _, RandomState};
use std::net::{IpAddr, SocketAddr};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU32, Ordering};

use attachment::{PortRange, RESERVED_PORTS};

/// Privileged ports (`net.ipv4.ip_unprivileged_port_start`) without the lower half, where the well-known
/// servers are.
const PRIVILEGED: PortRange = PortRange { first: 512, last: 1023 };

/// The first port of the kernel's default `ip_local_port_range`.
const FIRST_EPHEMERAL: u16 = 32_768;

/// How many ports of a range are tried before giving up.
const ATTEMPTS: usize = 8;

/// Clients remembered for choosing low ports, twice: when there are more, those seen before them are
/// forgotten.
const MOST_CLIENTS: usize = 32_768;

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

/// A client takes ports in turn, so that one is used again as late as possible. Clients share a turn by a
/// hash of their address: with one for all, a busy client would leave others to ports that they use already.
static TURNS: [AtomicU32; 1024] = [const { AtomicU32::new(0) }; 1024];

/// Another one in each process: not from the first port on, which the previous process may still have.
static HASHER: LazyLock<RandomState> = LazyLock::new(RandomState::new);

thread_local! {
    static LOW_CLIENTS: RefCell<LowClients> = RefCell::new(LowClients::default());
}

/// Clients whose kernel chooses ports below the default range, as far as this worker has seen.
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
    /// The ports to try, in this order; 0 leaves the choice to the kernel. A datagram's sender may be forged:
    /// only connections tell something about the ports of a client.
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

/// Which turn is a client's, and where it begins.
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

    #[test]
    fn client_uses_no_port_again_before_all_others_whatever_other_clients_do() {
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
    fn any_number_of_clients_with_low_ports_takes_no_ports_from_others() {
        for number in 0..100_000_u32 {
            let client = SocketAddr::new(std::net::Ipv4Addr::from_bits(0x0b00_0000 + number).into(), 1024);
            Source { client, owner: Owner::Other }.ports(true).for_each(drop);
        }
        assert_eq!(ports("198.51.100.7:40000", Owner::Other).len(), 2 * ATTEMPTS);
        assert_eq!(ports("11.1.134.159:40000", Owner::Other).len(), ATTEMPTS, "the last one");
        assert!(LOW_CLIENTS.with_borrow(|clients| clients.recent.len()) <= MOST_CLIENTS);
    }

    #[test]
    fn forged_datagram_takes_no_ports_from_a_client() {
        let forged = Source { client: "198.51.100.9:1024".parse().unwrap(), owner: Owner::Other };
        assert_eq!(forged.ports(false).count(), ATTEMPTS);
        assert_eq!(ports("198.51.100.9:40000", Owner::Other).len(), 2 * ATTEMPTS);
    }
}
