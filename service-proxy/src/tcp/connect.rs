//! Finding an endpoint that accepts.

use std::io;

use tokio::net::TcpStream;
use tokio::time::timeout;
use tracing::{debug, warn};

use crate::frontend::Frontend;
use crate::worker::Context;

/// Connects to a random endpoint, or to the next one if that fails: nothing has been sent, so trying again is safe.
/// `None` when every attempt failed.
pub(super) async fn connect(frontend: &Frontend, context: &Context) -> Option<TcpStream> {
    let endpoints = frontend.endpoints();
    for (attempt, endpoint) in endpoints.candidates().enumerate() {
        if attempt > 0 {
            context.metrics.connect_retries.inc();
        }
        let connecting = timeout(context.connect_timeout, TcpStream::connect(endpoint)).await;
        match connecting.unwrap_or_else(|_elapsed| Err(io::ErrorKind::TimedOut.into())) {
            Ok(upstream) => return Some(upstream),
            Err(error) => {
                debug!(service = %frontend.service, %endpoint, %error, "connect failed, trying another endpoint");
            }
        }
    }
    context.metrics.connect_failures.inc();
    warn!(service = %frontend.service, frontend = %frontend.key, "no endpoint accepts connections");
    None
}
