//! Queries over TCP (RFC 7766) and TLS (RFC 7858): up to [`MAX_WAITING`] at a time per connection, answered
//! out of order.

mod frames;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use daemon::drain::Drain;
use daemon::log::RateLimit;
use futures_util::{FutureExt as _, SinkExt, StreamExt as _};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{timeout, timeout_at};
use tokio_rustls::TlsAcceptor;

use crate::connections::{Connections, Place};
use crate::https;
use crate::metrics::Protocol;
use crate::responder::{Client, IDLE, Replies, Responder, Step};

/// During the drain, a client that is idle for this time has its answers.
const LINGER: Duration = Duration::from_secs(2);

/// Timeout for a client that does not read its answers, and for its TLS handshake.
const WRITE: Duration = Duration::from_secs(5);

/// Queries of one connection that may wait for upstream servers; meanwhile it is not read.
const MAX_WAITING: usize = 128;

/// Replies of the handler that may wait to be written.
const MAX_REPLIES: usize = 16;

/// The protocol of a listener.
#[derive(Clone)]
pub(crate) enum Service {
    Tcp,
    Tls(TlsAcceptor),
    Https(TlsAcceptor),
}

/// Accepts until the drain begins, then lets connections finish.
pub(crate) async fn serve(
    listener: TcpListener,
    service: Service,
    open: Arc<Connections>,
    responder: Arc<Responder>,
    drain: Drain,
) {
    let mut connections = JoinSet::new();
    let warnings = RateLimit::default();
    let mut arrived = None;
    loop {
        let permit = tokio::select! {
            biased;
            // The permit is acquired only with a client, so that no idle connection is closed for nothing. Before
            // the drain: a client that is accepted is served if there is room.
            permit = open.permit(), if arrived.is_some() => permit,
            () = drain.started() => break,
            Some(_) = connections.join_next() => continue,
            accepted = listener.accept(), if arrived.is_none() => {
                match accepted {
                    Ok(connection) => arrived = Some(connection),
                    Err(error) => {
                        if let Some(suppressed) = warnings.admit() {
                            tracing::warn!(%error, suppressed, "cannot accept a connection");
                        }
                        tokio::time::sleep(Duration::from_millis(100)).await;
                    }
                }
                continue;
            }
        };
        let Some((stream, client)) = arrived.take() else { continue };
        let place = open.enter(client.ip(), permit);
        let (service, responder, drain) = (service.clone(), Arc::clone(&responder), drain.clone());
        connections.spawn(async move {
            let evicted = place.evicted.clone();
            let serve = async {
                stream.set_nodelay(true)?;
                match service {
                    Service::Tcp => {
                        converse(stream, (Protocol::Tcp, client), place, &responder, &drain).await
                    }
                    Service::Tls(tls) => {
                        let stream = timeout(WRITE, tls.accept(stream)).await??;
                        converse(stream, (Protocol::Tls, client), place, &responder, &drain).await
                    }
                    Service::Https(tls) => {
                        let _place = place;
                        let stream = timeout(WRITE, tls.accept(stream)).await??;
                        https::converse(stream, client, &responder, &drain).await;
                        Ok(())
                    }
                }
            };
            // Errors of a client affect its own connection only.
            tokio::select! {
                _ended = serve => {}
                () = evicted.cancelled() => {}
            }
        });
    }
    drop((listener, arrived));
    while connections.join_next().await.is_some() {}
}

async fn converse(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    from: (Protocol, SocketAddr),
    place: Place,
    responder: &Arc<Responder>,
    drain: &Drain,
) -> io::Result<()> {
    let mut frames = frames::open(stream, place);
    let (replies, mut resolved) = mpsc::channel(MAX_REPLIES);
    let mut resolving = JoinSet::new();
    // A complete query must arrive within the idle timeout.
    let mut heard = tokio::time::Instant::now();
    let (mut lower, mut out) = (Vec::with_capacity(256), Vec::new());
    let mut is_open = true;
    while is_open || !resolving.is_empty() || !resolved.is_empty() {
        let draining = drain.is_started();
        let patience = if draining { LINGER } else { IDLE };
        tokio::select! {
            next = timeout_at(heard + patience, frames.next()), if is_open && resolving.len() < MAX_WAITING => {
                let mut next = match next {
                    Ok(next) => Some(next),
                    Err(_idle) if resolving.is_empty() && resolved.is_empty() => break,
                    Err(_idle) => None,
                };
                heard = tokio::time::Instant::now();
                // Everything that has arrived, before anything is written.
                while let Some(query) = next.take() {
                    let Some(query) = query.transpose()? else {
                        is_open = false;
                        break;
                    };
                    out.clear();
                    let client = (from.0, &(|| Some(from.1)) as Client<'_>);
                    match responder.answer_now(&query, client, Instant::now(), &mut lower, &mut out) {
                        Step::Silence => {}
                        Step::Done => timeout(WRITE, frames.feed(&out[..])).await??,
                        Step::Deferred => {
                            let replies = Replies::Connection(replies.clone());
                            resolving.spawn(Arc::clone(responder).resolve(query.to_vec(), from, replies));
                        }
                    }
                    if resolving.len() < MAX_WAITING {
                        next = frames.next().now_or_never();
                    }
                }
            }
            Some(reply) = resolved.recv() => {
                heard = tokio::time::Instant::now();
                timeout(WRITE, frames.feed(&reply[..])).await??;
            }
            Some(_) = resolving.join_next() => {}
            // Pending replies get the full write timeout.
            () = drain.started(), if !draining => heard = tokio::time::Instant::now(),
        }
        timeout(WRITE, frames::flush(&mut frames)).await??;
        out.shrink_to(frames::CHUNK);
    }
    // Over TLS, so that the client can distinguish the end from a truncation.
    timeout(WRITE, SinkExt::<&[u8]>::close(&mut frames)).await?
}
