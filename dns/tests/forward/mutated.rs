//! Thousands of mutated replies. The number in a name is the seed of its reply.

use std::net::UdpSocket;
use std::time::Duration;

use fastrand::Rng;

use crate::server::Server;
use crate::upstream::{Answers, ReceivedQuery, Upstream, a, contains, now, record, reply, soa};

/// Concurrent queries.
const AT_ONCE: u16 = 50;

/// Names of unrelated records in the replies.
const VICTIMS: u16 = 100;

fn victim(number: u16) -> String {
    format!("victim{:02}", number % VICTIMS)
}

/// A valid reply of some kind, with unrelated records.
fn real(query: &[u8], number: u16) -> Vec<u8> {
    let forged =
        record(&[b"\x08", victim(number).as_bytes(), b"\x04test\0"].concat(), 1, 600, &[203, 0, 113, 66]);
    let alias = record(b"\xC0\x0C", 5, 60, b"\x06target\x04test\0");
    let target = record(b"\x06target\x04test\0", 1, 60, &[192, 0, 2, 8]);
    let signature =
        record(b"\xC0\x0C", 46, 60, b"\0\x01\x05\x02\0\0\0\x3c\x7f\0\0\0\x60\0\0\0\0\x07\x04test\0sig");
    let own = a(60, [192, 0, 2, 1]);
    match number % 5 {
        0 => reply(query, 0, &[own, forged], &[]),
        1 => reply(query, 0, &[alias, target, forged], &[soa(60)]),
        2 => reply(query, 3, &[], &[soa(60), forged]),
        3 => reply(query, 0, &[own, signature], &[forged]),
        _ => reply(query, 0, &[record(b"\xC0\x0C", 15, 60, b"\0\x0a\x02mx\xC0\x0C"), forged], &[]),
    }
}

fn mutate(random: &mut Rng, mut message: Vec<u8>) -> Vec<u8> {
    for _ in 0..random.u8(1..4) {
        let at = random.usize(..message.len());
        match random.u8(..7) {
            0 => message[at] ^= 1 << random.u8(..8),
            1 => message.truncate(at.max(2)),
            2 => message[4 + at % 8] = random.u8(..),
            3 => message[at] = 0xC0 | random.u8(..),
            4 => message[at % 2] ^= 1 << random.u8(..8),
            5 => {
                let question = 12 + at % 16;
                message[question] = random.u8(..);
            }
            _ => message.extend(std::iter::repeat_with(|| random.u8(..)).take(at)),
        }
        if message.len() < 30 {
            break;
        }
    }
    message
}

/// The number in a name such as `m17.test`.
fn number(query: &[u8]) -> Option<u16> {
    let label = query.get(13..13 + usize::from(query[12]))?.to_ascii_lowercase();
    std::str::from_utf8(label.strip_prefix(b"m")?).ok()?.parse().ok()
}

fn script(received: &ReceivedQuery) -> Answers {
    let Some(number) = number(&received.query) else {
        return now(reply(&received.query, 0, &[a(60, [192, 0, 2, 7])], &[]));
    };
    let mutated = mutate(&mut Rng::with_seed(number.into()), real(&received.query, number));
    let good = reply(&received.query, 0, &[a(60, [192, 0, 2, 1])], &[]);
    vec![(Duration::ZERO, mutated), (Duration::from_millis(2), good)]
}

fn query(number: u16) -> Vec<u8> {
    let name = format!("m{number}");
    let header = [&number.to_be_bytes()[..], &[1, 0, 0, 1, 0, 0, 0, 0, 0, 0]].concat();
    [&header[..], &[u8::try_from(name.len()).unwrap()], name.as_bytes(), b"\x04test\0\0\x01\0\x01"].concat()
}

/// Every query gets some answer.
fn ask_all(server: &Server, numbers: std::ops::Range<u16>) {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.connect(server.address).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    for first in numbers.clone().step_by(AT_ONCE.into()) {
        let batch = first..(first + AT_ONCE).min(numbers.end);
        for number in batch.clone() {
            socket.send(&query(number)).unwrap();
        }
        for _ in batch {
            let mut reply = [0; 4096];
            let length = socket.recv(&mut reply).unwrap();
            let number = u16::from_be_bytes([reply[0], reply[1]]);
            let question = &query(number)[12..];
            assert_eq!(reply.get(12..12 + question.len()).filter(|_| length > 12), Some(question));
        }
        assert_eq!(server.short(&format!("good{first}.test A")), "192.0.2.7", "beside {first}");
    }
}

#[test]
fn mutated_replies_crash_nothing_poison_nothing_and_delay_no_other_query() {
    let upstream = Upstream::start(script);
    let server = Server::start(&[&format!("--upstream={}", upstream.address)]);
    ask_all(&server, 0..2500);
    let by_tcp = Server::start(&[&format!("--upstream=tcp://{}", upstream.address)]);
    ask_all(&by_tcp, 2500..3000);
    for server in [&server, &by_tcp] {
        for number in 0..VICTIMS {
            assert_eq!(server.short(&format!("{}.test A", victim(number))), "192.0.2.7");
        }
    }
    upstream.with_seen(|seen| {
        assert!(seen.iter().filter(|received| contains(&received.query, "m2")).count() > 900)
    });
}
