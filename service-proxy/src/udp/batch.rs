//! Several datagrams per system call.
//!
//! The buffers belong to a worker, not to a flow: an idle flow costs only its socket.

use std::cell::RefCell;
use std::io::{self, IoSlice, IoSliceMut};
use std::net::{IpAddr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::ops::Range;
use std::os::fd::AsRawFd as _;

use nix::cmsg_space;
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, MultiHeaders, SockaddrStorage, recvmmsg, sendmmsg,
};
use socket2::{SockRef, Socket};
use tokio::io::Interest;
use tokio::net::UdpSocket;

use super::header;
use crate::kernel::datagram;

/// Datagrams received at a time. More wait until the worker's other tasks have run.
pub(super) const SIZE: usize = 32;

/// The largest datagram.
const DATAGRAM: usize = 65_535;

thread_local! {
    /// One per family: the kernel stores the length of an address, and of control data, in the header, and
    /// uses it as the available size the next time.
    static V4: RefCell<Batch> = RefCell::new(Batch::new(true));
    static V6: RefCell<Batch> = RefCell::new(Batch::new(false));
}

/// Received datagrams with their senders.
pub(super) struct Batch {
    /// Contiguous buffers. Memory is touched only as far as datagrams extend.
    buffers: Vec<u8>,
    received: [Received; SIZE],
    /// From endpoints; and from clients, with the destination address.
    receiving: MultiHeaders<SockaddrStorage>,
    intercepting: MultiHeaders<SockaddrStorage>,
    /// To endpoints; and to clients, with the source address.
    sending: MultiHeaders<SockaddrStorage>,
    replying: MultiHeaders<SockaddrStorage>,
    /// Opened with the first reply.
    replies: Option<Socket>,
}

/// A received datagram.
#[derive(Clone, Copy, Debug, Default)]
struct Received {
    length: usize,
    /// The client and the frontend, if a client sent it.
    flow: Option<(SocketAddr, SocketAddr)>,
    /// The TTL or hop limit, if a client sent it.
    hops: u32,
}

impl Batch {
    /// Lends the worker's batch for the family of `address`.
    pub(super) fn with<T>(address: SocketAddr, work: impl FnOnce(&mut Self) -> T) -> T {
        let batch = if address.is_ipv4() { &V4 } else { &V6 };
        batch.with_borrow_mut(work)
    }

    fn new(v4: bool) -> Self {
        let (destination, source) = if v4 {
            (cmsg_space!(i32, libc::sockaddr_in), cmsg_space!(libc::in_pktinfo))
        } else {
            (cmsg_space!(i32, libc::sockaddr_in6), cmsg_space!(libc::in6_pktinfo))
        };
        Self {
            buffers: vec![0; SIZE * DATAGRAM],
            received: [Received::default(); SIZE],
            receiving: MultiHeaders::preallocate(SIZE, None),
            intercepting: MultiHeaders::preallocate(SIZE, Some(destination)),
            sending: MultiHeaders::preallocate(SIZE, None),
            replying: MultiHeaders::preallocate(SIZE, Some(source)),
            replies: None,
        }
    }

    /// Receives datagrams of clients. Returns 0 if there are none.
    pub(super) fn receive_from_clients(&mut self, socket: &UdpSocket) -> io::Result<usize> {
        self.receive(socket, true)
    }

    /// Receives datagrams of an endpoint. Returns 0 if there are none.
    pub(super) fn receive_from_endpoint(&mut self, socket: &UdpSocket) -> io::Result<usize> {
        self.receive(socket, false)
    }

    fn receive(&mut self, socket: &UdpSocket, from_clients: bool) -> io::Result<usize> {
        let mut count = 0;
        let tried = socket.try_io(Interest::READABLE, || {
            count = self.receive_now(socket, from_clients)?;
            // Fewer than the maximum: the queue was empty a moment ago. That saves the call that would find
            // out.
            if count < SIZE { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(()) }
        });
        match tried {
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => Err(error),
            _ => Ok(count),
        }
    }

    /// The client of that datagram, and the frontend that it was sent to.
    pub(super) fn flow(&self, number: usize) -> Option<(SocketAddr, SocketAddr)> {
        self.received[number].flow
    }

    /// The TTL of that client's datagram.
    pub(super) fn hops(&self, number: usize) -> u32 {
        self.received[number].hops
    }

    /// Sends some of the received datagrams to the socket's peer. Returns how many were sent. Datagrams that
    /// the kernel has no buffer for are dropped.
    pub(super) fn send(&mut self, socket: &UdpSocket, datagrams: Range<usize>) -> io::Result<usize> {
        // Not through the runtime: it considers a socket busy until its first event, and waiting is no use
        // anyway.
        let sent = if datagrams.len() == 1 {
            SockRef::from(socket).send(self.datagram(datagrams.start)).map(|_| 1)
        } else {
            self.send_now(socket, datagrams)
        };
        match sent {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(0),
            other => other,
        }
    }

    /// Sends the first `count` received datagrams to a client, from the address and port of a frontend.
    /// Otherwise like [`Self::send`].
    pub(super) fn reply(&mut self, count: usize, from: SocketAddr, to: SocketAddr) -> io::Result<usize> {
        if self.replies.is_none() {
            self.replies = Some(datagram::open_reply_socket(to.is_ipv4())?);
        }
        let Some(socket) = &self.replies else { return Ok(0) };
        // By field: the system call borrows the message headers beside the buffers.
        let (buffers, received) = (&self.buffers, &self.received);
        let datagram = |number: usize| {
            let start = number * DATAGRAM;
            &buffers[start..start + received[number].length]
        };
        let mut headers = [[0; header::LENGTH]; SIZE];
        for (number, header) in headers.iter_mut().enumerate().take(count) {
            *header = header::udp(from, to, datagram(number));
        }
        let mut slices = [[IoSlice::new(&[]), IoSlice::new(&[])]; SIZE];
        for (number, slice) in slices.iter_mut().enumerate().take(count) {
            *slice = [IoSlice::new(&headers[number]), IoSlice::new(datagram(number))];
        }
        let mut peer = to;
        // The port of a raw socket's peer is a protocol number.
        peer.set_port(0);
        let peer = Some(SockaddrStorage::from(peer));
        // Most replies come one at a time, and an address has 128 bytes.
        let (one, all);
        let addresses: &[_] = if count == 1 {
            one = [peer];
            &one
        } else {
            all = [peer; SIZE];
            &all
        };
        let flags = MsgFlags::MSG_DONTWAIT;
        let (v4, v6);
        let source = match from.ip() {
            IpAddr::V4(ip) => {
                v4 = header::source_v4(ip);
                [ControlMessage::Ipv4PacketInfo(&v4)]
            }
            IpAddr::V6(ip) => {
                v6 = header::source_v6(ip);
                [ControlMessage::Ipv6PacketInfo(&v6)]
            }
        };
        match sendmmsg(socket.as_raw_fd(), &mut self.replying, &slices[..count], addresses, source, flags) {
            Ok(sent) => Ok(sent.count()),
            Err(nix::errno::Errno::EAGAIN) => Ok(0),
            Err(error) => Err(error.into()),
        }
    }

    fn datagram(&self, number: usize) -> &[u8] {
        let start = number * DATAGRAM;
        &self.buffers[start..start + self.received[number].length]
    }

    fn receive_now(&mut self, socket: &UdpSocket, from_clients: bool) -> io::Result<usize> {
        let mut slices = self.buffers.chunks_exact_mut(DATAGRAM).map(|buffer| [IoSliceMut::new(buffer)]);
        let mut slices: [_; SIZE] =
            std::array::from_fn(|_| slices.next().unwrap_or_else(|| [IoSliceMut::new(&mut [])]));
        let flags = MsgFlags::MSG_DONTWAIT;
        let headers = if from_clients { &mut self.intercepting } else { &mut self.receiving };
        let messages = recvmmsg(socket.as_raw_fd(), headers, slices.iter_mut(), flags, None)?;
        let mut count = 0;
        for message in messages {
            let mut datagram = Received { length: message.bytes, ..Received::default() };
            if from_clients {
                let client = message.address.as_ref().and_then(socket_address);
                for control in message.cmsgs().into_iter().flatten() {
                    match control {
                        ControlMessageOwned::Ipv4Ttl(hops) | ControlMessageOwned::Ipv6HopLimit(hops) => {
                            datagram.hops = u32::try_from(hops).unwrap_or(0);
                        }
                        other => datagram.flow = client.zip(destination(&other)),
                    }
                }
            }
            self.received[count] = datagram;
            count += 1;
        }
        Ok(count)
    }

    fn send_now(&mut self, socket: &UdpSocket, datagrams: Range<usize>) -> io::Result<usize> {
        let mut slices = [[IoSlice::new(&[])]; SIZE];
        let count = datagrams.len();
        for (slice, number) in slices.iter_mut().zip(datagrams) {
            let start = number * DATAGRAM;
            *slice = [IoSlice::new(&self.buffers[start..start + self.received[number].length])];
        }
        let (addresses, flags) = ([None; SIZE], MsgFlags::MSG_DONTWAIT);
        let sent = sendmmsg(socket.as_raw_fd(), &mut self.sending, &slices[..count], addresses, [], flags)?;
        Ok(sent.count())
    }
}

fn destination(message: &ControlMessageOwned) -> Option<SocketAddr> {
    match message {
        ControlMessageOwned::Ipv4OrigDstAddr(address) => {
            let ip = u32::from_be(address.sin_addr.s_addr);
            Some(SocketAddr::new(IpAddr::V4(ip.into()), u16::from_be(address.sin_port)))
        }
        ControlMessageOwned::Ipv6OrigDstAddr(address) => {
            let ip = IpAddr::V6(address.sin6_addr.s6_addr.into());
            Some(SocketAddr::new(ip, u16::from_be(address.sin6_port)))
        }
        _ => None,
    }
}

fn socket_address(address: &SockaddrStorage) -> Option<SocketAddr> {
    let v4 = address.as_sockaddr_in().map(|v4| SocketAddr::V4(SocketAddrV4::from(*v4)));
    v4.or_else(|| address.as_sockaddr_in6().map(|v6| SocketAddr::V6(SocketAddrV6::from(*v6))))
}
