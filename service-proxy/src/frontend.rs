//! A frontend: an address and port that is served.

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

/// The address, port and protocol of a frontend.
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

    /// The Service of the frontend.
    pub(crate) fn service(&self) -> &NamespacedName {
        &self.traffic.port.service
    }

    /// The current endpoints. One atomic load.
    pub(crate) fn endpoints(&self) -> Arc<EndpointSet> {
        self.endpoints.load_full()
    }

    /// Reads the current selection without taking a reference, so that workers do not contend for a counter.
    pub(crate) fn with_selection<T>(&self, read: impl FnOnce(&Selection) -> T) -> T {
        read(&self.endpoints.load().selection)
    }

    /// Sets the endpoints for new connections and datagrams.
    pub(crate) fn set_endpoints(&self, selection: Selection) {
        let before = self.endpoints.load();
        if before.selection != selection {
            self.endpoints.store(Arc::new(EndpointSet::new(selection, Some(&before))));
            self.changed.send_replace(());
        }
    }

    /// The endpoints to try for a client, best first: the one of its session affinity, if any, then those of
    /// the balancer.
    pub(crate) fn endpoints_to_try<'a>(
        &self,
        set: &'a EndpointSet,
        pool: &'a Pool,
        client: IpAddr,
    ) -> impl Iterator<Item = &'a Arc<Endpoint>> {
        let timeout = set.selection.affinity;
        let last = timeout.and_then(|timeout| self.traffic.recall(client, timeout));
        let last = last.and_then(|address| pool.find(address));
        let others =
            pool.endpoints_to_try(client).filter(move |other| Some(other.address) != last.map(|e| e.address));
        last.into_iter().chain(others)
    }

    /// Records the endpoint of a client for session affinity.
    pub(crate) fn remember(&self, set: &EndpointSet, client: IpAddr, endpoint: SocketAddr) {
        if let Some(timeout) = set.selection.affinity {
            self.traffic.remember(client, endpoint, timeout);
        }
    }

    /// Notifies about every change of the endpoints.
    pub(crate) fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// Stops accepting. Open connections continue.
    pub(crate) fn close(&self) {
        self.closed.cancel();
    }

    /// Whether it is closed.
    pub(crate) fn is_closed(&self) -> bool {
        self.closed.is_cancelled()
    }

    /// Waits until the frontend is closed. Cancel-safe.
    pub(crate) async fn closed(&self) {
        self.closed.cancelled().await;
    }
}

impl fmt::Display for FrontendKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.protocol)
    }
}
