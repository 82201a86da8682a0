//! Encodes an exchange in dnstap's protobuf format. Fourteen fields: a library would add three crates.

use std::net::SocketAddr;
use std::time::{SystemTime, UNIX_EPOCH};

use super::Exchange;
use crate::metrics::Protocol;

const VERSION: &str = concat!("portolan-dns ", env!("CARGO_PKG_VERSION"));

/// The message of a frame.
#[derive(Clone, Copy, Debug)]
pub(super) enum MessageType {
    Query,
    Reply,
}

/// Field numbers of `Dnstap` and `Message`, and enum values, of dnstap.proto.
mod number {
    pub(super) const IDENTITY: u64 = 1;
    pub(super) const VERSION: u64 = 2;
    pub(super) const MESSAGE: u64 = 14;
    pub(super) const TYPE: u64 = 15;
    pub(super) const TYPE_MESSAGE: u64 = 1;

    pub(super) const MESSAGE_TYPE: u64 = 1;
    pub(super) const SOCKET_FAMILY: u64 = 2;
    pub(super) const SOCKET_PROTOCOL: u64 = 3;
    pub(super) const QUERY_ADDRESS: u64 = 4;
    pub(super) const QUERY_PORT: u64 = 6;
    pub(super) const QUERY_TIME: (u64, u64) = (8, 9);
    pub(super) const QUERY_MESSAGE: u64 = 10;
    pub(super) const RESPONSE_TIME: (u64, u64) = (12, 13);
    pub(super) const RESPONSE_MESSAGE: u64 = 14;
    pub(super) const CLIENT_QUERY: u64 = 5;
    pub(super) const CLIENT_RESPONSE: u64 = 6;
}

/// Wire types: <https://protobuf.dev/programming-guides/encoding/>.
mod wire {
    pub(super) const VARINT: u64 = 0;
    pub(super) const LENGTH: u64 = 2;
    pub(super) const FIXED32: u64 = 5;
}

/// Appends the frame.
pub(super) fn encode(exchange: &Exchange, message_type: MessageType, identity: &str, out: &mut Vec<u8>) {
    let mut message = Vec::with_capacity(64 + exchange.query.len() + exchange.reply.len());
    encode_message(exchange, message_type, &mut message);
    bytes(number::IDENTITY, identity.as_bytes(), out);
    bytes(number::VERSION, VERSION.as_bytes(), out);
    bytes(number::MESSAGE, &message, out);
    integer(number::TYPE, number::TYPE_MESSAGE, out);
}

fn encode_message(exchange: &Exchange, message_type: MessageType, out: &mut Vec<u8>) {
    let Exchange { protocol, client, asked_at, answered_at, query, reply } = exchange;
    let kind = match message_type {
        MessageType::Query => number::CLIENT_QUERY,
        MessageType::Reply => number::CLIENT_RESPONSE,
    };
    integer(number::MESSAGE_TYPE, kind, out);
    if let Some(client) = client {
        integer(number::SOCKET_FAMILY, if client.is_ipv4() { 1 } else { 2 }, out);
    }
    let protocol = match protocol {
        Protocol::Udp => 1,
        Protocol::Tcp => 2,
        Protocol::Tls => 3,
        Protocol::Https => 4,
        Protocol::Quic => 7,
    };
    integer(number::SOCKET_PROTOCOL, protocol, out);
    if let Some(client) = client {
        match client {
            SocketAddr::V4(v4) => bytes(number::QUERY_ADDRESS, &v4.ip().octets(), out),
            SocketAddr::V6(v6) => bytes(number::QUERY_ADDRESS, &v6.ip().octets(), out),
        }
        integer(number::QUERY_PORT, client.port().into(), out);
    }
    time(number::QUERY_TIME, *asked_at, out);
    match message_type {
        MessageType::Query => bytes(number::QUERY_MESSAGE, query, out),
        MessageType::Reply => {
            time(number::RESPONSE_TIME, *answered_at, out);
            bytes(number::RESPONSE_MESSAGE, reply, out);
        }
    }
}

fn time((seconds, nanoseconds): (u64, u64), at: SystemTime, out: &mut Vec<u8>) {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    integer(seconds, since.as_secs(), out);
    varint(nanoseconds << 3 | wire::FIXED32, out);
    out.extend(since.subsec_nanos().to_le_bytes());
}

fn integer(field: u64, value: u64, out: &mut Vec<u8>) {
    varint(field << 3 | wire::VARINT, out);
    varint(value, out);
}

fn bytes(field: u64, value: &[u8], out: &mut Vec<u8>) {
    varint(field << 3 | wire::LENGTH, out);
    varint(value.len() as u64, out);
    out.extend(value);
}

/// Seven bits per byte, the lowest first; the eighth bit means that more follow.
fn varint(mut value: u64, out: &mut Vec<u8>) {
    while value > 0x7f {
        out.push(value.to_le_bytes()[0] | 0x80);
        value >>= 7;
    }
    out.push(value.to_le_bytes()[0]);
}
