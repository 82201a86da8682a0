//! One client's conversation with one endpoint.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::net::UdpSocket;

use super::Shared;
use super::batch::{self, Batch};
use crate::traffic::Open;

/// A socket whose only peer is the endpoint.
#[derive(Debug)]
pub(super) struct Flow {
    pub(super) client: SocketAddr,
    pub(super) endpoint: SocketAddr,
    pub(super) upstream: UdpSocket,
    /// When either side last said something, by [`Shared::now`].
    pub(super) last: AtomicU64,
    pub(super) _open: Open,
}

impl Flow {
    /// Carries replies to the client until the endpoint refuses, and then yields the flow.
    pub(super) async fn read_replies(self: Arc<Self>, shared: Arc<Shared>) -> Arc<Self> {
        loop {
            if Batch::ready(&self.upstream).await.is_err() {
                return self;
            }
            // Port unreachable: the endpoint is gone.
            match Batch::with(self.client, |batch| self.reply(&shared, batch)) {
                Err(_) => {
                    shared.tell_refusal(self.client);
                    return self;
                }
                // As the frontend's own socket: see there.
                Ok(batch::SIZE) => tokio::task::yield_now().await,
                Ok(_) => {}
            }
        }
    }

    fn reply(&self, shared: &Shared, batch: &mut Batch) -> std::io::Result<usize> {
        let received = batch.receive(&self.upstream)?;
        if received > 0 {
            self.last.store(shared.now(), Ordering::Relaxed);
            // A reply the kernel has no room for is lost, as datagrams may be.
            let sent = batch.send(&shared.socket, 0..received, Some(self.client)).unwrap_or(0);
            shared.context.metrics.udp_to_client.inc_by(sent as u64);
            shared.poller.active();
        }
        Ok(received)
    }
}
