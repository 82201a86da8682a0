//! A load of HTTP requests and DNS queries during other work.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use netns::NetNs;

/// Deadline of a request or query.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Requests or queries a second.
const RATE: u32 = 100;

/// The result of a load.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    pub(super) count: u32,
    pub(super) failures: Vec<String>,
    pub(super) longest: Duration,
}

/// Runs `work` under a load from a network namespace: HTTP requests for a page with a known beginning, each
/// on a new connection, and DNS queries for a name, each from a new socket. Returns the results of both.
pub(super) fn during<T>(
    netns: &NetNs,
    page: (SocketAddr, &str),
    query: (SocketAddr, &str),
    work: impl FnOnce() -> T,
) -> (T, [Outcome; 2]) {
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let requests = scope.spawn(|| netns.run(|| repeat(&done, |_| get(page.0, page.1))).unwrap());
        let queries =
            scope.spawn(|| netns.run(|| repeat(&done, |id| resolve(query.0, id, query.1))).unwrap());
        let worked = work();
        done.store(true, Ordering::Relaxed);
        (worked, [requests.join().unwrap(), queries.join().unwrap()])
    })
}

fn repeat(done: &AtomicBool, attempt: impl Fn(u16) -> Result<()>) -> Outcome {
    let (start, mut outcome) = (Instant::now(), Outcome::default());
    while !done.load(Ordering::Relaxed) {
        let began = Instant::now();
        let id = u16::try_from(outcome.count % 0x10000).unwrap();
        if let Err(error) = attempt(id) {
            outcome.failures.push(format!("{:?} after the start: {error:#}", start.elapsed()));
        }
        outcome.count += 1;
        outcome.longest = outcome.longest.max(began.elapsed());
        std::thread::sleep((began + Duration::from_secs(1) / RATE).saturating_duration_since(Instant::now()));
    }
    outcome
}

/// Sends one HTTP request.
fn get(address: SocketAddr, beginning: &str) -> Result<()> {
    let mut stream = TcpStream::connect_timeout(&address, TIMEOUT)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let page = answer.split("\r\n\r\n").nth(1).unwrap_or_default();
    ensure!(page.starts_with(beginning), "{answer:?}");
    Ok(())
}

/// Sends one query for an A record, without retries.
fn resolve(server: SocketAddr, id: u16, name: &str) -> Result<()> {
    let [high, low] = id.to_be_bytes();
    let mut query = vec![high, low, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        query.push(u8::try_from(label.len())?);
        query.extend(label.bytes());
    }
    query.extend([0, 0, 1, 0, 1]);
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.set_read_timeout(Some(TIMEOUT))?;
    socket.connect(server)?;
    socket.send(&query)?;
    let mut answer = [0; 512];
    let length = socket.recv(&mut answer)?;
    let (no_error, answers) = (answer[3] & 15 == 0, answer[7]);
    ensure!(answer[..2] == query[..2] && no_error && answers == 1, "{:?}", &answer[..length]);
    Ok(())
}
