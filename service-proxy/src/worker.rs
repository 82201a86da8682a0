//! The event loops that carry traffic.

use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::runtime::{Builder, Handle};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::metrics::Metrics;
use crate::poller::Poller;

/// What every connection needs to know.
#[derive(Debug)]
pub(crate) struct Context {
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) connect_timeout: Duration,
    pub(crate) udp_idle_timeout: Duration,
    pub(crate) udp_max_flows: usize,
    /// Connections under way: drain waits for these.
    pub(crate) tasks: TaskTracker,
}

/// One single-threaded runtime on a thread of its own.
#[derive(Debug)]
pub(crate) struct Worker {
    pub(crate) poller: Arc<Poller>,
    handle: Handle,
    stop: CancellationToken,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    /// Starts worker `number`, which may poll for up to `poll`.
    pub(crate) fn start(number: usize, poll: Duration) -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        let poller = Poller::new(poll);
        let polling = Arc::clone(&poller);
        drop(handle.spawn(async move { polling.run().await }));
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        let thread = std::thread::Builder::new()
            .name(format!("worker-{number}"))
            .spawn(move || runtime.block_on(stopped.cancelled_owned()))?;
        Ok(Self { poller, handle, stop, thread: Some(thread) })
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
            drop(thread.join());
        }
    }
}
