//! Resolves a name as glibc does: sends A and AAAA together on one socket and waits for both answers.

use std::io;
use std::net::{IpAddr, Ipv4Addr, UdpSocket};

use super::DEADLINE;

/// The pods' DNS server.
const NAMESERVER: &str = "10.96.0.10:53";

const A: u16 = 1;
const AAAA: u16 = 28;

/// Returns the first IPv4 address of a fully qualified name.
pub(super) fn resolve(name: &str) -> io::Result<IpAddr> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.connect(NAMESERVER)?;
    socket.set_read_timeout(Some(DEADLINE))?;
    for kind in [A, AAAA] {
        socket.send(&query(name, kind))?;
    }
    let mut found = None;
    let mut answer = [0; 1232];
    for _ in [A, AAAA] {
        let length = socket.recv(&mut answer)?;
        let first = address(&answer[..length]);
        found = found.or(first);
    }
    found.map(IpAddr::V4).ok_or_else(|| io::Error::other(format!("{name} has no address")))
}

/// Encodes a query whose id is the record type.
fn query(name: &str, kind: u16) -> Vec<u8> {
    let mut message = kind.to_be_bytes().to_vec();
    // Recursion desired; one question.
    message.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    for label in name.split('.') {
        message.push(u8::try_from(label.len()).unwrap_or(0));
        message.extend(label.as_bytes());
    }
    message.push(0);
    message.extend(kind.to_be_bytes());
    message.extend([0, 1]);
    message
}

/// Returns the first A record of an answer.
fn address(message: &[u8]) -> Option<Ipv4Addr> {
    let number =
        |at: usize| Some(usize::from(u16::from_be_bytes([*message.get(at)?, *message.get(at + 1)?])));
    let mut at = after_name(message, 12)? + 4;
    for _ in 0..number(6)? {
        at = after_name(message, at)?;
        let (kind, length) = (number(at)?, number(at + 8)?);
        if kind == usize::from(A) && length == 4 {
            let octets: [u8; 4] = message.get(at + 10..at + 14)?.try_into().ok()?;
            return Some(octets.into());
        }
        at += 10 + length;
    }
    None
}

/// Returns the offset after a name: after its root label or its compression pointer.
fn after_name(message: &[u8], mut at: usize) -> Option<usize> {
    loop {
        match *message.get(at)? {
            0 => return Some(at + 1),
            pointer if pointer >= 0xC0 => return Some(at + 2),
            length => at += usize::from(length) + 1,
        }
    }
}
