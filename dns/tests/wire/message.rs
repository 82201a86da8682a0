//! Messages bit by bit: queries that ordinary clients cannot send, and decoded replies.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

/// Timeout of a reply on a busy machine.
const PATIENCE: Duration = Duration::from_secs(10);

pub(crate) const TC: u16 = 0x0200;
pub(crate) const AA: u16 = 0x0400;

/// A query under construction.
#[derive(Clone)]
pub(crate) struct Query {
    flags: u16,
    name: Vec<u8>,
    kind: u16,
    class: u16,
    /// Payload size, version, flags, options.
    edns: Option<(u16, u8, u16, Vec<u8>)>,
    has_question: bool,
}

/// A decoded reply.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) wire: Vec<u8>,
    pub(crate) flags: u16,
    /// Questions, answers, authorities, additionals.
    pub(crate) counts: [u16; 4],
    /// Types of the answers.
    pub(crate) answers: Vec<u16>,
    pub(crate) opt: Option<Opt>,
}

/// Its OPT record.
#[derive(Debug)]
pub(crate) struct Opt {
    pub(crate) payload: u16,
    pub(crate) rcode_high: u8,
    pub(crate) version: u8,
    pub(crate) flags: u16,
    pub(crate) options: Vec<(u16, Vec<u8>)>,
}

impl Query {
    pub(crate) fn new(name: &str, kind: u16) -> Self {
        let mut wire = Vec::new();
        for label in name.split('.').filter(|label| !label.is_empty()) {
            wire.push(u8::try_from(label.len()).unwrap());
            wire.extend_from_slice(label.as_bytes());
        }
        wire.push(0);
        Self { flags: 0, name: wire, kind, class: 1, edns: None, has_question: true }
    }

    pub(crate) fn without_question(mut self) -> Self {
        self.has_question = false;
        self
    }

    pub(crate) fn class(mut self, class: u16) -> Self {
        self.class = class;
        self
    }

    pub(crate) fn flags(mut self, flags: u16) -> Self {
        self.flags = flags;
        self
    }

    pub(crate) fn edns(mut self, payload: u16, version: u8, flags: u16) -> Self {
        self.edns = Some((payload, version, flags, Vec::new()));
        self
    }

    /// Adds EDNS, if there is none yet.
    pub(crate) fn option(mut self, code: u16, content: &[u8]) -> Self {
        let (.., options) = self.edns.get_or_insert((1232, 0, 0, Vec::new()));
        options.extend(code.to_be_bytes());
        options.extend(u16::try_from(content.len()).unwrap().to_be_bytes());
        options.extend(content);
        self
    }

    pub(crate) fn wire(&self, id: u16) -> Vec<u8> {
        let counts = [u16::from(self.has_question), 0, 0, u16::from(self.edns.is_some())];
        let header = [[id, self.flags].as_slice(), &counts].concat();
        let mut wire: Vec<u8> = header.into_iter().flat_map(u16::to_be_bytes).collect();
        if self.has_question {
            wire.extend(&self.name);
            wire.extend([self.kind.to_be_bytes(), self.class.to_be_bytes()].concat());
        }
        if let Some((payload, version, flags, options)) = &self.edns {
            wire.extend([0, 0, 41]);
            wire.extend(payload.to_be_bytes());
            wire.extend([0, *version]);
            wire.extend(flags.to_be_bytes());
            wire.extend(u16::try_from(options.len()).unwrap().to_be_bytes());
            wire.extend(options);
        }
        wire
    }

    pub(crate) fn ask(&self, server: SocketAddr) -> Reply {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket.send_to(&self.wire(77), server).unwrap();
        let mut buffer = vec![0; 4096];
        let (length, from) = socket.recv_from(&mut buffer).unwrap();
        assert_eq!(from, server);
        Reply::parse(&buffer[..length])
    }

    pub(crate) fn ask_by_tcp(&self, server: SocketAddr) -> Reply {
        let mut stream = TcpStream::connect(server).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        send(&mut stream, &self.wire(77));
        Reply::parse(&receive(&mut stream))
    }
}

/// Sends a length-prefixed message.
pub(crate) fn send(stream: &mut TcpStream, message: &[u8]) {
    let length = u16::try_from(message.len()).unwrap().to_be_bytes();
    stream.write_all(&[&length, message].concat()).unwrap();
}

/// Receives a message.
pub(crate) fn receive(stream: &mut TcpStream) -> Vec<u8> {
    let mut length = [0; 2];
    stream.read_exact(&mut length).unwrap();
    let mut message = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut message).unwrap();
    message
}

impl Reply {
    /// Every record must be complete, and nothing may follow the last one.
    pub(crate) fn parse(wire: &[u8]) -> Self {
        let word = |at: usize| u16::from_be_bytes([wire[at], wire[at + 1]]);
        let counts = [4, 6, 8, 10].map(word);
        let mut at = 12;
        let skip_name = |at: &mut usize| loop {
            let length = usize::from(wire[*at]);
            *at += if length >= 0xc0 { 2 } else { length + 1 };
            if length == 0 || length >= 0xc0 {
                break;
            }
        };
        for _ in 0..counts[0] {
            skip_name(&mut at);
            at += 4;
        }
        let (mut answers, mut opt) = (Vec::new(), None);
        for number in 0..counts[1] + counts[2] + counts[3] {
            skip_name(&mut at);
            let (kind, end) = (word(at), at + 10 + usize::from(word(at + 8)));
            if number < counts[1] {
                answers.push(kind);
            }
            if kind == 41 {
                assert!(opt.is_none(), "one OPT record");
                let options = options(&wire[at + 10..end]);
                let (payload, rcode_high, version, flags) =
                    (word(at + 2), wire[at + 4], wire[at + 5], word(at + 6));
                opt = Some(Opt { payload, rcode_high, version, flags, options });
            }
            at = end;
        }
        assert_eq!(at, wire.len(), "nothing behind the last record");
        Self { wire: wire.to_vec(), flags: word(2), counts, answers, opt }
    }

    /// The complete response code.
    pub(crate) fn code(&self) -> u16 {
        self.flags & 15 | self.opt.as_ref().map_or(0, |opt| u16::from(opt.rcode_high) << 4)
    }

    pub(crate) fn option(&self, code: u16) -> Option<&[u8]> {
        let options = &self.opt.as_ref()?.options;
        options.iter().find(|(found, _)| *found == code).map(|(_, content)| content.as_slice())
    }

    /// The Extended DNS Error (RFC 8914): its code and words.
    pub(crate) fn error(&self) -> Option<(u16, String)> {
        let (code, text) = self.option(15)?.split_first_chunk::<2>()?;
        Some((u16::from_be_bytes(*code), String::from_utf8(text.to_vec()).unwrap()))
    }
}

fn options(mut content: &[u8]) -> Vec<(u16, Vec<u8>)> {
    let mut found = Vec::new();
    while !content.is_empty() {
        let length = usize::from(u16::from_be_bytes([content[2], content[3]]));
        found.push((u16::from_be_bytes([content[0], content[1]]), content[4..4 + length].to_vec()));
        content = &content[4 + length..];
    }
    found
}
