//! Many datagrams per system call: `recvmmsg(2)` and `sendmmsg(2)`.

use std::io::{self, IoSlice, IoSliceMut};
use std::net::{SocketAddr, UdpSocket};
use std::ops::Range;
use std::os::fd::AsRawFd;

use nix::sys::socket::{MsgFlags, MultiHeaders, SockaddrStorage, recvmmsg, sendmmsg};

/// Datagrams per call: enough to amortize the call, few enough to fit the cache.
const DATAGRAMS: usize = 32;

/// The maximum size of a query; a longer one is truncated, and malformed.
const QUERY: usize = 2048;

/// Buffers for queries, their sources, and their replies.
pub(super) struct Batch {
    queries: Box<[[u8; QUERY]; DATAGRAMS]>,
    receiving: MultiHeaders<SockaddrStorage>,
    sending: MultiHeaders<SockaddrStorage>,
    /// Lengths of the queries.
    received: Vec<usize>,
    clients: [Option<SockaddrStorage>; DATAGRAMS],
    replies: Vec<u8>,
    /// The query of each reply, and its bytes; the addresses separately, as the system call requires.
    outgoing: Vec<Range<usize>>,
    addresses: Vec<Option<SockaddrStorage>>,
}

impl Batch {
    pub(super) fn new() -> Self {
        Self {
            queries: Box::new([[0; QUERY]; DATAGRAMS]),
            // A socket has one family, so the kernel always writes the same address length.
            receiving: MultiHeaders::preallocate(DATAGRAMS, None),
            sending: MultiHeaders::preallocate(DATAGRAMS, None),
            received: Vec::with_capacity(DATAGRAMS),
            clients: [None; DATAGRAMS],
            replies: Vec::with_capacity(DATAGRAMS * 1500),
            outgoing: Vec::with_capacity(DATAGRAMS),
            addresses: Vec::with_capacity(DATAGRAMS),
        }
    }

    /// Waits for a datagram and receives what else is queued.
    pub(super) fn receive(&mut self, socket: &UdpSocket) -> io::Result<()> {
        self.received.clear();
        let mut slices = self.queries.each_mut().map(|query| [IoSliceMut::new(query)]);
        let flags = MsgFlags::MSG_WAITFORONE;
        let messages = recvmmsg(socket.as_raw_fd(), &mut self.receiving, slices.iter_mut(), flags, None)?;
        for (client, message) in self.clients.iter_mut().zip(messages) {
            *client = message.address;
            self.received.push(message.bytes);
        }
        Ok(())
    }

    /// Calls `reply` with every query, a function that returns its source, and the buffer for the reply.
    pub(super) fn answer(
        &mut self,
        mut reply: impl FnMut(&[u8], &dyn Fn() -> Option<SocketAddr>, &mut Vec<u8>),
    ) {
        self.replies.clear();
        self.outgoing.clear();
        self.addresses.clear();
        for ((query, length), client) in self.queries.iter().zip(&self.received).zip(&self.clients) {
            // Port 0 cannot receive, so this source is forged.
            if client.as_ref().is_none_or(|client| port(client) == 0) {
                continue;
            }
            let start = self.replies.len();
            reply(&query[..*length], &|| client.as_ref().and_then(address), &mut self.replies);
            if self.replies.len() > start {
                self.outgoing.push(start..self.replies.len());
                self.addresses.push(*client);
            }
        }
    }

    /// Sends the replies. One that cannot be sent is skipped, even if the send buffer is full: replies to an
    /// unreachable client occupy the buffer for seconds while its address is resolved, and no other client
    /// should wait for that.
    pub(super) fn send(&mut self, socket: &UdpSocket) {
        let mut slices = [[IoSlice::new(&[])]; DATAGRAMS];
        for (slice, range) in slices.iter_mut().zip(&self.outgoing) {
            *slice = [IoSlice::new(&self.replies[range.clone()])];
        }
        let (mut sent, count) = (0, self.outgoing.len());
        while sent < count {
            let (slices, addresses) = (&slices[sent..count], &self.addresses[sent..]);
            let flags = MsgFlags::MSG_DONTWAIT;
            let result = sendmmsg(socket.as_raw_fd(), &mut self.sending, slices, addresses, [], flags);
            // The first of the rest failed, for example because its client is unreachable.
            sent += result.map_or(1, |sent| sent.count().max(1));
        }
    }
}

fn port(client: &SockaddrStorage) -> u16 {
    let v4 = client.as_sockaddr_in().map(|v4| v4.port());
    v4.or_else(|| client.as_sockaddr_in6().map(|v6| v6.port())).unwrap_or(0)
}

fn address(client: &SockaddrStorage) -> Option<SocketAddr> {
    let v4 = client.as_sockaddr_in().map(|v4| SocketAddr::V4((*v4).into()));
    v4.or_else(|| client.as_sockaddr_in6().map(|v6| SocketAddr::V6((*v6).into())))
}
