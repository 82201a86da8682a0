//! Hot restart: several processes in succession at the same address lose no query.

use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::message::{Query, Reply, receive, send};
use crate::server::Server;

const WEB: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: web}\n\
                   spec: {clusterIP: 10.96.0.9, ports: [{port: 80}]}\n";
const NAME: &str = "web.default.svc.cluster.local";

const RESTARTS: usize = 10;

/// UDP client threads, source ports per thread, and interval of queries: 5,000 queries per second in total.
const CLIENTS: u64 = 4;
const FLOWS: usize = 32;
const INTERVAL: Duration = Duration::from_micros(200 * CLIENTS);

/// A reply may be late on a busy machine; a lost one never comes.
const REPLY_TIMEOUT: Duration = Duration::from_secs(8);

/// Sends queries until `done`. Returns the numbers of queries and replies.
fn ask_by_udp(server: SocketAddr, done: &AtomicBool) -> (usize, usize) {
    let sockets: Vec<UdpSocket> = (0..FLOWS).map(|_| UdpSocket::bind("127.0.0.1:0").unwrap()).collect();
    for socket in &sockets {
        socket.connect(server).unwrap();
        socket.set_nonblocking(true).unwrap();
    }
    let query = Query::new(NAME, 1);
    let (mut sent, mut answered, mut buffer) = (0, 0, [0; 512]);
    let mut drain = |answered: &mut usize| {
        for socket in &sockets {
            while let Ok(length) = socket.recv(&mut buffer) {
                assert!(buffer[..length].windows(4).any(|bytes| bytes == [10, 96, 0, 9]));
                *answered += 1;
            }
        }
    };
    let mut next = Instant::now();
    while !done.load(Ordering::Relaxed) {
        let message = query.wire(u16::try_from(sent % 65_536).unwrap());
        sockets[sent % FLOWS].send(&message).unwrap();
        sent += 1;
        if sent % FLOWS == 0 {
            drain(&mut answered);
        }
        next += INTERVAL;
        std::thread::sleep(next.saturating_duration_since(Instant::now()));
    }
    let deadline = Instant::now() + REPLY_TIMEOUT;
    while answered < sent && Instant::now() < deadline {
        drain(&mut answered);
        std::thread::sleep(Duration::from_millis(5));
    }
    (sent, answered)
}

/// Each connection carries fifty queries, one after the other.
fn ask_by_tcp(server: SocketAddr, done: &AtomicBool) -> usize {
    let mut answered = 0;
    while !done.load(Ordering::Relaxed) {
        let mut stream = TcpStream::connect(server).unwrap();
        stream.set_read_timeout(Some(REPLY_TIMEOUT)).unwrap();
        for id in 0..50 {
            send(&mut stream, &Query::new(NAME, 1).wire(id));
            assert_eq!(receive(&mut stream)[..2], id.to_be_bytes());
            answered += 1;
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    answered
}

/// Complaint 8: restarts and reloads lost queries.
#[test]
fn complaint_8_no_query_is_lost_during_restarts_and_changes() {
    let mut server = Server::start(&[("web.yaml", WEB)], &[]);
    let (address, done) = (server.address, AtomicBool::new(false));
    std::thread::scope(|scope| {
        let by_udp: Vec<_> = (0..CLIENTS).map(|_| scope.spawn(|| ask_by_udp(address, &done))).collect();
        let by_tcp = scope.spawn(|| ask_by_tcp(address, &done));
        for n in 0..RESTARTS {
            server.apply("web.yaml", &format!("{WEB}# {n}\n"));
            server.succeed(&[]);
        }
        done.store(true, Ordering::Relaxed);
        for asker in by_udp {
            let (sent, answered) = asker.join().unwrap();
            assert!(sent > 500, "{sent} queries");
            assert_eq!(answered, sent);
        }
        assert!(by_tcp.join().unwrap() > 100);
    });
}

#[test]
fn cookies_stay_valid_and_the_number_of_workers_may_change() {
    let mut server = Server::start(&[("web.yaml", WEB)], &["--workers=3"]);
    let cookie = |shown: &[u8], server: &Server| {
        let reply: Reply = Query::new(NAME, 1).option(10, shown).ask(server.address);
        reply.option(10).unwrap().to_vec()
    };
    let first = cookie(b"12345678", &server);
    for workers in ["--workers=1", "--workers=4", "--workers=2"] {
        server.succeed(&[workers]);
        // Whichever socket receives them.
        for _ in 0..50 {
            assert_eq!(cookie(&first, &server), first);
        }
    }
}

/// If one of the two processes dies, the other one serves.
#[test]
fn next_process_that_never_serves_changes_nothing_and_one_whose_previous_process_dies_serves() {
    let mut server = Server::start(&[("web.yaml", WEB)], &[]);
    let manifests = tempfile::tempdir().unwrap();
    // It waits for a directory that does not exist yet.
    let unready = manifests.path().join("later");
    let mut heir = server.spawn_beside(&unready, &[]);
    server.wait_for_log("the next process has started");
    assert_eq!(server.status(&format!("{NAME} A")), "NOERROR");
    heir.kill().unwrap();
    heir.wait().unwrap();
    server.wait_for_log("the next process has not taken over");
    for _ in 0..20 {
        assert_eq!(server.status(&format!("{NAME} A")), "NOERROR");
    }
    let heir = server.spawn_beside(&unready, &[]);
    server.wait_for_log("the next process has started");
    server.replace(heir);
    assert_eq!(server.status(&format!("{NAME} A")), "SERVFAIL", "alone, and without a state");
    std::fs::create_dir(&unready).unwrap();
    testbed::wait_for("the state", || {
        anyhow::ensure!(server.status(&format!("{NAME} A")) == "NXDOMAIN");
        Ok(())
    })
    .unwrap();
}

/// Like a rolling update that considers the new process ready too early.
#[test]
fn process_that_receives_sigterm_while_the_next_one_reads_its_state_serves_until_that_one_does() {
    let mut server = Server::start(&[("web.yaml", WEB)], &[]);
    let manifests = tempfile::tempdir().unwrap();
    let later = manifests.path().join("later");
    let heir = server.spawn_beside(&later, &[]);
    server.wait_for_log("the next process has started");
    server.tell_to_end();
    for _ in 0..20 {
        assert_eq!(server.status(&format!("{NAME} A")), "NOERROR");
    }
    let unseen = manifests.path().join("unseen");
    std::fs::create_dir(&unseen).unwrap();
    std::fs::write(unseen.join("web.yaml"), WEB).unwrap();
    std::fs::rename(unseen, later).unwrap();
    let ended = server.give_way_to(heir);
    assert!(ended.success());
    assert_eq!(server.status(&format!("{NAME} A")), "NOERROR");
}

/// An open connection gets changes from whichever process serves it.
#[test]
fn connection_that_outlives_the_handover_is_answered_from_the_applied_state() {
    let mut server = Server::start(&[("web.yaml", WEB)], &[]);
    let mut stream = TcpStream::connect(server.address).unwrap();
    stream.set_read_timeout(Some(REPLY_TIMEOUT)).unwrap();
    let mut answer = || {
        send(&mut stream, &Query::new(NAME, 1).wire(1));
        receive(&mut stream)
    };
    let has = |reply: &[u8], host: u8| reply.windows(4).any(|bytes| bytes == [10, 96, 0, host]);
    assert!(has(&answer(), 9));
    let heir = server.spawn_beside(&server.manifests(), &[]);
    server.wait_for_log("draining");
    server.apply("web.yaml", &WEB.replace("10.96.0.9", "10.96.0.10"));
    testbed::wait_for("the change", || {
        anyhow::ensure!(has(&answer(), 10));
        Ok(())
    })
    .unwrap();
    drop(stream);
    assert!(server.give_way_to(heir).success());
}
