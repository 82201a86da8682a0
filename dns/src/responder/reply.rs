//! A reply within the size limit of its transport.

use std::net::IpAddr;

use hickory_server::proto::ProtoError;
use hickory_server::proto::op::{HeaderCounts, Message, emit_message_parts};
use hickory_server::proto::serialize::binary::BinEncoder;

use super::options::Transport;
use crate::message::{CLASS_IN, Ede, Edns, Header, Query, Question, flag, kind, option, rcode};
use crate::metrics::Protocol;
use crate::zone::Zone;

/// Datagrams of this size are not fragmented (DNS flag day 2020).
pub(super) const MAX_DATAGRAM: u16 = 1232;

/// The maximum size for a client without EDNS (RFC 1035 §4.2.1).
const PLAIN_DATAGRAM: u16 = 512;

/// A pointer to the question's name, which every reply repeats.
const QUESTION: u16 = 0xc000 | 12;

/// Larger offsets cannot be used in pointers.
const MAX_POINTER: usize = 0x3fff;

/// An Extended DNS Error: its code and text.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reason(pub(crate) u16, pub(crate) &'static str);

/// A reply under construction, after the existing content of the buffer.
pub(crate) struct Reply<'o> {
    out: &'o mut Vec<u8>,
    start: usize,
    limit: usize,
    header: Header,
    question: usize,
    edns: Option<bool>,
    transport: Transport<'o>,
}

impl<'o> Reply<'o> {
    /// A reply to a valid query.
    pub(crate) fn to(
        query: &Query<'_>,
        message: &[u8],
        out: &'o mut Vec<u8>,
        transport: Transport<'o>,
    ) -> Self {
        Self::new(out, message, query.header, Some(query.question), query.edns, transport)
    }

    /// Repeats the question, and has EDNS exactly if the query has (RFC 6891 §6.1.1).
    pub(crate) fn new(
        out: &'o mut Vec<u8>,
        message: &[u8],
        query: Header,
        question: Option<Question<'_>>,
        edns: Option<Edns<'_>>,
        transport: Transport<'o>,
    ) -> Self {
        let start = out.len();
        // Returns the opcode, RD and CD (RFC 4035 §3.1.6), but not AD, Z and other bits.
        let flags = flag::QR | flag::RA | query.flags & (0x7800 | flag::RD | flag::CD);
        let header =
            Header { id: query.id, flags, questions: u16::from(question.is_some()), ..Header::default() };
        out.extend_from_slice(&header.to_wire());
        let length = question.map_or(0, |question| question.name.wire().len() + 4);
        out.extend_from_slice(message.get(Header::LENGTH..Header::LENGTH + length).unwrap_or_default());
        let limit = limit(edns, transport.protocol) - transport.needs(edns);
        Self { out, start, limit, header, question: length, edns: edns.map(|edns| edns.dnssec_ok), transport }
    }

    /// Marks the reply as authoritative.
    pub(crate) fn authoritative(&mut self, zone: &Zone) {
        self.header.flags |= flag::AA;
        if zone.settings.names.is_coredns() {
            self.header.flags &= !flag::RA;
        }
    }

    /// Adds a record of the queried name. Returns the offset of its RDATA. Sets TC if it does not fit.
    pub(crate) fn answer(&mut self, kind: u16, ttl: u32, content: &[u8]) -> Option<usize> {
        let at = self.record(QUESTION, kind, ttl, content);
        match at {
            Some(_) => self.header.answers += 1,
            None => self.header.flags |= flag::TC,
        }
        at
    }

    /// Adds the SOA record of the zone whose name is the last `apex` bytes of the queried name.
    pub(crate) fn soa(&mut self, apex: usize, zone: &Zone) {
        let offset = Header::LENGTH + self.question.saturating_sub(4 + apex);
        let owner = QUESTION & 0xc000 | u16::try_from(offset).unwrap_or(12);
        if self.record(owner, kind::SOA, zone.settings.ttl, &zone.soa).is_some() {
            self.header.authorities += 1;
        }
    }

    /// Adds the addresses of a name at this offset of the reply, as far as they fit.
    pub(crate) fn addresses(&mut self, name: usize, addresses: &[IpAddr], ttl: u32) {
        let Some(owner) = u16::try_from(name).ok().filter(|_| name <= MAX_POINTER) else { return };
        for address in addresses {
            let added = match address {
                IpAddr::V4(ip) => self.record(0xc000 | owner, kind::A, ttl, &ip.octets()),
                IpAddr::V6(ip) => self.record(0xc000 | owner, kind::AAAA, ttl, &ip.octets()),
            };
            self.header.additionals += u16::from(added.is_some());
        }
    }

    /// Whether there is no answer, even with a larger message.
    pub(crate) fn is_empty(&self) -> bool {
        self.header.answers == 0 && !self.is_cut()
    }

    /// Whether no other transport allows larger messages.
    pub(crate) fn is_stream(&self) -> bool {
        self.transport.protocol != Protocol::Udp
    }

    /// Removes the answers.
    pub(crate) fn begin_again(&mut self) {
        self.out.truncate(self.start + Header::LENGTH + self.question);
        self.header.flags &= !flag::TC;
        self.header.answers = 0;
    }

    /// Whether an answer did not fit.
    pub(crate) fn is_cut(&self) -> bool {
        self.header.has(flag::TC)
    }

    /// Completes the reply. Returns the code.
    pub(crate) fn finish(&mut self, rcode: u16, reason: Option<Reason>) -> u16 {
        self.header.flags |= rcode & 0xf;
        if let Some(dnssec_ok) = self.edns {
            self.header.additionals += 1;
            let room = self.limit.saturating_sub(self.out.len() - self.start);
            Edns::new(MAX_DATAGRAM, rcode, dnssec_ok).write(self.out);
            self.transport.put_options(self.out, self.start, |out| explain(out, reason, room));
        }
        if let Some(bytes) = self.out.get_mut(self.start..self.start + Header::LENGTH) {
            bytes.copy_from_slice(&self.header.to_wire());
        }
        rcode
    }

    fn record(&mut self, owner: u16, kind: u16, ttl: u32, content: &[u8]) -> Option<usize> {
        let length = u16::try_from(content.len()).ok()?;
        if self.out.len() - self.start + 12 + content.len() > self.limit {
            return None;
        }
        let ([o1, o2], [k1, k2], [c1, c2]) =
            (owner.to_be_bytes(), kind.to_be_bytes(), CLASS_IN.to_be_bytes());
        let ([t1, t2, t3, t4], [l1, l2]) = (ttl.to_be_bytes(), length.to_be_bytes());
        self.out.extend_from_slice(&[o1, o2, k1, k2, c1, c2, t1, t2, t3, t4, l1, l2]);
        let at = self.out.len() - self.start;
        self.out.extend_from_slice(content);
        Some(at)
    }
}

/// The maximum size for the client.
pub(super) fn limit(edns: Option<Edns<'_>>, protocol: Protocol) -> usize {
    let limit = match (protocol, edns) {
        (Protocol::Udp, Some(edns)) => edns.payload.clamp(PLAIN_DATAGRAM, MAX_DATAGRAM),
        (Protocol::Udp, None) => PLAIN_DATAGRAM,
        (_, _) => u16::MAX,
    };
    usize::from(limit)
}

/// Appends the Extended DNS Error if it fits, without its text if necessary.
pub(super) fn explain(out: &mut Vec<u8>, reason: Option<Reason>, room: usize) {
    let Some(Reason(code, text)) = reason else { return };
    let text = if 6 + text.len() <= room { text } else { "" };
    if 6 + text.len() <= room {
        let length = u16::try_from(2 + text.len()).unwrap_or_default();
        for word in [option::EDE, length, code] {
            out.extend_from_slice(&word.to_be_bytes());
        }
        out.extend_from_slice(text.as_bytes());
    }
}

/// Appends an OPT record, if the client uses EDNS. `limit` is the maximum size for the client.
pub(super) fn close(
    out: &mut Vec<u8>,
    start: usize,
    edns: Option<Edns<'_>>,
    transport: Transport<'_>,
    (code, reason): (u16, Option<Reason>),
) {
    let Some(requested) = edns else { return };
    let length = out.len() - start + transport.needs(edns);
    let room = limit(edns, transport.protocol).saturating_sub(length);
    Edns::new(MAX_DATAGRAM, code, requested.dnssec_ok).write(out);
    transport.put_options(out, start, |out| explain(out, reason, room));
    if let Some([high, low]) = out.get_mut(start + 10..start + 12) {
        [*high, *low] = (u16::from_be_bytes([*high, *low]) + 1).to_be_bytes();
    }
}

/// The Extended DNS Error of a reply with an error code only.
pub(super) fn reason(code: u16) -> Option<Reason> {
    let (reason, text) = match code {
        rcode::FORMERR => (Ede::Other, "the query is malformed"),
        rcode::NOTIMP => (Ede::NotSupported, "only standard queries are answered"),
        rcode::BADVERS => (Ede::NotSupported, "only version 0 of EDNS is spoken"),
        _ => return None,
    };
    Some(Reason(reason as u16, text))
}

/// Adapts the forwarder's message, from `start` on, to this client: within its limit, and with EDNS if it
/// uses it. Returns the code.
pub(crate) fn complete(
    out: &mut Vec<u8>,
    start: usize,
    query: &Query<'_>,
    transport: Transport<'_>,
    reason: Option<Reason>,
) -> u16 {
    let limit = limit(query.edns, transport.protocol);
    let length = out.len() - start;
    let code = out.get(start + 3).map_or(0, |flags| u16::from(flags & 0xf));
    let opt = transport.needs(query.edns);
    if length + opt > limit {
        let whole = out.split_off(start);
        let dnssec_ok = query.edns.is_some_and(|edns| edns.dnssec_ok);
        cut(&whole, out, dnssec_ok, limit.saturating_sub(opt));
    }
    close(out, start, query.edns, transport, (code, reason));
    code
}

/// Truncates a message.
fn cut(whole: &[u8], out: &mut Vec<u8>, dnssec_ok: bool, limit: usize) {
    // The cache contains complete messages.
    let Ok(mut message) = Message::from_vec(whole) else { return };
    let fitted = fit(&mut message, dnssec_ok, limit, |message, encoder| {
        let Message { metadata, queries, answers, authorities, additionals, .. } = message;
        let header = emit_message_parts(
            metadata,
            &mut queries.iter(),
            &mut answers.iter(),
            &mut authorities.iter(),
            &mut additionals.iter(),
            None,
            None,
            encoder,
        )?;
        Ok(header.counts)
    });
    out.extend(fitted.unwrap_or_default());
}

/// Removes records from the end until the message fits, and returns it as `emit` encodes it. Sets TC if
/// ANSWER is truncated (RFC 2181 §9), or the proofs in AUTHORITY that a validating client needs (RFC 4035
/// §3.1.1).
///
/// # Errors
/// If hickory cannot encode it.
pub(super) fn fit(
    message: &mut Message,
    dnssec_ok: bool,
    limit: usize,
    emit: impl Fn(&Message, &mut BinEncoder<'_>) -> Result<HeaderCounts, ProtoError>,
) -> Result<Vec<u8>, ProtoError> {
    let encode = |message: &Message| {
        let mut bytes = Vec::with_capacity(512);
        let mut encoder = BinEncoder::new(&mut bytes);
        encoder.set_max_size(u16::try_from(limit).unwrap_or(u16::MAX));
        let counts = emit(message, &mut encoder)?;
        Ok::<_, ProtoError>((bytes, counts))
    };
    let (bytes, counts) = encode(message)?;
    let (answers, authorities) = (usize::from(counts.answers), usize::from(counts.authorities));
    let has_answers = answers == message.answers.len();
    let has_authorities = authorities == message.authorities.len();
    if has_answers && has_authorities && usize::from(counts.additionals) == message.additionals.len() {
        return Ok(bytes);
    }
    message.metadata.truncation = !has_answers || dnssec_ok && !has_authorities;
    message.answers.truncate(answers);
    message.authorities.truncate(if has_answers { authorities } else { 0 });
    message.additionals.clear();
    Ok(encode(message)?.0)
}
