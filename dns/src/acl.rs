//! Which clients may query, and how often. Without a flag: all, without a limit.

use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use ipnetwork::IpNetwork;
use siphasher::sip::SipHasher24;

/// Places for clients; two that fall into one share its rate. With 250 pods on a node that happens to any two of them in
/// 3 of 100 nodes.
const PLACES: usize = 1 << 20;

/// Seconds' worth of queries that may come at once.
const BURST: u64 = 1;

/// The limits, as flags.
#[derive(Clone, Debug, clap::Args)]
#[group(skip)]
pub struct Limits {
    /// Clients that may ask; the others are refused. Without it, all.
    #[arg(long, value_name = "CIDR", value_delimiter = ',', value_parser = discovery::parse_cidr)]
    pub allow_from: Vec<IpNetwork>,

    /// Clients that are refused.
    #[arg(long, value_name = "CIDR", value_delimiter = ',', value_parser = discovery::parse_cidr)]
    pub block_from: Vec<IpNetwork>,

    /// Queries a second that each client may ask, with a second's worth at once; more are refused.
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..))]
    pub rate_limit: Option<u32>,
}

/// The limits that apply.
pub(crate) struct Acl {
    limits: Limits,
    rate: Option<Rate>,
}

/// Why a client is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// It may never ask.
    Client,
    /// It asks too often.
    Rate,
}

/// Each client has a time up to which its queries are paid for (the generic cell rate algorithm): one word, so that
/// threads share it without a lock.
struct Rate {
    /// Nanoseconds a query costs.
    cost: u64,
    start: Instant,
    /// Which client has which place is not for clients to find out.
    key: [u8; 16],
    paid_until: Box<[AtomicU64]>,
}

impl Acl {
    /// `None` if there are no limits.
    ///
    /// # Errors
    /// When the kernel has no random bytes.
    pub(crate) fn new(limits: Limits) -> Result<Option<Self>, getrandom::Error> {
        let rate = limits.rate_limit.map(Rate::new).transpose()?;
        let is_open = rate.is_none() && limits.allow_from.is_empty() && limits.block_from.is_empty();
        Ok((!is_open).then_some(Self { limits, rate }))
    }

    /// Whether this query of a client is refused, and why.
    pub(crate) fn refuses(&self, client: IpAddr, now: Instant) -> Option<Refusal> {
        let is_in = |ranges: &[IpNetwork]| ranges.iter().any(|range| range.contains(client));
        let Limits { allow_from, block_from, .. } = &self.limits;
        if is_in(block_from) || !allow_from.is_empty() && !is_in(allow_from) {
            return Some(Refusal::Client);
        }
        self.rate.as_ref().filter(|rate| !rate.takes(client, now)).map(|_| Refusal::Rate)
    }
}

impl Rate {
    fn new(number: u32) -> Result<Self, getrandom::Error> {
        let mut key = [0; 16];
        getrandom::fill(&mut key)?;
        let cost = 1_000_000_000 / u64::from(number);
        let paid_until = std::iter::repeat_with(AtomicU64::default).take(PLACES).collect();
        Ok(Self { cost, start: Instant::now(), key, paid_until })
    }

    fn takes(&self, client: IpAddr, now: Instant) -> bool {
        let hasher = SipHasher24::new_with_key(&self.key);
        let hash = match client {
            IpAddr::V4(ip) => hasher.hash(&ip.octets()),
            // A host has 2^64 addresses of its own to choose from.
            IpAddr::V6(ip) => hasher.hash(&ip.octets()[..8]),
        };
        let place = usize::try_from(hash).unwrap_or_default() % PLACES;
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
    fn nothing_is_in_the_way_of_anybody_unless_told() {
        assert!(Acl::new(OPEN).unwrap().is_none());
    }

    #[test]
    fn whoever_is_blocked_stays_out_also_if_allowed() {
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
    fn each_client_has_a_rate_of_its_own_and_a_seconds_worth_at_once() {
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
