//! Ctrl-C: the run keeps its results and cleans up in order.

use std::io::Write as _;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::Pid;
use testbed::Program;

use crate::processor;

static REQUESTED: AtomicBool = AtomicBool::new(false);

/// Whether all child processes are being killed.
static ENDING: AtomicBool = AtomicBool::new(false);

/// Returns whether a signal asked the run to end.
pub(crate) fn requested() -> bool {
    REQUESTED.load(Ordering::Relaxed)
}

/// Returns an error if a signal asked the run to end, for long steps that have no partial result.
pub(crate) fn check() -> Result<()> {
    ensure!(!requested(), "interrupted by a signal");
    Ok(())
}

/// Blocks forever if the second signal has arrived. The caller must call it before the process exits: errors
/// are then consequences of the kill, and the process must not exit before all children are killed.
pub fn wait_if_killed() {
    while ENDING.load(Ordering::Relaxed) {
        std::thread::park();
    }
}

/// Handles SIGINT, SIGTERM and SIGHUP in a thread: the first signal requests the end of the run, the second
/// one kills all children and exits. The caller must call it before it starts threads, so that they inherit
/// the signal mask. Child processes inherit it too.
///
/// # Errors
/// When the signals cannot be blocked or received.
pub fn watch() -> Result<()> {
    let mut signals: SigSet = [Signal::SIGINT, Signal::SIGTERM].into_iter().collect();
    // Under `nohup` the run continues without its terminal.
    if !is_ignored(Signal::SIGHUP)? {
        signals.add(Signal::SIGHUP);
    }
    signals.thread_block()?;
    let pending = SignalFd::with_flags(&signals, SfdFlags::SFD_NONBLOCK)?;
    std::thread::spawn(move || {
        while signals.wait().is_ok() {
            // If the second signal is already pending, the run must not end by the first one.
            let is_second = matches!(pending.read_signal(), Ok(Some(_)));
            if REQUESTED.swap(true, Ordering::Relaxed) || is_second {
                kill_all_and_exit();
            }
            print_notice("interrupted: results are kept; press Ctrl-C again to end at once");
        }
    });
    Ok(())
}

/// Returns whether the process ignores a signal (`proc(5)`, `SigIgn`).
fn is_ignored(signal: Signal) -> Result<bool> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let ignored = u64::from_str_radix(ignored.context("no SigIgn in /proc/self/status")?.trim(), 16)?;
    Ok(ignored >> (signal as i32 - 1) & 1 == 1)
}

#[expect(
    clippy::exit,
    reason = "the second signal ends the process; the kernel removes namespaces with their last process"
)]
fn kill_all_and_exit() {
    ENDING.store(true, Ordering::Relaxed);
    Program::kill_all();
    // Then the remaining children: `kubectl` retries for minutes after the API server has exited.
    for process in processor::descendants(std::process::id()).into_iter().skip(1) {
        if let Ok(process) = i32::try_from(process) {
            // The process may have exited.
            let _ = kill(Pid::from_raw(process), Signal::SIGKILL);
        }
    }
    std::process::exit(130);
}

/// Prints to standard error, which may be closed.
fn print_notice(text: &str) {
    let _ = writeln!(std::io::stderr(), "\n{text}");
}
