//! Malformed queries, and many of them at once.

use std::io::{Read, Write};
use std::net::{TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use crate::server::Server;

const WEB: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec: {clusterIP: 10.96.0.9, ports: [{port: 80}]}\n";

/// A query for the A records of a name, with up to two OPT records.
fn query(id: u16, name: &str, opts: u8) -> Vec<u8> {
    let mut message = [&id.to_be_bytes()[..], &[1, 0, 0, 1, 0, 0, 0, 0, 0, opts]].concat();
    for label in name.split('.') {
        message.push(u8::try_from(label.len()).unwrap());
        message.extend_from_slice(label.as_bytes());
    }
    message.extend_from_slice(&[0, 0, 1, 0, 1]);
    for _ in 0..opts {
        message.extend_from_slice(&[0, 0, 41, 16, 0, 0, 0, 0, 0, 0, 0]);
    }
    message
}

fn framed(message: &[u8]) -> Vec<u8> {
    [&u16::try_from(message.len()).unwrap().to_be_bytes()[..], message].concat()
}

fn next_frame(stream: &mut TcpStream) -> Vec<u8> {
    let mut length = [0; 2];
    stream.read_exact(&mut length).unwrap();
    let mut message = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut message).unwrap();
    message
}

fn connect(server: &Server) -> TcpStream {
    let stream = TcpStream::connect(server.address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}

fn socket(server: &Server) -> UdpSocket {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    socket.connect(server.address).unwrap();
    socket
}

fn ask(socket: &UdpSocket, message: &[u8]) -> Vec<u8> {
    socket.send(message).unwrap();
    let mut reply = vec![0; 4096];
    let length = socket.recv(&mut reply).unwrap();
    reply.truncate(length);
    reply
}

/// RFC 7766 §6.2.1, §8
#[test]
fn tcp_carries_hundreds_of_queries_at_a_time_in_pieces_of_any_size() {
    let server = Server::start(&[("web.yaml", WEB)], &[]);
    let mut stream = connect(&server);
    let all: Vec<u8> =
        (0..300).flat_map(|id| framed(&query(id, "web.default.svc.cluster.local", 1))).collect();
    let mut writer = stream.try_clone().unwrap();
    let writing = std::thread::spawn(move || {
        let (slowly, quickly) = all.split_at(500);
        for byte in slowly {
            writer.write_all(&[*byte]).unwrap();
        }
        writer.write_all(quickly).unwrap();
    });
    for id in 0..300_u16 {
        let reply = next_frame(&mut stream);
        assert_eq!(reply[..2], id.to_be_bytes());
        assert_eq!(reply[6..8], [0, 1], "one answer");
        assert!(reply.windows(4).any(|bytes| bytes == [10, 96, 0, 9]));
    }
    writing.join().unwrap();
}

/// RFC 7766 §6.2.1.1
#[test]
fn query_that_waits_for_upstream_delays_none_behind_it() {
    let silent = UdpSocket::bind("127.0.0.1:0").unwrap();
    let upstream = format!("--upstream={}", silent.local_addr().unwrap());
    let server = Server::start(&[("web.yaml", WEB)], &[&upstream]);
    let mut stream = connect(&server);
    let both = [query(1, "www.example.org", 0), query(2, "web.default.svc.cluster.local", 0)];
    stream.write_all(&both.map(|message| framed(&message)).concat()).unwrap();
    assert_eq!(next_frame(&mut stream)[..2], [0, 2]);
    let late = next_frame(&mut stream);
    assert_eq!((&late[..2], late[3] & 15), (&[0, 1][..], 2), "SERVFAIL, but an answer");
}

#[test]
fn responses_and_fragments_get_no_answer() {
    let server = Server::start(&[("web.yaml", WEB)], &[]);
    let socket = socket(&server);
    let mut response = query(1, "web.default.svc.cluster.local", 0);
    response[2] |= 0x80;
    for silent in [&response[..], &response[..11], b"", b"\0"] {
        socket.send(silent).unwrap();
    }
    // The first answer is for the first valid query.
    assert_eq!(ask(&socket, &query(7, "web.default.svc.cluster.local", 0))[..2], [0, 7]);
}

#[test]
fn wrong_counts_loops_and_second_opts_are_format_errors() {
    let server = Server::start(&[("web.yaml", WEB)], &[]);
    let socket = socket(&server);
    let good = query(3, "web.default.svc.cluster.local", 0);
    let with = |at: usize, bytes: &[u8]| {
        let mut message = good.clone();
        message[at..at + bytes.len()].copy_from_slice(bytes);
        message
    };
    for message in [
        with(4, &[255, 255]),
        with(4, &[0, 0]),
        with(6, &[255, 255, 255, 255, 255, 255]),
        with(12, &[0xc0, 12]),
        with(12, &[0x40]),
        query(3, "web.default.svc.cluster.local", 2),
        good[..good.len() - 1].to_vec(),
    ] {
        let reply = ask(&socket, &message);
        assert_eq!((&reply[..2], reply[2] & 0x80, reply[3] & 15), (&[0, 3][..], 0x80, 1), "{message:?}");
        assert!(reply.len() <= message.len() + 11, "no amplification");
    }
}

#[test]
fn garbage_over_tcp_a_byte_at_a_time_harms_no_other_client() {
    let server = Server::start(&[("web.yaml", WEB)], &[]);
    let mut garbage = connect(&server);
    let mut random = fastrand::Rng::with_seed(7);
    // One frame of the maximum size with random content.
    garbage.write_all(&[255, 255]).unwrap();
    for _ in 0..65_535 {
        garbage.write_all(&[random.u8(..) | 0x80]).unwrap();
    }
    let mut polite = connect(&server);
    polite.write_all(&framed(&query(5, "web.default.svc.cluster.local", 0))).unwrap();
    assert_eq!(next_frame(&mut polite)[..2], [0, 5]);
}

/// RFC 7766 §6.2.3, with the default limit on open files of a service.
#[test]
fn connections_up_to_the_limit_are_open_and_the_next_one_waits() {
    const MOST: usize = 4096;
    daemon::file_limit::raise();
    let server = Server::start(&[("web.yaml", WEB)], &[]);
    let own = server.open_files();
    let mut clients: Vec<TcpStream> = (0..MOST + 200).map(|_| connect(&server)).collect();
    testbed::wait_for("the clients", || {
        let open = server.open_files();
        anyhow::ensure!(open > 1024, "{open}");
        Ok(())
    })
    .unwrap();
    // UDP clients are not affected.
    let name = "web.default.svc.cluster.local";
    assert_eq!(ask(&socket(&server), &query(1, name, 0))[..2], [0, 1]);
    let open = server.open_files();
    assert!(open <= own + MOST + 1, "{open}, {own} before");
    let mut last = clients.pop().unwrap();
    last.write_all(&framed(&query(2, name, 0))).unwrap();
    drop(clients);
    assert_eq!(next_frame(&mut last)[..2], [0, 2]);
}

/// RFC 7766 §6.2.3
#[test]
fn idle_connection_is_closed_but_not_one_that_waits_for_an_answer() {
    let silent = UdpSocket::bind("127.0.0.1:0").unwrap();
    let upstream = format!("--upstream={}", silent.local_addr().unwrap());
    let server = Server::start(&[("web.yaml", WEB)], &[&upstream]);
    let (mut idle, mut busy) = (connect(&server), connect(&server));
    for stream in [&idle, &busy] {
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    }
    busy.write_all(&framed(&query(1, "www.example.org", 0))).unwrap();
    assert_eq!(next_frame(&mut busy)[..2], [0, 1]);
    assert_eq!(idle.read(&mut [0]).unwrap(), 0, "closed, after ten seconds");
}

/// RFC 8020; the SOA record must be that of a parent.
#[test]
fn reverse_names_above_an_address_exist_and_name_their_own_zone() {
    let server = Server::start(&[("web.yaml", WEB)], &[]);
    for (question, status) in [
        ("0.96.10.in-addr.arpa PTR", "NOERROR"),
        ("96.10.in-addr.arpa PTR", "NOERROR"),
        ("7.96.10.in-addr.arpa PTR", "NXDOMAIN"),
        ("8.0.96.10.in-addr.arpa PTR", "NXDOMAIN"),
        ("9.0.96.10.in-addr.arpa TXT", "NOERROR"),
        ("x.9.0.96.10.in-addr.arpa PTR", "NXDOMAIN"),
    ] {
        assert_eq!(server.status(question), status, "{question}");
        let authority = server.dig(&format!("+noall +authority {question}"));
        assert!(authority.starts_with("96.10.in-addr.arpa."), "{question}: {authority}");
    }
    assert_eq!(server.dig("+short -x 10.96.0.9").trim(), "web.default.svc.cluster.local.");
}

#[test]
fn names_of_an_endpoint_are_added_and_removed_with_it() {
    let slice = |endpoints: &str| {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: db}}\nspec: {{clusterIP: None}}\n---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: db-1, labels: {{kubernetes.io/service-name: db}}}}\naddressType: IPv4\nendpoints: [{endpoints}]\n"
        )
    };
    let (one, two) = ("{addresses: [10.4.0.1]}", "{addresses: [10.4.0.2], hostname: db-0}");
    let server = Server::start(&[("db.yaml", &slice(one)), ("web.yaml", WEB)], &[]);
    assert_eq!(server.dig("+short -x 10.4.0.1").trim(), "10-4-0-1.db.default.svc.cluster.local.");
    server.apply("db.yaml", &slice(two));
    testbed::wait_for("the other endpoint", || {
        anyhow::ensure!(server.dig("+short db.default.svc.cluster.local A").trim() == "10.4.0.2");
        Ok(())
    })
    .unwrap();
    assert_eq!(server.status("10-4-0-1.db.default.svc.cluster.local A"), "NXDOMAIN");
    assert_eq!(server.dig("+short -x 10.4.0.2").trim(), "db-0.db.default.svc.cluster.local.");
    // The address belongs to no Service now, so it is forwarded, and there is no upstream server.
    assert_eq!(server.status("-x 10.4.0.1"), "SERVFAIL");
    server.apply("db.yaml", "");
    testbed::wait_for("the Service to be removed", || {
        anyhow::ensure!(server.status("db.default.svc.cluster.local A") == "NXDOMAIN");
        Ok(())
    })
    .unwrap();
    assert_eq!(server.dig("+short web.default.svc.cluster.local A").trim(), "10.96.0.9");
}

/// RFC 7766 §10: slow connections of one client do not keep others out.
#[test]
fn client_that_holds_every_connection_loses_the_oldest_to_another_client() {
    daemon::file_limit::raise();
    let server = Server::start(&[("web.yaml", WEB)], &[]);
    let slow: Vec<TcpStream> = (0..4096)
        .map(|_| {
            let mut stream = connect(&server);
            // The length of a query, but never the query.
            stream.write_all(&[0]).unwrap();
            stream
        })
        .collect();
    let reply = server.dig("-b 127.0.0.2 +tcp +short web.default.svc.cluster.local A");
    assert_eq!(reply.trim(), "10.96.0.9");
    drop(slow);
}

/// A query must be complete within the idle timeout, even if bytes keep arriving.
#[test]
fn query_that_arrives_a_byte_at_a_time_without_end_is_given_up() {
    let server = Server::start(&[("web.yaml", WEB)], &[]);
    let mut slow = connect(&server);
    let started = Instant::now();
    slow.write_all(&[255, 255]).unwrap();
    slow.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    while slow.write_all(&[0]).is_ok() && !matches!(slow.read(&mut [0]), Ok(0)) {
        assert!(started.elapsed() < Duration::from_secs(40), "still open");
    }
    assert!(started.elapsed() > Duration::from_secs(5), "{:?}", started.elapsed());
}

#[test]
fn half_sent_queries_take_bounded_memory() {
    daemon::file_limit::raise();
    let server = Server::start(&[("web.yaml", WEB)], &[]);
    let before = server.memory("VmRSS");
    let half = [&[255, 255][..], &[0; 60_000]].concat();
    let clients: Vec<TcpStream> = (0..1500)
        .map(|_| {
            let mut stream = connect(&server);
            stream.set_write_timeout(Some(Duration::from_secs(5))).unwrap();
            // The server may have closed it.
            let _ = stream.write_all(&half);
            stream
        })
        .collect();
    let taken = server.memory("VmRSS").saturating_sub(before);
    assert!(taken < 48 << 10, "{taken} KiB");
    drop(clients);
    assert_eq!(server.dig("+short web.default.svc.cluster.local A").trim(), "10.96.0.9");
}
