//! Limits the queries of each client that wait for upstream servers.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};

/// The waiting queries by client.
#[derive(Debug, Default)]
pub(super) struct Clients(Mutex<HashMap<IpAddr, usize>>);

/// A waiting query; it counts until it is dropped.
pub(super) struct Waiting<'c> {
    clients: &'c Clients,
    client: IpAddr,
}

impl Clients {
    /// Counts one more query of a client. `None` at the limit.
    pub(super) fn enter(&self, client: IpAddr, limit: usize) -> Option<Waiting<'_>> {
        let mut clients = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let waiting = clients.entry(client).or_default();
        if *waiting >= limit {
            return None;
        }
        *waiting += 1;
        Some(Waiting { clients: self, client })
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let mut clients = self.clients.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(waiting) = clients.get_mut(&self.client) {
            *waiting -= 1;
            if *waiting == 0 {
                clients.remove(&self.client);
            }
        }
    }
}
