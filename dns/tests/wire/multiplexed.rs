//! HTTPS and QUIC: limits on connections, their timeouts, and their fate during a hot restart.

use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use quinn::crypto::rustls::QuicClientConfig;
use quinn::{ApplicationClose, ClientConfig, Connection, ConnectionError, Endpoint, TransportConfig};
use tokio::runtime::Runtime;
use tokio::time::timeout;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::CertificateDer;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::{self, RootCertStore};

use crate::https::start;
use crate::message::{Query, Reply};
use crate::tls::{Secure, kdig};

const NAME: &str = "web.default.svc.cluster.local";

/// Connections over HTTPS and QUIC together.
const MAX_CONNECTIONS: usize = 512;

/// Timeout of an answer while hundreds of clients hold connections for ten seconds.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(4);

/// Timeout of an answer during a hot restart: a client sends lost packets again after 1 s, 3 s and 7 s.
const RESTART_TIMEOUT: Duration = Duration::from_secs(30);

/// After this time a client considers a silent connection lost.
const CLIENT_TIMEOUT: Duration = Duration::from_secs(5);

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

/// A QUIC client, which sends keepalives every second if requested.
fn client(secure: &Secure, keeps_alive: bool) -> Endpoint {
    let mut transport = TransportConfig::default();
    transport.keep_alive_interval(keeps_alive.then_some(Duration::from_secs(1)));
    client_with(secure, transport)
}

/// A QUIC client that gives up after [`CLIENT_TIMEOUT`].
fn impatient_client(secure: &Secure) -> Endpoint {
    let mut transport = TransportConfig::default();
    transport.max_idle_timeout(Some(CLIENT_TIMEOUT.try_into().unwrap()));
    client_with(secure, transport)
}

fn client_with(secure: &Secure, transport: TransportConfig) -> Endpoint {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(secure.file("tls.pem")).unwrap()).unwrap();
    let mut tls = rustls::ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    tls.alpn_protocols = vec![b"doq".to_vec()];
    let mut config = ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls).unwrap()));
    config.transport_config(Arc::new(transport));
    let mut endpoint = Endpoint::client(([127, 0, 0, 1], 0).into()).unwrap();
    endpoint.set_default_client_config(config);
    endpoint
}

async fn connect(client: &Endpoint, server: SocketAddr) -> Result<Connection, ConnectionError> {
    client.connect(server, "dns.example").unwrap().await
}

/// Whether a new QUIC connection gets an answer.
async fn is_answered(client: &Endpoint, server: SocketAddr) -> bool {
    let ask = async {
        let (mut query, mut reply) = connect(client, server).await.ok()?.open_bi().await.ok()?;
        let message = Query::new(NAME, 1).wire(0);
        query.write_all(&u16::try_from(message.len()).unwrap().to_be_bytes()).await.ok()?;
        query.write_all(&message).await.ok()?;
        query.finish().ok()?;
        let framed = reply.read_to_end(1024).await.ok()?;
        Some(Reply::parse(&framed[2..]).counts[1] == 1)
    };
    ask.await == Some(true)
}

/// DOQ_EXCESSIVE_LOAD
const EXCESSIVE_LOAD: u64 = 4;

/// The code with which the server closed a connection; `None` while it is open.
fn code(connection: &Connection) -> Option<u64> {
    match connection.close_reason()? {
        ConnectionError::ApplicationClosed(ApplicationClose { error_code, .. }) => {
            Some(error_code.into_inner())
        }
        // Before the handshake is confirmed, no code of the application can be sent (RFC 9000 §10.2.3).
        ConnectionError::ConnectionClosed(_) => Some(EXCESSIVE_LOAD),
        other => panic!("{other}"),
    }
}

/// RFC 9250 §5.5
#[test]
fn quic_client_beyond_the_limit_loses_its_oldest_connections_to_another_client() {
    let (secure, port) = start(&[]);
    let server = ([127, 0, 0, 1], port).into();
    runtime().block_on(async {
        let client = client(&secure, true);
        let all: Vec<_> = join_all((0..MAX_CONNECTIONS + 20).map(|_| connect(&client, server))).await;
        let all: Vec<Connection> = all.into_iter().filter_map(Result::ok).collect();
        assert!(all.len() >= MAX_CONNECTIONS, "{}", all.len());
        let started = Instant::now();
        let other = async {
            tokio::task::spawn_blocking(move || {
                let answer = secure.kdig_at(port, "dns.example", &format!("+quic -b 127.0.0.2 {NAME} A"));
                assert!(answer.contains("10.96.0.9"), "{answer}");
                secure
            })
            .await
            .unwrap()
        };
        let _secure = timeout(ANSWER_TIMEOUT, other).await.unwrap();
        let closed = || all.iter().filter(|connection| code(connection) == Some(EXCESSIVE_LOAD)).count();
        while closed() < all.len() - MAX_CONNECTIONS + 1 {
            assert!(started.elapsed() < ANSWER_TIMEOUT, "{} of {} closed", closed(), all.len());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        // No query is sent over the others: keepalives do not preserve them.
        for connection in &all {
            timeout(Duration::from_secs(30), connection.closed()).await.unwrap();
        }
        assert_eq!(all.iter().filter(|connection| code(connection) == Some(0)).count(), all.len() - closed());
    });
}

/// Relays a client's packets to a server, and of the server's packets only Retry: no handshake completes.
/// Returns the address for the client, and the number of Retry packets.
fn stall(server: SocketAddr, client: SocketAddr, ended: &Arc<AtomicBool>) -> (SocketAddr, Arc<AtomicUsize>) {
    let open = || {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        Arc::new(socket)
    };
    let (front, back, retries) = (open(), open(), Arc::new(AtomicUsize::new(0)));
    front.connect(client).unwrap();
    back.connect(server).unwrap();
    let carry = |from: &Arc<UdpSocket>, to: &Arc<UdpSocket>, passes: fn(&[u8]) -> bool| {
        let (from, to) = (Arc::clone(from), Arc::clone(to));
        let (ended, retries) = (Arc::clone(ended), Arc::clone(&retries));
        std::thread::spawn(move || {
            let mut buffer = vec![0; 65_536];
            while !ended.load(Relaxed) {
                let Ok(length) = from.recv(&mut buffer) else { continue };
                if passes(&buffer[..length]) {
                    // A lost datagram is sent again.
                    let _ = to.send(&buffer[..length]);
                    retries.fetch_add(usize::from(is_retry(&buffer[..length])), Relaxed);
                }
            }
        });
    };
    carry(&front, &back, |_| true);
    carry(&back, &front, is_retry);
    (front.local_addr().unwrap(), retries)
}

/// RFC 9000 §17.2.5
fn is_retry(packet: &[u8]) -> bool {
    packet.first().is_some_and(|first| first & 0xf0 == 0xf0)
}

#[test]
fn quic_client_that_never_ends_its_handshakes_keeps_no_other_client_out() {
    let (secure, port) = start(&[]);
    let ended = Arc::new(AtomicBool::new(false));
    runtime().block_on(async {
        let client = client(&secure, false);
        let server = ([127, 0, 0, 1], port).into();
        let (relay, retries) = stall(server, client.local_addr().unwrap(), &ended);
        let _all: Vec<_> =
            (0..MAX_CONNECTIONS + 20).map(|_| client.connect(relay, "dns.example").unwrap()).collect();
        let all_retried = async {
            while retries.load(Relaxed) < MAX_CONNECTIONS + 20 {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        timeout(Duration::from_secs(30), all_retried).await.unwrap();
        // Time for the last packets of the clients.
        tokio::time::sleep(Duration::from_millis(500)).await;
        let ask = move || {
            ["+quic", "+https"].map(|transport| {
                secure.kdig_at(port, "dns.example", &format!("{transport} -b 127.0.0.2 {NAME} A"))
            })
        };
        let answers = timeout(ANSWER_TIMEOUT, tokio::task::spawn_blocking(ask)).await.unwrap().unwrap();
        for answer in answers {
            assert!(answer.contains("10.96.0.9"), "{answer}");
        }
    });
    ended.store(true, Relaxed);
}

#[test]
fn https_client_beyond_the_limit_loses_its_oldest_connections_to_another_client() {
    let (secure, port) = start(&[]);
    let own = secure.server.open_files();
    let started = Instant::now();
    let clients: Vec<TcpStream> =
        (0..MAX_CONNECTIONS + 100).map(|_| TcpStream::connect(("127.0.0.1", port)).unwrap()).collect();
    testbed::wait_for("the clients", || {
        let open = secure.server.open_files();
        anyhow::ensure!(open > own + MAX_CONNECTIONS / 2, "{open}");
        Ok(())
    })
    .unwrap();
    let answer = secure.kdig_at(port, "dns.example", &format!("+https -b 127.0.0.2 {NAME} A"));
    assert!(answer.contains("10.96.0.9"), "{answer}");
    // Connections without TLS are closed first.
    assert!(started.elapsed() < ANSWER_TIMEOUT, "{:?}", started.elapsed());
    // And the one that waits to be accepted.
    let open = secure.server.open_files();
    assert!(open <= own + MAX_CONNECTIONS + 1, "{open}, {own} before");
    drop(clients);
}

/// One of the clients has sent the beginning of a query, then nothing.
#[test]
fn https_and_quic_clients_are_answered_while_the_process_is_replaced() {
    let (mut secure, port) = start(&[]);
    let (server, certificate) = (([127, 0, 0, 1], port).into(), secure.file("tls.pem"));
    let (runtime, done) = (runtime(), AtomicBool::new(false));
    let (slow, clients) = runtime.block_on(async {
        let slow = connect(&client(&secure, true), server).await.unwrap();
        let mut stream = slow.open_bi().await.unwrap();
        stream.0.write_all(&[0]).await.unwrap();
        ((slow, stream), (0..20).map(|_| impatient_client(&secure)).collect::<Vec<_>>())
    });
    std::thread::scope(|scope| {
        let https = scope.spawn(|| {
            let mut answered = 0;
            while !done.load(Relaxed) {
                let answer = kdig(&certificate, port, "dns.example", &format!("+https +short {NAME} A"));
                assert_eq!(answer.trim(), "10.96.0.9");
                answered += 1;
            }
            answered
        });
        let quic = scope.spawn(|| {
            let answered = || {
                let all = async { join_all(clients.iter().map(|client| is_answered(client, server))).await };
                let all = runtime.block_on(async { timeout(RESTART_TIMEOUT, all).await });
                all.expect("an end in time").into_iter().filter(|is_answered| *is_answered).count()
            };
            // The previous process may refuse a connection at its end, and the next one does not know connections of the
            // previous one.
            while !done.load(Relaxed) {
                answered();
            }
            answered()
        });
        secure.succeed();
        done.store(true, Relaxed);
        assert!(https.join().unwrap() > 0);
        assert_eq!(quic.join().unwrap(), clients.len(), "the next process answers every client");
    });
    drop(slow);
}
