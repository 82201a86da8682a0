//! The sockets that queries arrive at, opened or inherited, what answers on them, and their end.

use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use daemon::drain::Drain;
use daemon::handover::{self, Claim};
use tokio::task::JoinSet;
use tracing::info;

use crate::connections::Connections;
use crate::responder::Responder;
use crate::socket::{Inherited, open_datagrams, open_stream};
use crate::tcp::Service;
use crate::tls::{self, Current};
use crate::{https, quic, tcp, udp};

/// What queries under way are given to finish.
const DRAIN: Duration = Duration::from_secs(5);

/// How long open connections may stay once the next process takes the new ones.
const HANDOVER_DRAIN: Duration = Duration::from_secs(30);

/// All that answers.
pub(crate) struct Listeners {
    workers: udp::Workers,
    servers: JoinSet<()>,
    drain: Drain,
    /// For the next process.
    sockets: Vec<OwnedFd>,
}

impl Listeners {
    /// Opens what was not inherited, and starts answering.
    pub(crate) fn open(
        listen: &[SocketAddr],
        tls: Option<(Arc<Current>, &tls::Config)>,
        threads: usize,
        mut inherited: Inherited,
        responder: &Arc<Responder>,
    ) -> anyhow::Result<Self> {
        let (mut datagrams, mut streams, mut sockets) = (Vec::new(), Vec::new(), Vec::new());
        for &address in listen {
            let udp = open_datagrams(address, threads, &mut inherited).context("--listen")?;
            // Where any port would do, it is the same for both.
            let address = udp.first().map_or(Ok(address), std::net::UdpSocket::local_addr)?;
            streams.push((open_stream(address, &mut inherited).context("--listen")?, Service::Tcp));
            datagrams.extend(udp);
        }
        let mut endpoints = Vec::new();
        if let Some((certificate, tls)) = tls {
            for &address in &tls.listen {
                let tcp = open_stream(address, &mut inherited).context("--tls-listen")?;
                streams.push((tcp, Service::Tls(certificate.acceptor(tls::PROTOCOL))));
            }
            for &address in &tls.https {
                let tcp = open_stream(address, &mut inherited).context("--https-listen")?;
                streams.push((tcp, Service::Https(certificate.acceptor(https::PROTOCOL))));
            }
            for &address in &tls.quic {
                // Not handed over: the state of its connections is in this process.
                let udp = open_datagrams(address, 1, &mut Inherited::default()).context("--quic-listen")?;
                for socket in udp {
                    info!(%address, "answering over QUIC");
                    socket.set_nonblocking(true)?;
                    endpoints.push(
                        quic::open(socket, certificate.server(quic::PROTOCOL)).context("--quic-listen")?,
                    );
                }
            }
        }
        for socket in datagrams.iter().map(AsFd::as_fd).chain(streams.iter().map(|(tcp, _)| tcp.as_fd())) {
            sockets.push(socket.try_clone_to_owned()?);
        }
        let (drain, mut servers) = (Drain::default(), JoinSet::new());
        // systemd gives 1,024 unless asked.
        let connections = Connections::new(daemon::file_limit::raise().soft);
        let multiplexed = Connections::multiplexed();
        for (tcp, service) in streams {
            let (is_https, is_tls) = (matches!(service, Service::Https(_)), !matches!(service, Service::Tcp));
            info!(address = %tcp.local_addr()?, tls = is_tls, https = is_https, "answering");
            let listener = tokio::net::TcpListener::from_std(tcp)?;
            let open = Arc::clone(if is_https { &multiplexed } else { &connections });
            servers.spawn(tcp::serve(listener, service, open, Arc::clone(responder), drain.clone()));
        }
        for endpoint in endpoints {
            let (open, responder) = (Arc::clone(&multiplexed), Arc::clone(responder));
            servers.spawn(quic::serve(endpoint, open, responder, drain.clone()));
        }
        let (workers, deferred) = udp::Workers::start(datagrams, responder).context("start the workers")?;
        servers.spawn(udp::resolve(Arc::clone(responder), deferred));
        Ok(Self { workers, servers, drain, sockets })
    }

    /// Returns when the next process has the sockets and serves. Never returns without a name.
    pub(crate) async fn await_next(&self, name: Option<&str>, note: &[u8], claim: &Claim) {
        let Some(name) = name else { return std::future::pending().await };
        handover::Current::take(name).await.await_next(note, &self.sockets, claim).await;
    }

    /// Takes no more queries, and answers those that were taken.
    pub(crate) async fn drain(self, has_next: bool) {
        drop(self.sockets);
        self.drain.start();
        self.workers.stop().await;
        let deadline = if has_next { HANDOVER_DRAIN } else { DRAIN };
        drop(tokio::time::timeout(deadline, self.servers.join_all()).await);
    }
}
