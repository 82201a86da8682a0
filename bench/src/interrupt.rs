//! Ctrl-C: what has been measured is kept, and everything is taken down in order.

use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Result;
use nix::sys::signal::{SigSet, Signal};

static REQUESTED: AtomicBool = AtomicBool::new(false);

/// Whether somebody wants the run to end.
pub(crate) fn requested() -> bool {
    REQUESTED.load(Ordering::Relaxed)
}

/// From now on SIGINT and SIGTERM ask for the end; the second one ends the process at once. To be called before any
/// other thread starts, so that all of them leave the signals to this one; processes that are started are not affected.
///
/// # Errors
/// What the kernel says.
pub fn watch() -> Result<()> {
    let signals: SigSet = [Signal::SIGINT, Signal::SIGTERM].into_iter().collect();
    signals.thread_block()?;
    std::thread::spawn(move || {
        while signals.wait().is_ok() {
            if REQUESTED.swap(true, Ordering::Relaxed) {
                end_at_once();
            }
            say("interrupted: what has been measured is kept; once more ends it at once");
        }
    });
    Ok(())
}

#[expect(clippy::exit, reason = "the second signal means it; namespaces go with the process")]
fn end_at_once() {
    std::process::exit(130);
}

#[expect(clippy::print_stderr, reason = "a message to a person who waits")]
fn say(text: &str) {
    eprintln!("\n{text}");
}
