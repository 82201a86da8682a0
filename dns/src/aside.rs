//! Work that no query waits for: a thread of its own with a bounded queue in front. What finds no room is lost, and counted.

use std::io;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use prometheus::IntCounter;

/// What may wait.
const QUEUE: usize = 1024;

/// The way to the thread, which ends, its work done, when this is dropped.
pub(crate) struct Aside<T> {
    queue: Option<SyncSender<T>>,
    lost: IntCounter,
    thread: Option<JoinHandle<()>>,
}

impl<T: Send + 'static> Aside<T> {
    /// Starts the thread. `work` returns when the queue has ended, and never waits for long.
    ///
    /// # Errors
    /// When there cannot be another thread.
    pub(crate) fn start(
        name: &str,
        lost: IntCounter,
        work: impl FnOnce(Receiver<T>) + Send + 'static,
    ) -> io::Result<Self> {
        let (sender, queue) = sync_channel(QUEUE);
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn(move || work(queue))?;
        Ok(Self { queue: Some(sender), lost, thread: Some(thread) })
    }

    /// Leaves something to the thread. Returns at once.
    pub(crate) fn put(&self, work: T) {
        if self.queue.as_ref().is_some_and(|queue| queue.try_send(work).is_err()) {
            self.lost.inc();
        }
    }
}

impl<T> Drop for Aside<T> {
    fn drop(&mut self) {
        self.queue = None;
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}
