//! UDP frontends: a table of flows, each with a connected socket of its own to its endpoint.
//!
//! The table is what conntrack is to kube-proxy, with one difference that users feel: when an endpoint stops serving,
//! its flows are dropped at once and the next datagram goes to one that does. An endpoint that refuses is told to the
//! client, as the kernel would if nothing stood in between.

mod batch;
mod flow;
mod table;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::net::UdpSocket;
use tokio::task::JoinSet;
use tracing::debug;

use crate::frontend::Frontend;
use crate::kernel::{socket, unreachable};
use crate::worker::Context;
use crate::worker::poller::Poller;
use batch::Batch;
use flow::Flow;
use table::Table;

/// Flows are looked through so many times within the idle timeout: one lives at most a quarter longer.
const SWEEPS: u32 = 4;

/// What the flows of a frontend share.
struct Shared {
    socket: UdpSocket,
    frontend: Arc<Frontend>,
    context: Arc<Context>,
    poller: Arc<Poller>,
    started: Instant,
}

/// One frontend at work.
struct Server {
    shared: Arc<Shared>,
    flows: Table,
    /// Each flow's reader; it yields the flow's client when the endpoint refuses.
    readers: JoinSet<Arc<Flow>>,
}

/// Serves a frontend on the current worker until it closes. Its flows end with it.
pub(crate) async fn serve(
    socket: std::net::UdpSocket,
    frontend: Arc<Frontend>,
    context: Arc<Context>,
    poller: Arc<Poller>,
) -> io::Result<()> {
    let socket = UdpSocket::from_std(socket)?;
    let mut sweep = tokio::time::interval(context.udp_idle_timeout / SWEEPS);
    let shared = Arc::new(Shared { socket, frontend, context, poller, started: Instant::now() });
    let mut server = Server { shared: Arc::clone(&shared), flows: Table::default(), readers: JoinSet::new() };
    loop {
        tokio::select! {
            () = shared.frontend.closed() => return Ok(()),
            () = shared.frontend.endpoints_changed() => server.drop_stale(),
            Some(refused) = server.readers.join_next() => server.forget(refused.ok()),
            _ = sweep.tick() => server.drop_idle(),
            ready = Batch::ready(&shared.socket) => {
                ready?;
                let address = shared.frontend.key.address;
                if Batch::with(address, |batch| server.receive(batch)) {
                    // The socket stays ready, and nothing else would give the worker's other tasks a turn.
                    tokio::task::yield_now().await;
                }
            }
        }
    }
}

impl Shared {
    /// Milliseconds since the frontend was opened.
    fn now(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// The endpoint has no such port: the client is told so in its place.
    fn tell_refusal(&self, client: SocketAddr) {
        if let Err(error) = unreachable::tell(client, self.frontend.key.address) {
            debug!(service = %self.frontend.service(), %client, %error, "cannot pass on that the endpoint refuses");
        }
    }
}

impl Server {
    /// Takes in what waits, and passes on together what one client has sent in a row. True if there may be more.
    fn receive(&mut self, batch: &mut Batch) -> bool {
        let received = match batch.receive(&self.shared.socket) {
            Ok(received) => received,
            // An ICMP error for an earlier reply: that client is gone, the others are not.
            Err(error) => {
                debug!(frontend = %self.shared.frontend.key, %error, "receiving failed");
                return true;
            }
        };
        let mut start = 0;
        while start < received {
            let Some(client) = batch.sender(start) else { break };
            let end =
                (start + 1..received).find(|next| batch.sender(*next) != Some(client)).unwrap_or(received);
            self.forward(client, batch, start..end);
            start = end;
        }
        received == batch::SIZE
    }

    fn forward(&mut self, client: SocketAddr, batch: &mut Batch, datagrams: Range<usize>) {
        let shared = Arc::clone(&self.shared);
        let metrics = &shared.context.metrics;
        let count = datagrams.len();
        let Some(flow) = self.flows.get(client).or_else(|| self.open(client)) else {
            return metrics.udp_dropped.inc_by(count as u64);
        };
        flow.last.store(shared.now(), Ordering::Relaxed);
        let sent = batch.send(&flow.upstream, datagrams, None);
        let passed = *sent.as_ref().unwrap_or(&0);
        metrics.udp_to_upstream.inc_by(passed as u64);
        metrics.udp_dropped.inc_by((count - passed) as u64);
        shared.poller.active();
        if let Err(error) = sent {
            debug!(service = %shared.frontend.service(), endpoint = %flow.endpoint, %error, "sending failed");
            if error.kind() == io::ErrorKind::ConnectionRefused {
                shared.tell_refusal(client);
            }
            self.close(&flow);
        }
    }

    /// Opens a flow for a client that has none. `None` when no endpoint can be reached.
    fn open(&mut self, client: SocketAddr) -> Option<Arc<Flow>> {
        let shared = Arc::clone(&self.shared);
        let Shared { frontend, context, .. } = &*shared;
        let set = frontend.endpoints();
        if !set.admits(client.ip()) {
            return None;
        }
        let pool = set.pool(|| context.is_inside(client.ip()));
        let endpoint = frontend.candidates(&set, pool, client.ip()).next()?.address;
        let source = context.source(client.ip(), endpoint.ip());
        if self.flows.len() >= context.udp_max_flows {
            self.evict();
        }
        let mut opened = connect(source, endpoint);
        if opened.as_ref().is_err_and(is_out_of_files) && self.evict() {
            opened = connect(source, endpoint);
        }
        let upstream = opened
            .inspect_err(|error| {
                debug!(service = %frontend.service(), %endpoint, %error, "cannot open a flow");
            })
            .ok()?;
        let open = frontend.traffic.enter(None)?;
        frontend.remember(&set, client.ip(), endpoint);
        let last = AtomicU64::new(shared.now());
        let flow = Arc::new(Flow { client, endpoint, upstream, last, _open: open });
        let reader = self.readers.spawn(Arc::clone(&flow).read_replies(Arc::clone(&shared)));
        self.flows.insert(Arc::clone(&flow), reader);
        context.metrics.udp_flows.inc();
        Some(flow)
    }

    /// Makes room for a flow. False if there was none to take away.
    fn evict(&mut self) -> bool {
        let Some(victim) = self.flows.victim() else { return false };
        self.close(&victim);
        self.shared.context.metrics.udp_evicted.inc();
        true
    }

    fn drop_stale(&mut self) {
        let endpoints = self.shared.frontend.endpoints();
        let stale: Vec<_> =
            self.flows.iter().filter(|flow| !endpoints.may_keep(flow.endpoint)).cloned().collect();
        stale.iter().for_each(|flow| self.close(flow));
    }

    fn drop_idle(&mut self) {
        let timeout = self.shared.context.udp_idle_timeout;
        let silence = |flow: &Flow| self.shared.now().saturating_sub(flow.last.load(Ordering::Relaxed));
        let is_idle = |flow: &&Arc<Flow>| Duration::from_millis(silence(flow)) >= timeout;
        let idle: Vec<_> = self.flows.iter().filter(is_idle).cloned().collect();
        idle.iter().for_each(|flow| self.close(flow));
    }

    /// A reader has ended by itself.
    fn forget(&mut self, refused: Option<Arc<Flow>>) {
        if let Some(flow) = refused {
            self.close(&flow);
        }
    }

    /// Closes this flow; not another one that its client may have by now.
    fn close(&mut self, flow: &Arc<Flow>) {
        if self.flows.remove(flow) {
            self.shared.context.metrics.udp_flows.dec();
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shared.context.metrics.udp_flows.sub(i64::try_from(self.flows.len()).unwrap_or(0));
    }
}

fn connect(source: Option<IpAddr>, endpoint: SocketAddr) -> io::Result<UdpSocket> {
    UdpSocket::from_std(socket::connect_udp(source, endpoint)?.into())
}

/// `EMFILE`, `ENFILE`.
fn is_out_of_files(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(23 | 24))
}
