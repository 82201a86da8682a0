//! Measures where the time of one command is spent, for `portolan-bench cni`.
//!
//! `PORTOLAN_TRACE=FILE` appends one JSON line per command. If it is unset, tracing costs one look-up of an
//! environment variable. Spans do not overlap, so their times may be added. The rest of the total is the
//! plugin's own code.

use std::cell::RefCell;
use std::ffi::OsStr;
use std::io::Write as _;
use std::path::PathBuf;

use nix::sys::time::TimeValLike as _;
use nix::time::{ClockId, clock_gettime};
use serde_json::json;

/// The traced parts of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Span {
    /// Reading and validating the configuration.
    Parse,
    /// Waiting for locks.
    Lock,
    /// Opening namespaces, entering them.
    Netns,
    /// Routing netlink: links, addresses, routes, neighbours, qdiscs.
    Netlink,
    /// nftables and conntrack.
    Nft,
    /// Files: reservations and records.
    Store,
    /// Another IPAM plugin.
    Delegate,
}

const NAMES: [&str; 7] = ["parse", "lock", "netns", "netlink", "nft", "store", "delegate"];

struct Trace {
    file: PathBuf,
    started: u64,
    spent: [u64; NAMES.len()],
    current: Option<(Option<Span>, u64)>,
}

thread_local! {
    // Everything traced runs on the plugin's main thread, which waits for the threads that enter a namespace.
    static TRACE: RefCell<Option<Trace>> = const { RefCell::new(None) };
}

/// Starts tracing into `file`, if it is set.
pub(crate) fn start(file: Option<&OsStr>) {
    let Some(file) = file.filter(|file| !file.is_empty()) else { return };
    let trace = Trace { file: file.into(), started: now(), spent: [0; NAMES.len()], current: None };
    TRACE.with_borrow_mut(|current| *current = Some(trace));
}

/// Runs `work` and counts its time as `span`. The time of a nested span counts for that span only.
pub(crate) fn span<T>(span: Span, work: impl FnOnce() -> T) -> T {
    let outer = switch(Some(span));
    let result = work();
    switch(outer);
    result
}

/// Counts from now on for `next`. Returns the previous span.
fn switch(next: Option<Span>) -> Option<Span> {
    TRACE.with_borrow_mut(|trace| {
        let trace = trace.as_mut()?;
        let now = now();
        let last = trace.current.replace((next, now));
        let (span, since) = last?;
        if let Some(span) = span {
            trace.spent[span as usize] += now - since;
        }
        span
    })
}

/// Appends the line. A failure to write the trace is not an error.
pub(crate) fn finish(command: &str, container: &str) {
    TRACE.with_borrow_mut(|trace| {
        let Some(trace) = trace.take() else { return };
        let spent: serde_json::Map<_, _> =
            NAMES.iter().zip(trace.spent).map(|(name, spent)| ((*name).to_owned(), spent.into())).collect();
        let line = json!({
            "command": command, "containerID": container,
            "started": trace.started, "ended": now(), "spent": spent,
        });
        let file = std::fs::File::options().create(true).append(true).open(&trace.file);
        let _ = file.and_then(|mut file| file.write_all(format!("{line}\n").as_bytes()));
    });
}

/// Nanoseconds of `CLOCK_MONOTONIC`, which all processes share.
fn now() -> u64 {
    let time = clock_gettime(ClockId::CLOCK_MONOTONIC).map(|time| time.num_nanoseconds());
    time.ok().and_then(|nanoseconds| u64::try_from(nanoseconds).ok()).unwrap_or_default()
}
