//! Finding an endpoint that accepts.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use tokio::net::TcpStream;
use tracing::{debug, warn};

use crate::frontend::Frontend;
use crate::socket;
use crate::worker::{Context, Local};

/// Connects to a random endpoint, or to the next one if that fails: nothing has been sent, so trying again is safe.
/// `None` when every attempt failed.
pub(super) async fn connect(
    client: IpAddr,
    frontend: &Frontend,
    context: &Context,
    local: &Local,
) -> Option<TcpStream> {
    let endpoints = frontend.endpoints();
    for (attempt, endpoint) in endpoints.candidates().enumerate() {
        if attempt > 0 {
            context.metrics.connect_retries.inc();
        }
        match attempt_one(client, endpoint, context, local).await {
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

async fn attempt_one(
    client: IpAddr,
    endpoint: SocketAddr,
    context: &Context,
    local: &Local,
) -> io::Result<TcpStream> {
    let deadline = Instant::now() + context.connect_timeout;
    let socket = match context.source(client, endpoint.ip()) {
        Some(source) => socket::connect_from(source, endpoint).or_else(|error| {
            // Most often every port to this endpoint is taken; serving it from the node's address is better than not.
            debug!(%source, %endpoint, %error, "cannot borrow the client's address");
            context.metrics.source_fallbacks.inc();
            socket::connect_tcp(endpoint)
        }),
        None => socket::connect_tcp(endpoint),
    }?;
    let upstream = TcpStream::from_std(socket.into())?;
    tokio::select! {
        biased;
        ready = upstream.writable() => ready?,
        () = local.clock.passed(deadline) => return Err(io::ErrorKind::TimedOut.into()),
    }
    upstream.take_error()?.map_or(Ok(upstream), Err)
}
