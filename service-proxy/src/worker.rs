//! The event loops of traffic.

pub(crate) mod clock;
pub(crate) mod idle_timeout;
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
use crate::known_addresses::KnownAddresses;
use crate::metrics::Metrics;
use crate::worker::clock::Clock;
use crate::worker::idle_timeout::IdleTimeouts;
use crate::worker::poller::Poller;

/// The context of every connection.
#[derive(Debug)]
pub(crate) struct Context {
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) connect_timeout: Duration,
    pub(crate) udp_idle_timeout: Duration,
    /// A worker's share of the flows of a frontend.
    pub(crate) udp_max_flows: usize,
    pub(crate) idle_timeouts: IdleTimeouts,
    /// `--max-connections`.
    pub(crate) max_connections: Option<usize>,
    pub(crate) budget: Arc<Budget>,
    pub(crate) accept_warnings: RateLimit,
    /// The known addresses.
    pub(crate) known_addresses: ArcSwap<KnownAddresses>,
    /// Whether the client's source IP is preserved.
    pub(crate) preserve_source_ip: bool,
    /// The limits of connections and flows with clients' addresses to servers of this node.
    pub(crate) noted_tcp: Limit,
    pub(crate) noted_udp: Limit,
    /// Open connections, which the drain waits for.
    pub(crate) tasks: TaskTracker,
}

impl Context {
    /// The source to preserve for a connection or a flow; `None` means the node's address.
    pub(crate) fn source(&self, client: SocketAddr, endpoint: IpAddr, protocol: Protocol) -> Option<Source> {
        let known_addresses = self.known_addresses.load();
        let source = known_addresses.source(client, endpoint).filter(|_| self.preserve_source_ip)?;
        // Towards a server of the node there is a limit (see `local_replies`), except for the node's own
        // address.
        let limit = if protocol == Protocol::Udp { &self.noted_udp } else { &self.noted_tcp };
        let is_noted = source.owner != Owner::Node && known_addresses.node.contains(&endpoint);
        if is_noted && !limit.admit() {
            self.metrics.source_fallbacks.inc();
            return None;
        }
        Some(source)
    }

    /// Whether an address belongs to this node.
    pub(crate) fn is_node(&self, address: IpAddr) -> bool {
        self.known_addresses.load().node.contains(&address)
    }

    /// Whether an endpoint may lead back to a proxy.
    pub(crate) fn may_come_back(&self, endpoint: IpAddr) -> bool {
        self.known_addresses.load().may_come_back(endpoint)
    }

    /// Whether the client is in this cluster: a pod, or this node.
    pub(crate) fn is_inside(&self, client: IpAddr) -> bool {
        self.known_addresses.load().is_inside(client)
    }
}

/// The state that the connections of one worker share.
#[derive(Debug)]
pub(crate) struct Local {
    pub(crate) poller: Arc<Poller>,
    pub(crate) clock: Arc<Clock>,
    /// For idle timeouts of minutes and hours.
    pub(crate) slow_clock: Arc<Clock>,
    /// For checks of idle connections.
    pub(crate) check_clock: Arc<Clock>,
}

/// A single-threaded runtime on a separate thread.
#[derive(Debug)]
pub(crate) struct Worker {
    pub(crate) local: Arc<Local>,
    handle: Handle,
    stop: CancellationToken,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    /// Starts worker `number` with a polling window of up to `poll`, which checks idle timeouts every `tick`.
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

    /// Runs a frontend on this worker. It ends when the frontend is closed.
    pub(crate) fn spawn(&self, serving: impl Future<Output = io::Result<()>> + Send + 'static) {
        // The handle is not needed: `Frontend::close` and the end of the runtime end the task.
        drop(self.handle.spawn(serving));
    }
}

impl Drop for Worker {
    /// Ends the loop; open connections are closed.
    fn drop(&mut self) {
        self.stop.cancel();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
