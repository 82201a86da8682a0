//! Several datagrams with one system call.
//!
//! The buffers are a worker's, not a flow's: an idle flow costs its socket and nothing else.

use std::cell::RefCell;
use std::io::{self, IoSlice, IoSliceMut};
use std::net::{SocketAddr, SocketAddrV4, SocketAddrV6};
use std::ops::Range;
use std::os::fd::AsRawFd as _;

use nix::sys::socket::{MsgFlags, MultiHeaders, SockaddrStorage, recvmmsg, sendmmsg};
use socket2::SockRef;
use tokio::io::Interest;
use tokio::net::UdpSocket;

/// Datagrams taken at a time; more wait until the worker's other tasks have had their turn.
pub(super) const SIZE: usize = 32;

/// The largest datagram there is.
const DATAGRAM: usize = 65_535;

thread_local! {
    /// One a family: the kernel notes the length of an address in the header, and expects to find room for as much the
    /// next time.
    static V4: RefCell<Batch> = RefCell::new(Batch::new());
    static V6: RefCell<Batch> = RefCell::new(Batch::new());
}

/// Datagrams received together, with their senders.
pub(super) struct Batch {
    /// One after the other. Memory is touched only as far as datagrams reach.
    buffers: Vec<u8>,
    received: [(usize, Option<SocketAddr>); SIZE],
    receiving: MultiHeaders<SockaddrStorage>,
    sending: MultiHeaders<SockaddrStorage>,
}

impl Batch {
    /// Lends the worker's batch for the family of `address`.
    pub(super) fn with<T>(address: SocketAddr, work: impl FnOnce(&mut Self) -> T) -> T {
        let batch = if address.is_ipv4() { &V4 } else { &V6 };
        batch.with_borrow_mut(work)
    }

    fn new() -> Self {
        Self {
            buffers: vec![0; SIZE * DATAGRAM],
            received: [(0, None); SIZE],
            receiving: MultiHeaders::preallocate(SIZE, None),
            sending: MultiHeaders::preallocate(SIZE, None),
        }
    }

    /// Returns when there is something to receive, a datagram or an error. Cancel-safe.
    pub(super) async fn ready(socket: &UdpSocket) -> io::Result<()> {
        socket.ready(Interest::READABLE | Interest::ERROR).await.map(drop)
    }

    /// Takes what waits on the socket; nothing is 0.
    pub(super) fn receive(&mut self, socket: &UdpSocket) -> io::Result<usize> {
        // An ICMP error makes a socket ready, but not readable; the runtime tries one of the two at a time.
        match self.try_receive(socket, Interest::READABLE)? {
            0 => self.try_receive(socket, Interest::ERROR),
            count => Ok(count),
        }
    }

    fn try_receive(&mut self, socket: &UdpSocket, interest: Interest) -> io::Result<usize> {
        let mut count = 0;
        let tried = socket.try_io(interest, || {
            count = self.receive_now(socket)?;
            // Fewer than asked for: the queue was empty a moment ago. Saying so spares the call that would find out.
            if count < SIZE { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(()) }
        });
        match tried {
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => Err(error),
            _ => Ok(count),
        }
    }

    /// Who sent the datagram of that number.
    pub(super) fn sender(&self, number: usize) -> Option<SocketAddr> {
        self.received[number].1
    }

    /// Sends some of what was received; returns how many went out. What the kernel has no room for is left out.
    pub(super) fn send(
        &mut self,
        socket: &UdpSocket,
        datagrams: Range<usize>,
        to: Option<SocketAddr>,
    ) -> io::Result<usize> {
        // Not by way of the runtime: it holds a socket for busy until it has heard of it, and waiting is no use anyway.
        let sent = if datagrams.len() == 1 {
            let (socket, datagram) = (SockRef::from(socket), self.datagram(datagrams.start));
            match to {
                Some(to) => socket.send_to(datagram, &to.into()),
                None => socket.send(datagram),
            }
            .map(|_| 1)
        } else {
            self.send_now(socket, datagrams, to)
        };
        match sent {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(0),
            other => other,
        }
    }

    fn datagram(&self, number: usize) -> &[u8] {
        let start = number * DATAGRAM;
        &self.buffers[start..start + self.received[number].0]
    }

    fn receive_now(&mut self, socket: &UdpSocket) -> io::Result<usize> {
        let mut slices = self.buffers.chunks_exact_mut(DATAGRAM).map(|buffer| [IoSliceMut::new(buffer)]);
        let mut slices: [_; SIZE] =
            std::array::from_fn(|_| slices.next().unwrap_or_else(|| [IoSliceMut::new(&mut [])]));
        let flags = MsgFlags::MSG_DONTWAIT;
        let messages = recvmmsg(socket.as_raw_fd(), &mut self.receiving, slices.iter_mut(), flags, None)?;
        let mut count = 0;
        for message in messages {
            self.received[count] = (message.bytes, message.address.as_ref().and_then(socket_address));
            count += 1;
        }
        Ok(count)
    }

    fn send_now(
        &mut self,
        socket: &UdpSocket,
        datagrams: Range<usize>,
        to: Option<SocketAddr>,
    ) -> io::Result<usize> {
        let mut slices = [[IoSlice::new(&[])]; SIZE];
        let count = datagrams.len();
        for (slice, number) in slices.iter_mut().zip(datagrams) {
            let start = number * DATAGRAM;
            *slice = [IoSlice::new(&self.buffers[start..start + self.received[number].0])];
        }
        let addresses = [to.map(SockaddrStorage::from); SIZE];
        let flags = MsgFlags::MSG_DONTWAIT;
        let sent = sendmmsg(socket.as_raw_fd(), &mut self.sending, &slices[..count], addresses, [], flags)?;
        Ok(sent.count())
    }
}

fn socket_address(address: &SockaddrStorage) -> Option<SocketAddr> {
    let v4 = address.as_sockaddr_in().map(|v4| SocketAddr::V4(SocketAddrV4::from(*v4)));
    v4.or_else(|| address.as_sockaddr_in6().map(|v6| SocketAddr::V6(SocketAddrV6::from(*v6))))
}
