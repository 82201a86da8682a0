//! Many datagrams a system call: `recvmmsg(2)` and `sendmmsg(2)`.
#![expect(unsafe_code, reason = "no safe wrapper receives into buffers that stay where they are")]

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6, UdpSocket};
use std::ops::Range;
use std::os::fd::AsRawFd;

/// Datagrams a call: enough that the call costs little each, few enough that all stays in the cache.
const DATAGRAMS: usize = 32;

/// The largest query that is read whole; a longer one is cut, and malformed.
const QUERY: usize = 2048;

/// Room for queries, where they came from, and their replies.
pub(super) struct Batch {
    queries: Box<[[u8; QUERY]; DATAGRAMS]>,
    clients: Box<[libc::sockaddr_storage; DATAGRAMS]>,
    /// Lengths of the queries, and of the addresses.
    received: Vec<(usize, libc::socklen_t)>,
    replies: Vec<u8>,
    /// Whose reply, and which bytes.
    outgoing: Vec<(usize, Range<usize>)>,
}

/// As `recvmmsg` and `sendmmsg` want it; alive for one call.
struct Headers {
    vectors: [libc::iovec; DATAGRAMS],
    headers: [libc::mmsghdr; DATAGRAMS],
}

impl Headers {
    fn new() -> Self {
        // SAFETY: both are plain C structures of integers and pointers, for which all zeros are valid.
        unsafe { std::mem::zeroed() }
    }

    fn set(
        &mut self,
        index: usize,
        bytes: *mut u8,
        length: usize,
        name: *mut libc::sockaddr_storage,
        size: u32,
    ) {
        self.vectors[index] = libc::iovec { iov_base: bytes.cast(), iov_len: length };
        let header = &mut self.headers[index].msg_hdr;
        header.msg_name = name.cast();
        header.msg_namelen = size;
        header.msg_iov = &raw mut self.vectors[index];
        header.msg_iovlen = 1;
    }
}

impl Batch {
    pub(super) fn new() -> Self {
        Self {
            queries: Box::new([[0; QUERY]; DATAGRAMS]),
            // SAFETY: a plain C structure of integers, for which all zeros are valid.
            clients: Box::new(unsafe { std::mem::zeroed() }),
            received: Vec::with_capacity(DATAGRAMS),
            replies: Vec::with_capacity(DATAGRAMS * 1500),
            outgoing: Vec::with_capacity(DATAGRAMS),
        }
    }

    /// Waits for a datagram and takes what else is there.
    pub(super) fn receive(&mut self, socket: &UdpSocket) -> io::Result<()> {
        self.received.clear();
        let mut headers = Headers::new();
        let size = u32::try_from(size_of::<libc::sockaddr_storage>()).unwrap_or_default();
        for index in 0..DATAGRAMS {
            let client = &raw mut self.clients[index];
            headers.set(index, self.queries[index].as_mut_ptr(), QUERY, client, size);
        }
        // SAFETY: every header points to a buffer and an address of the lengths it says, which this call alone uses.
        let count = unsafe {
            libc::recvmmsg(
                socket.as_raw_fd(),
                headers.headers.as_mut_ptr(),
                u32::try_from(DATAGRAMS).unwrap_or_default(),
                libc::MSG_WAITFORONE,
                std::ptr::null_mut(),
            )
        };
        let count = usize::try_from(count).map_err(|_negative| io::Error::last_os_error())?;
        self.received.extend(headers.headers[..count].iter().map(|header| {
            (usize::try_from(header.msg_len).unwrap_or_default().min(QUERY), header.msg_hdr.msg_namelen)
        }));
        Ok(())
    }

    /// Calls `reply` with every query, a way to find out who asked, and the place for what is to be sent back.
    pub(super) fn answer(
        &mut self,
        mut reply: impl FnMut(&[u8], &dyn Fn() -> Option<SocketAddr>, &mut Vec<u8>),
    ) {
        self.replies.clear();
        self.outgoing.clear();
        for (index, (length, _)) in self.received.iter().enumerate() {
            let client = &self.clients[index];
            // Nobody can receive at port 0: whoever writes it lies.
            if port(client) == 0 {
                continue;
            }
            let start = self.replies.len();
            reply(&self.queries[index][..*length], &|| address(client), &mut self.replies);
            if self.replies.len() > start {
                self.outgoing.push((index, start..self.replies.len()));
            }
        }
    }

    /// Sends the replies. One that cannot be sent is passed over.
    pub(super) fn send(&mut self, socket: &UdpSocket) {
        let mut headers = Headers::new();
        for (slot, (index, range)) in self.outgoing.iter().enumerate() {
            let bytes = self.replies[range.clone()].as_mut_ptr();
            let client = &raw mut self.clients[*index];
            headers.set(slot, bytes, range.len(), client, self.received[*index].1);
        }
        let mut sent = 0;
        while sent < self.outgoing.len() {
            let rest = &mut headers.headers[sent..self.outgoing.len()];
            // SAFETY: every header points to a reply and an address of the lengths it says, unchanged during the call.
            let count = unsafe {
                libc::sendmmsg(
                    socket.as_raw_fd(),
                    rest.as_mut_ptr(),
                    u32::try_from(rest.len()).unwrap_or_default(),
                    0,
                )
            };
            // The first of the rest failed, as an unreachable client makes it.
            sent += usize::try_from(count).unwrap_or(0).max(1);
        }
    }
}

fn port(client: &libc::sockaddr_storage) -> u16 {
    // Both families have the port in the two bytes behind the family.
    // SAFETY: a `sockaddr_storage` is larger than a `sockaddr_in`, and any bytes make one.
    u16::from_be(unsafe { (*(&raw const *client).cast::<libc::sockaddr_in>()).sin_port })
}

fn address(client: &libc::sockaddr_storage) -> Option<SocketAddr> {
    match i32::from(client.ss_family) {
        libc::AF_INET => {
            // SAFETY: the kernel says that this is an IPv4 address.
            let v4 = unsafe { *(&raw const *client).cast::<libc::sockaddr_in>() };
            let ip = Ipv4Addr::from(u32::from_be(v4.sin_addr.s_addr));
            Some(SocketAddr::from((ip, u16::from_be(v4.sin_port))))
        }
        libc::AF_INET6 => {
            // SAFETY: the kernel says that this is an IPv6 address.
            let v6 = unsafe { *(&raw const *client).cast::<libc::sockaddr_in6>() };
            let ip = Ipv6Addr::from(v6.sin6_addr.s6_addr);
            Some(SocketAddrV6::new(ip, u16::from_be(v6.sin6_port), v6.sin6_flowinfo, v6.sin6_scope_id).into())
        }
        _ => None,
    }
}
