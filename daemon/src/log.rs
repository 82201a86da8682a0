//! Logging to standard error, which never blocks the program.
//!
//! A line goes into a bounded queue, and a separate thread writes it. If standard error is not read, the
//! thread blocks, the queue fills up, and further lines are dropped and counted. Traffic continues.
//!
//! `tracing-appender` does much the same and was tried first. At the end of the program it reports a full
//! queue with `println!`, which blocks for ever if standard output is the same pipe. It bounds lines, not
//! bytes. It does not count a line that could not be written.

mod writer;

use std::panic::PanicHookInfo;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{IntCounter, Registry};
use tracing_subscriber::EnvFilter;

use writer::Writer;

/// How long the program waits at its end for the log to be written.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);

/// Interval between two logs of a repeated warning.
const REPEAT_INTERVAL: Duration = Duration::from_secs(10);

/// The writer of this process.
static WRITER: OnceLock<Writer> = OnceLock::new();

/// The format of a log line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// Text for people.
    Text,
    /// One JSON object per line.
    Json,
}

/// Writes the queued lines when it is dropped, at the end of `main`.
#[must_use = "the last lines are lost unless this lives as long as the program"]
#[derive(Debug)]
pub struct Guard(());

/// Starts logging. `PORTOLAN_LOG` filters (`debug`, `portolan_proxy=debug,info`); the default is `info`.
pub fn init(format: Format) -> Guard {
    let filter = EnvFilter::try_from_env("PORTOLAN_LOG").unwrap_or_else(|_| {
        // hickory logs every answer at info, and every reply of an upstream server that it rejects at warn or
        // error. What the Kubernetes client logs is logged by us as well, once.
        EnvFilter::new("info,hickory=off,kube_client=off,kube_runtime=off")
    });
    let writer = WRITER.get_or_init(|| Writer::start(writer::standard_error()));
    let subscriber = tracing_subscriber::fmt().with_env_filter(filter).with_writer(move || writer);
    // A second initialisation (tests in one process) has no effect.
    let _ = match format {
        Format::Text => subscriber.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr())).try_init(),
        Format::Json => subscriber.json().try_init(),
    };
    // The default panic hook writes to standard error itself, and would block.
    std::panic::set_hook(Box::new(log_panic));
    Guard(())
}

fn log_panic(info: &PanicHookInfo<'_>) {
    let backtrace = std::backtrace::Backtrace::capture();
    tracing::error!(%backtrace, "a bug: {info}");
}

/// Waits up to a second until all earlier lines are written.
pub fn flush() {
    if let Some(writer) = WRITER.get() {
        writer.flush(FLUSH_TIMEOUT);
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        flush();
    }
}

/// Adds `<prefix>_log_dropped_lines_total`.
///
/// # Panics
/// If the prefix is not valid in a metric name.
pub fn register(registry: &Registry, prefix: &str) {
    let help = "Log lines dropped because nothing read standard error.";
    let counter = IntCounter::new(format!("{prefix}_log_dropped_lines_total"), help);
    let counter = counter.expect("metric names are valid constants");
    registry.register(Box::new(DroppedLines(counter))).expect("each metric is registered once");
}

/// Reads the writer's counter when metrics are scraped.
struct DroppedLines(IntCounter);

impl Collector for DroppedLines {
    fn desc(&self) -> Vec<&Desc> {
        self.0.desc()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let dropped = WRITER.get().map_or(0, Writer::dropped);
        self.0.inc_by(dropped.saturating_sub(self.0.get()));
        self.0.collect()
    }
}

/// Limits a repeated warning to one in ten seconds, with the number of suppressed ones.
#[derive(Debug)]
pub struct RateLimit {
    started: Instant,
    /// Milliseconds after `started` until which nothing is logged.
    quiet_until: AtomicU64,
    suppressed: AtomicU64,
}

impl Default for RateLimit {
    fn default() -> Self {
        Self { started: Instant::now(), quiet_until: AtomicU64::new(0), suppressed: AtomicU64::new(0) }
    }
}

impl RateLimit {
    /// Returns the number of suppressed warnings since the last one, if this one is to be logged.
    pub fn admit(&self) -> Option<u64> {
        self.admit_at(self.started.elapsed())
    }

    fn admit_at(&self, now: Duration) -> Option<u64> {
        let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let until = self.quiet_until.load(Ordering::Relaxed);
        let next = millis(now + REPEAT_INTERVAL);
        // If several threads come at once, one of them logs.
        let is_due = millis(now) >= until
            && self.quiet_until.compare_exchange(until, next, Ordering::Relaxed, Ordering::Relaxed).is_ok();
        if is_due {
            return Some(self.suppressed.swap(0, Ordering::Relaxed));
        }
        self.suppressed.fetch_add(1, Ordering::Relaxed);
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repeated_warning_is_logged_once_in_ten_seconds_with_the_number_suppressed() {
        let limit = RateLimit::default();
        let at = |seconds: u64| limit.admit_at(Duration::from_secs(seconds));
        assert_eq!(at(0), Some(0));
        assert_eq!([at(1), at(9)], [None, None]);
        assert_eq!(at(10), Some(2));
        assert_eq!(at(11), None);
        assert_eq!(at(100), Some(1));
    }
}
