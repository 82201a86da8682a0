//! What the machine spends while something is measured.

use std::time::Duration;

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::{TimeVal, TimeValLike as _};

use crate::environment::steal_seconds;
use crate::processor::Process;

/// Readings at one moment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Meter {
    between: Duration,
    own: Duration,
    switches: u64,
    steal: f64,
}

/// What has been spent between two moments.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Spent {
    /// Processor time of the program between client and server.
    pub(crate) between: Duration,
    /// Processor time of this process, which has client and server in it.
    pub(crate) own: Duration,
    /// Context switches of the machine.
    pub(crate) switches: u64,
    /// Time the hypervisor took, seconds.
    pub(crate) steal: f64,
}

impl Meter {
    /// Reads them, with the time of the program in between if there is one.
    pub(crate) fn read(between: Option<&Process>) -> Self {
        Self {
            between: between.map_or(Duration::ZERO, Process::time),
            own: own_time(),
            switches: switches(),
            steal: steal_seconds(),
        }
    }

    /// What has been spent since.
    pub(crate) fn until(&self, later: &Self) -> Spent {
        Spent {
            between: later.between.saturating_sub(self.between),
            own: later.own.saturating_sub(self.own),
            switches: later.switches - self.switches,
            steal: later.steal - self.steal,
        }
    }
}

impl std::ops::AddAssign for Spent {
    fn add_assign(&mut self, other: Self) {
        self.between += other.between;
        self.own += other.own;
        self.switches += other.switches;
        self.steal += other.steal;
    }
}

/// Of all threads this process has had, also of those that have ended.
fn own_time() -> Duration {
    let Ok(usage) = getrusage(UsageWho::RUSAGE_SELF) else { return Duration::ZERO };
    let micros = |time: TimeVal| u64::try_from(time.num_microseconds()).unwrap_or(0);
    Duration::from_micros(micros(usage.user_time()) + micros(usage.system_time()))
}

fn switches() -> u64 {
    let stat = std::fs::read_to_string("/proc/stat").unwrap_or_default();
    let line = stat.lines().find_map(|line| line.strip_prefix("ctxt "));
    line.and_then(|count| count.parse().ok()).unwrap_or(0)
}
