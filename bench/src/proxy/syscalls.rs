//! System calls and wake-ups of `portolan-proxy` for a request.
//!
//! `strace -c` counts the calls and slows the proxy down tenfold: polling then never succeeds, so the
//! measured proxy does not poll. Wake-ups are counted separately, without strace.

use std::collections::BTreeMap;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use testbed::wait_for;

use crate::interrupt;
use crate::load::{Load, Shape, run};
use crate::record::{Record, Table};
use crate::topology::Topology;

pub(super) const SHAPES: [Shape; 5] =
    [Shape::Requests, Shape::Many, Shape::Connections, Shape::Stream, Shape::Datagrams];

const BLOCK: Duration = Duration::from_secs(1);

/// Counts the calls and wake-ups of a proxy that does not poll.
pub(super) fn measure(record: &mut Record) -> Result<()> {
    if let Err(error) = Command::new("strace").arg("-V").stdout(Stdio::null()).status() {
        record.not_measured.push(format!("system calls: strace: {error}; `apt-get install strace` as root"));
        return Ok(());
    }
    let topology = Topology::new(&["--poll", "0"])?;
    let process = topology.cluster.proxy.id();
    let path = topology.through_proxy("portolan-proxy")?;
    let mut table = Table::new(
        "System calls and wake-ups a request",
        &["load", "wake-ups", "calls", "which"],
        "portolan-proxy without polling; for a stream, per MiB.",
    );
    for shape in SHAPES {
        if interrupt::requested() {
            break;
        }
        let block = || topology.client.netns.run(|| run(Load::from(shape), &path.to, BLOCK))?;
        let before = wake_ups(process);
        let untraced = block()?;
        let woken = ratio(wake_ups(process) - before, untraced.units);
        let counter = Counter::attach(process)?;
        let traced = block()?;
        let calls = counter.finish()?;
        let mut most: Vec<(&String, &u64)> = calls.iter().collect();
        most.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
        let each = |(name, count): &(&String, &u64)| format!("{name} {:.2}", ratio(**count, traced.units));
        let which: Vec<String> = most.iter().take(6).map(each).collect();
        let all = ratio(calls.values().sum(), traced.units);
        table.row([shape.name().to_owned(), format!("{woken:.2}"), format!("{all:.1}"), which.join(", ")]);
    }
    record.tables.push(table);
    Ok(())
}

/// A running `strace -c`.
struct Counter {
    child: Child,
    output: tempfile::NamedTempFile,
}

impl Counter {
    fn attach(process: u32) -> Result<Self> {
        let output = tempfile::NamedTempFile::new()?;
        let mut command = Command::new("strace");
        command.args(["-f", "-qq", "-c", "-p", &process.to_string(), "-o"]).arg(output.path());
        let child = command.stderr(Stdio::null()).spawn().context("start strace")?;
        wait_for("strace to attach", || {
            let tasks = std::fs::read_dir(format!("/proc/{process}/task"))?;
            for task in tasks {
                let status = std::fs::read_to_string(task?.path().join("status"))?;
                ensure!(!status.contains("TracerPid:\t0\n"), "a thread is not traced yet");
            }
            Ok(())
        })?;
        Ok(Self { child, output })
    }

    /// Ends strace and returns the number of calls by name.
    fn finish(mut self) -> Result<BTreeMap<String, u64>> {
        // A signal that this program, and so its children, do not block.
        kill(Pid::from_raw(i32::try_from(self.child.id())?), Signal::SIGQUIT)?;
        self.child.wait()?;
        parse(&std::fs::read_to_string(self.output.path())?)
    }
}

/// Parses rows of `% time, seconds, usecs/call, calls, [errors,] name`.
fn parse(text: &str) -> Result<BTreeMap<String, u64>> {
    let rows = text.lines().filter(|line| line.trim_start().starts_with(|c: char| c.is_ascii_digit()));
    let row = |line: &str| -> Option<(String, u64)> {
        let fields: Vec<&str> = line.split_whitespace().collect();
        Some(((*fields.last()?).to_owned(), fields.get(3)?.parse().ok()?))
    };
    let calls: BTreeMap<_, _> = rows.filter_map(row).filter(|(name, _)| name != "total").collect();
    ensure!(!calls.is_empty(), "strace has counted nothing: {text}");
    Ok(calls)
}

/// Returns how often the threads of a process have slept, and so had to be woken.
fn wake_ups(process: u32) -> u64 {
    let tasks = std::fs::read_dir(format!("/proc/{process}/task"));
    let switches = |task: std::fs::DirEntry| -> Option<u64> {
        let status = std::fs::read_to_string(task.path().join("status")).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"))?;
        line.trim().parse().ok()
    };
    tasks.into_iter().flatten().flatten().filter_map(switches).sum()
}

#[expect(clippy::cast_precision_loss, reason = "counts of some seconds")]
fn ratio(count: u64, units: f64) -> f64 {
    count as f64 / units.max(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_with_and_without_errors_are_parsed() {
        let text = "% time     seconds  usecs/call     calls    errors syscall\n\
                    ------ ----------- ----------- --------- --------- ----------------\n \
                    60.00    0.000600           6       100        10 recvfrom\n \
                    40.00    0.000400           4       100           sendto\n\
                    ------ ----------- ----------- --------- --------- ----------------\n\
                    100.00    0.001000           5       200        10 total\n";
        let expected = [("recvfrom".to_owned(), 100), ("sendto".to_owned(), 100)];
        assert_eq!(parse(text).unwrap(), expected.into());
        assert!(parse("").is_err());
    }
}
