//! Connections to one upstream server over TCP or TLS (RFC 7766 §6.2.1, RFC 7858).
//!
//! A connection is hickory's. hickory keeps one a server, and its queries fail with it: with a server that answers one query a
//! connection, or one after the other and slowly, all but the first would. So a query takes the connection with the fewest queries,
//! or a new one while there are few, and is sent again if its connection ends.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use hickory_resolver::net::tcp::TcpClientStream;
use hickory_resolver::net::tls::tls_exchange;
use hickory_resolver::net::xfer::{DnsExchange, FirstAnswer as _};
use hickory_resolver::net::{DnsHandle as _, NetError};
use hickory_resolver::proto::op::{DnsRequest, DnsResponse};

use super::runtime::Runtime;
use super::tls::Tls;

/// Connections to one server. unbound takes ten of all its clients unless told otherwise.
const MAX_CONNECTIONS: usize = 8;

/// Queries on one connection.
const MAX_ACTIVE: usize = 256;

/// A connection that is not there by then will not be, and one on which an answer takes that long is not used again.
const PATIENCE: Duration = Duration::from_secs(2);

/// A connection unused for so long is closed; servers do the same after a while (RFC 7766 §6.2.3).
const IDLE: Duration = Duration::from_secs(10);

/// Connections in a row that may end without having answered anything.
const MAX_FRUITLESS: u32 = 5;

/// The pause after such a one, and longer after the next.
const PAUSE: Duration = Duration::from_millis(10);

/// The connections.
pub(super) struct Streams {
    address: SocketAddr,
    tls: Option<Tls>,
    runtime: Runtime,
    open: Mutex<Vec<Arc<Stream>>>,
    opening: AtomicUsize,
}

struct Stream {
    exchange: DnsExchange<Runtime>,
    active: AtomicUsize,
    answered: AtomicUsize,
    used: Mutex<Instant>,
}

/// One query on a connection.
struct Active<'s> {
    streams: &'s Streams,
    stream: Arc<Stream>,
    since: Instant,
}

impl Streams {
    pub(super) fn new(address: SocketAddr, tls: Option<Tls>, runtime: Runtime) -> Self {
        Self { address, tls, runtime, open: Mutex::default(), opening: AtomicUsize::new(0) }
    }

    /// Asks once. Ends when the server answers, when it cannot be reached, or when it is dropped.
    pub(super) async fn ask(&self, request: &DnsRequest) -> Result<DnsResponse, NetError> {
        let mut fruitless = 0_u32;
        loop {
            let active = self.take().await?;
            let error = match active.stream.exchange.send(request.clone()).first_answer().await {
                Ok(response) => {
                    active.stream.answered.fetch_add(1, Relaxed);
                    return Ok(response);
                }
                Err(error) => error,
            };
            self.forget(&active.stream);
            if active.stream.answered.load(Relaxed) == 0 {
                fruitless += 1;
                tokio::time::sleep(PAUSE * fruitless).await;
            }
            if fruitless >= MAX_FRUITLESS || matches!(error, NetError::Timeout) {
                return Err(error);
            }
        }
    }

    /// Takes a place on the connection with the fewest queries, if that has none or there cannot be more connections.
    async fn take(&self) -> Result<Active<'_>, NetError> {
        let idlest = {
            let mut open = self.lock();
            open.retain(|stream| stream.active.load(Relaxed) > 0 || stream.idle_for() < IDLE);
            let room = open.len() + self.opening.load(Relaxed) < MAX_CONNECTIONS;
            let idlest = open.iter().min_by_key(|stream| stream.active.load(Relaxed));
            let idlest = idlest.filter(|stream| !room || stream.active.load(Relaxed) == 0);
            // While it is taken the lock is held, or two would take the same.
            idlest.map(|stream| self.activate(Arc::clone(stream)))
        };
        if let Some(active) = idlest {
            return Ok(active);
        }
        let opening = Opening::new(&self.opening);
        let opened = tokio::time::timeout(PATIENCE, self.connect()).await;
        drop(opening);
        let exchange = opened.map_err(|_elapsed| NetError::Timeout)??;
        let (active, answered) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let stream = Arc::new(Stream { exchange, active, answered, used: Mutex::new(Instant::now()) });
        self.lock().push(Arc::clone(&stream));
        Ok(self.activate(stream))
    }

    async fn connect(&self) -> Result<DnsExchange<Runtime>, NetError> {
        let (address, runtime) = (self.address, self.runtime.clone());
        let (timeout, max) = (super::upstream::BUDGET, Some(MAX_ACTIVE));
        match &self.tls {
            None => TcpClientStream::exchange(address, None, timeout, max, runtime).await,
            Some(Tls { config, name }) => {
                tls_exchange(address, name.clone(), config.clone(), timeout, max, runtime).await
            }
        }
    }

    fn activate(&self, stream: Arc<Stream>) -> Active<'_> {
        stream.active.fetch_add(1, Relaxed);
        Active { streams: self, stream, since: Instant::now() }
    }

    fn forget(&self, stream: &Arc<Stream>) {
        self.lock().retain(|known| !Arc::ptr_eq(known, stream));
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Arc<Stream>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Counts a connection that is being opened, also if the query that wanted it is dropped meanwhile.
struct Opening<'a>(&'a AtomicUsize);

impl<'a> Opening<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Relaxed);
        Self(count)
    }
}

impl Drop for Opening<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

impl Stream {
    fn idle_for(&self) -> Duration {
        self.used.lock().unwrap_or_else(PoisonError::into_inner).elapsed()
    }
}

impl Drop for Active<'_> {
    fn drop(&mut self) {
        *self.stream.used.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
        self.stream.active.fetch_sub(1, Relaxed);
        if self.since.elapsed() > PATIENCE {
            self.streams.forget(&self.stream);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn dropped_query_no_longer_counts_as_a_connection_that_is_opened() {
        // With its queue full the listener's kernel does not answer further connections.
        let listener = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        listener.bind(&"127.0.0.1:0".parse::<SocketAddr>().unwrap().into()).unwrap();
        listener.listen(0).unwrap();
        let address = listener.local_addr().unwrap().as_socket().unwrap();
        let _queued = std::net::TcpStream::connect(address).unwrap();
        let streams = Streams::new(address, None, Runtime::default());
        for _ in 0..MAX_CONNECTIONS {
            tokio::select! {
                biased;
                _ = streams.take() => panic!("a connection without a server"),
                () = async { assert_eq!(streams.opening.load(Relaxed), 1) } => {}
            }
        }
        assert_eq!(streams.opening.load(Relaxed), 0);
    }
}
