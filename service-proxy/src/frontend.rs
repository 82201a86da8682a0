//! A virtual IP and port that is being served.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use arc_swap::ArcSwap;
use discovery::model::{NamespacedName, Protocol};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::endpoints::EndpointSet;

/// Where a frontend listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct FrontendKey {
    pub(crate) protocol: Protocol,
    pub(crate) address: SocketAddr,
}

/// Shared by the proxier, which changes the endpoints, and the workers, which read them for every connection.
#[derive(Debug)]
pub(crate) struct Frontend {
    pub(crate) key: FrontendKey,
    pub(crate) service: NamespacedName,
    endpoints: ArcSwap<EndpointSet>,
    changed: Notify,
    closed: CancellationToken,
}

impl Frontend {
    pub(crate) fn new(key: FrontendKey, service: NamespacedName, endpoints: EndpointSet) -> Self {
        Self {
            key,
            service,
            endpoints: ArcSwap::from_pointee(endpoints),
            changed: Notify::new(),
            closed: CancellationToken::new(),
        }
    }

    /// The endpoints right now. One atomic load.
    pub(crate) fn endpoints(&self) -> Arc<EndpointSet> {
        self.endpoints.load_full()
    }

    /// New endpoints, for connections and datagrams from now on.
    pub(crate) fn set_endpoints(&self, endpoints: EndpointSet) {
        if **self.endpoints.load() != endpoints {
            self.endpoints.store(Arc::new(endpoints));
            self.changed.notify_one();
        }
    }

    /// Returns when the endpoints have changed. One waiter (the UDP loop); cancel-safe.
    pub(crate) async fn endpoints_changed(&self) {
        self.changed.notified().await;
    }

    /// Stops accepting. Connections that are open go on.
    pub(crate) fn close(&self) {
        self.closed.cancel();
    }

    /// Returns when the frontend is closed. Cancel-safe.
    pub(crate) async fn closed(&self) {
        self.closed.cancelled().await;
    }
}

impl fmt::Display for FrontendKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.protocol)
    }
}
