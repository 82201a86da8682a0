//! Connections to one upstream server over TCP or TLS (RFC 7766 §6.2.1, RFC 7858).
//!
//! A connection is hickory's. hickory keeps one per server, and its queries fail with it: with a server that
//! answers one query per connection, or one at a time and slowly, all but the first would fail. So a query
//! uses the connection with the fewest queries, or a new one while there are few, and is sent again if its
//! connection ends. A connection is opened in a separate task: if its handshake takes longer than another
//! server's answer, the next query can use it.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, Shared};
use hickory_resolver::net::runtime::{RuntimeProvider as _, Spawn as _};
use hickory_resolver::net::tcp::TcpClientStream;
use hickory_resolver::net::tls::tls_exchange;
use hickory_resolver::net::xfer::{DnsExchange, FirstAnswer as _};
use hickory_resolver::net::{DnsHandle as _, NetError};
use hickory_resolver::proto::op::{DnsRequest, DnsResponse};
use tokio::sync::Semaphore;

use super::runtime::Runtime;
use super::tls::Tls;
use super::upstream::BUDGET;

/// Maximum connections to one server. unbound accepts ten of all its clients by default.
const MAX_CONNECTIONS: usize = 8;

/// Maximum queries per connection. hickory rejects a further one with `NetError::Busy`, as it does on a
/// closed connection.
const MAX_ACTIVE: u32 = 256;

/// Timeout for opening a connection, and for an answer after which the connection is used again.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

/// Idle connections are closed after this time; servers do the same (RFC 7766 §6.2.3).
const IDLE: Duration = Duration::from_secs(10);

/// Maximum number of consecutive connections that end without an answer.
const MAX_FRUITLESS: u32 = 5;

/// The pause after such a connection; it grows with each.
const PAUSE: Duration = Duration::from_millis(10);

/// If a connection ends with several queries, each query gets its own connection for this time: the server
/// may answer one query per connection.
const SINGLE: Duration = Duration::from_secs(5);

/// The connections, open or being opened.
pub(super) struct Streams {
    address: SocketAddr,
    tls: Option<Tls>,
    runtime: Runtime,
    all: Mutex<Vec<Arc<Stream>>>,
    single_until: Mutex<Instant>,
    /// Permits for the queries of all connections.
    permits: Semaphore,
}

struct Stream {
    exchange: Shared<BoxFuture<'static, Result<DnsExchange<Runtime>, NetError>>>,
    active: AtomicUsize,
    answered: AtomicUsize,
    used: Mutex<Instant>,
}

/// One query on a connection.
struct Active(Arc<Stream>);

impl Streams {
    pub(super) fn new(address: SocketAddr, tls: Option<Tls>, runtime: Runtime) -> Self {
        let single_until = Mutex::new(Instant::now());
        let permits = Semaphore::new(MAX_CONNECTIONS * MAX_ACTIVE as usize);
        Self { address, tls, runtime, all: Mutex::default(), single_until, permits }
    }

    /// Sends the request once. Ends when the server answers, when it cannot be reached, or when it is
    /// dropped.
    pub(super) async fn ask(&self, request: &DnsRequest) -> Result<DnsResponse, NetError> {
        let mut fruitless = 0_u32;
        loop {
            let is_single = Instant::now() < *lock(&self.single_until);
            // With these permits a connection with fewer than MAX_ACTIVE queries exists, or one without any.
            let _permits = self.permits.acquire_many(if is_single { MAX_ACTIVE } else { 1 }).await;
            let Active(stream) = &self.take();
            let exchange = stream.exchange.clone().await?;
            let _slow = Slow { streams: self, stream, since: Instant::now() };
            let error = match exchange.send(request.clone()).first_answer().await {
                Ok(response) => {
                    stream.answered.fetch_add(1, Relaxed);
                    return Ok(response);
                }
                Err(error) => error,
            };
            self.remove(stream);
            if stream.active.load(Relaxed) > 1 {
                *lock(&self.single_until) = Instant::now() + SINGLE;
            }
            if stream.answered.load(Relaxed) == 0 {
                fruitless += 1;
                tokio::time::sleep(PAUSE * fruitless).await;
            }
            if fruitless >= MAX_FRUITLESS || matches!(error, NetError::Timeout) {
                return Err(error);
            }
        }
    }

    /// Chooses an idle connection, or a new one while there are few, or the one with the fewest queries.
    fn take(&self) -> Active {
        let mut all = lock(&self.all);
        all.retain(|stream| stream.is_usable());
        let least = all.iter().min_by_key(|stream| stream.load());
        let least = least.filter(|stream| all.len() >= MAX_CONNECTIONS || stream.active.load(Relaxed) == 0);
        let stream = least.cloned().unwrap_or_else(|| {
            let stream = Arc::new(self.open());
            all.push(Arc::clone(&stream));
            stream
        });
        // While the lock is held, or two queries would choose the same.
        stream.active.fetch_add(1, Relaxed);
        Active(stream)
    }

    /// Starts opening a connection.
    fn open(&self) -> Stream {
        let (address, tls, runtime) = (self.address, self.tls.clone(), self.runtime.clone());
        let connect = async move {
            let max = Some(MAX_ACTIVE as usize);
            match tls {
                None => TcpClientStream::exchange(address, None, BUDGET, max, runtime).await,
                Some(Tls { config, name }) => tls_exchange(address, name, config, BUDGET, max, runtime).await,
            }
        };
        let connect = tokio::time::timeout(ANSWER_TIMEOUT, connect);
        let exchange = connect.map(|opened| opened.unwrap_or(Err(NetError::Timeout))).boxed().shared();
        self.runtime.create_handle().spawn_bg(exchange.clone().map(|_| ()));
        let (active, answered) = (AtomicUsize::new(0), AtomicUsize::new(0));
        Stream { exchange, active, answered, used: Mutex::new(Instant::now()) }
    }

    fn remove(&self, stream: &Arc<Stream>) {
        lock(&self.all).retain(|known| !Arc::ptr_eq(known, stream));
    }
}

fn lock<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Stream {
    /// Lower for a connection that should get the next query: idle, open, with few queries.
    fn load(&self) -> (bool, bool, usize) {
        let active = self.active.load(Relaxed);
        (active > 0, self.exchange.peek().is_none(), active)
    }

    /// Whether it is being opened, or open and recently used.
    fn is_usable(&self) -> bool {
        let idle_for = || lock(&self.used).elapsed();
        match self.exchange.peek() {
            None => true,
            Some(Ok(_)) => self.active.load(Relaxed) > 0 || idle_for() < IDLE,
            Some(Err(_)) => false,
        }
    }
}

impl Drop for Active {
    fn drop(&mut self) {
        *lock(&self.0.used) = Instant::now();
        self.0.active.fetch_sub(1, Relaxed);
    }
}

/// Removes a connection on which an answer takes too long, even if the query is dropped meanwhile.
struct Slow<'s> {
    streams: &'s Streams,
    stream: &'s Arc<Stream>,
    since: Instant,
}

impl Drop for Slow<'_> {
    fn drop(&mut self) {
        if self.since.elapsed() > ANSWER_TIMEOUT {
            self.streams.remove(self.stream);
        }
    }
}

#[cfg(test)]
mod tests;
