//! An address and port that is being served.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use arc_swap::ArcSwap;
use discovery::model::{NamespacedName, Protocol};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::backend::endpoint::Endpoint;
use crate::backend::endpoints::{EndpointSet, Selection};
use crate::backend::pool::Pool;
use crate::traffic::Traffic;

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
    pub(crate) traffic: Arc<Traffic>,
    endpoints: ArcSwap<EndpointSet>,
    changed: watch::Sender<()>,
    closed: CancellationToken,
}

impl Frontend {
    pub(crate) fn new(key: FrontendKey, traffic: Arc<Traffic>, selection: Selection) -> Self {
        let endpoints = EndpointSet::new(selection, None);
        Self {
            key,
            traffic,
            endpoints: ArcSwap::from_pointee(endpoints),
            changed: watch::Sender::new(()),
            closed: CancellationToken::new(),
        }
    }

    /// Whose it is.
    pub(crate) fn service(&self) -> &NamespacedName {
        &self.traffic.port.service
    }

    /// The endpoints right now. One atomic load.
    pub(crate) fn endpoints(&self) -> Arc<EndpointSet> {
        self.endpoints.load_full()
    }

    /// What the Service wants right now, for a look that does not outlast it: nothing is counted that workers
    /// share.
    pub(crate) fn wants<T>(&self, read: impl FnOnce(&Selection) -> T) -> T {
        read(&self.endpoints.load().selection)
    }

    /// New endpoints, for connections and datagrams from now on.
    pub(crate) fn set_endpoints(&self, selection: Selection) {
        let before = self.endpoints.load();
        if before.selection != selection {
            self.endpoints.store(Arc::new(EndpointSet::new(selection, Some(&before))));
            self.changed.send_replace(());
        }
    }

    /// The endpoints to try for a client, best first: the one it had, if it is to keep it, then the
    /// balancer's choice.
    pub(crate) fn candidates<'a>(
        &self,
        set: &'a EndpointSet,
        pool: &'a Pool,
        client: IpAddr,
    ) -> impl Iterator<Item = &'a Arc<Endpoint>> {
        let timeout = set.selection.affinity;
        let last = timeout.and_then(|timeout| self.traffic.recall(client, timeout));
        let last = last.and_then(|address| pool.find(address));
        let others =
            pool.candidates(client).filter(move |other| Some(other.address) != last.map(|e| e.address));
        last.into_iter().chain(others)
    }

    /// Notes which endpoint a client has got, if it is to keep it.
    pub(crate) fn remember(&self, set: &EndpointSet, client: IpAddr, endpoint: SocketAddr) {
        if let Some(timeout) = set.selection.affinity {
            self.traffic.remember(client, endpoint, timeout);
        }
    }

    /// Sees every change of the endpoints from now on.
    pub(crate) fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// Stops accepting. Connections that are open go on.
    pub(crate) fn close(&self) {
        self.closed.cancel();
    }

    /// Whether it is closed.
    pub(crate) fn is_closed(&self) -> bool {
        self.closed.is_cancelled()
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
