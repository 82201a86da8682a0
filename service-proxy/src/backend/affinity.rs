//! Which endpoint a client had last (`sessionAffinity: ClientIP`).
//!
//! The one lock on the way of a connection, and only of a Service that asks for affinity: a client's
//! connections come in on every worker, and all have to agree.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Clients remembered a port of a Service; beyond that those longest unseen are forgotten.
const MAX_CLIENTS: usize = 65_536;

/// The memory of one port of a Service, shared by all ways into it.
#[derive(Debug, Default)]
pub(crate) struct Affinity(Mutex<HashMap<IpAddr, (SocketAddr, Instant)>>);

impl Affinity {
    /// Where the client was within the last `timeout`.
    pub(crate) fn recall(&self, client: IpAddr, timeout: Duration) -> Option<SocketAddr> {
        let clients = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        clients.get(&client).filter(|(_, seen)| seen.elapsed() < timeout).map(|(endpoint, _)| *endpoint)
    }

    /// Notes where the client is now. Each new connection begins the timeout anew.
    pub(crate) fn remember(&self, client: IpAddr, endpoint: SocketAddr, timeout: Duration) {
        let mut clients = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if clients.len() >= MAX_CLIENTS && !clients.contains_key(&client) {
            forget_oldest(&mut clients, timeout);
        }
        clients.insert(client, (endpoint, Instant::now()));
    }
}

/// Makes room for many at once, so that a full memory costs each newcomer little.
fn forget_oldest(clients: &mut HashMap<IpAddr, (SocketAddr, Instant)>, timeout: Duration) {
    clients.retain(|_, (_, seen)| seen.elapsed() < timeout);
    if clients.len() >= MAX_CLIENTS {
        let mut seen: Vec<Instant> = clients.values().map(|(_, seen)| *seen).collect();
        let (_, eighth, _) = seen.select_nth_unstable(MAX_CLIENTS / 8);
        let eighth = *eighth;
        clients.retain(|_, (_, seen)| *seen > eighth);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_is_forgotten_after_the_timeout_and_a_newer_endpoint_counts() {
        let affinity = Affinity::default();
        let client = "10.22.0.9".parse().unwrap();
        let (first, second) = ("10.22.0.2:80".parse().unwrap(), "10.22.0.3:80".parse().unwrap());
        let (timeout, short) = (Duration::from_secs(3600), Duration::from_millis(1));
        assert_eq!(affinity.recall(client, timeout), None);
        affinity.remember(client, first, timeout);
        assert_eq!(affinity.recall(client, timeout), Some(first));
        affinity.remember(client, second, timeout);
        assert_eq!(affinity.recall(client, timeout), Some(second));
        std::thread::sleep(short);
        assert_eq!(affinity.recall(client, short), None);
    }

    #[test]
    fn memory_is_bounded() {
        let affinity = Affinity::default();
        let endpoint = "10.22.0.2:80".parse().unwrap();
        for number in 0..70_000_u32 {
            affinity.remember(IpAddr::from(number.to_be_bytes()), endpoint, Duration::from_secs(60));
            assert!(affinity.0.lock().unwrap().len() <= MAX_CLIENTS);
        }
        let last = IpAddr::from(69_999_u32.to_be_bytes());
        assert_eq!(affinity.recall(last, Duration::from_secs(60)), Some(endpoint));
    }
}
