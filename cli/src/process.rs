//! Processes of this node: those in the network namespace of this program.

use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};

/// A process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Process {
    pub(crate) pid: u32,
    /// `/proc/<pid>/comm`: the first 15 bytes of its name.
    pub(crate) name: String,
}

/// Returns all processes in `/proc` of this network namespace, by pid.
pub(crate) fn all() -> Vec<Process> {
    let own = netns(Path::new("/proc/self"));
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let mut found: Vec<Process> = pids
        .filter_map(|pid: u32| {
            let directory = PathBuf::from(format!("/proc/{pid}"));
            let name = fs::read_to_string(directory.join("comm")).ok()?.trim_end().to_owned();
            (netns(&directory) == own).then_some(Process { pid, name })
        })
        .collect();
    found.sort_by_key(|process| process.pid);
    found
}

/// Returns the processes of one name.
pub(crate) fn named(name: &str) -> Vec<Process> {
    all().into_iter().filter(|process| process.name == name).collect()
}

/// Returns the value of a daemon's flag: from the command line of the running process, or from its config
/// file as seen in its mount namespace. If none runs, from the config file that it would read.
pub(crate) fn flag(program: &str, flag: &str) -> Option<String> {
    // During a hot restart there are two: the newer one counts.
    let running = named(program).pop().map(|process| PathBuf::from(format!("/proc/{}", process.pid)));
    let arguments = running.as_ref().and_then(|directory| fs::read(directory.join("cmdline")).ok());
    let arguments: Vec<OsString> = arguments
        .unwrap_or_default()
        .split(|byte| *byte == 0)
        .map(|argument| OsString::from_vec(argument.to_vec()))
        .collect();
    daemon::config_file::value(program, flag, &arguments, |file| {
        let Some(directory) = &running else { return fs::read_to_string(file) };
        fs::read_to_string(match file.strip_prefix("/") {
            Ok(relative) => directory.join("root").join(relative),
            Err(_) => directory.join("cwd").join(file),
        })
    })
}

fn netns(directory: &Path) -> Option<PathBuf> {
    fs::read_link(directory.join("ns/net")).ok()
}
