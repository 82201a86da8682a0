//! Queries over TCP and TLS: one connection a server, kept while it is used, with many queries on it at a time
//! (RFC 7766 §6.2.1).

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_util::task::TaskTracker;

use super::random;

/// A connection that is not there by then will not be.
const CONNECT: Duration = Duration::from_secs(2);

/// A connection nobody has used for so long is closed; servers do the same after a while (RFC 7766 §6.2.3).
const IDLE: Duration = Duration::from_secs(10);

/// A connection on which nothing has come for so long, though it should have, is dead.
const SILENCE: Duration = Duration::from_secs(3);

/// Queries that may wait to be written.
const QUEUE: usize = 64;

/// Queries that may wait for an answer on one connection.
const MAX_WAITING: usize = 1000;

/// What TLS needs to know.
#[derive(Clone)]
pub(super) struct Tls {
    pub(super) connector: TlsConnector,
    pub(super) name: ServerName<'static>,
}

/// The way to a server over a stream.
pub(super) struct Stream {
    address: SocketAddr,
    tls: Option<Tls>,
    tasks: TaskTracker,
    current: Mutex<Option<mpsc::Sender<Asking>>>,
}

struct Asking {
    message: Vec<u8>,
    reply: oneshot::Sender<Vec<u8>>,
}

/// Who waits for which id.
struct Waiting {
    replies: HashMap<u16, (Instant, oneshot::Sender<Vec<u8>>)>,
    read_at: Instant,
}

type WaitingFor = Arc<Mutex<Waiting>>;

impl Stream {
    pub(super) fn new(address: SocketAddr, tls: Option<Tls>, tasks: TaskTracker) -> Self {
        Self { address, tls, tasks, current: Mutex::new(None) }
    }

    /// Sends a query, under an id of its own, and returns what comes back under it, with the query's id.
    pub(super) async fn ask(&self, query: &[u8]) -> io::Result<Vec<u8>> {
        let id = query.first_chunk::<2>().copied().ok_or(io::ErrorKind::InvalidInput)?;
        // A connection may be closing just now: once more, on a new one.
        for is_last in [false, true] {
            let (reply, answer) = oneshot::channel();
            let asking = Asking { message: query.to_vec(), reply };
            let sent = self.connection().send(asking).await;
            match (sent.is_ok(), answer.await) {
                (true, Ok(mut answer)) => {
                    answer.get_mut(..2).ok_or(io::ErrorKind::InvalidData)?.copy_from_slice(&id);
                    return Ok(answer);
                }
                _ if is_last => break,
                _ => {}
            }
        }
        Err(io::ErrorKind::ConnectionAborted.into())
    }

    fn connection(&self) -> mpsc::Sender<Asking> {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(sender) = current.as_ref().filter(|sender| !sender.is_closed()) {
            return sender.clone();
        }
        let (sender, queue) = mpsc::channel(QUEUE);
        let (address, tls) = (self.address, self.tls.clone());
        self.tasks.spawn(async move {
            if let Err(error) = run(address, tls, queue).await {
                tracing::debug!(%address, %error, "connection to an upstream server ended");
            }
        });
        *current = Some(sender.clone());
        sender
    }
}

async fn run(address: SocketAddr, tls: Option<Tls>, queue: mpsc::Receiver<Asking>) -> io::Result<()> {
    let late = |_elapsed| io::Error::from(io::ErrorKind::TimedOut);
    let stream = timeout(CONNECT, TcpStream::connect(address)).await.map_err(late)??;
    stream.set_nodelay(true)?;
    match tls {
        None => exchange(stream, queue).await,
        Some(Tls { connector, name }) => {
            let stream = timeout(CONNECT, connector.connect(name, stream)).await.map_err(late)??;
            exchange(stream, queue).await
        }
    }
}

async fn exchange<S: AsyncRead + AsyncWrite>(stream: S, queue: mpsc::Receiver<Asking>) -> io::Result<()> {
    let (reading, writing) = tokio::io::split(stream);
    let waiting = Arc::new(Mutex::new(Waiting { replies: HashMap::new(), read_at: Instant::now() }));
    tokio::select! {
        result = write(writing, queue, &waiting) => result,
        result = read(reading, &waiting) => result,
    }
}

/// Ends when nobody has asked for a while and nobody waits.
async fn write<W: AsyncWrite + Unpin>(
    mut writing: W,
    mut queue: mpsc::Receiver<Asking>,
    waiting: &WaitingFor,
) -> io::Result<()> {
    loop {
        let Ok(next) = timeout(IDLE, queue.recv()).await else {
            let mut waiting = waiting.lock().unwrap_or_else(PoisonError::into_inner);
            waiting.replies.retain(|_, (_, reply)| !reply.is_closed());
            if waiting.replies.is_empty() {
                return Ok(());
            }
            continue;
        };
        let Some(Asking { mut message, reply }) = next else { return Ok(()) };
        let length = u16::try_from(message.len()).map_err(io::Error::other)?;
        let Some(id) = admit(waiting, reply)? else { continue };
        message[..2].copy_from_slice(&id.to_be_bytes());
        message.splice(..0, length.to_be_bytes());
        let late = |_elapsed| io::Error::from(io::ErrorKind::TimedOut);
        timeout(CONNECT, writing.write_all(&message)).await.map_err(late)??;
        writing.flush().await?;
    }
}

/// Gives a query an id that no other on this connection has; none if too many wait. An error if the other side has gone
/// silent: the next query gets a new connection.
fn admit(waiting: &WaitingFor, reply: oneshot::Sender<Vec<u8>>) -> io::Result<Option<u16>> {
    let mut waiting = waiting.lock().unwrap_or_else(PoisonError::into_inner);
    let Waiting { replies, read_at } = &mut *waiting;
    if read_at.elapsed() > SILENCE && replies.values().any(|(since, _)| since.elapsed() > SILENCE) {
        return Err(io::ErrorKind::TimedOut.into());
    }
    if replies.len() >= MAX_WAITING {
        // Those who have given up make room.
        replies.retain(|_, (_, reply)| !reply.is_closed());
    }
    if replies.len() >= MAX_WAITING {
        return Ok(None);
    }
    let id = std::iter::repeat_with(random::id).find(|id| !replies.contains_key(id));
    replies.extend(id.map(|id| (id, (Instant::now(), reply))));
    Ok(id)
}

async fn read<R: AsyncRead + Unpin>(mut reading: R, waiting: &WaitingFor) -> io::Result<()> {
    loop {
        let length = reading.read_u16().await?;
        let mut message = vec![0; usize::from(length)];
        reading.read_exact(&mut message).await?;
        let Some(id) = message.first_chunk().map(|id| u16::from_be_bytes(*id)) else { continue };
        let reply = {
            let mut waiting = waiting.lock().unwrap_or_else(PoisonError::into_inner);
            waiting.read_at = Instant::now();
            waiting.replies.remove(&id)
        };
        // Who asked may have had an answer from elsewhere.
        drop(reply.map(|(_, reply)| reply.send(message)));
    }
}
