//! For kernels that cannot look for connections themselves: all are listed, and each that is wanted goes by its tuple.

use std::io;

use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{Socket, SocketAddr};

use super::{DELETE, Flow, GET, ORIGINAL, is_unsupported};
use crate::Netfilter;
use crate::message::{self, Attributes};

/// `NLM_F_REQUEST | NLM_F_DUMP`.
const DUMP: u16 = 1 | 0x300;

/// `NLMSG_ERROR`, `NLMSG_DONE`.
const ERROR: u16 = 2;
const DONE: u16 = 3;

/// `NLA_F_NESTED`, and what is left of an attribute's kind without its flags.
const NESTED: u16 = 0x8000;
const KIND: u16 = 0x3fff;

/// `CTA_ID`, `CTA_ZONE`: with the tuple, what makes a connection this one and no later one.
const ID: u16 = 12;
const ZONE: u16 = 18;

/// The kernel fills as much as is offered, up to this.
const DATAGRAM: usize = 32 * 1024;

/// Bytes of `struct nlmsghdr`, and of it with `struct nfgenmsg`.
const HEADER: usize = 16;
const PREFIX: usize = HEADER + 4;

pub(super) fn forget(netfilter: &Netfilter, flows: &[Flow]) -> io::Result<()> {
    let deletions = match list(flows) {
        // Not even that: there is no conntrack, or none that can be asked.
        Err(e) if is_unsupported(&e) => return Ok(()),
        listed => listed?,
    };
    for deletion in deletions {
        match netfilter.exchange(&deletion) {
            // It has ended meanwhile, or a flowtable has it, which the kernel's own search passes over as well.
            Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::ResourceBusy) => {}
            other => other?,
        }
    }
    Ok(())
}

/// Requests that delete what is one of `flows`.
fn list(flows: &[Flow]) -> io::Result<Vec<Vec<u8>>> {
    let mut socket = Socket::new(NETLINK_NETFILTER)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    let mut request = message::request(GET, 0, &Attributes::default());
    request[6..8].copy_from_slice(&DUMP.to_ne_bytes());
    socket.send(&request, 0)?;
    let (mut deletions, mut datagram) = (Vec::new(), Vec::with_capacity(DATAGRAM));
    loop {
        datagram.clear();
        socket.recv(&mut datagram, 0)?;
        let mut rest = &*datagram;
        while let Some((kind, message, next)) = first(rest) {
            match kind {
                DONE => return Ok(deletions),
                ERROR => message::first_error(message)?,
                _ if flows.iter().any(|flow| flow.is(message)) => deletions.push(deletion(message)),
                _ => {}
            }
            rest = next;
        }
    }
}

impl Flow {
    /// Whether a listed connection is one of these.
    fn is(&self, connection: &[u8]) -> bool {
        let family = |message: &[u8]| message.get(HEADER).copied();
        let tuple = attributes(&self.0).next().expect("the tuple is what a request begins with");
        family(&self.0) == family(connection) && has(attributes(connection), tuple)
    }
}

/// Whether an attribute is among these, a nested one with all that is in it.
fn has<'a>(mut attributes: impl Iterator<Item = (u16, &'a [u8])>, (kind, wanted): (u16, &[u8])) -> bool {
    let Some((_, value)) = attributes.find(|(other, _)| other & KIND == kind & KIND) else { return false };
    if kind & NESTED == 0 { value == wanted } else { within(wanted).all(|part| has(within(value), part)) }
}

fn deletion(connection: &[u8]) -> Vec<u8> {
    let named = attributes(connection).filter(|(kind, _)| [ORIGINAL, ID, ZONE].contains(&(kind & KIND)));
    let named = named.fold(Attributes::default(), |a, (kind, value)| a.bytes(kind, value));
    message::request(DELETE, connection[HEADER], &named)
}

/// The first message of a datagram, by its type, and what is behind it.
fn first(datagram: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let header = datagram.get(..HEADER)?;
    let length = u32::from_ne_bytes([header[0], header[1], header[2], header[3]]) as usize;
    let message = datagram.get(..length.max(HEADER))?;
    let next = message.len().next_multiple_of(4).min(datagram.len());
    Some((u16::from_ne_bytes([header[4], header[5]]), message, &datagram[next..]))
}

/// The attributes of a message: their kinds, with flags, and values.
fn attributes(message: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    within(message.get(PREFIX..).unwrap_or_default())
}

/// The attributes that are in a nested one.
fn within(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let header = bytes.get(..4)?;
        let (length, kind) =
            (u16::from_ne_bytes([header[0], header[1]]), u16::from_ne_bytes([header[2], header[3]]));
        let value = bytes.get(4..usize::from(length))?;
        bytes = bytes.get(usize::from(length).next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}
