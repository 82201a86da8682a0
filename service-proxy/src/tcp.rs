//! TCP frontends: accept, connect to an endpoint, relay.

mod connect;
mod proxy_protocol;
mod relay;

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use discovery::SharedMap;
use discovery::model::Protocol;
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::budget::{Permit, Refusal};
use crate::frontend::{Frontend, FrontendKey};
use crate::kernel::socket;
use crate::worker::idle_timeout::Progress;
use crate::worker::{Context, Local};
use relay::Sent;

/// Pause after a failed accept, usually because file descriptors are exhausted: an immediate retry would
/// spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// The client's socket and the upstream socket.
const CONNECTION_DESCRIPTORS: usize = 2;

/// All frontends.
pub(crate) type Registry = ArcSwap<SharedMap<FrontendKey, Frontend>>;

/// The context of the connections of one worker.
struct Scope {
    registry: Arc<Registry>,
    context: Arc<Context>,
    local: Arc<Local>,
}

/// Accepts connections on the current worker until `closed`.
pub(crate) async fn serve(
    listener: std::net::TcpListener,
    registry: Arc<Registry>,
    context: Arc<Context>,
    local: Arc<Local>,
    closed: CancellationToken,
) -> std::io::Result<()> {
    let listener = TcpListener::from_std(listener)?;
    let scope = Arc::new(Scope { registry, context, local });
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = closed.cancelled() => return Ok(()),
        };
        match accepted {
            Ok((client, address)) => match admit(address, &scope.context) {
                Some(permit) => {
                    let connection = handle(client, address, Arc::clone(&scope));
                    scope.context.tasks.spawn(permit.cover(connection));
                }
                None => socket::reset_on_close(&client),
            },
            Err(error) => {
                scope.context.metrics.accept_errors.inc();
                if let Some(suppressed) = scope.context.accept_warnings.admit() {
                    warn!(%error, suppressed, "cannot accept connections, retrying");
                }
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Acquires the descriptors of a connection. `None` if none are free.
fn admit(client: SocketAddr, context: &Context) -> Option<Permit> {
    let metrics = &context.metrics;
    if context.max_connections.is_some_and(|limit| context.tasks.len() >= limit) {
        metrics.connections_shed.inc();
        return None;
    }
    let permit = context.budget.take(client.ip(), CONNECTION_DESCRIPTORS);
    let refused = |refusal: &Refusal| match refusal {
        Refusal::ClientLimit => metrics.client_limits.inc(),
        Refusal::Exhausted => metrics.connections_shed.inc(),
    };
    permit.inspect_err(refused).ok()
}

async fn handle(mut client: TcpStream, address: SocketAddr, scope: Arc<Scope>) {
    let Scope { registry, context, local } = &*scope;
    // The destination is the local address of the socket.
    let destination = client.local_addr().ok();
    let key = |address| FrontendKey { protocol: Protocol::Tcp, address };
    let found = destination
        .and_then(|destination| Some((destination, registry.load().get(&key(destination)).cloned()?)));
    let Some((destination, frontend)) = found else {
        // The Service was deleted before the connection was accepted, or a client connected to our own port.
        return socket::reset_on_close(&client);
    };
    let metrics = &context.metrics;
    let traffic = &frontend.traffic;
    let Some(_open) = traffic.enter(frontend.with_selection(|selection| selection.max_connections)) else {
        metrics.connections_shed.inc();
        return socket::reset_on_close(&client);
    };
    metrics.connections_opened.inc();
    let started = Instant::now();
    local.poller.active();
    let from = connect::Client { stream: &client, address };
    match connect::connect(from, &frontend, registry, context, local).await {
        Some((mut upstream, _in_use)) => {
            metrics.connect_seconds.observe(started.elapsed().as_secs_f64());
            if frontend.with_selection(|selection| selection.proxy_protocol) {
                // The socket is new and its buffer empty; an error shows again when the relay writes.
                let _ = upstream.write_all(&proxy_protocol::header(address, destination)).await;
            }
            let progress = Progress::default();
            let count = |sent: Sent| {
                metrics.sent_bytes.inc_by(sent.to_upstream);
                metrics.received_bytes.inc_by(sent.to_client);
                traffic.counters().sent_bytes.inc_by(sent.to_upstream);
                traffic.counters().received_bytes.inc_by(sent.to_client);
            };
            let result = tokio::select! {
                biased;
                result = relay::relay(&mut client, &mut upstream, &local.poller, &progress, count) => result,
                () = progress.request_checks(&local.check_clock) => Ok(()),
                () = context.idle_timeouts.expired(&progress, &local.slow_clock) => {
                    metrics.idle_timeouts.inc();
                    Err(ErrorKind::TimedOut.into())
                }
            };
            if let Err(error) = result {
                debug!(service = %frontend.service(), %error, "connection ended by a reset");
                socket::reset_on_close(&client);
                socket::reset_on_close(&upstream);
            }
        }
        // The handshake is complete, so a refusal is no longer possible. A reset comes closest.
        None => {
            traffic.counters().failed.inc();
            socket::reset_on_close(&client);
        }
    }
    drop(client);
    metrics.connections_closed.inc();
}
