//! TCP frontends: accept, connect to an endpoint, relay.

mod connect;
mod relay;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::net::{TcpListener, TcpStream};
use tracing::{debug, warn};

use crate::frontend::Frontend;
use crate::socket;
use crate::worker::{Context, Local};

/// Pause after a failed accept, most often for want of file descriptors: trying again at once would spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// A frontend on one worker.
struct Scope {
    frontend: Arc<Frontend>,
    context: Arc<Context>,
    local: Arc<Local>,
}

/// Accepts connections of a frontend on the current worker until the frontend closes.
pub(crate) async fn serve(
    listener: std::net::TcpListener,
    frontend: Arc<Frontend>,
    context: Arc<Context>,
    local: Arc<Local>,
) -> std::io::Result<()> {
    let listener = TcpListener::from_std(listener)?;
    let scope = Arc::new(Scope { frontend, context, local });
    loop {
        let accepted = tokio::select! {
            () = scope.frontend.closed() => return Ok(()),
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((client, address)) => {
                scope.context.tasks.spawn(handle(client, address.ip(), Arc::clone(&scope)));
            }
            Err(error) => {
                scope.context.metrics.accept_errors.inc();
                warn!(frontend = %scope.frontend.key, %error, "cannot accept connections, trying again");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn handle(mut client: TcpStream, address: IpAddr, scope: Arc<Scope>) {
    let Scope { frontend, context, local } = &*scope;
    let metrics = &context.metrics;
    metrics.connections_opened.inc();
    let started = Instant::now();
    local.poller.active();
    match connect::connect(address, frontend, context, local).await {
        Some((mut upstream, _in_use)) => {
            metrics.connect_seconds.observe(started.elapsed().as_secs_f64());
            let (sent, result) = relay::relay(&mut client, &mut upstream, &local.poller).await;
            metrics.sent_bytes.inc_by(sent.to_upstream);
            metrics.received_bytes.inc_by(sent.to_client);
            if let Err(error) = result {
                debug!(service = %frontend.service, %error, "connection ended by a reset");
                socket::reset_on_close(&client);
                socket::reset_on_close(&upstream);
            }
        }
        // The handshake with the client is over, so refusing is no longer possible: a reset comes closest.
        None => socket::reset_on_close(&client),
    }
    drop(client);
    metrics.connections_closed.inc();
}
