//! The generator against a server with known stalls.

use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::sync::{Arc, Mutex};

use super::*;

/// The server stalls for a tenth of the time: long enough that a tolerance of 2% exceeds what a busy machine
/// adds.
const PERIOD: Duration = Duration::from_secs(4);
const STALL: Duration = Duration::from_millis(400);

/// A thread may be preempted at the wrong moment; a wrong generator fails every attempt.
const ATTEMPTS: usize = 3;

type Stalls = Arc<Mutex<Vec<(Instant, Instant)>>>;

/// Echoes, but stalls for the first [`STALL`] of every [`PERIOD`]. It records when it stalled.
fn stalling_server() -> (Destination, Stalls) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let stalls = Stalls::default();
    let recorded = Arc::clone(&stalls);
    std::thread::spawn(move || {
        while let Ok((mut stream, _)) = listener.accept() {
            stream.set_nodelay(true).unwrap();
            // The first stall comes half a period after the connection.
            let mut stall = Instant::now() + PERIOD / 2;
            let mut buffer = [0; 65_536];
            while let Ok(length @ 1..) = stream.read(&mut buffer) {
                if Instant::now() >= stall {
                    std::thread::sleep((stall + STALL).saturating_duration_since(Instant::now()));
                    recorded.lock().unwrap().push((stall, Instant::now()));
                    stall += PERIOD;
                }
                if stream.write_all(&buffer[..length]).is_err() {
                    break;
                }
            }
        }
    });
    (Destination { echo: address, sink: address, host: String::new() }, stalls)
}

/// Returns the p99 of the delay that the stalls alone add to scheduled requests, nanoseconds.
fn injected_p99(block: &Block, load: Load, stalls: &Stalls) -> u64 {
    let stalls = stalls.lock().unwrap();
    let mut expected = histogram();
    let interval = Duration::from_secs(1) / load.rate;
    for number in 0..u32::try_from(block.latencies.len()).unwrap() {
        let moment = block.began + interval * number;
        let stall = stalls.iter().find(|(from, to)| (*from..*to).contains(&moment));
        let wait = stall.map_or(Duration::from_nanos(1), |(_, to)| *to - moment);
        expected.record(u64::try_from(wait.as_nanos()).unwrap()).unwrap();
    }
    expected.value_at_quantile(0.99)
}

#[test]
fn open_loop_shows_the_p99_of_a_stalling_server_and_closed_loop_does_not() {
    let (server, stalls) = stalling_server();
    let load = Load::open(1000);
    let open = || {
        let block = run(load, &server, PERIOD).unwrap();
        assert_eq!(block.errors, 0);
        let measured = block.latencies.value_at_quantile(0.99);
        (injected_p99(&block, load, &stalls), measured, block.latencies.len())
    };
    // Preemption adds latency and loses requests at the end.
    let is_close = |&(truth, measured, sent): &(u64, u64, u64)| {
        sent > 3000 && measured * 50 > truth * 49 && measured < truth * 2
    };
    let mut found = Vec::new();
    while found.len() < ATTEMPTS && !found.last().is_some_and(is_close) {
        found.push(open());
    }
    assert!(found.last().is_some_and(is_close), "injected and measured, ns: {found:?}");
    let truth = found[0].0;
    assert!(truth > 300_000_000, "the server has stalled: {truth} ns");
    let closed = run(Shape::Requests.into(), &server, PERIOD).unwrap();
    assert!(closed.latencies.max() > 300_000_000, "a request of the closed loop met a stall");
    let missed = closed.latencies.value_at_quantile(0.99);
    assert!(missed < truth / 2, "{missed} ns of a closed loop, {truth} ns injected");
}

#[test]
fn unanswered_requests_are_errors() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || listener.accept().map(|_connection| ()));
    let server = Destination { echo: address, sink: address, host: String::new() };
    let block = run(Load::open(100), &server, Duration::from_millis(100)).unwrap();
    assert_eq!(block.latencies.len(), 0);
    assert!((1..=10).contains(&block.errors), "{} of 10 requests", block.errors);
}

#[test]
fn generator_costs_less_than_a_microsecond() {
    // The median: other load on the machine affects only a part of the exchanges.
    assert!(floor(Duration::from_millis(20)).unwrap().value_at_quantile(0.5) < 1000);
}
