//! One proxy after another on the same node, with nothing lost in between.
//!
//! A proxy that is started beside a running one sets itself up and, once its first state is in force, has the
//! kernel hand it all new connections in one transaction (see [`crate::kernel::interception`]). Then it tells
//! its predecessor, named in the pid file, with SIGUSR2: that one takes no more, lets its open connections
//! finish, and leaves rules and routes alone.

use std::fs;
use std::path::{Path, PathBuf};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tracing::{info, warn};

/// Runtime state, lost in a reboot.
const PID_FILE: &str = "/run/portolan/proxy.pid";

/// This proxy's place in the succession.
#[derive(Debug)]
pub(crate) struct Succession {
    file: PathBuf,
    taken: bool,
}

impl Succession {
    pub(crate) fn new() -> Self {
        Self { file: PID_FILE.into(), taken: false }
    }

    /// The other proxy that runs on this node: the one to take over from, or in the end the one that has.
    pub(crate) fn other(&self) -> Option<Pid> {
        read(&self.file).filter(|pid| is_proxy_of_this_node(*pid))
    }

    /// Whether this proxy is the one that new connections are for.
    pub(crate) fn is_taken(&self) -> bool {
        self.taken
    }

    /// New connections are ours from now on: the previous proxy receives the hand-over.
    pub(crate) fn take(&mut self) {
        self.taken = true;
        let predecessor = self.other();
        if let Err(error) = write(&self.file) {
            warn!(%error, file = %self.file.display(), "a later proxy will not find this one");
        }
        if let Some(predecessor) = predecessor {
            // Before the other one ends, or its service would be taken for ended.
            daemon::service_manager::ready();
            info!(%predecessor, "taking over from the proxy before");
            // It may have ended this very moment.
            kill(predecessor, Signal::SIGUSR2).ok();
        }
    }

    /// Takes away what a proxy has left that was killed.
    pub(crate) fn forget(&self) {
        if self.other().is_none() {
            let _ = fs::remove_file(&self.file);
        }
    }

    /// This proxy ends without a next one.
    pub(crate) fn end(&self) {
        if read(&self.file) == Some(Pid::this()) {
            let _ = fs::remove_file(&self.file);
        }
    }
}

fn read(file: &Path) -> Option<Pid> {
    fs::read_to_string(file).ok()?.trim().parse().ok().map(Pid::from_raw)
}

fn write(file: &Path) -> std::io::Result<()> {
    let new = file.with_extension("pid.new");
    if let Some(directory) = file.parent() {
        fs::create_dir_all(directory)?;
    }
    fs::write(&new, format!("{}\n", Pid::this()))?;
    fs::rename(new, file)
}

/// Process ids are used again, and other nodes may share this one's processes: the name and the network
/// namespace tell. The kernel shows the namespace of a process only to those with at least its capabilities
/// (ptrace(2)); the file is of this node, so it counts.
fn is_proxy_of_this_node(pid: Pid) -> bool {
    let name = |pid: &str| fs::read_to_string(format!("/proc/{pid}/comm")).ok();
    let netns = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/net")).ok();
    let text = pid.to_string();
    pid != Pid::this()
        && name(&text).is_some()
        && name(&text) == name("self")
        && netns(&text).is_none_or(|theirs| Some(theirs) == netns("self"))
}
