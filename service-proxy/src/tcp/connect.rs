//! Finding an endpoint that accepts.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use tokio::net::TcpStream;
use tracing::{debug, warn};

use crate::endpoint::InUse;
use crate::frontend::Frontend;
use crate::socket;
use crate::worker::{Context, Local};

/// Connects to an endpoint, or to the next one if that fails: nothing has been sent, so trying again is safe.
/// `None` when every attempt failed, or the client may not come.
pub(super) async fn connect(
    client: IpAddr,
    frontend: &Frontend,
    context: &Context,
    local: &Local,
) -> Option<(TcpStream, InUse)> {
    let set = frontend.endpoints();
    if !set.admits(client) {
        context.metrics.clients_refused.inc();
        return None;
    }
    let pool = set.pool(|| context.is_inside(client));
    for (attempt, endpoint) in frontend.candidates(&set, pool, client).enumerate() {
        if attempt > 0 {
            context.metrics.connect_retries.inc();
        }
        match attempt_one(client, endpoint.address, context, local).await {
            Ok(upstream) => {
                frontend.remember(&set, client, endpoint.address);
                return Some((upstream, endpoint.succeeded()));
            }
            Err(error) => {
                pool.failed(endpoint);
                let endpoint = endpoint.address;
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
