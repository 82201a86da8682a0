//! Many malicious TCP clients, beside two good ones.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use crate::message::Query;
use crate::server::Server;

const HOSTILE: usize = 60;
const TIME: Duration = Duration::from_secs(6);

/// A Service of one address, and one whose answer fills a message.
fn manifests() -> String {
    let endpoints: String = (0..4000_u16)
        .map(u16::to_be_bytes)
        .map(|[high, low]| format!("- {{addresses: [10.5.{high}.{low}]}}\n"))
        .collect();
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: web}}\nspec: {{clusterIP: 10.96.0.9, ports: [{{port: 80}}]}}\n\
         ---\napiVersion: v1\nkind: Service\nmetadata: {{name: large}}\nspec: {{clusterIP: None}}\n\
         ---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
         metadata: {{name: large-1, labels: {{kubernetes.io/service-name: large}}}}\n\
         addressType: IPv4\nendpoints:\n{endpoints}"
    )
}

fn framed(name: &str, id: u16) -> Vec<u8> {
    let message = Query::new(name, 1).wire(id);
    [&u16::try_from(message.len()).unwrap().to_be_bytes()[..], &message].concat()
}

fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    stream.set_write_timeout(Some(Duration::from_millis(200))).unwrap();
    stream
}

/// What a malicious client does until the end. After an error, because the server closed the connection, it
/// connects again.
fn attack(kind: usize, address: SocketAddr, ended: &AtomicBool) -> std::io::Result<()> {
    let mut stream = connect(address);
    let mut random = fastrand::Rng::new();
    match kind % 4 {
        // Half a frame, then nothing.
        0 => stream.write_all(&[&[255, 255][..], &[0; 30_000]].concat())?,
        // A byte a second.
        1 => {
            for byte in framed("web.default.svc.cluster.local", 1) {
                stream.write_all(&[byte])?;
                wait(ended, Duration::from_secs(1));
            }
        }
        // Wrong lengths.
        2 => {
            while !ended.load(Relaxed) {
                let noise: Vec<u8> = std::iter::repeat_with(|| random.u8(..)).take(500).collect();
                stream.write_all(&noise)?;
                wait(ended, Duration::from_millis(20));
            }
        }
        // Large replies that are never read.
        _ => {
            while !ended.load(Relaxed) {
                stream.write_all(&framed("large.default.svc.cluster.local", random.u16(..)))?;
            }
        }
    }
    wait(ended, TIME);
    Ok(())
}

fn wait(ended: &AtomicBool, time: Duration) {
    let until = Instant::now() + time;
    while !ended.load(Relaxed) && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Every query is answered in time.
fn ask_by_tcp(address: SocketAddr) {
    let (mut stream, started) = (connect(address), Instant::now());
    let mut id = 0_u16;
    while started.elapsed() < TIME {
        id += 1;
        stream.write_all(&framed("web.default.svc.cluster.local", id)).unwrap();
        let mut length = [0; 2];
        stream.read_exact(&mut length).unwrap();
        let mut reply = vec![0; usize::from(u16::from_be_bytes(length))];
        stream.read_exact(&mut reply).unwrap();
        assert_eq!((&reply[..2], reply[7]), (&id.to_be_bytes()[..], 1), "one answer");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn ask_by_udp(address: SocketAddr) {
    let started = Instant::now();
    while started.elapsed() < TIME {
        let reply = Query::new("web.default.svc.cluster.local", 1).ask(address);
        assert_eq!((reply.code(), reply.counts[1]), (0, 1));
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// RFC 7766 §10
#[test]
fn hostile_tcp_clients_affect_no_other_client_and_leave_no_memory_behind() {
    let server = Server::start(&[("all.yaml", &manifests())], &[]);
    let large = "+tcp +short large.default.svc.cluster.local A";
    testbed::wait_for("the large Service", || {
        anyhow::ensure!(server.dig(large).lines().count() == 4000);
        Ok(())
    })
    .unwrap();
    let (before, address, ended) = (server.memory("VmRSS"), server.address, AtomicBool::new(false));
    std::thread::scope(|scope| {
        for kind in 0..HOSTILE {
            let ended = &ended;
            scope.spawn(move || {
                while !ended.load(Relaxed) {
                    // The server may refuse or close it at any step.
                    let _ = attack(kind, address, ended);
                }
            });
        }
        let good = [scope.spawn(move || ask_by_tcp(address)), scope.spawn(move || ask_by_udp(address))];
        let results = good.map(std::thread::ScopedJoinHandle::join);
        ended.store(true, Relaxed);
        results.into_iter().for_each(|result| result.unwrap());
    });
    let most = server.memory("VmHWM");
    testbed::wait_for("the memory to be given back", || {
        let now = server.memory("VmRSS");
        anyhow::ensure!(now < before + (8 << 10), "{now} KiB, {before} before, {most} at most");
        Ok(())
    })
    .unwrap();
    assert!(most < before + (48 << 10), "{most} KiB, {before} before");
}
