//! Where the time of one command goes, for `portolan-bench cni` and for the curious.
//!
//! `PORTOLAN_TRACE=FILE` appends one JSON line a command. Unset, which is how runtimes call us, it costs one
//! look into the environment. Times do not overlap, so they may be added; what is left of the whole is our
//! own code.

use std::cell::RefCell;
use std::ffi::OsStr;
use std::io::Write as _;
use std::path::PathBuf;

use nix::sys::time::TimeValLike as _;
use nix::time::{ClockId, clock_gettime};
use serde_json::json;

/// What a command spends its time on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Span {
    /// Reading and validating the configuration.
    Parse,
    /// Waiting for locks.
    Lock,
    /// Opening namespaces, entering them.
    Netns,
    /// Routing netlink: links, addresses, routes, neighbours, queueing.
    Netlink,
    /// nftables and conntrack.
    Nft,
    /// Reservations and records: files.
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
    // The plugin's own thread does everything that is traced; those that enter a namespace are waited for.
    static TRACE: RefCell<Option<Trace>> = const { RefCell::new(None) };
}

/// Starts tracing into `file`, if there is one.
pub(crate) fn start(file: Option<&OsStr>) {
    let Some(file) = file.filter(|file| !file.is_empty()) else { return };
    let trace = Trace { file: file.into(), started: now(), spent: [0; NAMES.len()], current: None };
    TRACE.with_borrow_mut(|current| *current = Some(trace));
}

/// Does `work` and counts its time as `span`. The time of a span inside another one is its own alone.
pub(crate) fn span<T>(span: Span, work: impl FnOnce() -> T) -> T {
    let outer = switch(Some(span));
    let result = work();
    switch(outer);
    result
}

/// Counts from now on for `next`; returns for what it was counted so far.
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

/// Appends the line. A trace that cannot be written is no reason to fail.
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
