//! Access control and rate limits of clients. By default every client may query, without a limit.

use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use ipnetwork::IpNetwork;
use siphasher::sip::SipHasher24;

/// Slots for clients. Two clients in one slot share its rate. With 250 pods on a node this affects two of
/// them on 3 of 100 nodes.
const SLOTS: usize = 1 << 20;

/// The burst, in seconds of the rate.
const BURST: u64 = 1;

/// The limits, as flags.
#[derive(Clone, Debug, clap::Args)]
#[group(skip)]
pub struct Limits {
    /// Clients that may query, as ranges; others are refused [default: all]
    #[arg(long, value_name = "CIDR", value_delimiter = ',', value_parser = discovery::parse_cidr)]
    pub allow_from: Vec<IpNetwork>,

    /// Clients that are refused, as ranges
    #[arg(long, value_name = "CIDR", value_delimiter = ',', value_parser = discovery::parse_cidr)]
    pub block_from: Vec<IpNetwork>,

    /// Queries per second of each client, with a burst of one second; more are refused
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..))]
    pub rate_limit: Option<u32>,
}

/// The effective limits.
pub(crate) struct Acl {
    limits: Limits,
    rate: Option<Rate>,
}

/// Why a client is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// The client is not allowed.
    Client,
    /// The client exceeds the rate.
    Rate,
}

/// Each slot has the time up to which its queries are counted (generic cell rate algorithm): one word, which
/// threads share without a lock.
struct Rate {
    /// Nanoseconds per query.
    cost: u64,
    start: Instant,
    /// Random, so that clients cannot find out which of them share a slot.
    key: [u8; 16],
    paid_until: Box<[AtomicU64]>,
}

impl Acl {
    /// Returns `None` without limits.
    ///
    /// # Errors
    /// If the kernel has no random bytes.
    pub(crate) fn new(limits: Limits) -> Result<Option<Self>, getrandom::Error> {
        let rate = limits.rate_limit.map(Rate::new).transpose()?;
        let is_open = rate.is_none() && limits.allow_from.is_empty() && limits.block_from.is_empty();
        Ok((!is_open).then_some(Self { limits, rate }))
    }

    /// Returns the reason if this query is refused.
    pub(crate) fn refuses(&self, client: IpAddr, now: Instant) -> Option<Refusal> {
        let is_in = |ranges: &[IpNetwork]| ranges.iter().any(|range| range.contains(client));
        let Limits { allow_from, block_from, .. } = &self.limits;
        if is_in(block_from) || !allow_from.is_empty() && !is_in(allow_from) {
            return Some(Refusal::Client);
        }
        self.rate.as_ref().filter(|rate| !rate.admits(client, now)).map(|_| Refusal::Rate)
    }
}

impl Rate {
    fn new(number: u32) -> Result<Self, getrandom::Error> {
        let mut key = [0; 16];
        getrandom::fill(&mut key)?;
        let cost = 1_000_000_000 / u64::from(number);
        let paid_until = std::iter::repeat_with(AtomicU64::default).take(SLOTS).collect();
        Ok(Self { cost, start: Instant::now(), key, paid_until })
    }

    fn admits(&self, client: IpAddr, now: Instant) -> bool {
        let hasher = SipHasher24::new_with_key(&self.key);
        let hash = match client {
            IpAddr::V4(ip) => hasher.hash(&ip.octets()),
            // A host chooses among 2^64 addresses of its prefix.
            IpAddr::V6(ip) => hasher.hash(&ip.octets()[..8]),
        };
        let place = usize::try_from(hash).unwrap_or_default() % SLOTS;
        let Some(paid_until) = self.paid_until.get(place) else { return true };
        let now = u64::try_from(now.saturating_duration_since(self.start).as_nanos()).unwrap_or(u64::MAX);
        let most = now + BURST * u64::try_from(Duration::from_secs(1).as_nanos()).unwrap_or(u64::MAX);
        let pay = |paid: u64| Some(paid.max(now) + self.cost).filter(|until| *until <= most);
        paid_until.try_update(Ordering::Relaxed, Ordering::Relaxed, pay).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn acl(limits: Limits) -> Acl {
        Acl::new(limits).unwrap().unwrap()
    }

    const OPEN: Limits = Limits { allow_from: Vec::new(), block_from: Vec::new(), rate_limit: None };

    #[test]
    fn every_client_is_admitted_by_default() {
        assert!(Acl::new(OPEN).unwrap().is_none());
    }

    #[test]
    fn blocked_client_is_refused_even_if_allowed() {
        let range = |text: &str| vec![text.parse().unwrap()];
        let acl = acl(Limits { allow_from: range("10.0.0.0/8"), block_from: range("10.1.0.0/16"), ..OPEN });
        let now = Instant::now();
        let refuses = |ip: &str| acl.refuses(ip.parse().unwrap(), now);
        assert_eq!(refuses("10.0.0.1"), None);
        assert_eq!(refuses("10.1.0.1"), Some(Refusal::Client));
        assert_eq!(refuses("192.0.2.1"), Some(Refusal::Client));
        assert_eq!(refuses("::1"), Some(Refusal::Client));
    }

    #[test]
    fn each_client_has_its_own_rate_with_a_burst_of_one_second() {
        let acl = acl(Limits { rate_limit: Some(10), ..OPEN });
        let start = Instant::now() + Duration::from_secs(5);
        let taken = |ip: &str, at: u64| {
            let now = start + Duration::from_millis(at);
            (0..100).filter(|_| acl.refuses(ip.parse().unwrap(), now).is_none()).count()
        };
        assert_eq!(taken("10.0.0.1", 0), 10);
        assert_eq!(taken("10.0.0.2", 0), 10);
        assert_eq!(taken("10.0.0.1", 250), 2);
        assert_eq!(taken("10.0.0.1", 10_000), 10);
        // All addresses of a host are one client.
        assert_eq!(taken("2001:db8::1", 0), 10);
        assert_eq!(taken("2001:db8::2", 0), 0);
    }
}
