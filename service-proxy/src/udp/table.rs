//! The flows of a frontend, and which one is evicted when there are too many.
//!
//! The client address with the most flows loses one, the one that has been idle longest among a few. So a
//! client that opens flows without end evicts its own, not those of other clients.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::task::AbortHandle;

use super::flow::Flow;
use crate::budget::Permit;

/// Flows of a client that are examined for an idle one.
const SAMPLES: usize = 16;

/// Every flow by its client.
#[derive(Debug, Default)]
pub(super) struct Table {
    flows: HashMap<SocketAddr, Entry>,
    /// The flows of each client address, in the order of eviction.
    queues: BTreeMap<(IpAddr, u64), SocketAddr>,
    shares: HashMap<IpAddr, Share>,
    /// Client addresses by number of flows. Among equals, the one without a new flow for longest comes last.
    ranks: BTreeSet<(usize, Reverse<u64>, IpAddr)>,
    /// Numbers the queue entries.
    turn: u64,
}

#[derive(Debug)]
struct Entry {
    flow: Arc<Flow>,
    reader: AbortHandle,
    /// Its place in the queue, and its last activity before it was queued.
    place: u64,
    spoke: u64,
    /// Released when the flow leaves the table, a moment before its socket is closed.
    _permit: Permit,
}

#[derive(Clone, Copy, Debug, Default)]
struct Share {
    flows: usize,
    changed: u64,
}

impl Table {
    pub(super) fn len(&self) -> usize {
        self.flows.len()
    }

    pub(super) fn get(&self, client: SocketAddr) -> Option<Arc<Flow>> {
        self.flows.get(&client).map(|entry| Arc::clone(&entry.flow))
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Arc<Flow>> {
        self.flows.values().map(|entry| &entry.flow)
    }

    /// Adds a flow. Its client has none.
    pub(super) fn insert(&mut self, flow: Arc<Flow>, reader: AbortHandle, permit: Permit) {
        let client = flow.client;
        let spoke = flow.last.load(Ordering::Relaxed);
        let place = self.enqueue(client);
        self.share(client.ip(), |flows| flows + 1);
        self.flows.insert(client, Entry { flow, reader, place, spoke, _permit: permit });
    }

    /// Ends a flow. Returns false if it is not in the table.
    pub(super) fn remove(&mut self, flow: &Arc<Flow>) -> bool {
        if self.flows.get(&flow.client).is_none_or(|entry| !Arc::ptr_eq(&entry.flow, flow)) {
            return false;
        }
        let Some(entry) = self.flows.remove(&flow.client) else { return false };
        entry.reader.abort();
        self.queues.remove(&(flow.client.ip(), entry.place));
        self.share(flow.client.ip(), |flows| flows - 1);
        true
    }

    /// The flow to evict.
    pub(super) fn victim(&mut self) -> Option<Arc<Flow>> {
        let (.., client) = *self.ranks.last()?;
        self.victim_of(client)
    }

    /// The flow of a client to evict: an idle one among the first few.
    pub(super) fn victim_of(&mut self, client: IpAddr) -> Option<Arc<Flow>> {
        for _ in 0..SAMPLES {
            let (_, first) = self.queues.range((client, 0)..=(client, u64::MAX)).next()?;
            let entry = self.flows.get(first)?;
            let spoke = entry.flow.last.load(Ordering::Relaxed);
            if spoke == entry.spoke {
                return Some(Arc::clone(&entry.flow));
            }
            // Active since it was queued: to the end of the queue.
            let (address, place) = (*first, entry.place);
            self.queues.remove(&(client, place));
            let place = self.enqueue(address);
            if let Some(entry) = self.flows.get_mut(&address) {
                (entry.place, entry.spoke) = (place, spoke);
            }
        }
        let (_, first) = self.queues.range((client, 0)..=(client, u64::MAX)).next()?;
        self.get(*first)
    }

    fn enqueue(&mut self, client: SocketAddr) -> u64 {
        self.turn += 1;
        self.queues.insert((client.ip(), self.turn), client);
        self.turn
    }

    fn share(&mut self, client: IpAddr, change: impl FnOnce(usize) -> usize) {
        let before = self.shares.remove(&client).unwrap_or_default();
        self.ranks.remove(&(before.flows, Reverse(before.changed), client));
        let share = Share { flows: change(before.flows), changed: self.turn };
        if share.flows > 0 {
            self.ranks.insert((share.flows, Reverse(share.changed), client));
            self.shares.insert(client, share);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, AtomicU64};

    use discovery::model::{NamespacedName, Protocol};

    use super::*;
    use crate::backend::endpoints::Selection;
    use crate::budget::Budget;
    use crate::frontend::{Frontend, FrontendKey};
    use crate::metrics::Metrics;
    use crate::service_port::ServicePort;
    use crate::traffic::Traffic;

    struct Opened {
        table: Table,
        frontend: Arc<Frontend>,
        budget: Arc<Budget>,
        runtime: tokio::runtime::Runtime,
    }

    impl Opened {
        fn new() -> Self {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let port = ServicePort {
                service: NamespacedName::new("shop", "dns"),
                name: "".into(),
                protocol: Protocol::Udp,
            };
            let budget = Budget::new(1_000, 1);
            let traffic = Arc::new(Traffic::new(port, Arc::clone(&Metrics::new(&budget).services)));
            let key = FrontendKey { protocol: Protocol::Udp, address: "10.96.0.9:53".parse().unwrap() };
            let frontend = Arc::new(Frontend::new(key, traffic, Selection::default()));
            Self { table: Table::default(), frontend, budget, runtime }
        }

        fn open(&mut self, client: &str) -> Arc<Flow> {
            let _inside = self.runtime.enter();
            let upstream = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
            upstream.set_nonblocking(true).unwrap();
            let client: SocketAddr = client.parse().unwrap();
            let flow = Arc::new(Flow {
                client,
                frontend: Arc::clone(&self.frontend),
                drops: AtomicU32::new(0),
                endpoint: "127.0.0.1:9".parse().unwrap(),
                upstream: tokio::net::UdpSocket::from_std(upstream).unwrap(),
                last: AtomicU64::new(0),
                _open: self.frontend.traffic.enter(None).unwrap(),
            });
            let reader =
                tokio::task::JoinSet::new().spawn_on(std::future::pending::<()>(), self.runtime.handle());
            let permit = self.budget.take(client.ip(), 1).unwrap();
            self.table.insert(Arc::clone(&flow), reader, permit);
            flow
        }

        fn evict(&mut self) -> String {
            let victim = self.table.victim().unwrap();
            assert!(self.table.remove(&victim));
            victim.client.to_string()
        }
    }

    #[test]
    fn client_that_opens_many_flows_loses_its_own() {
        let mut frontend = Opened::new();
        let modest = frontend.open("10.0.0.9:1");
        for port in 1..=5 {
            frontend.open(&format!("10.0.0.2:{port}"));
        }
        for port in 1..=4 {
            assert_eq!(frontend.evict(), format!("10.0.0.2:{port}"));
        }
        // Equal: the first one.
        assert_eq!(frontend.evict(), "10.0.0.9:1");
        assert_eq!(frontend.evict(), "10.0.0.2:5");
        assert!(frontend.table.victim().is_none() && frontend.table.len() == 0);
        assert!(!frontend.table.remove(&modest), "removed already");
        assert!(frontend.table.ranks.is_empty() && frontend.table.queues.is_empty());
    }

    #[test]
    fn evicted_flow_of_a_client_releases_its_descriptor() {
        let mut frontend = Opened::new();
        frontend.open("10.0.0.2:1");
        frontend.open("10.0.0.2:2");
        frontend.open("10.0.0.9:1");
        let own = frontend.table.victim_of("10.0.0.9".parse().unwrap()).unwrap();
        assert_eq!(own.client, "10.0.0.9:1".parse().unwrap());
        frontend.table.remove(&own);
        assert_eq!(frontend.budget.used(), 2, "although its reader still holds it");
        assert!(frontend.table.victim_of("10.0.0.9".parse().unwrap()).is_none());
    }

    #[test]
    fn idle_flow_is_evicted_before_an_active_one() {
        let mut frontend = Opened::new();
        let speaking = frontend.open("10.0.0.2:1");
        frontend.open("10.0.0.2:2");
        speaking.last.store(7, Ordering::Relaxed);
        assert_eq!(frontend.evict(), "10.0.0.2:2");
        assert_eq!(frontend.evict(), "10.0.0.2:1", "if all are active, one is evicted");
    }

    #[test]
    fn old_handle_does_not_end_the_new_flow_of_the_client() {
        let mut frontend = Opened::new();
        let old = frontend.open("10.0.0.2:1");
        frontend.table.remove(&old);
        frontend.open("10.0.0.2:1");
        assert!(!frontend.table.remove(&old));
        assert_eq!(frontend.table.len(), 1);
    }
}
