//! Upstream servers, as connections of hickory-resolver's
//! [`NameServerPool`](hickory_resolver::NameServerPool).
//!
//! The pool chooses the server, queries several in parallel and retries truncated replies over TCP. What
//! counts as an answer is decided here, because hickory ends a query with the first SERVFAIL or REFUSED, and
//! drops the flags and some records of a negative answer: a reply that can be passed on gets a code that the
//! pool does not interpret (see [`shield`]), and an invalid reply is an error after which the pool tries the
//! next server.

use std::cell::Cell;
use std::future::{Future, ready};
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use futures_util::Stream;
use futures_util::stream::once;
use hickory_resolver::ConnectionProvider;
use hickory_resolver::PoolContext;
use hickory_resolver::config::{ConnectionConfig, NameServerConfig, ProtocolConfig};
use hickory_resolver::net::udp::UdpClientStream;
use hickory_resolver::net::xfer::{DnsRequestSender as _, FirstAnswer as _};
use hickory_resolver::net::{DnsHandle, NetError};
use hickory_resolver::proto::op::{DnsRequest, DnsResponse, ResponseCode};
use prometheus::Histogram;

use super::address::{Transport, Upstream};
use super::answer::{self, InvalidReply};
use super::runtime::Runtime;
use super::streams::Streams;
use super::tls::Tls;

/// The time for all attempts: less than the 5 s after which clients give up, so that an error can be sent.
pub(crate) const BUDGET: Duration = Duration::from_secs(4);

/// How long a server without EDNS support is queried without EDNS (RFC 6891 §7 allows to remember it).
const PLAIN: Duration = Duration::from_secs(300);

/// A server with this many consecutive timeouts is ejected, if there is another one. The duration doubles
/// each time.
const MAX_TIMEOUTS: u32 = 2;
const FIRST_EJECTION: Duration = Duration::from_secs(5);
const MAX_DOUBLINGS: u32 = 3;

tokio::task_local! {
    /// The current query of this task.
    pub(super) static ATTEMPTS: Attempts;
}

/// The state of one query.
#[derive(Default)]
pub(super) struct Attempts {
    /// The number of servers that were queried.
    pub(super) count: Cell<u64>,
    /// What was wrong with the last invalid reply.
    pub(super) invalid: Cell<Option<InvalidReply>>,
}

/// A server.
pub(super) struct Server {
    pub(super) upstream: Upstream,
    streams: Streams,
    runtime: Runtime,
    durations: Histogram,
    started: Instant,
    /// A query to it has come back: a forwarding loop.
    pub(super) is_looping: AtomicBool,
    /// Until when it is queried without EDNS, and until when it is ejected; milliseconds since `started`.
    plain_until: AtomicU64,
    ejected_until: AtomicU64,
    timeouts: AtomicU32,
}

impl Server {
    pub(super) fn new(upstream: Upstream, tls: Option<Tls>, runtime: Runtime, durations: Histogram) -> Self {
        let streams = Streams::new(upstream.address, tls, runtime.clone());
        Self {
            upstream,
            streams,
            runtime,
            durations,
            started: Instant::now(),
            is_looping: AtomicBool::new(false),
            plain_until: AtomicU64::new(0),
            ejected_until: AtomicU64::new(0),
            timeouts: AtomicU32::new(0),
        }
    }

    /// The server's configuration for the pool.
    pub(super) fn config(&self) -> NameServerConfig {
        let ip = self.upstream.address.ip();
        let mut config = match &self.upstream.transport {
            Transport::Plain => NameServerConfig::udp_and_tcp(ip),
            Transport::Tcp => NameServerConfig::tcp(ip),
            Transport::Tls(name) => NameServerConfig::tls(ip, name.as_str().into()),
        };
        for connection in &mut config.connections {
            connection.port = self.upstream.address.port();
        }
        config
    }

    fn is(&self, ip: IpAddr, config: &ConnectionConfig) -> bool {
        let address = self.upstream.address;
        let same_transport = match (&self.upstream.transport, &config.protocol) {
            (Transport::Plain, ProtocolConfig::Udp | ProtocolConfig::Tcp) => true,
            (Transport::Tcp, ProtocolConfig::Tcp) => true,
            (Transport::Tls(name), ProtocolConfig::Tls { server_name }) => **server_name == **name,
            _ => false,
        };
        (address.ip(), address.port()) == (ip, config.port) && same_transport
    }

    /// Whether it forwards to this server.
    pub(super) fn is_looping(&self) -> bool {
        self.is_looping.load(Relaxed)
    }

    fn now(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn until(&self, duration: Duration) -> u64 {
        self.now() + u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
    }

    fn is_ejected(&self) -> bool {
        self.now() < self.ejected_until.load(Relaxed)
    }

    fn record(&self, result: &Result<DnsResponse, NetError>, took: Duration) {
        match result {
            Ok(_) => {
                self.durations.observe(took.as_secs_f64());
                self.timeouts.store(0, Relaxed);
            }
            Err(error) => {
                tracing::debug!(upstream = %self.upstream, %error, "no answer");
                let is_silent = matches!(error, NetError::Timeout | NetError::NoConnections);
                if !is_silent {
                    return;
                }
                let timeouts = self.timeouts.fetch_add(1, Relaxed) + 1;
                if let Some(more) = timeouts.checked_sub(MAX_TIMEOUTS) {
                    let ejection = FIRST_EJECTION * 2_u32.pow(more.min(MAX_DOUBLINGS));
                    self.ejected_until.store(self.until(ejection), Relaxed);
                }
            }
        }
    }

    /// Queries the server, even if it is ejected.
    pub(super) async fn ask(&self, request: DnsRequest, by_udp: bool) -> Result<DnsResponse, NetError> {
        let wants_dnssec = request.edns.as_ref().is_some_and(|edns| edns.flags().dnssec_ok);
        let is_plain = !wants_dnssec && self.now() < self.plain_until.load(Relaxed);
        let mut plain = request.clone();
        plain.edns = None;
        if is_plain {
            return self.send(plain, by_udp).await;
        }
        let response = self.send(request, by_udp).await?;
        let code = response.response_code;
        if !knows_no_edns(code) || response.edns.is_some() {
            return Ok(response);
        }
        let response = self.send(plain, by_udp).await?;
        if !knows_no_edns(response.response_code) {
            self.plain_until.store(self.until(PLAIN), Relaxed);
        }
        Ok(response)
    }

    async fn send(&self, request: DnsRequest, by_udp: bool) -> Result<DnsResponse, NetError> {
        if !by_udp {
            return self.streams.ask(&request).await;
        }
        let mut client = UdpClientStream::builder(self.upstream.address, self.runtime.clone())
            .with_timeout(Some(BUDGET))
            .build();
        match client.send_message(request.clone()).first_answer().await {
            // The reply is from the server, but cannot be decoded; over TCP it may be complete.
            Err(NetError::Proto(_)) => self.streams.ask(&request).await,
            result => result,
        }
    }
}

/// Whether a server with this response code may not support EDNS (RFC 6891 §7).
fn knows_no_edns(code: ResponseCode) -> bool {
    matches!(code, ResponseCode::FormErr | ResponseCode::NotImp)
}

/// Connects the pool to the servers of a group.
#[derive(Clone)]
pub(super) struct Provider {
    pub(super) servers: Arc<[Arc<Server>]>,
    /// The timeout of one server before the pool tries the next.
    pub(super) patience: Duration,
    pub(super) runtime: Runtime,
}

impl ConnectionProvider for Provider {
    type Conn = Connection;
    type FutureConn = std::future::Ready<Result<Connection, NetError>>;
    type RuntimeProvider = Runtime;

    fn new_connection(
        &self,
        ip: IpAddr,
        config: &ConnectionConfig,
        _context: &PoolContext,
    ) -> Result<Self::FutureConn, NetError> {
        let server = self.servers.iter().find(|server| server.is(ip, config));
        let server = Arc::clone(server.ok_or(NetError::NoConnections)?);
        let by_udp = matches!(config.protocol, ProtocolConfig::Udp);
        Ok(ready(Ok(Connection { server, by_udp, provider: self.clone() })))
    }

    fn runtime_provider(&self) -> &Runtime {
        &self.runtime
    }
}

/// A handle for one server and transport. It opens sockets only for a query.
#[derive(Clone)]
pub(super) struct Connection {
    server: Arc<Server>,
    by_udp: bool,
    provider: Provider,
}

impl DnsHandle for Connection {
    type Response = Pin<Box<dyn Stream<Item = Result<DnsResponse, NetError>> + Send>>;
    type Runtime = Runtime;

    fn send(&self, request: DnsRequest) -> Self::Response {
        let connection = self.clone();
        Box::pin(once(async move { connection.answer(request).await }))
    }
}

impl Connection {
    fn is_excluded(&self) -> bool {
        let others = || self.provider.servers.iter().filter(|server| !server.is_looping());
        self.server.is_looping() || self.server.is_ejected() && others().any(|server| !server.is_ejected())
    }

    async fn answer(self, request: DnsRequest) -> Result<DnsResponse, NetError> {
        if self.is_excluded() {
            return Err(NetError::NoConnections);
        }
        let count = |attempts: &Attempts| attempts.count.set(attempts.count.get() + 1);
        ATTEMPTS.try_with(count).ok();
        let started = Instant::now();
        let asking = self.server.ask(request.clone(), self.by_udp);
        let result = within(self.provider.patience, asking).await;
        self.server.record(&result, started.elapsed());
        let mut response = result.map_err(|error| match error {
            // After any other error the pool does not try the next server.
            NetError::Io(_) | NetError::Timeout | NetError::NoConnections | NetError::Busy => error,
            NetError::QueryCaseMismatch => error,
            error => std::io::Error::other(error).into(),
        })?;
        if response.truncation {
            return Ok(response);
        }
        match answer::check(&response, &request) {
            Ok(()) => {
                response.metadata.response_code = shield(response.response_code);
                Ok(response)
            }
            Err(invalid) => {
                tracing::debug!(upstream = %self.server.upstream, ?invalid, "reply of no use");
                ATTEMPTS.try_with(|attempts| attempts.invalid.set(Some(invalid))).ok();
                // An error after which the pool prefers other servers, and tries the next.
                Err(std::io::Error::other("reply of no use").into())
            }
        }
    }
}

async fn within<T>(
    patience: Duration,
    work: impl Future<Output = Result<T, NetError>>,
) -> Result<T, NetError> {
    tokio::time::timeout(patience, work).await.unwrap_or(Err(NetError::Timeout))
}

/// Codes that no server sends.
const SHIELD: u16 = 0x0f00;

/// Maps a code to one that hickory passes on with the complete message.
fn shield(code: ResponseCode) -> ResponseCode {
    ResponseCode::Unknown(SHIELD | u16::from(code))
}

/// The code that the server sent.
pub(super) fn unshield(code: ResponseCode) -> u16 {
    u16::from(code) & !SHIELD
}
