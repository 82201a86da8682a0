//! Which core runs what, and before whom: a load and what it loads must not take each other's time, nor lose it to whatever else
//! the machine does.

use anyhow::{Result, ensure};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;
use rustix::process::setpriority_process;

/// A core for each.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cores {
    pub(crate) generator: usize,
    pub(crate) server: usize,
}

impl Cores {
    /// The first and the last that this process may use.
    ///
    /// # Errors
    /// When there is only one.
    pub(crate) fn choose() -> Result<Self> {
        let allowed = sched_getaffinity(Pid::from_raw(0))?;
        let mut cores = (0..CpuSet::count()).filter(|core| allowed.is_set(*core).unwrap_or(false));
        let generator = cores.next().unwrap_or(0);
        let server = cores.next_back();
        ensure!(
            server.is_some(),
            "only one core may be used: server and generator need one each; run it on a machine with two"
        );
        Ok(Self { generator, server: server.unwrap_or(generator) })
    }
}

/// As [`pin`], the client of a load; where there is but one core, it shares it.
pub(crate) fn pin_client() -> Result<()> {
    Cores::choose().map_or(Ok(()), |cores| pin(cores.generator))
}

/// As [`pin`], the server at the end of a load.
pub(crate) fn pin_server() -> Result<()> {
    Cores::choose().map_or(Ok(()), |cores| pin(cores.server))
}

/// The calling thread, and what it starts from now on, runs on this core alone.
pub(crate) fn pin(core: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(core)?;
    Ok(sched_setaffinity(Pid::from_raw(0), &set)?)
}

/// The scheduler gives it 28 times as much as anything else that wants the core.
const PRECEDENCE: i32 = -15;

/// While this lives, the thread that made it, and what it starts, goes before the rest of the machine.
#[derive(Debug)]
pub(crate) struct Precedence(());

impl Precedence {
    /// Takes it. Without the privilege for it, nothing changes.
    pub(crate) fn take() -> Option<Self> {
        setpriority_process(None, PRECEDENCE).ok().map(|()| Self(()))
    }
}

impl Drop for Precedence {
    fn drop(&mut self) {
        give_up_precedence();
    }
}

/// The calling thread is like any other.
pub(crate) fn give_up_precedence() {
    // It can always be given up.
    setpriority_process(None, 0).ok();
}
