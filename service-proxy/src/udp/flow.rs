//! One client's conversation with one endpoint.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::net::UdpSocket;
use tokio::task::AbortHandle;
use tokio::time::Instant;

use super::DATAGRAM;
use crate::kernel::socket;
use crate::metrics::Metrics;
use crate::worker::poller::Poller;

/// A connected socket, and the task that carries its replies back.
pub(super) struct Flow {
    pub(super) endpoint: SocketAddr,
    upstream: Arc<UdpSocket>,
    /// Counts datagrams of the client, so that the reader can tell whether there were any lately.
    sent: Arc<AtomicU64>,
    task: Option<AbortHandle>,
}

impl Flow {
    /// Opens a flow that comes from `source`, or from the node's own address.
    pub(super) fn open(endpoint: SocketAddr, source: Option<IpAddr>) -> io::Result<Self> {
        let upstream = UdpSocket::from_std(socket::connect_udp(source, endpoint)?.into())?;
        Ok(Self { endpoint, upstream: Arc::new(upstream), sent: Arc::default(), task: None })
    }

    pub(super) fn with_task(self, task: AbortHandle) -> Self {
        Self { task: Some(task), ..self }
    }

    pub(super) async fn send(&self, datagram: &[u8]) -> io::Result<()> {
        self.sent.fetch_add(1, Ordering::Relaxed);
        self.upstream.send(datagram).await.map(drop)
    }

    pub(super) fn abort(&self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }

    /// Carries replies to the client until neither side has sent anything for `idle`, or the endpoint refuses.
    /// Yields what tells this flow from others.
    pub(super) fn read_replies(
        &self,
        client: SocketAddr,
        frontend: Arc<UdpSocket>,
        idle: Duration,
        metrics: Arc<Metrics>,
        poller: Arc<Poller>,
    ) -> impl Future<Output = (SocketAddr, SocketAddr)> + Send + 'static {
        let (endpoint, upstream, sent) = (self.endpoint, Arc::clone(&self.upstream), Arc::clone(&self.sent));
        async move {
            // Fresh zeroed memory costs nothing until a datagram touches it, so small ones cost a page.
            let mut datagram = vec![0; DATAGRAM];
            let mut seen = sent.load(Ordering::Relaxed);
            let mut deadline = Instant::now() + idle;
            loop {
                match tokio::time::timeout_at(deadline, upstream.readable()).await {
                    Ok(Ok(())) => {}
                    Ok(Err(_)) => break,
                    // Silence from the endpoint; the client may still be sending.
                    Err(_elapsed) => {
                        let now = sent.load(Ordering::Relaxed);
                        if now == seen {
                            break;
                        }
                        (seen, deadline) = (now, Instant::now() + idle);
                        continue;
                    }
                }
                match upstream.try_recv(&mut datagram) {
                    Ok(length) => {
                        // A reply the kernel has no room for is lost, as datagrams may be.
                        drop(frontend.send_to(&datagram[..length], client).await);
                        metrics.udp_to_client.inc();
                        poller.active();
                        deadline = Instant::now() + idle;
                    }
                    Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                    // Port unreachable: the endpoint is gone.
                    Err(_) => break,
                }
            }
            (client, endpoint)
        }
    }
}
