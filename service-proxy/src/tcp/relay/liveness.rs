//! Detects a peer that no longer responds: the network is cut, the sandbox frozen, the node lost.
//!
//! The kernel probes an idle connection (`SO_KEEPALIVE`) at an interval that suits most. A client with its
//! own keepalive expects an earlier detection, but its probes are answered by this node's kernel, not by the
//! endpoint. The probes show in the number of segments that arrive at even intervals while nothing is sent:
//! then the endpoint is probed at that interval. While data is unacknowledged the kernel does not probe but
//! retransmits, for a quarter of an hour. The proxy gives up as soon as keepalive would. A peer with a closed
//! window acknowledges and stays (`TCP_USER_TIMEOUT` would end it too).

use std::io;
use std::net::Shutdown;
use std::time::{Duration, Instant};

use socket2::SockRef;
use tokio::net::TcpStream;

use super::Side;
use crate::kernel::socket::{self, DEFAULT_PROBES, Probes};
use crate::kernel::tcp_info;

/// After this many checks the kernel is queried at every eighth check only.
const OFTEN: u32 = 8;

/// A longer interval of the client does not change the probing of the endpoint: the default detects as
/// quickly.
const LONGEST_INTERVAL: Duration = Duration::from_secs(120);

/// The number of the client's probe intervals after which the endpoint counts as dead, and the minimum time.
const INTERVALS: u32 = 10;
const SHORTEST_LIMIT: Duration = Duration::from_secs(10);

/// Consecutive evenly spaced samples with new segments after which these are probes: other segments come
/// alone.
const EVENLY_SPACED: u32 = 3;

/// The state of one connection.
#[derive(Debug, Default)]
pub(super) struct Liveness {
    /// Relayed bytes at the last check, and the number of checks without a change.
    carried: u64,
    idle: u32,
    arrivals: Arrivals,
    /// The client's probe interval, if it probes, and the earlier keepalive settings of the endpoint.
    interval: Option<Duration>,
    replaced: Option<Probes>,
}

impl Liveness {
    /// Checks a connection. Call it at each tick of the worker's clock.
    ///
    /// # Errors
    /// The side that has not acknowledged data for too long.
    pub(super) fn check(
        &mut self,
        client: &TcpStream,
        upstream: &TcpStream,
        carried: u64,
    ) -> Result<(), (Side, io::Error)> {
        if carried != self.carried {
            (self.carried, self.idle, self.arrivals) = (carried, 0, Arrivals::default());
            self.interval = None;
            if let Some(replaced) = self.replaced.take() {
                set_probes(upstream, replaced);
            }
            return Ok(());
        }
        self.idle = self.idle.saturating_add(1);
        if self.idle > OFTEN && !self.idle.is_multiple_of(OFTEN) {
            return Ok(());
        }
        self.query(client, upstream)
    }

    /// Whether nothing was carried between the last two checks.
    pub(super) fn is_idle(&self) -> bool {
        self.idle > 0
    }

    fn query(&mut self, client: &TcpStream, upstream: &TcpStream) -> Result<(), (Side, io::Error)> {
        let usual = DEFAULT_PROBES.limit();
        let limit = self.interval.map_or(usual, |i| (i * INTERVALS).clamp(SHORTEST_LIMIT, usual));
        for (side, stream, limit) in [(Side::Client, client, usual), (Side::Upstream, upstream, limit)] {
            let Ok(info) = tcp_info::read(stream) else { continue };
            if info.has_unacknowledged() {
                if side == Side::Client {
                    // The new segments may be acknowledgements.
                    self.arrivals = Arrivals::default();
                }
                if info.since_acknowledgement() > limit {
                    return Err((side, give_up(stream)));
                }
            } else if side == Side::Client && self.interval.is_none() {
                self.interval = self.arrivals.interval(Instant::now(), info.segments_received());
                if let Some(interval) = self.interval {
                    let known = socket::probes(upstream).unwrap_or(DEFAULT_PROBES);
                    self.replaced = Some(known);
                    set_probes(upstream, Probes::every(interval).at_most(known));
                }
            }
        }
        Ok(())
    }
}

/// Returns the error of a peer that no longer responds. From now on reads end after the data that has
/// arrived.
pub(super) fn give_up(stream: &TcpStream) -> io::Error {
    // It fails only on a closed socket, where reads end as well.
    let _ = SockRef::from(stream).shutdown(Shutdown::Read);
    io::ErrorKind::TimedOut.into()
}

/// It fails only on a closed socket, which the relay detects by itself.
fn set_probes(upstream: &TcpStream, probes: Probes) {
    let _ = socket::probe(upstream, probes);
}

/// Samples of the number of segments that an idle client has sent.
#[derive(Debug, Default)]
struct Arrivals {
    last_sample: Option<(Instant, u32)>,
    series: Option<Series>,
}

/// Consecutive samples with new segments that fit one interval.
#[derive(Debug)]
struct Series {
    samples: u32,
    /// The last segment arrived between these samples.
    last: (Instant, Instant),
    /// The bounds of the interval.
    shortest: Duration,
    longest: Duration,
}

impl Arrivals {
    /// Adds a sample. Returns the interval once enough segments have arrived evenly spaced.
    fn interval(&mut self, now: Instant, segments: u32) -> Option<Duration> {
        let (before, known) = self.last_sample.replace((now, segments))?;
        let new = segments.wrapping_sub(known);
        if new == 0 {
            return None;
        }
        let last = (before, now);
        let series = match self.series.take() {
            Some(series) => series.extended(last, new),
            None => Series { samples: 1, last, shortest: Duration::ZERO, longest: LONGEST_INTERVAL },
        };
        let is_probing = series.samples >= EVENLY_SPACED;
        let interval = (series.shortest + series.longest) / 2;
        self.series = Some(series);
        is_probing.then_some(interval)
    }
}

impl Series {
    /// Adds segments of which the last one arrived between two samples. Starts again with them if they do not
    /// fit.
    fn extended(self, last: (Instant, Instant), segments: u32) -> Self {
        let shortest = last.0.saturating_duration_since(self.last.1) / segments;
        let longest = last.1.saturating_duration_since(self.last.0) / segments;
        let (shortest, longest) = (shortest.max(self.shortest), longest.min(self.longest));
        if shortest > longest {
            return Self { samples: 1, last, shortest: Duration::ZERO, longest: LONGEST_INTERVAL };
        }
        Self { samples: self.samples + 1, last, shortest, longest }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt as _;

    use super::super::tests::pair;
    use super::*;

    fn seconds(number: u64) -> Duration {
        Duration::from_secs(number)
    }

    /// A connection with manual checks.
    struct Connection {
        client: TcpStream,
        accepted: TcpStream,
        upstream: TcpStream,
        liveness: Liveness,
    }

    impl Connection {
        async fn open() -> Self {
            let ((client, accepted), (upstream, _)) = (pair().await, pair().await);
            socket::probe(&upstream, DEFAULT_PROBES).unwrap();
            Self { client, accepted, upstream, liveness: Liveness::default() }
        }

        /// Checks, and returns the idle time before the endpoint is probed.
        fn check(&mut self, carried: u64) -> Duration {
            self.liveness.check(&self.accepted, &self.upstream, carried).map_err(|(_, error)| error).unwrap();
            SockRef::from(&self.upstream).tcp_keepalive_time().unwrap()
        }

        /// Receives a segment of the client without data.
        async fn receive_segment(&mut self) {
            let before = tcp_info::read(&self.accepted).unwrap().segments_received();
            self.client.write_all(b"x").await.unwrap();
            while tcp_info::read(&self.accepted).unwrap().segments_received() == before {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
    }

    #[tokio::test]
    async fn single_segment_of_an_idle_client_is_not_a_probe() {
        let mut connection = Connection::open().await;
        connection.check(0);
        connection.receive_segment().await;
        for _ in 0..20 {
            assert_eq!(connection.check(0), seconds(180));
        }
    }

    /// Otherwise its flow would expire.
    #[test]
    fn connection_to_a_server_of_the_node_is_probed_at_least_as_often_as_before() {
        use crate::kernel::local_replies::PROBES;
        assert_eq!(Probes::every(seconds(110)).at_most(PROBES).limit(), seconds(20 + 4 * 20));
        assert_eq!(Probes::every(seconds(8)).at_most(PROBES).limit(), seconds(8 + 4 * 4));
    }

    #[tokio::test]
    async fn default_probes_return_with_data() {
        let mut connection = Connection::open().await;
        socket::probe(&connection.upstream, crate::kernel::local_replies::PROBES).unwrap();
        connection.check(0);
        for _ in 0..3 {
            connection.receive_segment().await;
            connection.check(0);
        }
        assert_eq!(connection.check(0), seconds(1));
        assert_eq!(connection.check(1), seconds(20));
    }

    #[tokio::test]
    async fn interval_of_the_client_is_measured_again_after_data() {
        let mut connection = Connection::open().await;
        connection.check(0);
        for _ in 0..3 {
            connection.receive_segment().await;
            connection.check(0);
        }
        assert_eq!(connection.check(0), seconds(1));
        assert_eq!(connection.check(1), seconds(180));
        connection.check(1);
        connection.receive_segment().await;
        assert_eq!(connection.check(1), seconds(180));
    }

    /// The interval that samples every two seconds show of segments that arrive after these seconds.
    fn interval_of(arrivals: &[u64], length: u64) -> Option<Duration> {
        let start = Instant::now();
        let mut samples = Arrivals::default();
        (0..=length).step_by(2).find_map(|now| {
            let segments = arrivals.iter().filter(|at| **at <= now).count();
            samples.interval(start + seconds(now), u32::try_from(segments).unwrap())
        })
    }

    #[test]
    fn only_evenly_spaced_segments_are_probes() {
        for interval in [1, 2, 3, 7, 20, 75, 110] {
            let probes: Vec<_> = (1..=600 / interval).map(|number| number * interval).collect();
            let measured = interval_of(&probes, 600).unwrap();
            assert!(measured.abs_diff(seconds(interval)) <= seconds(1), "{measured:?} of {interval} s");
        }
        assert_eq!(interval_of(&[5, 5, 5, 5, 5], 600), None, "a burst");
        assert_eq!(interval_of(&[5, 9, 60, 65, 300], 600), None, "unevenly spaced");
        assert_eq!(interval_of(&[150, 300, 450], 600), None, "the usual probes are as quick");
    }
}
