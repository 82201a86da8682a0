//! How many queries of each client wait for upstream servers.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};

/// The clients that wait.
#[derive(Debug, Default)]
pub(super) struct Clients(Mutex<HashMap<IpAddr, usize>>);

/// One query that waits, until it is dropped.
pub(super) struct Waiting<'c> {
    clients: &'c Clients,
    client: IpAddr,
}

impl Clients {
    /// Notes one more query of a client; `None` if as many as may wait already.
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
