//! Encoding of nfnetlink messages: headers, attributes, acknowledgements.

use std::io;

/// `NFNL_SUBSYS_NFTABLES`.
const SUBSYSTEM: u8 = 10;

/// `NFNL_MSG_BATCH_BEGIN`, `NFNL_MSG_BATCH_END`.
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;

/// `NLM_F_REQUEST`, `NLM_F_ACK`.
const REQUEST: u16 = 1;
pub(super) const ACK: u16 = 4;

/// The address family of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// `NFPROTO_INET`: IPv4 and IPv6.
    Inet = 1,
    /// `NFPROTO_BRIDGE`: frames that bridges forward.
    Bridge = 7,
}

/// `NLA_F_NESTED`.
const NESTED: u16 = 0x8000;

/// `NLMSG_ERROR`. With code 0 it is the acknowledgement.
const ERROR: u16 = 2;

/// `NLMSG_DONE`, the end of a dump.
const DONE: u16 = 3;

/// Bytes of `struct nlmsghdr` and `struct nfgenmsg`.
const HEADER: usize = 16;
const GENERIC: usize = 4;

/// One request.
#[derive(Debug)]
pub(super) struct Message {
    pub(super) kind: u8,
    pub(super) flags: u16,
    pub(super) family: Family,
    pub(super) attributes: Attributes,
}

/// Type-length-value triples, padded to four bytes. Numbers of nf_tables are big-endian.
#[derive(Debug, Default)]
pub(super) struct Attributes(Vec<u8>);

impl Attributes {
    pub(super) fn bytes(mut self, kind: u16, value: &[u8]) -> Self {
        let length = u16::try_from(value.len() + 4).expect("callers keep attributes below 64 KiB");
        self.0.extend(length.to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    pub(super) fn text(self, kind: u16, value: &str) -> Self {
        let terminated: Vec<u8> = value.bytes().chain([0]).collect();
        self.bytes(kind, &terminated)
    }

    pub(super) fn number(self, kind: u16, value: u32) -> Self {
        self.bytes(kind, &value.to_be_bytes())
    }

    /// Appends other attributes.
    pub(super) fn append(mut self, other: &Self) -> Self {
        self.0.extend(&other.0);
        self
    }

    pub(super) fn nested(self, kind: u16, fill: impl FnOnce(Self) -> Self) -> Self {
        let inner = fill(Self::default());
        self.bytes(kind | NESTED, &inner.0)
    }
}

impl Message {
    pub(super) fn write(&self, bytes: &mut Vec<u8>, sequence: u32) {
        let kind = u16::from_be_bytes([SUBSYSTEM, self.kind]);
        header(bytes, kind, self.flags | REQUEST, sequence, self.family as u8, 0, &self.attributes.0);
    }
}

/// A request to another subsystem. `kind` contains the subsystem and the type.
pub(super) fn request(kind: u16, family: u8, attributes: &Attributes) -> Vec<u8> {
    let mut bytes = Vec::new();
    header(&mut bytes, kind, REQUEST | ACK, 1, family, 0, &attributes.0);
    bytes
}

pub(super) fn batch_begin() -> Vec<u8> {
    let mut bytes = Vec::new();
    header(&mut bytes, BATCH_BEGIN, REQUEST, 0, 0, u16::from(SUBSYSTEM), &[]);
    bytes
}

pub(super) fn batch_end() -> Vec<u8> {
    let mut bytes = Vec::new();
    header(&mut bytes, BATCH_END, REQUEST, 0, 0, u16::from(SUBSYSTEM), &[]);
    bytes
}

fn header(
    bytes: &mut Vec<u8>,
    kind: u16,
    flags: u16,
    sequence: u32,
    family: u8,
    resource: u16,
    payload: &[u8],
) {
    let length = u32::try_from(HEADER + GENERIC + payload.len()).expect("callers keep messages below 4 GiB");
    bytes.extend(length.to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(flags.to_ne_bytes());
    bytes.extend(sequence.to_ne_bytes());
    bytes.extend(0_u32.to_ne_bytes());
    bytes.extend([family, 0]);
    bytes.extend(resource.to_be_bytes());
    bytes.extend(payload);
}

/// The value of a number attribute in the first message of a datagram.
pub(super) fn number(datagram: &[u8], wanted: u16) -> Option<u32> {
    attribute(datagram, wanted)?.get(..4)?.try_into().ok().map(u32::from_be_bytes)
}

/// The values of a string attribute in each message of a datagram.
pub(super) fn texts(mut datagram: &[u8], wanted: u16) -> Vec<String> {
    let mut found = Vec::new();
    while datagram.len() >= HEADER {
        let length = u32::from_ne_bytes([datagram[0], datagram[1], datagram[2], datagram[3]]) as usize;
        let end = length.next_multiple_of(4).clamp(HEADER, datagram.len());
        let text =
            attribute(&datagram[..end], wanted).and_then(|value| value.split(|byte| *byte == 0).next());
        found.extend(text.map(|text| String::from_utf8_lossy(text).into_owned()));
        datagram = &datagram[end..];
    }
    found
}

fn attribute(message: &[u8], wanted: u16) -> Option<&[u8]> {
    let mut rest = message.get(HEADER + GENERIC..)?;
    while let [low, high, kind_low, kind_high, ..] = *rest {
        let length = usize::from(u16::from_ne_bytes([low, high])).max(4);
        if u16::from_ne_bytes([kind_low, kind_high]) == wanted {
            return rest.get(4..length);
        }
        rest = rest.get(length.next_multiple_of(4)..)?;
    }
    None
}

/// The number of messages of a type in a datagram, and whether the dump has ended.
pub(super) fn count(mut datagram: &[u8], wanted: u8) -> (usize, bool) {
    let mut found = 0;
    while datagram.len() >= HEADER {
        let length = u32::from_ne_bytes([datagram[0], datagram[1], datagram[2], datagram[3]]) as usize;
        match u16::from_ne_bytes([datagram[4], datagram[5]]) {
            DONE | ERROR => return (found, true),
            kind => found += usize::from(kind == u16::from_be_bytes([SUBSYSTEM, wanted])),
        }
        let next = length.next_multiple_of(4).clamp(HEADER, datagram.len());
        datagram = &datagram[next..];
    }
    (found, false)
}

/// Returns the first error in a datagram.
pub(super) fn first_error(mut datagram: &[u8]) -> io::Result<()> {
    while datagram.len() >= HEADER {
        let length = u32::from_ne_bytes([datagram[0], datagram[1], datagram[2], datagram[3]]) as usize;
        let kind = u16::from_ne_bytes([datagram[4], datagram[5]]);
        if kind == ERROR
            && let Some(code) = datagram.get(HEADER..HEADER + 4)
        {
            let code = i32::from_ne_bytes([code[0], code[1], code[2], code[3]]);
            if code != 0 {
                return Err(io::Error::from_raw_os_error(-code));
            }
        }
        let next = length.next_multiple_of(4).clamp(HEADER, datagram.len());
        datagram = &datagram[next..];
    }
    Ok(())
}
