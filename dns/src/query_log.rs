//! One query of so many in the log. A line is written by a thread of its own; when that does not keep up, lines are lost and
//! counted, and no query waits.

use std::net::SocketAddr;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

use prometheus::IntCounter;

use crate::message::Question;
use crate::metrics::Protocol;

/// Lines that may wait to be written.
const QUEUE: usize = 1024;

/// Takes samples.
pub(crate) struct QueryLog {
    /// One of so many.
    every: u32,
    lines: SyncSender<Line>,
    lost: IntCounter,
}

struct Line {
    client: Option<SocketAddr>,
    protocol: Protocol,
    name: String,
    kind: u16,
    code: u16,
    took: Duration,
}

impl QueryLog {
    /// Starts the thread; it ends when this is dropped.
    ///
    /// # Errors
    /// When there cannot be another thread.
    pub(crate) fn start(every: u32, lost: IntCounter) -> std::io::Result<Self> {
        let (lines, queue) = sync_channel(QUEUE);
        std::thread::Builder::new().name("query-log".into()).spawn(move || write(&queue))?;
        Ok(Self { every, lines, lost })
    }

    /// Notes a query that has been answered, if it is its turn.
    pub(crate) fn note(
        &self,
        (protocol, client): (Protocol, impl FnOnce() -> Option<SocketAddr>),
        question: Question<'_>,
        code: u16,
        took: Duration,
    ) {
        if fastrand::u32(..self.every) > 0 {
            return;
        }
        let (name, kind) = (question.name.to_string(), question.kind);
        let line = Line { client: client(), protocol, name, kind, code, took };
        if self.lines.try_send(line).is_err() {
            self.lost.inc();
        }
    }
}

fn write(queue: &Receiver<Line>) {
    for Line { client, protocol, name, kind, code, took } in queue {
        let client = client.map(|client| client.to_string()).unwrap_or_default();
        let (kind, code) = (crate::metrics::kind_name(kind), crate::metrics::code_name(code));
        tracing::info!(client, proto = protocol.name(), name, r#type = %kind, rcode = %code, ?took, "query");
    }
}
