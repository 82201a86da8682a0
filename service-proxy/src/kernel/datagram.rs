//! UDP sockets: the intercepting ones, the reply sockets, the upstream sockets, and their receive queues.

use std::io::{self, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, AsRawFd as _};

use daemon::socket::bind;
use nix::cmsg_space;
use nix::errno::Errno;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg, setsockopt, sockopt};
use socket2::{Domain, Protocol, Socket, Type};

use crate::kernel::icmp_error::IcmpError;

/// Receive buffer in bytes; the kernel doubles it for its own bookkeeping. A datagram of up to some 1,500
/// bytes takes 2,304, so 7,000 fit. Memory is used only by queued datagrams, and `net.ipv4.udp_mem` bounds
/// the total.
const QUEUE: usize = 8 << 20;

/// Local addresses of raw sockets that receive nothing: the dummy address of RFC 7600, and one of the discard
/// prefix of RFC 6666. No packet to these arrives at a node.
const NOWHERE_V4: Ipv4Addr = Ipv4Addr::new(192, 0, 0, 8);
const NOWHERE_V6: Ipv6Addr = Ipv6Addr::new(0x100, 0, 0, 0, 0, 0, 0, 1);

/// `SO_EE_ORIGIN_LOCAL`.
const ORIGIN_LOCAL: u8 = 1;

/// `SK_MEMINFO_VARS`, and the index of the count of datagrams that were dropped because the queue was full.
const MEMINFO_VARS: usize = 9;
const MEMINFO_DROPS: usize = 8;

/// Returns one socket per worker, on a port that the kernel chooses. The kernel spreads clients over them
/// (`SO_REUSEPORT`, by a hash of address and port). They receive datagrams for other addresses
/// (`IP_TRANSPARENT`), with the destination address and the TTL.
pub(crate) fn receive_transparent(
    loopback: IpAddr,
    count: usize,
) -> io::Result<(SocketAddr, Vec<UdpSocket>)> {
    let mut address = SocketAddr::new(loopback, 0);
    let mut sockets = Vec::new();
    for _ in 0..count {
        let socket = bind(address, Type::DGRAM, true)?;
        if loopback.is_ipv4() {
            socket.set_ip_transparent_v4(true)?;
            setsockopt(&socket, sockopt::Ipv4OrigDstAddr, &true)?;
            setsockopt(&socket, sockopt::Ipv4RecvTtl, &true)?;
        } else {
            socket.set_ip_transparent_v6(true)?;
            setsockopt(&socket, sockopt::Ipv6OrigDstAddr, &true)?;
            setsockopt(&socket, sockopt::Ipv6RecvHopLimit, &true)?;
        }
        enlarge_queues(&socket);
        let socket = UdpSocket::from(socket);
        address = socket.local_addr()?;
        sockets.push(socket);
    }
    Ok((address, sockets))
}

/// A socket that sends UDP datagrams, with their headers, from any address and port.
///
/// A UDP socket cannot send from a port that it is not bound to, and a socket bound to a port of a virtual IP
/// would prevent every other process of the node from binding that port on all addresses. A raw socket is
/// bound to no port. It costs some 0.7 µs of 4.7 µs per datagram, the checksum included (measured from a node
/// to a pod, 64 bytes, 32 at a time).
///
/// # Errors
/// If CAP_NET_RAW or CAP_NET_ADMIN is missing.
pub(crate) fn open_reply_socket(v4: bool) -> io::Result<Socket> {
    let domain = if v4 { Domain::IPV4 } else { Domain::IPV6 };
    let socket = Socket::new(domain, Type::RAW.nonblocking().cloexec(), Some(Protocol::UDP))?;
    if v4 {
        socket.set_ip_transparent_v4(true)?;
        // It never learns of a path MTU, because the ICMP error is for a UDP socket of that port. So routers
        // may fragment.
        allow_fragmentation(&socket)?;
    } else {
        socket.set_ip_transparent_v6(true)?;
    }
    let nowhere = if v4 { IpAddr::V4(NOWHERE_V4) } else { IpAddr::V6(NOWHERE_V6) };
    socket.bind(&SocketAddr::new(nowhere, 0).into())?;
    enlarge_queues(&socket);
    Ok(socket)
}

/// Configures the upstream socket of a flow: buffers for bursts, and ICMP errors with type and code.
pub(crate) fn prepare_upstream(socket: &Socket, v4: bool) -> io::Result<()> {
    enlarge_queues(socket);
    if v4 {
        setsockopt(socket, sockopt::Ipv4RecvErr, &true)?;
    } else {
        setsockopt(socket, sockopt::Ipv6RecvErr, &true)?;
    }
    Ok(())
}

/// Best effort: beyond `net.core.rmem_max` CAP_NET_ADMIN is needed.
fn enlarge_queues(socket: &Socket) {
    if setsockopt(socket, sockopt::RcvBufForce, &QUEUE).is_err() {
        let _ = socket.set_recv_buffer_size(QUEUE);
    }
    if setsockopt(socket, sockopt::SndBufForce, &QUEUE).is_err() {
        let _ = socket.set_send_buffer_size(QUEUE);
    }
}

/// Reads the next ICMP error from the socket's error queue. `None` if it is empty.
///
/// # Errors
/// As `recvmsg(2)`.
pub(crate) fn next_error(socket: impl AsFd) -> io::Result<Option<IcmpError>> {
    loop {
        let mut space = cmsg_space!([u8; 64]);
        let mut datagram = [0; 1];
        let mut slices = [IoSliceMut::new(&mut datagram)];
        let flags = MsgFlags::MSG_ERRQUEUE | MsgFlags::MSG_DONTWAIT;
        let fd = socket.as_fd().as_raw_fd();
        let message = match recvmsg::<()>(fd, &mut slices, Some(&mut space), flags) {
            Err(Errno::EAGAIN) => return Ok(None),
            other => other?,
        };
        for control in message.cmsgs()? {
            let (error, v4) = match control {
                ControlMessageOwned::Ipv4RecvErr(error, _) => (error, true),
                ControlMessageOwned::Ipv6RecvErr(error, _) => (error, false),
                _ => continue,
            };
            let is_too_big = i32::try_from(error.ee_errno) == Ok(Errno::EMSGSIZE as i32);
            return Ok(Some(match (error.ee_origin, is_too_big) {
                (_, true) => IcmpError::too_big(v4, error.ee_info),
                (ORIGIN_LOCAL, _) => continue,
                _ => IcmpError { kind: error.ee_type, code: error.ee_code, mtu: 0 },
            }));
        }
    }
}

/// `IP_PMTUDISC_DONT`: sends without the don't-fragment bit.
#[expect(unsafe_code, reason = "no safe wrapper has IP_MTU_DISCOVER")]
fn allow_fragmentation(socket: &Socket) -> io::Result<()> {
    let value = libc::IP_PMTUDISC_DONT;
    let length = libc::socklen_t::try_from(size_of_val(&value)).unwrap_or(0);
    // SAFETY: the kernel reads `length` bytes of `value`, which has as many.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_IP,
            libc::IP_MTU_DISCOVER,
            (&raw const value).cast(),
            length,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The number of datagrams that were dropped because the socket's queue was full; it wraps.
///
/// `SO_RXQ_OVFL` delivers the same number with each datagram, but not before the first drop: the control data
/// then grows, and nix gives a message header of `recvmmsg` no more space than the message before has used.
#[expect(unsafe_code, reason = "no safe wrapper has SO_MEMINFO")]
pub(crate) fn drops(socket: impl AsFd) -> u32 {
    let mut values = [0_u32; MEMINFO_VARS];
    let mut length = libc::socklen_t::try_from(size_of_val(&values)).unwrap_or(0);
    // SAFETY: the kernel writes at most `length` bytes to `values`, which has as many, and the length to
    // `length`.
    let result = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_MEMINFO,
            values.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    if result == 0 { values[MEMINFO_DROPS] } else { 0 }
}

#[cfg(test)]
mod tests {
    use socket2::SockRef;

    use super::*;

    #[test]
    fn datagrams_dropped_by_a_full_queue_are_counted() {
        let receiver = UdpSocket::bind("127.0.0.1:0").unwrap();
        SockRef::from(&receiver).set_recv_buffer_size(0).unwrap();
        let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
        for _ in 0..100 {
            sender.send_to(&[0; 1000], receiver.local_addr().unwrap()).unwrap();
        }
        receiver.set_nonblocking(true).unwrap();
        let mut received = 0;
        while receiver.recv(&mut [0; 1000]).is_ok() {
            received += 1;
        }
        assert_eq!(drops(&receiver), 100 - received);
        assert!(received < 50, "{received}");
    }
}
