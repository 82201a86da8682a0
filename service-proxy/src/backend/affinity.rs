//! The last endpoint of each client (`sessionAffinity: ClientIP`).
//!
//! The only lock of a connection, and only for Services with affinity: a client's connections arrive at every
//! worker, and all workers must agree.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Clients remembered per Service port. Beyond that the least recently seen are removed.
const MAX_CLIENTS: usize = 65_536;

/// The clients of one Service port, shared by all its frontends.
#[derive(Debug, Default)]
pub(crate) struct Affinity(Mutex<HashMap<IpAddr, (SocketAddr, Instant)>>);

impl Affinity {
    /// The endpoint that the client had within the last `timeout`.
    pub(crate) fn recall(&self, client: IpAddr, timeout: Duration) -> Option<SocketAddr> {
        let clients = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        clients.get(&client).filter(|(_, seen)| seen.elapsed() < timeout).map(|(endpoint, _)| *endpoint)
    }

    /// Records the endpoint of the client. Each new connection restarts the timeout.
    pub(crate) fn remember(&self, client: IpAddr, endpoint: SocketAddr, timeout: Duration) {
        let mut clients = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if clients.len() >= MAX_CLIENTS && !clients.contains_key(&client) {
            evict_oldest(&mut clients, timeout);
        }
        clients.insert(client, (endpoint, Instant::now()));
    }
}

/// Removes many clients at once, so that a full table costs each new client little.
fn evict_oldest(clients: &mut HashMap<IpAddr, (SocketAddr, Instant)>, timeout: Duration) {
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
    fn client_is_forgotten_after_the_timeout_and_a_newer_endpoint_counts() {
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
    fn number_of_clients_is_bounded() {
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
