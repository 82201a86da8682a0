//! CPU pinning and priority: generator and server must not compete for a core, with each other or with other
//! processes.

use anyhow::{Result, ensure};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;
use rustix::process::setpriority_process;

/// One core for the generator and one for the server.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cores {
    pub(crate) generator: usize,
    pub(crate) server: usize,
}

impl Cores {
    /// Chooses the first and the last core of this process's affinity mask.
    ///
    /// # Errors
    /// When there is only one core.
    pub(crate) fn choose() -> Result<Self> {
        let allowed = sched_getaffinity(Pid::from_raw(0))?;
        let mut cores = (0..CpuSet::count()).filter(|core| allowed.is_set(*core).unwrap_or(false));
        let generator = cores.next().unwrap_or(0);
        let server = cores.next_back();
        ensure!(
            server.is_some(),
            "only one core may be used: server and generator need one each; run it on a machine \
             with two cores"
        );
        Ok(Self { generator, server: server.unwrap_or(generator) })
    }
}

/// Pins the calling thread to the generator's core. With one core only, it does nothing.
pub(crate) fn pin_client() -> Result<()> {
    Cores::choose().map_or(Ok(()), |cores| pin(cores.generator))
}

/// Pins the calling thread to the server's core. With one core only, it does nothing.
pub(crate) fn pin_server() -> Result<()> {
    Cores::choose().map_or(Ok(()), |cores| pin(cores.server))
}

/// Pins the calling thread, and threads and processes that it starts, to one core.
pub(crate) fn pin(core: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(core)?;
    Ok(sched_setaffinity(Pid::from_raw(0), &set)?)
}

/// A nice value that gets 28 times the share of a thread with nice 0.
const NICE: i32 = -15;

/// Raises the priority of the thread that creates it, and of what that starts, until it is dropped.
#[derive(Debug)]
pub(crate) struct HighPriority(());

impl HighPriority {
    /// Raises the priority. Returns `None` without the privilege to do so.
    pub(crate) fn acquire() -> Option<Self> {
        setpriority_process(None, NICE).ok().map(|()| Self(()))
    }
}

impl Drop for HighPriority {
    fn drop(&mut self) {
        reset_priority();
    }
}

/// Resets the calling thread to nice 0.
pub(crate) fn reset_priority() {
    // Lowering the priority needs no privilege.
    let _ = setpriority_process(None, 0);
}
