//! Forwarding loop detection: sends a random name to a server, and watches for a query with that name.
//!
//! CoreDNS's `loop` checks for 30 s after its start and then ends the process. Here the server is excluded
//! and probed again, and everything else continues.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};

use super::random;
use super::upstream::Server;
use crate::message::{Name, NameBuf};

/// The type of CoreDNS's `loop` probes, which clients rarely query.
pub(super) const KIND: u16 = crate::message::kind::HINFO;

/// The names that were sent, each with its server.
#[derive(Default)]
pub(super) struct Probes {
    sent: Mutex<HashMap<NameBuf, Probe>>,
    /// The number of probes, so that queries need not look while there are none.
    count: AtomicUsize,
}

struct Probe {
    server: Arc<Server>,
    has_returned: bool,
}

impl Probes {
    /// Returns a name for this server. It is watched for until [`Probes::end`].
    pub(super) fn begin(&self, server: &Arc<Server>) -> NameBuf {
        let mut bytes = [0; 16];
        random::fill(&mut bytes);
        let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        // Two labels: some servers answer single-label names by themselves.
        let text = format!("{}.{}", hex(&bytes[..8]), hex(&bytes[8..]));
        let name = NameBuf::from_text(&text).expect("hexadecimal digits make a name");
        let mut sent = self.sent.lock().unwrap_or_else(PoisonError::into_inner);
        sent.insert(name.clone(), Probe { server: Arc::clone(server), has_returned: false });
        self.count.store(sent.len(), Relaxed);
        name
    }

    /// Stops watching. Returns whether the name has come back.
    pub(super) fn end(&self, name: &NameBuf) -> bool {
        let mut sent = self.sent.lock().unwrap_or_else(PoisonError::into_inner);
        let probe = sent.remove(name);
        self.count.store(sent.len(), Relaxed);
        probe.is_some_and(|probe| probe.has_returned)
    }

    /// Whether a query is a returned probe. If so, its server is excluded.
    pub(super) fn is_returned(&self, name: Name<'_>) -> bool {
        if self.count.load(Relaxed) == 0 {
            return false;
        }
        let mut name = name.to_buf();
        name.make_lower();
        let mut sent = self.sent.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(probe) = sent.get_mut(&name) else { return false };
        probe.has_returned = true;
        probe.server.is_looping.store(true, Relaxed);
        true
    }
}
