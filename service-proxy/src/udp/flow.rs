//! A flow between one client and one endpoint.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use tokio::io::Interest;
use tokio::net::UdpSocket;
use tracing::debug;

use super::Shared;
use super::batch::{self, Batch};
use crate::frontend::Frontend;
use crate::kernel::datagram;
use crate::kernel::icmp_error::IcmpError;
use crate::traffic::Open;

/// A connected socket to the endpoint.
#[derive(Debug)]
pub(super) struct Flow {
    pub(super) client: SocketAddr,
    pub(super) frontend: Arc<Frontend>,
    pub(super) endpoint: SocketAddr,
    pub(super) upstream: UdpSocket,
    /// When either side last sent something, by [`Shared::now`].
    pub(super) last: AtomicU64,
    /// Replies that were dropped by a full queue, as far as counted.
    pub(super) drops: AtomicU32,
    pub(super) _open: Open,
}

/// The errors of a flow's socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Errors {
    None,
    /// Passed on to the client; the flow continues.
    PassedOn,
    /// The endpoint refuses; the client gets port unreachable.
    Refused,
}

impl Flow {
    /// Relays replies to the client until the endpoint refuses, then returns the flow.
    pub(super) async fn read_replies(self: Arc<Self>, shared: Arc<Shared>) -> Arc<Self> {
        loop {
            let Ok(ready) = self.upstream.ready(Interest::READABLE | Interest::ERROR).await else {
                return self;
            };
            if ready.is_error() && self.take_errors() == Errors::Refused {
                return self;
            }
            match Batch::with(self.client, |batch| self.reply(&shared, batch)) {
                Err(error) if self.pass_on(&error) == Errors::Refused => return self,
                // See the frontend's own socket.
                Ok(batch::SIZE) => {
                    super::count_drops(&shared, &self.upstream, &self.drops);
                    tokio::task::yield_now().await;
                }
                Ok(_) | Err(_) => {}
            }
        }
    }

    /// Passes the errors on, and marks the socket as having none left.
    fn take_errors(&self) -> Errors {
        let mut errors = Errors::None;
        let _ = self.upstream.try_io(Interest::ERROR, || {
            errors = self.pass_on_queued();
            Err::<(), _>(io::ErrorKind::WouldBlock.into())
        });
        errors
    }

    /// Passes on what a system call's `error` is about: queued ICMP errors, or one of the node itself.
    pub(super) fn pass_on(&self, error: &io::Error) -> Errors {
        let queued = self.pass_on_queued();
        if queued != Errors::None {
            return queued;
        }
        match IcmpError::of_local(self.client.is_ipv4(), error) {
            Some(error) => self.send(error),
            None => Errors::None,
        }
    }

    fn pass_on_queued(&self) -> Errors {
        let mut errors = Errors::None;
        while let Ok(Some(error)) = datagram::next_error(&self.upstream) {
            if self.send(error) == Errors::Refused {
                return Errors::Refused;
            }
            errors = Errors::PassedOn;
        }
        errors
    }

    fn send(&self, error: IcmpError) -> Errors {
        let (client, frontend) = (self.client, self.frontend.key.address);
        if let Err(failure) = error.send(client, frontend) {
            debug!(service = %self.frontend.service(), %client, error = %failure, "cannot pass on an ICMP error");
        }
        if error == IcmpError::refusal(client.is_ipv4()) { Errors::Refused } else { Errors::PassedOn }
    }

    fn reply(&self, shared: &Shared, batch: &mut Batch) -> io::Result<usize> {
        let received = batch.receive_from_endpoint(&self.upstream)?;
        if received > 0 {
            self.last.store(shared.now(), Ordering::Relaxed);
            // A reply that the kernel has no buffer for is lost, as datagrams may be.
            let sent = batch.reply(received, self.frontend.key.address, self.client);
            let sent = sent.unwrap_or_else(|error| {
                debug!(service = %self.frontend.service(), client = %self.client, %error, "replying failed");
                0
            });
            shared.context.metrics.udp_to_client.inc_by(sent as u64);
            shared.poller.active();
        }
        Ok(received)
    }
}
