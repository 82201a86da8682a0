//! Where queries come in: sockets opened or inherited, who answers on them, and their end.

use std::cell::Cell;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use daemon::drain::Drain;
use daemon::succession::Incumbent;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tracing::{info, warn};

use crate::responder::Responder;
use crate::socket::{Inherited, open_datagrams, open_stream};
use crate::tls;
use crate::{tcp, udp};

/// What queries under way are given to finish.
const DRAIN: Duration = Duration::from_secs(5);

/// What connections are given when somebody else takes the new ones: nobody waits for us.
const FAREWELL: Duration = Duration::from_secs(30);

/// All that answers.
pub(crate) struct Front {
    workers: udp::Workers,
    servers: JoinSet<()>,
    drain: Drain,
    /// For a successor.
    sockets: Vec<OwnedFd>,
}

impl Front {
    /// Opens what was not inherited, and starts answering.
    pub(crate) fn open(
        listen: &[SocketAddr],
        tls: Option<(&TlsAcceptor, &tls::Config)>,
        threads: usize,
        mut inherited: Inherited,
        responder: &Arc<Responder>,
    ) -> anyhow::Result<Self> {
        let (mut datagrams, mut streams, mut sockets) = (Vec::new(), Vec::new(), Vec::new());
        for &address in listen {
            let udp = open_datagrams(address, threads, &mut inherited).context("--listen")?;
            // Where any port would do, it is the same for both.
            let address = udp.first().map_or(Ok(address), std::net::UdpSocket::local_addr)?;
            streams.push((open_stream(address, &mut inherited).context("--listen")?, None));
            datagrams.extend(udp);
        }
        for (acceptor, &address) in
            tls.iter().flat_map(|(acceptor, tls)| tls.listen.iter().map(move |address| (*acceptor, address)))
        {
            let tcp = open_stream(address, &mut inherited).context("--tls-listen")?;
            streams.push((tcp, Some(acceptor.clone())));
        }
        for socket in datagrams.iter().map(AsFd::as_fd).chain(streams.iter().map(|(tcp, _)| tcp.as_fd())) {
            sockets.push(socket.try_clone_to_owned()?);
        }
        let (drain, mut servers) = (Drain::default(), JoinSet::new());
        // systemd gives 1,024 unless asked.
        let open = tcp::Connections::new(daemon::file_limit::raise().soft);
        for (tcp, tls) in streams {
            info!(address = %tcp.local_addr()?, tls = tls.is_some(), "answering");
            let listener = tokio::net::TcpListener::from_std(tcp)?;
            servers.spawn(tcp::serve(listener, tls, Arc::clone(&open), Arc::clone(responder), drain.clone()));
        }
        let (workers, deferred) = udp::Workers::start(datagrams, responder).context("start the workers")?;
        servers.spawn(udp::resolve(Arc::clone(responder), deferred));
        Ok(Self { workers, servers, drain, sockets })
    }

    /// Returns when a successor has our sockets and serves. Never, if we cannot be found. `is_claimed` says whether there is
    /// one that has not begun.
    pub(crate) async fn await_successor(&self, name: Option<&str>, note: &[u8], is_claimed: &Cell<bool>) {
        match name.map(Incumbent::take) {
            Some(Ok(incumbent)) => return incumbent.await_successor(note, &self.sockets, is_claimed).await,
            Some(Err(error)) => warn!(%error, "a later process will not find this one"),
            None => {}
        }
        std::future::pending().await
    }

    /// Takes no more queries, and answers those that were taken.
    pub(crate) async fn drain(self, has_successor: bool) {
        drop(self.sockets);
        self.drain.start();
        self.workers.stop().await;
        let deadline = if has_successor { FAREWELL } else { DRAIN };
        drop(tokio::time::timeout(deadline, self.servers.join_all()).await);
    }
}
