//! Detects a peer that no longer answers: the network is cut, the sandbox frozen, the node lost.
//!
//! The kernel probes a connection that is idle (`SO_KEEPALIVE`), at an interval that suits most. A client that probes on its own
//! expects to notice sooner, but its probes are answered by this node's kernel, not by the endpoint. They show in the number of
//! segments that arrive while nothing is sent: then the endpoint is probed as often. Where something was sent the kernel does not
//! probe but sends it again, for a quarter of an hour. That is given up here as soon as probing would be. A peer that keeps its
//! window closed acknowledges, and stays (`TCP_USER_TIMEOUT` would end it too).

use std::io;
use std::time::{Duration, Instant};

use tokio::net::TcpStream;

use super::Side;
use crate::kernel::socket::{self, Probes};
use crate::kernel::tcp_info;

/// Checks after which an idle connection is looked at less often: every so many.
const OFTEN: u32 = 8;

/// A client's probes this many seconds apart say nothing that the usual ones do not.
const LONGEST_INTERVAL: Duration = Duration::from_secs(120);

/// How many intervals of its own probes a client waits for an acknowledgement of the endpoint, and how long at least.
const INTERVALS: u32 = 10;
const SHORTEST_LIMIT: Duration = Duration::from_secs(10);

/// What is known of one connection.
#[derive(Debug, Default)]
pub(super) struct Liveness {
    /// Bytes carried at the last check, and for how many checks they have been the same.
    carried: u64,
    idle: u32,
    /// When the connection had become idle, and the segments that had arrived from the client by then.
    baseline: Option<(Instant, u32)>,
    /// How often the client probes, if it does.
    interval: Option<Duration>,
}

impl Liveness {
    /// Looks after a connection. To be called at each tick of the clock for it.
    ///
    /// # Errors
    /// The side that has not acknowledged for too long what was sent to it.
    pub(super) fn check(
        &mut self,
        client: &TcpStream,
        upstream: &TcpStream,
        carried: u64,
    ) -> Result<(), (Side, io::Error)> {
        if carried != self.carried {
            (self.carried, self.idle, self.baseline) = (carried, 0, None);
            return Ok(());
        }
        self.idle = self.idle.saturating_add(1);
        if self.idle > OFTEN && !self.idle.is_multiple_of(OFTEN) {
            return Ok(());
        }
        self.look(client, upstream)
    }

    fn look(&mut self, client: &TcpStream, upstream: &TcpStream) -> Result<(), (Side, io::Error)> {
        let usual = socket::USUAL_PROBES.limit();
        let patience = self.interval.map_or(usual, |i| (i * INTERVALS).clamp(SHORTEST_LIMIT, usual));
        for (side, stream, limit) in [(Side::Client, client, usual), (Side::Upstream, upstream, patience)] {
            let Ok(info) = tcp_info::read(stream) else { continue };
            if info.has_unacknowledged() {
                if side == Side::Client {
                    // What arrives may be acknowledgements: no time to count probes.
                    self.baseline = None;
                }
                if info.since_acknowledgement() > limit {
                    return Err((side, io::ErrorKind::TimedOut.into()));
                }
            } else if side == Side::Client && self.interval.is_none() {
                self.count_probes(info.segments_received(), upstream);
            }
        }
        Ok(())
    }

    /// The client's segments since it has been idle are probes.
    fn count_probes(&mut self, segments: u32, upstream: &TcpStream) {
        let Some((since, before)) = self.baseline else {
            self.baseline = Some((Instant::now(), segments));
            return;
        };
        let Some(probes) = segments.checked_sub(before).filter(|probes| *probes > 0) else { return };
        let interval = since.elapsed() / probes;
        if interval <= LONGEST_INTERVAL {
            self.interval = Some(interval);
            // It fails only on a closed socket, which the relay sees by itself.
            drop(socket::probe(upstream, Probes::every(interval)));
        }
    }
}
