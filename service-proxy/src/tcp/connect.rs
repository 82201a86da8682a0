//! Finding an endpoint that accepts.

use std::io::{self, ErrorKind};
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use discovery::model::Protocol;
use socket2::{SockRef, Type};
use tokio::net::TcpStream;
use tracing::{debug, warn};

use crate::backend::endpoint::{Endpoint, InUse};
use crate::frontend::{Frontend, FrontendKey};
use crate::kernel::local_replies;
use crate::kernel::socket::{self, Departure, USUAL_PROBES};
use crate::tcp::Registry;
use crate::worker::{Context, Local};

/// How many endpoints one connection tries before it gives up.
const ATTEMPTS: usize = 3;

/// Hops that are enough to reach any endpoint.
const ENOUGH_HOPS: u32 = 32;

/// What is to be connected.
pub(super) struct Client<'a> {
    pub(super) stream: &'a TcpStream,
    pub(super) address: SocketAddr,
}

/// Connects to an endpoint, or to the next one if that fails: nothing has been sent, so trying again is safe.
/// `None` when every attempt failed, or the client may not come.
pub(super) async fn connect(
    client: Client<'_>,
    frontend: &Frontend,
    registry: &Registry,
    context: &Context,
    local: &Local,
) -> Option<(TcpStream, InUse)> {
    let mut tried: [Option<SocketAddr>; ATTEMPTS] = [None; ATTEMPTS];
    let ip = client.address.ip();
    for attempt in 0..ATTEMPTS {
        // Looked up anew each time: all others may have been removed during the last attempt.
        let set = frontend.endpoints();
        if !set.admits(ip) {
            context.metrics.clients_refused.inc();
            return None;
        }
        let pool = set.pool(|| context.is_inside(ip));
        let untried = |endpoint: &&Arc<Endpoint>| !tried.contains(&Some(endpoint.address));
        let Some(endpoint) = frontend.candidates(&set, pool, ip).find(untried) else { break };
        if attempt > 0 {
            context.metrics.connect_retries.inc();
        }
        // The last one that is left may have lost a packet; the others need not be waited for as long.
        let is_last = attempt + 1 == ATTEMPTS || pool.endpoints().iter().filter(untried).take(2).count() < 2;
        tried[attempt] = Some(endpoint.address);
        let share = if is_last { 1 } else { 1 << (ATTEMPTS - attempt) };
        let timeout = context.connect_timeout / share;
        let Ok(hops) = hops(&client, endpoint.address, context) else { continue };
        match attempt_one(&client, endpoint.address, hops, timeout, context, local).await {
            Ok(upstream) => {
                frontend.remember(&set, ip, endpoint.address);
                return Some((upstream, endpoint.succeeded()));
            }
            Err(error) => {
                // A client that has set its hop limit low must not have the endpoint ejected for others.
                if hops.is_none_or(|left| left >= ENOUGH_HOPS) {
                    pool.failed(endpoint);
                }
                let endpoint = endpoint.address;
                note_loop(endpoint, frontend, registry, context);
                debug!(service = %frontend.service(), %endpoint, %error, "connect failed, trying another endpoint");
            }
        }
    }
    context.metrics.connect_failures.inc();
    if let Some(suppressed) = frontend.traffic.no_endpoint_warnings.admit() {
        warn!(service = %frontend.service(), frontend = %frontend.key, suppressed, "no endpoint accepts connections");
    }
    None
}

/// An endpoint that is a virtual IP of this proxy refuses: what has been proxied is not proxied again (see
/// [`crate::kernel::interception`]).
fn note_loop(endpoint: SocketAddr, frontend: &Frontend, registry: &Registry, context: &Context) {
    let key = FrontendKey { protocol: Protocol::Tcp, address: endpoint };
    if let Some(other) = registry.load().get(&key) {
        context.metrics.loops_refused.inc();
        if let Some(suppressed) = frontend.traffic.loop_warnings.admit() {
            let (service, of) = (frontend.service(), other.service());
            warn!(%service, %endpoint, %of, suppressed, "an endpoint is itself served by this proxy");
        }
    }
}

async fn attempt_one(
    client: &Client<'_>,
    endpoint: SocketAddr,
    hops: Option<u32>,
    timeout: Duration,
    context: &Context,
    local: &Local,
) -> io::Result<TcpStream> {
    let deadline = Instant::now() + timeout;
    let source = context.source(client.address, endpoint.ip(), Protocol::Tcp);
    let is_noted = source.is_some() && context.is_node(endpoint.ip());
    let departure =
        Departure { source, hops, probes: if is_noted { local_replies::PROBES } else { USUAL_PROBES } };
    let without_source = Departure { source: None, ..departure };
    match open(endpoint, departure, deadline, local).await {
        // Every port to this endpoint is taken; serving it from the node's address is better than not.
        Err(error) if socket::is_taken(&error) && departure.source.is_some() => {
            context.metrics.source_fallbacks.inc();
            open(endpoint, without_source, deadline, local).await
        }
        // No server of the node itself has the port; a host port leads to a pod, but not what is not tracked.
        Err(error)
            if error.kind() == ErrorKind::ConnectionRefused
                && departure.source.is_some()
                && context.is_node(endpoint.ip()) =>
        {
            open(endpoint, without_source, deadline, local).await
        }
        other => other,
    }
}

async fn open(
    endpoint: SocketAddr,
    departure: Departure,
    deadline: Instant,
    local: &Local,
) -> io::Result<TcpStream> {
    let socket = socket::connect(Type::STREAM, endpoint, departure)?;
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
    // One that has accepted, replied and reset by now is not connected any more, but its reply is there to be
    // read.
    if upstream.peer_addr().is_err() && SockRef::from(&upstream).peek(&mut [MaybeUninit::uninit()])? == 0 {
        return Err(ErrorKind::ConnectionReset.into());
    }
    Ok(upstream)
}

/// One hop less than the client's packets had left, where the endpoint may be a virtual IP of another node,
/// whose endpoint may be one of ours, and so on: as a router, the proxy lets such a circle end. A pod is the
/// end of the way.
fn hops(client: &Client<'_>, endpoint: SocketAddr, context: &Context) -> io::Result<Option<u32>> {
    if !context.may_come_back(endpoint.ip()) {
        return Ok(None);
    }
    match socket::hops_left(client.stream, client.address.is_ipv4())? {
        0 | 1 => {
            context.metrics.loops_refused.inc();
            // A client can cause these as often as it likes.
            debug!(%endpoint, "connection refused: it loops between proxies, its hop limit is used up");
            Err(ErrorKind::HostUnreachable.into())
        }
        left => Ok(Some(left - 1)),
    }
}
