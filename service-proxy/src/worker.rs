//! The event loops that carry traffic.

pub(crate) mod clock;
pub(crate) mod patience;
pub(crate) mod poller;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use arc_swap::ArcSwap;
use daemon::log::RateLimit;
use discovery::model::Protocol;
use tokio::runtime::{Builder, Handle};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::budget::Budget;
use crate::kernel::local_replies::Limit;
use crate::kernel::source_ports::{Owner, Source};
use crate::locality::Locality;
use crate::metrics::Metrics;
use crate::worker::clock::Clock;
use crate::worker::patience::Patience;
use crate::worker::poller::Poller;

/// What every connection needs to know.
#[derive(Debug)]
pub(crate) struct Context {
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) connect_timeout: Duration,
    pub(crate) udp_idle_timeout: Duration,
    /// A worker's share for each frontend.
    pub(crate) udp_max_flows: usize,
    pub(crate) patience: Patience,
    /// `--max-connections`.
    pub(crate) max_connections: Option<usize>,
    pub(crate) budget: Arc<Budget>,
    pub(crate) accept_warnings: RateLimit,
    /// Where addresses are.
    pub(crate) locality: ArcSwap<Locality>,
    /// Whether clients' addresses may be borrowed.
    pub(crate) borrow_addresses: bool,
    /// The connections and flows with clients' addresses that are opened to servers of this node.
    pub(crate) noted_tcp: Limit,
    pub(crate) noted_udp: Limit,
    /// Connections under way: drain waits for these.
    pub(crate) tasks: TaskTracker,
}

impl Context {
    /// The address to preserve for a connection or a flow; `None` means the node's own.
    pub(crate) fn source(&self, client: SocketAddr, endpoint: IpAddr, protocol: Protocol) -> Option<Source> {
        let locality = self.locality.load();
        let source = locality.source(client, endpoint).filter(|_| self.borrow_addresses)?;
        // Towards a server of the node there is a bound (see `local_replies`). The node's own address needs
        // nothing.
        let limit = if protocol == Protocol::Udp { &self.noted_udp } else { &self.noted_tcp };
        let is_noted = source.owner != Owner::Node && locality.node.contains(&endpoint);
        if is_noted && !limit.admit() {
            self.metrics.source_fallbacks.inc();
            return None;
        }
        Some(source)
    }

    /// Whether an address is this node's own.
    pub(crate) fn is_node(&self, address: IpAddr) -> bool {
        self.locality.load().node.contains(&address)
    }

    /// Whether an endpoint may lead back to a proxy.
    pub(crate) fn may_come_back(&self, endpoint: IpAddr) -> bool {
        self.locality.load().may_come_back(endpoint)
    }

    /// Whether the client is of this cluster: one of its pods, or this node.
    pub(crate) fn is_inside(&self, client: IpAddr) -> bool {
        self.locality.load().is_inside(client)
    }
}

/// What the connections of one worker share.
#[derive(Debug)]
pub(crate) struct Local {
    pub(crate) poller: Arc<Poller>,
    pub(crate) clock: Arc<Clock>,
    /// For connections that are quiet for minutes and hours.
    pub(crate) slow_clock: Arc<Clock>,
    /// For looking after idle connections.
    pub(crate) check_clock: Arc<Clock>,
}

/// One single-threaded runtime on a thread of its own.
#[derive(Debug)]
pub(crate) struct Worker {
    pub(crate) local: Arc<Local>,
    handle: Handle,
    stop: CancellationToken,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    /// Starts worker `number`, which may poll for up to `poll`, and look for quiet connections every `tick`.
    pub(crate) fn start(number: usize, poll: Duration, tick: Duration) -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        let (clock, slow_clock) = (Arc::new(Clock::new(clock::CONNECT_TICK)), Arc::new(Clock::new(tick)));
        let check_clock = Arc::new(Clock::new(clock::CHECK_TICK));
        let local = Arc::new(Local { poller: Poller::new(poll), clock, slow_clock, check_clock });
        let poller = Arc::clone(&local.poller);
        drop(handle.spawn(async move { poller.run().await }));
        drop(handle.spawn(Arc::clone(&local.clock).run()));
        drop(handle.spawn(Arc::clone(&local.slow_clock).run()));
        drop(handle.spawn(Arc::clone(&local.check_clock).run()));
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        let thread = std::thread::Builder::new()
            .name(format!("worker-{number}"))
            .spawn(move || runtime.block_on(stopped.cancelled_owned()))?;
        Ok(Self { local, handle, stop, thread: Some(thread) })
    }

    /// Runs a frontend on this worker; the frontend itself ends when it is closed.
    pub(crate) fn spawn(&self, serving: impl Future<Output = io::Result<()>> + Send + 'static) {
        // The handle is not needed: `Frontend::close` and the end of the runtime are the two ways out.
        drop(self.handle.spawn(serving));
    }
}

impl Drop for Worker {
    /// Ends the loop; connections that are still open are closed.
    fn drop(&mut self) {
        self.stop.cancel();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
