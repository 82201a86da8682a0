//! CPU time and memory of processes.

use std::path::PathBuf;
use std::time::Duration;

/// A process whose CPU time is measured, with all its threads and children.
#[derive(Clone, Debug)]
pub(crate) struct Process(pub(crate) u32);

impl Process {
    /// Returns the CPU time used so far. Zero after it has exited.
    pub(crate) fn time(&self) -> Duration {
        let tree = descendants(self.0);
        tree.iter().flat_map(|process| threads(*process)).map(|thread| running_time(&thread)).sum()
    }
}

/// Resident memory, MiB.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Memory {
    pub(crate) now: f64,
    /// Its maximum.
    pub(crate) peak: f64,
}

impl Process {
    /// Returns whether the process runs. A zombie has exited.
    pub(crate) fn is_running(&self) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.0)).unwrap_or_default();
        // The state follows the name, which is in parentheses and may contain any character.
        stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
    }

    /// Returns the memory of this process without its children. Zero after it has exited.
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

/// Returns the process and all its descendants: servers have worker processes.
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

/// Returns the run time of a thread: the first field of `schedstat`, nanoseconds.
fn running_time(thread: &std::path::Path) -> Duration {
    let text = std::fs::read_to_string(thread.join("schedstat")).unwrap_or_default();
    Duration::from_nanos(text.split(' ').next().and_then(|figure| figure.parse().ok()).unwrap_or(0))
}
