//! UDP: flows between clients and endpoints.
//!
//! The kernel delivers the datagrams for all frontends to a few sockets (see
//! [`crate::kernel::interception`]), with their destination. A client's datagrams to a frontend are a flow,
//! which has a connected upstream socket to an endpoint. Replies are sent by a raw socket, from the
//! frontend's address and port: no socket is bound to a port of a virtual IP or of the node, so no other
//! process is prevented from binding it (`crate::kernel::datagram`).
//!
//! The flow table has the role of conntrack for kube-proxy, with one visible difference: when an endpoint
//! stops serving, its flows end at once and the next datagram is sent to one that serves. ICMP errors on the
//! way to an endpoint are passed on to the client with their type and code. Only a refusal (port unreachable)
//! ends a flow.

mod batch;
mod flow;
mod header;
mod table;

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use discovery::model::Protocol;
use socket2::Type;
use tokio::io::Interest;
use tokio::net::UdpSocket;
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinError, JoinSet};
use tracing::debug;

use crate::budget::{Permit, Refusal};
use crate::frontend::{Frontend, FrontendKey};
use crate::kernel::datagram;
use crate::kernel::icmp_error::IcmpError;
use crate::kernel::socket::{self, UpstreamOptions};
use crate::tcp::Registry;
use crate::worker::Context;
use crate::worker::poller::Poller;
use batch::Batch;
use flow::{Errors, Flow};
use table::Table;

/// Sweeps per idle timeout: a flow lives at most a quarter longer.
const SWEEPS: u32 = 4;

/// Endpoints that are tried for a flow. An attempt fails at once, without a datagram, if the node has no
/// route.
const ATTEMPTS: usize = 3;

/// The state that the flows of a socket share.
struct Shared {
    context: Arc<Context>,
    poller: Arc<Poller>,
    started: Instant,
}

/// A socket in service.
struct Server {
    shared: Arc<Shared>,
    registry: Arc<Registry>,
    /// The frontends with flows, by address.
    frontends: HashMap<SocketAddr, Served>,
    tasks: JoinSet<Event>,
}

/// A frontend with its flows.
struct Served {
    frontend: Arc<Frontend>,
    flows: Table,
    watcher: AbortHandle,
}

/// The result of a task of a server.
enum Event {
    /// The endpoint of a flow refuses.
    Refused(Arc<Flow>),
    /// A frontend is closed or its endpoints have changed.
    Changed(Arc<Frontend>, watch::Receiver<()>),
}

/// Serves the datagrams of a socket on the current worker until that ends.
pub(crate) async fn serve(
    socket: std::net::UdpSocket,
    registry: Arc<Registry>,
    context: Arc<Context>,
    poller: Arc<Poller>,
) -> io::Result<()> {
    let address = socket.local_addr()?;
    let socket = UdpSocket::from_std(socket)?;
    let mut sweep = tokio::time::interval(context.udp_idle_timeout / SWEEPS);
    let shared = Arc::new(Shared { context, poller, started: Instant::now() });
    let (frontends, tasks) = (HashMap::new(), JoinSet::new());
    let mut server = Server { shared: Arc::clone(&shared), registry, frontends, tasks };
    let drops = AtomicU32::new(0);
    loop {
        tokio::select! {
            Some(event) = server.tasks.join_next() => server.handle(event),
            _ = sweep.tick() => server.drop_idle(),
            ready = socket.ready(Interest::READABLE) => {
                ready?;
                if Batch::with(address, |batch| server.receive(&socket, batch)) {
                    count_drops(&shared, &socket, &drops);
                    // The socket stays ready, and nothing else would let the worker's other tasks run.
                    tokio::task::yield_now().await;
                }
            }
        }
    }
}

/// Counts datagrams that were dropped because the socket's queue was full. Called while there is much to
/// read: only then can it be full.
fn count_drops(shared: &Shared, socket: &UdpSocket, counted: &AtomicU32) {
    let now = datagram::drops(socket);
    let before = counted.swap(now, Ordering::Relaxed);
    shared.context.metrics.udp_queue_drops.inc_by(u64::from(now.wrapping_sub(before)));
}

impl Shared {
    /// Milliseconds since the socket was opened.
    fn now(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

impl Server {
    /// Receives waiting datagrams, and relays together what one client has sent in a row. Returns whether
    /// there may be more.
    fn receive(&mut self, socket: &UdpSocket, batch: &mut Batch) -> bool {
        let received = match batch.receive_from_clients(socket) {
            Ok(received) => received,
            Err(error) => {
                debug!(%error, "receiving failed");
                return true;
            }
        };
        let mut start = 0;
        while start < received {
            let flow = batch.flow(start);
            let end = (start + 1..received).find(|next| batch.flow(*next) != flow).unwrap_or(received);
            match flow {
                Some((client, address)) => self.forward(client, address, batch, start..end),
                None => self.shared.context.metrics.udp_dropped.inc_by((end - start) as u64),
            }
            start = end;
        }
        received == batch::SIZE
    }

    fn forward(
        &mut self,
        client: SocketAddr,
        address: SocketAddr,
        batch: &mut Batch,
        datagrams: Range<usize>,
    ) {
        let shared = Arc::clone(&self.shared);
        let metrics = &shared.context.metrics;
        let count = datagrams.len();
        let known = self.frontends.get(&address).and_then(|served| served.flows.get(client));
        let Some(flow) = known.or_else(|| self.open(client, address, batch.hops(datagrams.start))) else {
            return metrics.udp_dropped.inc_by(count as u64);
        };
        flow.last.store(shared.now(), Ordering::Relaxed);
        let (mut passed, mut refused, mut retried) = (0, false, None);
        let mut rest = datagrams;
        while !rest.is_empty() && !refused {
            match batch.send(&flow.upstream, rest.clone()) {
                Ok(0) => break,
                Ok(sent) => {
                    passed += sent;
                    rest.start += sent;
                }
                Err(error) => {
                    let (service, endpoint) = (flow.frontend.service(), flow.endpoint);
                    debug!(%service, %endpoint, %error, "sending failed");
                    let errors = flow.pass_on(&error);
                    refused = errors == Errors::Refused;
                    // It may be about an earlier datagram and was returned instead of sending this one.
                    if errors == Errors::PassedOn && retried != Some(rest.start) {
                        retried = Some(rest.start);
                    } else {
                        rest.start += 1;
                    }
                }
            }
        }
        metrics.udp_to_upstream.inc_by(passed as u64);
        metrics.udp_dropped.inc_by((count - passed) as u64);
        shared.poller.active();
        if refused {
            self.close(&flow);
        }
    }

    /// Opens a flow for a client, whose datagram has a TTL of `hops`. `None` if no endpoint can be reached;
    /// the client then gets an ICMP error.
    fn open(&mut self, client: SocketAddr, address: SocketAddr, hops: u32) -> Option<Arc<Flow>> {
        let shared = Arc::clone(&self.shared);
        let context = &shared.context;
        let Some(frontend) = self.frontend(address) else {
            // It was closed a moment ago, or a process of the node sends to the socket's own port.
            // Best effort: the client may not learn of the refusal.
            let _ = IcmpError::refusal(client.is_ipv4()).send(client, address);
            return None;
        };
        let set = frontend.endpoints();
        if !set.admits(client.ip()) {
            return None;
        }
        let pool = set.pool(|| context.is_inside(client.ip()));
        let flows = self.frontends.get(&address).map_or(0, |served| served.flows.len());
        if flows >= context.udp_max_flows {
            self.evict(address);
        }
        let permit = self.permit(client.ip(), address)?;
        let mut failure = None;
        for endpoint in frontend.endpoints_to_try(&set, pool, client.ip()).take(ATTEMPTS) {
            let endpoint = endpoint.address;
            let mut opened = connect(client, endpoint, hops, context);
            if opened.as_ref().is_err_and(is_out_of_files) && self.evict(address) {
                opened = connect(client, endpoint, hops, context);
            }
            match opened {
                Ok(upstream) => {
                    frontend.remember(&set, client.ip(), endpoint);
                    return self.insert(client, Arc::clone(&frontend), endpoint, upstream, permit);
                }
                Err(error) => {
                    debug!(service = %frontend.service(), %endpoint, %error, "cannot open a flow");
                    failure = Some(error);
                }
            }
        }
        let error = failure.and_then(|failure| IcmpError::of_local(client.is_ipv4(), &failure));
        // Best effort: the client may not learn of the failure.
        let _ = error.map(|error| error.send(client, address));
        None
    }

    fn insert(
        &mut self,
        client: SocketAddr,
        frontend: Arc<Frontend>,
        endpoint: SocketAddr,
        upstream: UdpSocket,
        permit: Permit,
    ) -> Option<Arc<Flow>> {
        let (last, drops) = (AtomicU64::new(self.shared.now()), AtomicU32::new(0));
        let (open, address) = (frontend.traffic.enter(None)?, frontend.key.address);
        let flow = Arc::new(Flow { client, frontend, endpoint, upstream, last, drops, _open: open });
        let (reading, shared) = (Arc::clone(&flow), Arc::clone(&self.shared));
        let reader = self.tasks.spawn(async move { Event::Refused(reading.read_replies(shared).await) });
        let served = self.frontends.get_mut(&address)?;
        served.flows.insert(Arc::clone(&flow), reader, permit);
        self.shared.context.metrics.udp_flows.inc();
        Some(flow)
    }

    /// The frontend at this address. Starts watching it.
    fn frontend(&mut self, address: SocketAddr) -> Option<Arc<Frontend>> {
        if let Some(served) = self.frontends.get(&address) {
            return Some(Arc::clone(&served.frontend));
        }
        let key = FrontendKey { protocol: Protocol::Udp, address };
        let frontend = self.registry.load().get(&key).cloned()?;
        let watcher = self.tasks.spawn(watch(Arc::clone(&frontend), frontend.changes()));
        let served = Served { frontend: Arc::clone(&frontend), flows: Table::default(), watcher };
        self.frontends.insert(address, served);
        Some(frontend)
    }

    fn handle(&mut self, event: Result<Event, JoinError>) {
        match event {
            Ok(Event::Refused(flow)) => self.close(&flow),
            Ok(Event::Changed(frontend, changes)) => self.changed(&frontend, changes),
            // A reader or watcher that was stopped with its flow or frontend.
            Err(_) => {}
        }
    }

    /// Ends the flows whose endpoint is no longer eligible.
    fn changed(&mut self, frontend: &Arc<Frontend>, changes: watch::Receiver<()>) {
        let address = frontend.key.address;
        let Some(served) = self.frontends.get(&address) else { return };
        if !Arc::ptr_eq(&served.frontend, frontend) {
            return;
        }
        let (is_closed, endpoints) = (frontend.is_closed(), frontend.endpoints());
        let is_stale = |flow: &&Arc<Flow>| is_closed || !endpoints.may_keep(flow.endpoint);
        let stale: Vec<_> = served.flows.iter().filter(is_stale).cloned().collect();
        stale.iter().for_each(|flow| self.close(flow));
        if is_closed {
            self.frontends.remove(&address);
        } else if let Some(served) = self.frontends.get_mut(&address) {
            served.watcher = self.tasks.spawn(watch(Arc::clone(frontend), changes));
        }
    }

    /// Acquires the descriptor of a flow. A client at its limit loses a flow of the same frontend. If no
    /// descriptor is free, another client loses one.
    fn permit(&mut self, client: IpAddr, address: SocketAddr) -> Option<Permit> {
        let context = Arc::clone(&self.shared.context);
        match context.budget.take(client, 1) {
            Ok(permit) => return Some(permit),
            Err(Refusal::ClientLimit) => {
                context.metrics.client_limits.inc();
                let victim = self.frontends.get_mut(&address)?.flows.victim_of(client)?;
                self.close(&victim);
            }
            Err(Refusal::Exhausted) if self.evict(address) => {}
            Err(Refusal::Exhausted) => return None,
        }
        context.budget.take(client, 1).ok()
    }

    /// Ends a flow of a frontend for a new one. Returns false if it has none.
    fn evict(&mut self, address: SocketAddr) -> bool {
        let victim = self.frontends.get_mut(&address).and_then(|served| served.flows.victim());
        let Some(victim) = victim else { return false };
        self.close(&victim);
        self.shared.context.metrics.udp_evicted.inc();
        true
    }

    fn drop_idle(&mut self) {
        let timeout = self.shared.context.udp_idle_timeout;
        let silence = |flow: &Flow| self.shared.now().saturating_sub(flow.last.load(Ordering::Relaxed));
        let is_idle = |flow: &&Arc<Flow>| Duration::from_millis(silence(flow)) >= timeout;
        let flows = self.frontends.values().flat_map(|served| served.flows.iter());
        let idle: Vec<_> = flows.filter(is_idle).cloned().collect();
        idle.iter().for_each(|flow| self.close(flow));
        self.frontends.retain(|_, served| {
            let is_used = served.flows.len() > 0;
            if !is_used {
                served.watcher.abort();
            }
            is_used
        });
    }

    /// Closes this flow, unless its client has a newer one.
    fn close(&mut self, flow: &Arc<Flow>) {
        let Some(served) = self.frontends.get_mut(&flow.frontend.key.address) else { return };
        if served.flows.remove(flow) {
            count_drops(&self.shared, &flow.upstream, &flow.drops);
            self.shared.context.metrics.udp_flows.dec();
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let flows: usize = self.frontends.values().map(|served| served.flows.len()).sum();
        self.shared.context.metrics.udp_flows.sub(i64::try_from(flows).unwrap_or(0));
    }
}

/// Waits until the frontend is closed or its endpoints change.
async fn watch(frontend: Arc<Frontend>, mut changes: watch::Receiver<()>) -> Event {
    tokio::select! {
        () = frontend.closed() => {}
        _ = changes.changed() => {}
    }
    Event::Changed(frontend, changes)
}

/// Like a connection, the datagrams of a flow have a TTL of one less than the client's if the endpoint may be
/// another proxy's; all have that of the first.
fn connect(client: SocketAddr, endpoint: SocketAddr, hops: u32, context: &Context) -> io::Result<UdpSocket> {
    let hops = match hops {
        _ if !context.may_come_back(endpoint.ip()) => None,
        0 | 1 => {
            context.metrics.loops_refused.inc();
            return Err(io::Error::from_raw_os_error(libc::EHOSTUNREACH));
        }
        left => Some(left - 1),
    };
    let source = context.source(client, endpoint.ip(), Protocol::Udp);
    let options = UpstreamOptions { source, hops, ..UpstreamOptions::default() };
    let socket = match socket::connect(Type::DGRAM, endpoint, options) {
        // Like for a connection, the node's address is better than none.
        Err(error) if socket::is_taken(&error) => {
            socket::connect(Type::DGRAM, endpoint, UpstreamOptions { source: None, ..options })
        }
        other => other,
    }?;
    datagram::prepare_upstream(&socket, endpoint.is_ipv4())?;
    UdpSocket::from_std(socket.into())
}

fn is_out_of_files(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE))
}

#[cfg(test)]
mod tests {
    use arc_swap::ArcSwap;
    use daemon::log::RateLimit;
    use discovery::model::NamespacedName;
    use tokio_util::task::TaskTracker;

    use super::*;
    use crate::backend::endpoints::Selection;
    use crate::budget::Budget;
    use crate::kernel::local_replies::Limit;
    use crate::metrics::Metrics;
    use crate::service_port::ServicePort;
    use crate::traffic::Traffic;
    use crate::worker::idle_timeout::IdleTimeouts;

    fn context(budget: &Arc<Budget>) -> Context {
        let minute = Duration::from_secs(60);
        Context {
            metrics: Arc::new(Metrics::new(budget)),
            connect_timeout: minute,
            udp_idle_timeout: minute,
            udp_max_flows: 100,
            idle_timeouts: IdleTimeouts::default(),
            max_connections: None,
            budget: Arc::clone(budget),
            accept_warnings: RateLimit::default(),
            known_addresses: ArcSwap::default(),
            preserve_source_ip: false,
            noted_tcp: Limit::tcp(),
            noted_udp: Limit::udp(minute),
            tasks: TaskTracker::new(),
        }
    }

    #[tokio::test]
    async fn new_client_gets_the_descriptor_of_an_idle_flow_when_none_is_left() {
        let budget = Budget::new(4, 1);
        let context = Arc::new(context(&budget));
        let port = ServicePort {
            service: NamespacedName::new("shop", "dns"),
            name: "".into(),
            protocol: Protocol::Udp,
        };
        let traffic = Arc::new(Traffic::new(port, Arc::clone(&context.metrics.services)));
        let key = FrontendKey { protocol: Protocol::Udp, address: "10.96.0.9:53".parse().unwrap() };
        let frontend = Arc::new(Frontend::new(key, traffic, Selection::default()));
        let registry: Arc<Registry> = Arc::default();
        let mut frontends = discovery::SharedMap::default();
        frontends.insert(key, Arc::clone(&frontend));
        registry.store(Arc::new(frontends));
        let shared = Shared { context, poller: Poller::new(Duration::ZERO), started: Instant::now() };
        let (frontends, tasks) = (HashMap::new(), JoinSet::new());
        let mut server = Server { shared: Arc::new(shared), registry, frontends, tasks };
        server.frontend(key.address).unwrap();
        for last in 1..=5 {
            let client = SocketAddr::from(([10, 0, 0, last], 1));
            let permit = server.permit(client.ip(), key.address).unwrap();
            let upstream = UdpSocket::bind("127.0.0.1:0").await.unwrap();
            let endpoint = upstream.local_addr().unwrap();
            server.insert(client, Arc::clone(&frontend), endpoint, upstream, permit).unwrap();
            let open = server.frontends[&key.address].flows.len();
            assert_eq!((open, budget.used()), (usize::from(last).min(3), usize::from(last).min(3)));
        }
    }
}
