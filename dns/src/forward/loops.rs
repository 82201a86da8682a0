//! Finds out whether a server asks us in turn: it is sent a name that nobody else knows, and we watch for it.
//!
//! CoreDNS's `loop` looks for 30 s after its start and then ends the process. Here the server is left out of use and
//! asked again, and everything else goes on.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};

use super::random;
use super::server::Server;
use crate::message::{Name, NameBuf};

/// The type CoreDNS's `loop` asks for as well: nobody else does.
pub(super) const KIND: u16 = crate::message::kind::HINFO;

/// The names that were sent, each with its server.
#[derive(Default)]
pub(super) struct Probes {
    sent: Mutex<HashMap<NameBuf, Arc<Server>>>,
    /// How many there are, so that queries need not look while there are none.
    count: AtomicUsize,
}

impl Probes {
    /// A name for this server. It is watched for until [`Probes::end`].
    pub(super) fn begin(&self, server: &Arc<Server>) -> NameBuf {
        let mut bytes = [0; 16];
        random::fill(&mut bytes);
        let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        // Two labels: some servers answer names of one label by themselves.
        let text = format!("{}.{}", hex(&bytes[..8]), hex(&bytes[8..]));
        let name = NameBuf::from_text(&text).expect("hexadecimal digits make a name");
        let mut sent = self.sent.lock().unwrap_or_else(PoisonError::into_inner);
        sent.insert(name.clone(), Arc::clone(server));
        self.count.store(sent.len(), Relaxed);
        name
    }

    pub(super) fn end(&self, name: &NameBuf) {
        let mut sent = self.sent.lock().unwrap_or_else(PoisonError::into_inner);
        sent.remove(name);
        self.count.store(sent.len(), Relaxed);
    }

    /// The server whose probe has come back to us as a query.
    pub(super) fn returned(&self, name: Name<'_>) -> Option<Arc<Server>> {
        if self.count.load(Relaxed) == 0 {
            return None;
        }
        let mut name = name.to_buf();
        name.make_lower();
        self.sent.lock().unwrap_or_else(PoisonError::into_inner).get(&name).map(Arc::clone)
    }
}
