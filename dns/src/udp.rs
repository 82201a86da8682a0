//! Queries over UDP: one thread per core, each with its own socket, over which the kernel spreads the clients
//! (`SO_REUSEPORT`).
//!
//! Known answers are sent in the loop that received the query, many datagrams per system call. Other queries
//! go to the event loop through a bounded queue; if it is full they are refused at once.

mod batch;

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::metrics::Protocol;
use crate::responder::{Replies, Responder, Step};
use batch::Batch;

/// The capacity of the queue to the event loop.
const QUEUE: usize = 1024;

/// Maximum number of waiting queries; the forwarder has its own lower limit.
const MAX_WAITING: usize = 4096;

/// Pause after an error of a socket.
const PAUSE: Duration = Duration::from_millis(10);

/// Interval of checks for the end of an idle thread. Shutting its socket down cannot wake it, because the
/// next process may share the socket.
const STOP_CHECK_INTERVAL: Duration = Duration::from_millis(250);

/// A query for the handler.
pub(crate) struct Deferred {
    query: Vec<u8>,
    client: SocketAddr,
    socket: Arc<UdpSocket>,
}

/// The worker threads.
pub(crate) struct Workers {
    stopping: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Workers {
    /// Starts one thread per socket.
    pub(crate) fn start(
        sockets: Vec<UdpSocket>,
        responder: &Arc<Responder>,
    ) -> io::Result<(Self, mpsc::Receiver<Deferred>)> {
        let (queue, waiting) = mpsc::channel(QUEUE);
        let mut workers = Self { stopping: Arc::default(), threads: Vec::new() };
        for (number, socket) in sockets.into_iter().enumerate() {
            socket.set_nonblocking(false)?;
            socket.set_read_timeout(Some(STOP_CHECK_INTERVAL))?;
            let socket = Arc::new(socket);
            let (responder, stopping, queue) =
                (Arc::clone(responder), Arc::clone(&workers.stopping), queue.clone());
            let thread = std::thread::Builder::new().name(format!("udp-{number}"));
            workers.threads.push(thread.spawn(move || serve(&socket, &responder, &stopping, &queue))?);
        }
        Ok((workers, waiting))
    }

    /// Stops the threads, each after it has answered what it received, and waits for them.
    pub(crate) async fn stop(self) {
        self.stopping.store(true, Ordering::Relaxed);
        let join = move || {
            self.threads.into_iter().for_each(|thread| {
                // A panic is reported by the panic hook.
                let _ = thread.join();
            })
        };
        let _ = tokio::task::spawn_blocking(join).await;
    }
}

fn serve(
    socket: &Arc<UdpSocket>,
    responder: &Responder,
    stopping: &AtomicBool,
    queue: &mpsc::Sender<Deferred>,
) {
    let mut batch = Batch::new();
    let mut lower = Vec::with_capacity(256);
    while !stopping.load(Ordering::Relaxed) {
        if let Err(error) = batch.receive(socket) {
            if !matches!(error.kind(), io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock) {
                tracing::debug!(%error, "cannot receive");
                std::thread::sleep(PAUSE);
            }
            continue;
        }
        let now = Instant::now();
        batch.answer(|message, client, out| {
            let step = responder.answer_now(message, (Protocol::Udp, client), now, &mut lower, out);
            if step != Step::Deferred {
                return;
            }
            let Some(address) = client() else { return };
            let deferred = Deferred { query: message.into(), client: address, socket: Arc::clone(socket) };
            if queue.try_send(deferred).is_err() {
                responder.shed(message, (Protocol::Udp, client), out);
            }
        });
        batch.send(socket);
    }
}

/// Passes queries to the handler, until all workers have ended.
pub(crate) async fn resolve(responder: Arc<Responder>, mut queue: mpsc::Receiver<Deferred>) {
    let mut tasks = JoinSet::new();
    loop {
        tokio::select! {
            deferred = queue.recv(), if tasks.len() < MAX_WAITING => {
                let Some(Deferred { query, client, socket }) = deferred else { break };
                let from = (Protocol::Udp, client);
                tasks.spawn(Arc::clone(&responder).resolve(query, from, Replies::Datagrams(socket)));
            }
            Some(_) = tasks.join_next() => {}
        }
    }
    while tasks.join_next().await.is_some() {}
}
