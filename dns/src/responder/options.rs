//! EDNS options of a reply, which the query requested: the server's name (RFC 5001), a cookie (RFC 7873), the
//! idle timeout of the connection (RFC 7828), padding (RFC 7830).

use std::net::SocketAddr;
use std::time::Duration;

use hickory_server::proto::op;
use hickory_server::proto::rr::rdata::opt::EdnsOption;

use super::cookie::{CLIENT, COOKIE, Secret};
use super::reply::{MAX_DATAGRAM, Reason, explain};
use crate::message::{Edns, option};
use crate::metrics::Protocol;

/// Maximum bytes of the server's name.
pub(crate) const MAX_NSID: usize = 128;

/// The idle timeout of connections (RFC 7766 §6.2.3 recommends seconds), which is announced to the client.
pub(crate) const IDLE: Duration = Duration::from_secs(10);

/// Bytes of the code and the length of an option.
const HEAD: usize = 4;

/// Maximum bytes of all options: the name, a cookie, two bytes of time.
const ROOM: usize = HEAD + MAX_NSID + HEAD + COOKIE + HEAD + 2;

/// Padded replies have a multiple of this length (RFC 8467 §4.1).
const BLOCK: usize = 468;

/// The settings for options.
#[derive(Debug)]
pub(crate) struct Options {
    /// Empty, if the server has no name.
    pub(crate) nsid: Box<[u8]>,
    pub(crate) secret: Secret,
}

/// The options of one reply, in wire format.
#[derive(Clone, Copy, Debug)]
pub(crate) struct EdnsReply {
    bytes: [u8; ROOM],
    length: usize,
    pads: bool,
}

/// The transport of a reply.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Transport<'a> {
    pub(crate) protocol: Protocol,
    /// Only if the query has options.
    pub(crate) granted: Option<&'a EdnsReply>,
}

impl Options {
    /// The answers to a query's options. `option` returns the content of an option by code.
    pub(crate) fn grant<'o>(
        &self,
        option: impl Fn(u16) -> Option<&'o [u8]>,
        protocol: Protocol,
        client: impl FnOnce() -> Option<SocketAddr>,
    ) -> EdnsReply {
        let mut granted = EdnsReply { bytes: [0; ROOM], length: 0, pads: false };
        if option(option::NSID).is_some() && !self.nsid.is_empty() {
            granted.put(option::NSID, &self.nsid);
        }
        if let Some(cookie) = option(option::COOKIE)
            && let Some((of_client, of_server)) = cookie.split_first_chunk::<CLIENT>()
            && let Some(client) = client()
        {
            granted.put(option::COOKIE, &self.secret.cookie(*of_client, of_server, client.ip()));
        }
        // UDP has no connection (RFC 7828 §3.2.1), and HTTP and QUIC manage theirs (RFC 9250 §5.5.2).
        if matches!(protocol, Protocol::Tcp | Protocol::Tls) && option(option::TCP_KEEPALIVE).is_some() {
            let tenths = u16::try_from(IDLE.as_millis() / 100).unwrap_or(u16::MAX);
            granted.put(option::TCP_KEEPALIVE, &tenths.to_be_bytes());
        }
        granted.pads = protocol.is_encrypted() && option(option::PADDING).is_some();
        granted
    }
}

impl EdnsReply {
    /// Appends an option. It is left out if it does not fit.
    fn put(&mut self, code: u16, content: &[u8]) {
        let end = self.length + HEAD + content.len();
        let Some(room) = self.bytes.get_mut(self.length..end) else { return };
        let (head, body) = room.split_at_mut(HEAD);
        let length = u16::try_from(content.len()).unwrap_or_default();
        head[..2].copy_from_slice(&code.to_be_bytes());
        head[2..].copy_from_slice(&length.to_be_bytes());
        body.copy_from_slice(content);
        self.length = end;
    }

    fn needs(&self) -> usize {
        self.length + if self.pads { HEAD } else { 0 }
    }

    fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..self.length).unwrap_or_default()
    }
}

impl Transport<'_> {
    /// Bytes that the OPT record needs, without the optional parts: Extended DNS Errors, and padding except
    /// for its header.
    pub(crate) fn needs(self, edns: Option<Edns<'_>>) -> usize {
        if edns.is_none() { 0 } else { Edns::LENGTH + self.granted.map_or(0, EdnsReply::needs) }
    }

    /// hickory's OPT record for a message that has `length` bytes without it.
    pub(super) fn edns(
        self,
        dnssec_ok: bool,
        reason: Option<Reason>,
        (length, limit): (usize, usize),
    ) -> op::Edns {
        // Like the fast path: the length of the padding depends on everything before.
        let mut bytes = vec![0; length];
        let room = limit.saturating_sub(length + Edns::LENGTH + self.granted.map_or(0, EdnsReply::needs));
        Edns::new(MAX_DATAGRAM, 0, dnssec_ok).write(&mut bytes);
        let options = bytes.len();
        self.put_options(&mut bytes, 0, |out| explain(out, reason, room));
        let mut edns = op::Edns::new();
        edns.set_max_payload(MAX_DATAGRAM).set_dnssec_ok(dnssec_ok);
        for (code, content) in Edns::split(bytes.get(options..).unwrap_or_default()) {
            edns.options_mut().insert(EdnsOption::Unknown(code, content.to_vec()));
        }
        edns
    }

    /// Appends the options to a message whose last record is an OPT record without options. `more` appends
    /// those of the message itself.
    pub(crate) fn put_options(self, out: &mut Vec<u8>, start: usize, more: impl FnOnce(&mut Vec<u8>)) {
        let options = out.len();
        if let Some(granted) = self.granted {
            out.extend_from_slice(granted.as_bytes());
        }
        more(out);
        if self.granted.is_some_and(|granted| granted.pads) {
            let length = out.len() - start + HEAD;
            // Up to the maximum message size.
            let padded = length.next_multiple_of(BLOCK).min(usize::from(u16::MAX));
            let padding = padded.saturating_sub(length);
            out.extend_from_slice(&option::PADDING.to_be_bytes());
            out.extend_from_slice(&u16::try_from(padding).unwrap_or_default().to_be_bytes());
            out.resize(out.len() + padding, 0);
        }
        let length = u16::try_from(out.len() - options).unwrap_or_default();
        if length > 0
            && let Some(bytes) = out.get_mut(options - 2..options)
        {
            bytes.copy_from_slice(&length.to_be_bytes());
        }
    }
}
