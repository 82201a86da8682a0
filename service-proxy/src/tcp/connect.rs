//! Finding an endpoint that accepts.

use std::io::{self, ErrorKind};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::net::TcpStream;
use tracing::{debug, warn};

use crate::backend::endpoint::{Endpoint, InUse};
use crate::frontend::Frontend;
use crate::kernel::socket;
use crate::worker::{Context, Local};

/// How many endpoints one connection tries before it gives up.
const ATTEMPTS: usize = 3;

/// Connects to an endpoint, or to the next one if that fails: nothing has been sent, so trying again is safe.
/// `None` when every attempt failed, or the client may not come.
pub(super) async fn connect(
    client: IpAddr,
    frontend: &Frontend,
    context: &Context,
    local: &Local,
) -> Option<(TcpStream, InUse)> {
    let mut tried: [Option<SocketAddr>; ATTEMPTS] = [None; ATTEMPTS];
    for attempt in 0..ATTEMPTS {
        // Looked up anew each time: while one attempt waited for its end, all the others may have gone.
        let set = frontend.endpoints();
        if !set.admits(client) {
            context.metrics.clients_refused.inc();
            return None;
        }
        let pool = set.pool(|| context.is_inside(client));
        let untried = |endpoint: &&Arc<Endpoint>| !tried.contains(&Some(endpoint.address));
        let Some(endpoint) = frontend.candidates(&set, pool, client).find(untried) else { break };
        if attempt > 0 {
            context.metrics.connect_retries.inc();
        }
        // The last one that is left may have lost a packet; the others need not be waited for as long.
        let is_last = attempt + 1 == ATTEMPTS || pool.endpoints().iter().filter(untried).take(2).count() < 2;
        tried[attempt] = Some(endpoint.address);
        let share = if is_last { 1 } else { 1 << (ATTEMPTS - attempt) };
        let timeout = context.connect_timeout / share;
        match attempt_one(client, endpoint.address, timeout, context, local).await {
            Ok(upstream) => {
                frontend.remember(&set, client, endpoint.address);
                return Some((upstream, endpoint.succeeded()));
            }
            Err(error) => {
                pool.failed(endpoint);
                let endpoint = endpoint.address;
                debug!(service = %frontend.service(), %endpoint, %error, "connect failed, trying another endpoint");
            }
        }
    }
    context.metrics.connect_failures.inc();
    warn!(service = %frontend.service(), frontend = %frontend.key, "no endpoint accepts connections");
    None
}

async fn attempt_one(
    client: IpAddr,
    endpoint: SocketAddr,
    timeout: Duration,
    context: &Context,
    local: &Local,
) -> io::Result<TcpStream> {
    let deadline = Instant::now() + timeout;
    let socket = match context.source(client, endpoint.ip()) {
        Some(source) => match socket::connect_from(source, endpoint) {
            // Every port to this endpoint is taken; serving it from the node's address is better than not.
            Err(error) if matches!(error.kind(), ErrorKind::AddrInUse | ErrorKind::AddrNotAvailable) => {
                context.metrics.source_fallbacks.inc();
                socket::connect_tcp(endpoint)
            }
            other => other,
        },
        None => socket::connect_tcp(endpoint),
    }?;
    // The kernel of a pod of this node is this one, and tells.
    if !context.is_local(endpoint.ip()) {
        socket::notice_silence(&socket)?;
    }
    let upstream = TcpStream::from_std(socket.into())?;
    // To a pod of this node the handshake is over by now: its stack has answered on this core.
    if upstream.peer_addr().is_ok() {
        return Ok(upstream);
    }
    tokio::select! {
        biased;
        ready = upstream.writable() => ready?,
        () = local.clock.passed(deadline) => return Err(ErrorKind::TimedOut.into()),
    }
    upstream.take_error()?.map_or(Ok(upstream), Err)
}
