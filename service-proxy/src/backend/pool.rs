//! Selects one of several endpoints.

use std::hash::{BuildHasher as _, BuildHasherDefault, DefaultHasher};
use std::net::IpAddr;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use discovery::model::BalancerKind;

use crate::backend::endpoint::Endpoint;

/// Sizes of a Maglev table: primes, a hundred times the number of endpoints they are for (Maglev paper,
/// section 5.3).
const SLOTS: [usize; 3] = [2039, 16_381, 65_537];

/// Equally eligible endpoints, and their balancer.
#[derive(Debug, Default)]
pub(crate) struct Pool {
    endpoints: Vec<Arc<Endpoint>>,
    balancer: Balancer,
}

#[derive(Debug, Default)]
enum Balancer {
    #[default]
    Random,
    RoundRobin(AtomicUsize),
    LeastConnections,
    /// Index of an endpoint by hash of the client.
    Maglev(Box<[u16]>),
}

impl Pool {
    pub(crate) fn new(endpoints: Vec<Arc<Endpoint>>, kind: BalancerKind) -> Self {
        let balancer = match kind {
            BalancerKind::Random => Balancer::Random,
            BalancerKind::RoundRobin => Balancer::RoundRobin(AtomicUsize::new(fastrand::usize(..))),
            BalancerKind::LeastConnections => Balancer::LeastConnections,
            BalancerKind::Maglev => Balancer::Maglev(maglev(&endpoints)),
        };
        Self { endpoints, balancer }
    }

    pub(crate) fn endpoints(&self) -> &[Arc<Endpoint>] {
        &self.endpoints
    }

    /// The endpoint with that address.
    pub(crate) fn find(&self, address: SocketAddr) -> Option<&Arc<Endpoint>> {
        self.endpoints.iter().find(|endpoint| endpoint.address == address)
    }

    /// Every endpoint once, in the order to try them. Ejected ones come last.
    pub(crate) fn endpoints_to_try(&self, client: IpAddr) -> impl Iterator<Item = &Arc<Endpoint>> {
        let count = self.endpoints.len();
        let start = if count < 2 { 0 } else { self.choose(client) };
        let in_turn = move |step: usize| &self.endpoints[(start + step) % count];
        let healthy = (0..count).map(in_turn).filter(|endpoint| !endpoint.is_ejected());
        let ejected = (0..count).map(in_turn).filter(|endpoint| endpoint.is_ejected());
        healthy.chain(ejected)
    }

    /// Records a failed attempt. At most half of the pool is ejected.
    pub(crate) fn failed(&self, endpoint: &Endpoint) {
        if endpoint.failed() {
            let ejected = self.endpoints.iter().filter(|other| other.is_ejected()).count();
            if (ejected + 1) * 2 <= self.endpoints.len() {
                endpoint.eject();
            }
        }
    }

    fn choose(&self, client: IpAddr) -> usize {
        let count = self.endpoints.len();
        match &self.balancer {
            Balancer::Random => fastrand::usize(..count),
            Balancer::RoundRobin(next) => next.fetch_add(1, Ordering::Relaxed) % count,
            Balancer::LeastConnections => {
                let one = fastrand::usize(..count);
                // Another one: there are at least two.
                self.less_loaded(one, (one + fastrand::usize(1..count)) % count)
            }
            Balancer::Maglev(table) => usize::from(table[slot(client, table.len())]),
        }
    }

    /// A new endpoint has no connections and would get them all: during slow start it loses some of its
    /// draws.
    fn less_loaded(&self, one: usize, other: usize) -> usize {
        let (a, b) = (&self.endpoints[one], &self.endpoints[other]);
        let (winner, loser) = if a.connections() <= b.connections() { (one, other) } else { (other, one) };
        let (warm, other) = (self.endpoints[winner].warmth(), self.endpoints[loser].warmth());
        if warm >= other || fastrand::f64() * other < warm { winner } else { loser }
    }
}

fn slot(client: IpAddr, slots: usize) -> usize {
    usize::try_from(hash(&client) % slots as u64).unwrap_or(0)
}

/// The same on every node and in every process: SipHash with fixed keys.
fn hash(value: &impl std::hash::Hash) -> u64 {
    BuildHasherDefault::<DefaultHasher>::default().hash_one(value)
}

/// The table of the Maglev paper (section 3.4): the endpoints fill the slots in turn, each in the order of
/// its own permutation.
fn maglev(endpoints: &[Arc<Endpoint>]) -> Box<[u16]> {
    let wanted = endpoints.len().saturating_mul(100);
    let slots = SLOTS.into_iter().find(|slots| *slots >= wanted).unwrap_or(SLOTS[SLOTS.len() - 1]);
    // By address, so that the result does not depend on the order of the endpoints.
    let mut order: Vec<usize> = (0..endpoints.len().min(usize::from(u16::MAX))).collect();
    order.sort_by_key(|index| endpoints[*index].address);
    let part = |index: usize, salt: u8, modulus: usize| {
        usize::try_from(hash(&(endpoints[index].address, salt)) % modulus as u64).unwrap_or(0)
    };
    let permutations: Vec<(usize, usize)> =
        order.iter().map(|index| (part(*index, 0, slots), part(*index, 1, slots - 1) + 1)).collect();
    let mut table = vec![u16::MAX; slots];
    let mut next = vec![0; order.len()];
    let mut filled = 0;
    while filled < slots && !order.is_empty() {
        for (turn, index) in order.iter().enumerate() {
            let (offset, skip) = permutations[turn];
            let mut at = (offset + next[turn] * skip) % slots;
            while table[at] != u16::MAX {
                next[turn] += 1;
                at = (offset + next[turn] * skip) % slots;
            }
            table[at] = u16::try_from(*index).unwrap_or(0);
            next[turn] += 1;
            filled += 1;
            if filled == slots {
                break;
            }
        }
    }
    table.into()
}

#[cfg(test)]
mod tests;
