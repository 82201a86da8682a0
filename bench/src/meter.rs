//! Resources that the machine uses during a measurement.

use std::time::Duration;

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::{TimeVal, TimeValLike as _};

use crate::environment::steal_seconds;
use crate::processor::Process;

/// Counters at one moment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Meter {
    between: Duration,
    own: Duration,
    switches: u64,
    steal: f64,
}

/// Resources used between two moments.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Spent {
    /// CPU time of the program under test.
    pub(crate) between: Duration,
    /// CPU time of this process, which contains client and server.
    pub(crate) own: Duration,
    /// Context switches of the machine.
    pub(crate) switches: u64,
    /// CPU steal time, seconds.
    pub(crate) steal: f64,
}

impl Meter {
    /// Reads the counters, with the CPU time of the program under test if there is one.
    pub(crate) fn read(between: Option<&Process>) -> Self {
        Self {
            between: between.map_or(Duration::ZERO, Process::time),
            own: own_time(),
            switches: switches(),
            steal: steal_seconds(),
        }
    }

    /// Returns the resources used from this reading to a later one.
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

/// Returns the CPU time of this process, including ended threads.
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
