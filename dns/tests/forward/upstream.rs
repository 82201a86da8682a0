//! A scripted upstream server, for behaviour that real ones do not have.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

/// A received query.
pub(crate) struct ReceivedQuery {
    pub(crate) query: Vec<u8>,
    pub(crate) from: SocketAddr,
    pub(crate) by_tcp: bool,
    /// The number of earlier queries.
    pub(crate) number: usize,
}

/// Messages to send back, each after a pause.
pub(crate) type Answers = Vec<(Duration, Vec<u8>)>;

/// Ends when dropped.
pub(crate) struct Upstream {
    pub(crate) address: SocketAddr,
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

struct Shared {
    seen: Mutex<Vec<ReceivedQuery>>,
    ended: AtomicBool,
    count: AtomicUsize,
    script: Box<dyn Fn(&ReceivedQuery) -> Answers + Send + Sync>,
}

impl Upstream {
    pub(crate) fn start(script: impl Fn(&ReceivedQuery) -> Answers + Send + Sync + 'static) -> Self {
        Self::start_at("127.0.0.1:0", script)
    }

    pub(crate) fn start_at(
        address: &str,
        script: impl Fn(&ReceivedQuery) -> Answers + Send + Sync + 'static,
    ) -> Self {
        let (udp, tcp) = std::iter::repeat_with(|| {
            let udp = UdpSocket::bind(address).unwrap();
            let tcp = TcpListener::bind(udp.local_addr().unwrap());
            (udp, tcp)
        })
        .find_map(|(udp, tcp)| Some((udp, tcp.ok()?)))
        .unwrap();
        let address = udp.local_addr().unwrap();
        udp.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        tcp.set_nonblocking(true).unwrap();
        let shared = Arc::new(Shared {
            seen: Mutex::default(),
            ended: AtomicBool::new(false),
            count: AtomicUsize::new(0),
            script: Box::new(script),
        });
        let (by_udp, by_tcp) = (Arc::clone(&shared), Arc::clone(&shared));
        let threads = vec![
            std::thread::spawn(move || serve_udp(&udp, &by_udp)),
            std::thread::spawn(move || serve_tcp(&tcp, &by_tcp)),
        ];
        Self { address, shared, threads }
    }

    /// The number of received queries with this text in their name, without loop probes.
    pub(crate) fn count(&self, label: &str) -> usize {
        self.with_seen(|seen| seen.iter().filter(|received| contains(&received.query, label)).count())
    }

    pub(crate) fn with_seen<T>(&self, look: impl FnOnce(&[ReceivedQuery]) -> T) -> T {
        look(&self.shared.seen.lock().unwrap())
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.shared.ended.store(true, SeqCst);
        for thread in self.threads.drain(..) {
            // Its panic has been printed.
            let _ = thread.join();
        }
    }
}

/// Whether a query is for a name with this label, in any case.
pub(crate) fn contains(query: &[u8], label: &str) -> bool {
    let lower = query.to_ascii_lowercase();
    lower.windows(label.len()).any(|window| window == label.as_bytes())
}

impl Shared {
    fn answers(&self, query: &[u8], from: SocketAddr, by_tcp: bool) -> Answers {
        let number = self.count.fetch_add(1, SeqCst);
        let received = ReceivedQuery { query: query.to_vec(), from, by_tcp, number };
        let answers = (self.script)(&received);
        self.seen.lock().unwrap().push(received);
        answers
    }
}

fn serve_udp(socket: &UdpSocket, shared: &Arc<Shared>) {
    let mut buffer = [0; 4096];
    let mut late = Vec::new();
    while !shared.ended.load(SeqCst) {
        let Ok((length, from)) = socket.recv_from(&mut buffer) else { continue };
        let answers = shared.answers(&buffer[..length], from, false);
        let socket = socket.try_clone().unwrap();
        late.push(std::thread::spawn(move || {
            for (pause, answer) in answers {
                std::thread::sleep(pause);
                // The client may have closed its socket.
                let _ = socket.send_to(&answer, from);
            }
        }));
    }
    for thread in late {
        // Its panic has been printed.
        let _ = thread.join();
    }
}

fn serve_tcp(listener: &TcpListener, shared: &Arc<Shared>) {
    let mut connections = Vec::new();
    while !shared.ended.load(SeqCst) {
        let Ok((stream, from)) = listener.accept() else {
            std::thread::sleep(Duration::from_millis(5));
            continue;
        };
        let shared = Arc::clone(shared);
        connections.push(std::thread::spawn(move || serve_connection(stream, from, &shared)));
    }
    for thread in connections {
        // Its panic has been printed.
        let _ = thread.join();
    }
}

fn serve_connection(mut stream: TcpStream, from: SocketAddr, shared: &Shared) {
    stream.set_nonblocking(false).unwrap();
    stream.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    let mut length = [0; 2];
    while stream.read_exact(&mut length).is_ok() {
        let mut query = vec![0; usize::from(u16::from_be_bytes(length))];
        if stream.read_exact(&mut query).is_err() {
            break;
        }
        for (pause, answer) in shared.answers(&query, from, true) {
            std::thread::sleep(pause);
            let length = u16::try_from(answer.len()).unwrap().to_be_bytes();
            // The client may have closed the connection.
            let _ = stream.write_all(&[&length, &answer[..]].concat());
        }
    }
}

/// A reply to a query: a code, and encoded records for ANSWER and AUTHORITY.
pub(crate) fn reply(query: &[u8], code: u8, answers: &[Vec<u8>], authorities: &[Vec<u8>]) -> Vec<u8> {
    let end = 12 + query[12..].iter().position(|byte| *byte == 0).unwrap() + 5;
    let mut reply = query[..end].to_vec();
    (reply[2], reply[3]) = (0x81, 0x80 | code);
    reply[6..8].copy_from_slice(&u16::try_from(answers.len()).unwrap().to_be_bytes());
    reply[8..10].copy_from_slice(&u16::try_from(authorities.len()).unwrap().to_be_bytes());
    reply[10..12].fill(0);
    for record in answers.iter().chain(authorities) {
        reply.extend(record);
    }
    reply
}

/// An A record of the question's name.
pub(crate) fn a(ttl: u32, address: [u8; 4]) -> Vec<u8> {
    [&[0xC0, 12, 0, 1, 0, 1][..], &ttl.to_be_bytes(), &[0, 4], &address].concat()
}

/// A record with an uncompressed owner.
pub(crate) fn record(owner: &[u8], kind: u16, ttl: u32, data: &[u8]) -> Vec<u8> {
    let length = u16::try_from(data.len()).unwrap().to_be_bytes();
    [owner, &kind.to_be_bytes(), &[0, 1], &ttl.to_be_bytes(), &length, data].concat()
}

/// A SOA of `test.` with this MINIMUM.
pub(crate) fn soa(minimum: u32) -> Vec<u8> {
    let data = [&b"\x02ns\x04test\0\x02hm\x04test\0"[..], &[0; 16], &minimum.to_be_bytes()].concat();
    record(b"\x04test\0", 6, 3600, &data)
}

/// One message at once.
pub(crate) fn now(message: Vec<u8>) -> Answers {
    vec![(Duration::ZERO, message)]
}
