//! Connections to one upstream server over TCP or TLS (RFC 7766 §6.2.1, RFC 7858).
//!
//! A connection is hickory's. hickory keeps one a server, and its queries fail with it: with a server that
//! answers one query a connection, or one after the other and slowly, all but the first would. So a query
//! takes the connection with the fewest queries, or a new one while there are few, and is sent again if its
//! connection ends. A connection is opened on a task of its own: a server whose handshake takes longer than
//! another server's answer has it for the next query.

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

/// Connections to one server. unbound takes ten of all its clients unless told otherwise.
const MAX_CONNECTIONS: usize = 8;

/// Queries on one connection. hickory answers one more with `NetError::Busy`, as it does on a closed
/// connection.
const MAX_ACTIVE: u32 = 256;

/// The limit for opening a connection, and for an answer after which the connection is used again.
const PATIENCE: Duration = Duration::from_secs(2);

/// A connection unused for so long is closed; servers do the same after a while (RFC 7766 §6.2.3).
const IDLE: Duration = Duration::from_secs(10);

/// Connections in a row that may end without having answered anything.
const MAX_FRUITLESS: u32 = 5;

/// The pause after such a one, and longer after the next.
const PAUSE: Duration = Duration::from_millis(10);

/// When a connection has ended under several queries, each query has one of its own for so long: the server
/// may answer one query a connection.
const SINGLE: Duration = Duration::from_secs(5);

/// The connections, open or being opened.
pub(super) struct Streams {
    address: SocketAddr,
    tls: Option<Tls>,
    runtime: Runtime,
    all: Mutex<Vec<Arc<Stream>>>,
    single_until: Mutex<Instant>,
    /// For the queries of all connections.
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

    /// Asks once. Ends when the server answers, when it cannot be reached, or when it is dropped.
    pub(super) async fn ask(&self, request: &DnsRequest) -> Result<DnsResponse, NetError> {
        let mut fruitless = 0_u32;
        loop {
            let is_single = Instant::now() < *lock(&self.single_until);
            // With these a connection with fewer than MAX_ACTIVE queries is there, or one without any.
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
            self.forget(stream);
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

    /// Takes an idle connection, or a new one while there are few, or the one with the fewest queries.
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
        // While the lock is held, or two queries would take the same.
        stream.active.fetch_add(1, Relaxed);
        Active(stream)
    }

    /// Begins to open a connection.
    fn open(&self) -> Stream {
        let (address, tls, runtime) = (self.address, self.tls.clone(), self.runtime.clone());
        let connect = async move {
            let max = Some(MAX_ACTIVE as usize);
            match tls {
                None => TcpClientStream::exchange(address, None, BUDGET, max, runtime).await,
                Some(Tls { config, name }) => tls_exchange(address, name, config, BUDGET, max, runtime).await,
            }
        };
        let connect = tokio::time::timeout(PATIENCE, connect);
        let exchange = connect.map(|opened| opened.unwrap_or(Err(NetError::Timeout))).boxed().shared();
        self.runtime.create_handle().spawn_bg(exchange.clone().map(|_| ()));
        let (active, answered) = (AtomicUsize::new(0), AtomicUsize::new(0));
        Stream { exchange, active, answered, used: Mutex::new(Instant::now()) }
    }

    fn forget(&self, stream: &Arc<Stream>) {
        lock(&self.all).retain(|known| !Arc::ptr_eq(known, stream));
    }
}

fn lock<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Stream {
    /// Less for one that should have the next query: idle, open, with few queries.
    fn load(&self) -> (bool, bool, usize) {
        let active = self.active.load(Relaxed);
        (active > 0, self.exchange.peek().is_none(), active)
    }

    /// Whether it is being opened, or open and in use or used a moment ago.
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

/// Removes a connection on which an answer takes too long, also if the query is dropped meanwhile.
struct Slow<'s> {
    streams: &'s Streams,
    stream: &'s Arc<Stream>,
    since: Instant,
}

impl Drop for Slow<'_> {
    fn drop(&mut self) {
        if self.since.elapsed() > PATIENCE {
            self.streams.forget(self.stream);
        }
    }
}

#[cfg(test)]
mod tests;
