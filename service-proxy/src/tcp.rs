//! TCP frontends: accept, connect to an endpoint, relay.

mod connect;
mod relay;

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::net::{TcpListener, TcpStream};
use tracing::{debug, warn};

use crate::frontend::Frontend;
use crate::poller::Poller;
use crate::socket;
use crate::worker::Context;

/// Pause after a failed accept, most often for want of file descriptors: trying again at once would spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Accepts connections of a frontend on the current worker until the frontend closes.
pub(crate) async fn serve(
    listener: std::net::TcpListener,
    frontend: Arc<Frontend>,
    context: Arc<Context>,
    poller: Arc<Poller>,
) -> std::io::Result<()> {
    let listener = TcpListener::from_std(listener)?;
    loop {
        let accepted = tokio::select! {
            () = frontend.closed() => return Ok(()),
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((client, _)) => {
                let handling =
                    handle(client, Arc::clone(&frontend), Arc::clone(&context), Arc::clone(&poller));
                context.tasks.spawn(handling);
            }
            Err(error) => {
                context.metrics.accept_errors.inc();
                warn!(frontend = %frontend.key, %error, "cannot accept connections, trying again");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn handle(mut client: TcpStream, frontend: Arc<Frontend>, context: Arc<Context>, poller: Arc<Poller>) {
    let metrics = &context.metrics;
    metrics.connections_opened.inc();
    let started = Instant::now();
    poller.active();
    match connect::connect(&frontend, &context).await {
        Some(mut upstream) => {
            metrics.connect_seconds.observe(started.elapsed().as_secs_f64());
            // Nagle's algorithm against the peer's delayed ACK costs 40 ms a request.
            drop((client.set_nodelay(true), upstream.set_nodelay(true)));
            let (sent, result) = relay::relay(&mut client, &mut upstream, &poller).await;
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
