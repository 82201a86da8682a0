//! Tables of the results.

use std::time::Duration;

use super::daemon::Kind;
use super::{Size, milliseconds, percentile};
use crate::processor::Memory;
use crate::record::Table;

pub(super) struct DaemonResult {
    pub(super) kind: Kind,
    /// From process start to the first connection or answer.
    pub(super) ready: Duration,
    /// CPU time until then.
    pub(super) cpu: Duration,
    pub(super) at_start: Memory,
    /// Memory after a relist.
    pub(super) relisted: Option<Memory>,
    pub(super) changes: Vec<Duration>,
}

pub(super) fn table(found: &[DaemonResult], size: Size) -> Table {
    let columns = [
        "program",
        "start to serving, s",
        "CPU of it, s",
        "resident, MiB",
        "peak, MiB",
        "after a relist, MiB",
        "peak of it, MiB",
        "change to served, ms: p50",
        "p99",
    ];
    let title =
        format!("{} Services with {} endpoints each, from the API server", size.services, size.endpoints);
    let note = "A change is a patch of an EndpointSlice. Its time is from the API server's answer to the \
        first connection to the new endpoint (proxies), or to the first answer with its address (DNS). \
        kube-proxy batches changes for up to a second; it does not log its lists.";
    let mut table = Table::new(&title, &columns, note);
    found.iter().for_each(|found| table.row(row(found)));
    table
}

fn row(found: &DaemonResult) -> [String; 9] {
    let ms = |percent| format!("{:.1}", milliseconds(percentile(&found.changes, percent)));
    let mib = |mebibytes: f64| format!("{mebibytes:.0}");
    let relisted =
        |part: fn(Memory) -> f64| found.relisted.map_or_else(|| "-".to_owned(), |memory| mib(part(memory)));
    [
        found.kind.name().to_owned(),
        format!("{:.1}", found.ready.as_secs_f64()),
        format!("{:.1}", found.cpu.as_secs_f64()),
        mib(found.at_start.now),
        mib(found.at_start.peak),
        relisted(|memory| memory.now),
        relisted(|memory| memory.peak),
        ms(50),
        ms(99),
    ]
}

/// Returns the table of times from the creation of a Service to an answer by its name.
pub(super) fn creation_table(times: &[Duration]) -> Table {
    let columns = ["Services created", "ms: p50", "p99", "longest"];
    let note = "Both daemons run. From the API server's answer to the creation of the slice until a pod has \
        resolved the name, connected to the address and received the endpoint's answer. The pod \
        retries at once.";
    let mut table = Table::new("From creation to an answer by name", &columns, note);
    let cells = [50, 99, 100].map(|percent| format!("{:.1}", milliseconds(percentile(times, percent))));
    table.row([vec![times.len().to_string()], cells.to_vec()].concat());
    table
}
