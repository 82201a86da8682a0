//! The thread that writes log lines, and its queue.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, channel, sync_channel};
use std::time::Duration;

/// Bytes that may be queued: enough for the start of a proxy with 50,000 frontends.
const BACKLOG: usize = 8 << 20;

/// Bytes that a queued line takes beside its text.
const LINE_OVERHEAD: usize = 64;

/// The notice of dropped lines is logged after a pause of this length.
const IDLE: Duration = Duration::from_millis(100);

/// Queues lines without blocking.
#[derive(Debug)]
pub(super) struct Writer {
    queue: Sender<Message>,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    /// Bytes in the queue.
    queued: AtomicUsize,
    dropped: AtomicU64,
}

enum Message {
    Line(Vec<u8>),
    /// Signals when everything before it is written.
    Flush(SyncSender<()>),
}

/// Standard error without the lock of the standard library, which a blocked thread would hold.
pub(super) fn standard_error() -> Box<dyn Write + Send> {
    match io::stderr().as_fd().try_clone_to_owned() {
        Ok(descriptor) => Box::new(File::from(descriptor)),
        // It is closed, or file descriptors are exhausted.
        Err(_) => Box::new(io::stderr()),
    }
}

impl Writer {
    /// Starts the thread. If that fails, every line is dropped and counted.
    pub(super) fn start(out: Box<dyn Write + Send>) -> Self {
        let (queue, lines) = channel();
        let shared = Arc::new(Shared::default());
        let of_thread = Arc::clone(&shared);
        let thread = std::thread::Builder::new().name("log".into());
        // The thread ends with the process.
        let _ = thread.spawn(move || run(&lines, &of_thread, out));
        Self { queue, shared }
    }

    /// The number of lines that were not written.
    pub(super) fn dropped(&self) -> u64 {
        self.shared.dropped.load(Ordering::Relaxed)
    }

    /// Waits until all earlier lines are written, up to `timeout`.
    pub(super) fn flush(&self, timeout: Duration) {
        let (done, written) = sync_channel(1);
        if self.queue.send(Message::Flush(done)).is_ok() {
            // If standard error is not read, there is nothing more to do.
            written.recv_timeout(timeout).ok();
        }
    }
}

impl Write for &Writer {
    /// Queues a whole line.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let cost = line.len() + LINE_OVERHEAD;
        let before = self.shared.queued.fetch_add(cost, Ordering::Relaxed);
        if before + cost > BACKLOG || self.queue.send(Message::Line(line.to_vec())).is_err() {
            self.shared.queued.fetch_sub(cost, Ordering::Relaxed);
            self.shared.dropped.fetch_add(1, Ordering::Relaxed);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn run(lines: &Receiver<Message>, shared: &Shared, mut out: Box<dyn Write + Send>) {
    let mut reported = 0;
    loop {
        let dropped = shared.dropped.load(Ordering::Relaxed);
        let next = if dropped > reported {
            lines.recv_timeout(IDLE)
        } else {
            lines.recv().map_err(|_closed| RecvTimeoutError::Disconnected)
        };
        match next {
            Ok(Message::Line(line)) => {
                if out.write_all(&line).is_err() {
                    shared.dropped.fetch_add(1, Ordering::Relaxed);
                }
                shared.queued.fetch_sub(line.len() + LINE_OVERHEAD, Ordering::Relaxed);
            }
            // The waiting thread may have given up.
            Ok(Message::Flush(done)) => {
                let _ = done.try_send(());
            }
            Err(RecvTimeoutError::Timeout) => {
                reported = dropped;
                tracing::warn!(dropped, "log lines were dropped: standard error was not read");
            }
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    #[test]
    fn full_pipe_drops_and_counts_lines_and_queued_lines_are_written_when_it_is_read() {
        let (mut reader, out) = io::pipe().unwrap();
        let writer = Writer::start(Box::new(out));
        let line = [&[b'x'; 1023][..], b"\n"].concat();
        let count = 2 * BACKLOG / line.len();
        // The pipe takes 64 KiB; nothing reads it, and this thread does not wait.
        for _ in 0..count {
            (&writer).write_all(&line).unwrap();
        }
        let dropped = usize::try_from(writer.dropped()).unwrap();
        assert!(dropped > count / 4 && dropped < count, "{dropped} of {count}");
        writer.flush(Duration::from_millis(10));
        let mut read = vec![0; (count - dropped) * line.len()];
        reader.read_exact(&mut read).unwrap();
        writer.flush(Duration::from_secs(60));
        (&writer).write_all(b"next\n").unwrap();
        let mut next = [0; 5];
        reader.read_exact(&mut next).unwrap();
        assert_eq!(&next, b"next\n", "the queue accepts lines again and is empty");
    }

    #[test]
    fn line_that_cannot_be_written_is_counted() {
        let (reader, out) = io::pipe().unwrap();
        drop(reader);
        let writer = Writer::start(Box::new(out));
        (&writer).write_all(b"lost\n").unwrap();
        writer.flush(Duration::from_secs(60));
        assert_eq!(writer.dropped(), 1);
    }
}
