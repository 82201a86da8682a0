//! The netlink socket for nftables.

use std::io;

use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{Socket, SocketAddr};
use nix::errno::Errno;
use nix::sys::socket::{setsockopt, sockopt};

use super::message::{self, Attributes, Message};
use super::{Element, Family, write_elements};

/// Message types of `linux/netfilter/nf_tables.h`.
const GET_TABLE: u8 = 1;
const GET_CHAIN: u8 = 4;
const NEW_RULE: u8 = 6;
const GET_RULE: u8 = 7;
const GET_SET: u8 = 10;
const GET_SET_ELEMENT: u8 = 13;

/// `NFTA_CHAIN_USE`: the number of rules in it plus rules that jump to it.
const USES: u16 = 6;

/// `NFTA_SET_NAME`
const SET_NAME: u16 = 2;

/// `NLM_F_DUMP`
const DUMP: u16 = 0x300;

/// A socket in the network namespace in which it was opened.
///
/// Closing it waits until the kernel has freed what was removed from nftables in this namespace by any
/// process: an RCU grace period, 8 to 20 ms, which also elapses without the close. So do other work first and
/// close it last.
pub struct Netfilter(Socket);

impl Netfilter {
    /// Opens a socket.
    ///
    /// # Errors
    /// An error of the kernel.
    pub fn open() -> io::Result<Self> {
        let socket = Socket::new(NETLINK_NETFILTER)?;
        // Binding assigns the socket its netlink address.
        socket.connect(&SocketAddr::new(0, 0))?;
        socket.set_non_blocking(true)?;
        // Errors need not quote the request, which may be large.
        socket.set_cap_ack(true)?;
        Ok(Self(socket))
    }

    /// Whether the set contains the element, by its key.
    ///
    /// # Errors
    /// An error of the kernel.
    pub fn contains(&self, family: Family, table: &str, set: &str, element: &Element) -> io::Result<bool> {
        let table = Attributes::default().text(1, table);
        let attributes = write_elements(table, set, std::slice::from_ref(element), Element::write_key);
        self.has(GET_SET_ELEMENT, family, attributes)
    }

    /// Whether the table of family `inet` exists.
    ///
    /// # Errors
    /// An error of the kernel.
    pub fn has_table(&self, table: &str) -> io::Result<bool> {
        self.has(GET_TABLE, Family::Inet, Attributes::default().text(1, table))
    }

    /// Whether the set of a table of family `inet` exists.
    ///
    /// # Errors
    /// An error of the kernel.
    pub fn has_set(&self, table: &str, set: &str) -> io::Result<bool> {
        self.has(GET_SET, Family::Inet, Attributes::default().text(1, table).text(2, set))
    }

    /// The names of the sets of a table of family `inet`. Empty without the table.
    ///
    /// # Errors
    /// An error of the kernel.
    pub fn sets(&self, table: &str) -> io::Result<Vec<String>> {
        let attributes = Attributes::default().text(1, table);
        let mut names = Vec::new();
        self.dump(GET_SET, Family::Inet, attributes, |datagram| {
            names.extend(message::texts(datagram, SET_NAME))
        })?;
        Ok(names)
    }

    /// Whether the chain exists and has rules, or rules that jump to it: `nft flush` leaves chains and sets.
    ///
    /// # Errors
    /// An error of the kernel.
    pub fn has_rules(&self, family: Family, table: &str, chain: &str) -> io::Result<bool> {
        let attributes = Attributes::default().text(1, table).text(3, chain);
        let mut bytes = Vec::new();
        Message { kind: GET_CHAIN, flags: 0, family, attributes }.write(&mut bytes, 1);
        self.send(&bytes)?;
        // The answer is one datagram: the chain, or an error.
        let (datagram, _) = self.0.recv_from_full()?;
        match message::first_error(&datagram) {
            Ok(()) => Ok(message::number(&datagram, USES).is_some_and(|uses| uses > 0)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// The number of rules of the chain. 0 without the chain.
    ///
    /// # Errors
    /// An error of the kernel.
    pub fn count_rules(&self, family: Family, table: &str, chain: &str) -> io::Result<usize> {
        let attributes = Attributes::default().text(1, table).text(2, chain);
        let mut total = 0;
        self.dump(GET_RULE, family, attributes, |datagram| total += message::count(datagram, NEW_RULE).0)?;
        Ok(total)
    }

    /// Reads all answers of a dump.
    fn dump(
        &self,
        kind: u8,
        family: Family,
        attributes: Attributes,
        mut read: impl FnMut(&[u8]),
    ) -> io::Result<()> {
        let mut bytes = Vec::new();
        Message { kind, flags: DUMP, family, attributes }.write(&mut bytes, 1);
        self.send(&bytes)?;
        loop {
            let (datagram, _) = self.0.recv_from_full()?;
            match message::first_error(&datagram) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
                other => other?,
            }
            read(&datagram);
            if message::count(&datagram, kind).1 {
                return Ok(());
            }
        }
    }

    fn has(&self, kind: u8, family: Family, attributes: Attributes) -> io::Result<bool> {
        let mut bytes = Vec::new();
        Message { kind, flags: 0, family, attributes }.write(&mut bytes, 1);
        match self.exchange(&bytes) {
            Ok(()) => Ok(true),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// Sends one datagram and reads the answers. The kernel answers within `send`, so all answers are queued
    /// afterwards. If the receive buffer overflows with errors, the first one is in it.
    pub(super) fn exchange(&self, bytes: &[u8]) -> io::Result<()> {
        self.send(bytes)?;
        let (mut result, mut overflow) = (Ok(()), Ok(()));
        loop {
            match self.0.recv_from_full() {
                Ok((datagram, _)) => result = result.and_then(|()| message::first_error(&datagram)),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return result.and(overflow),
                Err(e) if e.raw_os_error().map(Errno::from_raw) == Some(Errno::ENOBUFS) => overflow = Err(e),
                Err(e) => return Err(e),
            }
        }
    }

    /// A batch is one datagram and must fit into the socket's buffer (`net.core.wmem_default`).
    fn send(&self, bytes: &[u8]) -> io::Result<usize> {
        match self.0.send(bytes, 0) {
            Err(e) if e.raw_os_error().map(Errno::from_raw) == Some(Errno::EMSGSIZE) => {
                setsockopt(&self.0, sockopt::SndBufForce, &bytes.len())?;
                self.0.send(bytes, 0)
            }
            other => other,
        }
    }
}

impl std::fmt::Debug for Netfilter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Netfilter").finish_non_exhaustive()
    }
}
