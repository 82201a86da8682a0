//! Ctrl-C: what has been measured is kept, and everything is taken down in order.

use std::io::Write as _;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::Pid;
use testbed::Program;

use crate::processor;

static REQUESTED: AtomicBool = AtomicBool::new(false);

/// Everything is being killed.
static ENDING: AtomicBool = AtomicBool::new(false);

/// Whether somebody wants the run to end.
pub(crate) fn requested() -> bool {
    REQUESTED.load(Ordering::Relaxed)
}

/// Ends what takes long and has nothing to keep.
pub(crate) fn check() -> Result<()> {
    ensure!(!requested(), "interrupted by a signal");
    Ok(())
}

/// To be called before the process ends by itself: does not return if the second signal has come. What fails then fails because
/// everything is being killed, and the process must not end before all of it is.
pub fn leave_to_second_signal() {
    while ENDING.load(Ordering::Relaxed) {
        std::thread::park();
    }
}

/// From now on SIGINT, SIGTERM and SIGHUP ask for the end; the second one ends the process at once, and all that it has
/// started. To be called before any other thread starts, so that all of them leave the signals to this one; processes
/// that are started have them blocked.
///
/// # Errors
/// What the kernel says.
pub fn watch() -> Result<()> {
    let mut signals: SigSet = [Signal::SIGINT, Signal::SIGTERM].into_iter().collect();
    // `nohup` means that the run goes on without its terminal.
    if !is_ignored(Signal::SIGHUP)? {
        signals.add(Signal::SIGHUP);
    }
    signals.thread_block()?;
    let pending = SignalFd::with_flags(&signals, SfdFlags::SFD_NONBLOCK)?;
    std::thread::spawn(move || {
        while signals.wait().is_ok() {
            // The run must not end by the first signal while the second one is pending.
            let is_second = matches!(pending.read_signal(), Ok(Some(_)));
            if REQUESTED.swap(true, Ordering::Relaxed) || is_second {
                end_at_once();
            }
            say("interrupted: what has been measured is kept; once more ends it at once");
        }
    });
    Ok(())
}

/// Whether the process was started so that it does not get that signal (`proc(5)`, `SigIgn`).
fn is_ignored(signal: Signal) -> Result<bool> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let ignored = u64::from_str_radix(ignored.context("the kernel tells no ignored signals")?.trim(), 16)?;
    Ok(ignored >> (signal as i32 - 1) & 1 == 1)
}

#[expect(clippy::exit, reason = "the second signal means it; namespaces go with the last process in them")]
fn end_at_once() {
    ENDING.store(true, Ordering::Relaxed);
    Program::kill_all();
    // And what is waited for at the moment: `kubectl`, once the API server has gone, tries for minutes.
    for process in processor::descendants(std::process::id()).into_iter().skip(1) {
        if let Ok(process) = i32::try_from(process) {
            // It may have gone already.
            kill(Pid::from_raw(process), Signal::SIGKILL).ok();
        }
    }
    std::process::exit(130);
}

/// To a person who waits, or to nobody: a terminal that was closed takes no more.
fn say(text: &str) {
    writeln!(std::io::stderr(), "\n{text}").ok();
}
