//! Processor time, so that a latency bought with it shows its price.

use std::path::PathBuf;
use std::time::Duration;

/// A process whose time is counted, with all its threads and children.
#[derive(Clone, Debug)]
pub(crate) struct Process(pub(crate) u32);

impl Process {
    /// The time it has run so far. Zero when it has gone.
    pub(crate) fn time(&self) -> Duration {
        let tree = descendants(self.0);
        tree.iter().flat_map(|process| threads(*process)).map(|thread| running_time(&thread)).sum()
    }
}

/// Resident memory, MiB.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Memory {
    pub(crate) now: f64,
    /// The most it has been.
    pub(crate) peak: f64,
}

impl Process {
    /// Whether it has not ended. One that has, and that nobody has waited for, is a zombie.
    pub(crate) fn is_running(&self) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.0)).unwrap_or_default();
        // The state stands behind the name, which is in parentheses and may have any character in it.
        stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
    }

    /// Of this process alone. Zero when it has gone.
    pub(crate) fn memory(&self) -> Memory {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.0)).unwrap_or_default();
        let mebibytes = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<f64>().ok());
            kib.unwrap_or(0.0) / 1024.0
        };
        Memory { now: mebibytes("VmRSS"), peak: mebibytes("VmHWM") }
    }
}

/// The process, then its children, theirs too: servers with worker processes.
pub(crate) fn descendants(process: u32) -> Vec<u32> {
    let mut found = vec![process];
    let mut next = 0;
    while let Some(process) = found.get(next) {
        for thread in threads(*process) {
            let children = std::fs::read_to_string(thread.join("children")).unwrap_or_default();
            found.extend(children.split_whitespace().filter_map(|child| child.parse::<u32>().ok()));
        }
        next += 1;
    }
    found
}

fn threads(process: u32) -> Vec<PathBuf> {
    let listed = std::fs::read_dir(format!("/proc/{process}/task"));
    listed.into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}

/// The first figure of `schedstat`, nanoseconds.
fn running_time(thread: &std::path::Path) -> Duration {
    let text = std::fs::read_to_string(thread.join("schedstat")).unwrap_or_default();
    Duration::from_nanos(text.split(' ').next().and_then(|figure| figure.parse().ok()).unwrap_or(0))
}
