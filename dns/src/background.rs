//! A background thread with a bounded queue, for work that no query waits for. If the queue is full, work is
//! dropped and counted.

use std::io;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use prometheus::IntCounter;

/// The capacity of the queue.
const QUEUE: usize = 1024;

/// A handle of the thread, which completes its work and ends when this is dropped.
pub(crate) struct BackgroundThread<T> {
    queue: Option<SyncSender<T>>,
    lost: IntCounter,
    thread: Option<JoinHandle<()>>,
}

impl<T: Send + 'static> BackgroundThread<T> {
    /// Starts the thread. `work` returns when the queue has ended, and never blocks for long.
    ///
    /// # Errors
    /// If no thread can be started.
    pub(crate) fn start(
        name: &str,
        lost: IntCounter,
        work: impl FnOnce(Receiver<T>) + Send + 'static,
    ) -> io::Result<Self> {
        let (sender, queue) = sync_channel(QUEUE);
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn(move || work(queue))?;
        Ok(Self { queue: Some(sender), lost, thread: Some(thread) })
    }

    /// Queues work for the thread. Returns at once.
    pub(crate) fn put(&self, work: T) {
        if self.queue.as_ref().is_some_and(|queue| queue.try_send(work).is_err()) {
            self.lost.inc();
        }
    }
}

impl<T> Drop for BackgroundThread<T> {
    fn drop(&mut self) {
        self.queue = None;
        if let Some(thread) = self.thread.take() {
            // A panic is reported by the panic hook.
            let _ = thread.join();
        }
    }
}
