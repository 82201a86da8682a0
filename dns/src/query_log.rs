//! The query log: one of a number of queries.

use std::io;
use std::net::SocketAddr;
use std::sync::mpsc::Receiver;
use std::time::Duration;

use prometheus::IntCounter;

use crate::background::BackgroundThread;
use crate::message::Question;
use crate::metrics::Protocol;

/// Samples queries.
pub(crate) struct QueryLog {
    /// One of this many.
    every: u32,
    lines: BackgroundThread<Line>,
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
    /// Starts the thread that writes.
    ///
    /// # Errors
    /// As [`BackgroundThread::start`].
    pub(crate) fn start(every: u32, lost: IntCounter) -> io::Result<Self> {
        Ok(Self { every, lines: BackgroundThread::start("query-log", lost, write)? })
    }

    /// Records an answered query, if it is sampled.
    pub(crate) fn record(
        &self,
        (protocol, client): (Protocol, impl FnOnce() -> Option<SocketAddr>),
        question: Option<Question<'_>>,
        code: u16,
        took: Duration,
    ) {
        if fastrand::u32(..self.every) > 0 {
            return;
        }
        let name = question.map_or_else(String::new, |question| question.name.to_string());
        let kind = question.map_or(0, |question| question.kind);
        self.lines.put(Line { client: client(), protocol, name, kind, code, took });
    }
}

fn write(queue: Receiver<Line>) {
    for Line { client, protocol, name, kind, code, took } in queue {
        let client = client.map(|client| client.to_string()).unwrap_or_default();
        let (kind, code) = (crate::metrics::kind_name(kind), crate::metrics::code_name(code));
        tracing::info!(client, proto = protocol.name(), name, r#type = %kind, rcode = %code, ?took, "query");
    }
}
