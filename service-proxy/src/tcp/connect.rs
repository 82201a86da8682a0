//! Connects to an endpoint.

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
use crate::kernel::socket::{self, DEFAULT_PROBES, UpstreamOptions};
use crate::tcp::Registry;
use crate::worker::{Context, Local};

/// The number of endpoints that a connection tries.
const ATTEMPTS: usize = 3;

/// A TTL that is sufficient to reach any endpoint.
const ENOUGH_HOPS: u32 = 32;

/// The client to connect.
pub(super) struct Client<'a> {
    pub(super) stream: &'a TcpStream,
    pub(super) address: SocketAddr,
}

/// Connects to an endpoint, or to the next one after a failure: nothing was sent, so a retry is safe. `None`
/// if every attempt failed, or if the client is not allowed.
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
        // Read again for each attempt: all others may have been removed meanwhile.
        let set = frontend.endpoints();
        if !set.admits(ip) {
            context.metrics.clients_refused.inc();
            return None;
        }
        let pool = set.pool(|| context.is_inside(ip));
        let is_untried = |endpoint: &&Arc<Endpoint>| !tried.contains(&Some(endpoint.address));
        let Some(endpoint) = frontend.endpoints_to_try(&set, pool, ip).find(is_untried) else { break };
        if attempt > 0 {
            context.metrics.connect_retries.inc();
        }
        // The last one may have lost a packet; the others need less time.
        let is_last =
            attempt + 1 == ATTEMPTS || pool.endpoints().iter().filter(is_untried).take(2).count() < 2;
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
                report_loop(endpoint, frontend, registry, context);
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

/// An endpoint that is a virtual IP of this proxy refuses: proxied packets are not proxied again (see
/// [`crate::kernel::interception`]).
fn report_loop(endpoint: SocketAddr, frontend: &Frontend, registry: &Registry, context: &Context) {
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
    let probes = if is_noted { local_replies::PROBES } else { DEFAULT_PROBES };
    let options = UpstreamOptions { source, hops, probes };
    let without_source = UpstreamOptions { source: None, ..options };
    match open(endpoint, options, deadline, local).await {
        // Every port to this endpoint is in use: use the node's address instead.
        Err(error) if socket::is_taken(&error) && options.source.is_some() => {
            context.metrics.source_fallbacks.inc();
            open(endpoint, without_source, deadline, local).await
        }
        // No server of the node has the port. A host port leads to a pod, but untracked packets are not
        // translated.
        Err(error)
            if error.kind() == ErrorKind::ConnectionRefused
                && options.source.is_some()
                && context.is_node(endpoint.ip()) =>
        {
            open(endpoint, without_source, deadline, local).await
        }
        other => other,
    }
}

async fn open(
    endpoint: SocketAddr,
    options: UpstreamOptions,
    deadline: Instant,
    local: &Local,
) -> io::Result<TcpStream> {
    let socket = socket::connect(Type::STREAM, endpoint, options)?;
    let upstream = TcpStream::from_std(socket.into())?;
    // To a pod of this node the handshake is complete by now: its stack has answered on this core.
    if upstream.peer_addr().is_ok() {
        return Ok(upstream);
    }
    tokio::select! {
        biased;
        ready = upstream.writable() => ready?,
        () = local.clock.passed(deadline) => return Err(ErrorKind::TimedOut.into()),
    }
    // One that has accepted, replied and reset is no longer connected, but its reply can be read.
    if upstream.peer_addr().is_err() && SockRef::from(&upstream).peek(&mut [MaybeUninit::uninit()])? == 0 {
        return Err(ErrorKind::ConnectionReset.into());
    }
    Ok(upstream)
}

/// One less than the TTL of the client's packets, if the endpoint may be a virtual IP of another node, whose
/// endpoint may be one of ours, and so on: like a router, the proxy ends such a loop. A pod ends the path.
fn hops(client: &Client<'_>, endpoint: SocketAddr, context: &Context) -> io::Result<Option<u32>> {
    if !context.may_come_back(endpoint.ip()) {
        return Ok(None);
    }
    match socket::hops_left(client.stream, client.address.is_ipv4())? {
        0 | 1 => {
            context.metrics.loops_refused.inc();
            // A client can cause these as often as it likes, so debug level.
            debug!(%endpoint, "connection refused: it loops between proxies, its hop limit is used up");
            Err(ErrorKind::HostUnreachable.into())
        }
        left => Ok(Some(left - 1)),
    }
}
