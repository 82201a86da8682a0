//! Finds listening TCP sockets of this network namespace by `sock_diag`: one look-up, however many there are.

use std::io;
use std::net::{IpAddr, SocketAddr};

use rtnetlink::sys::protocols::NETLINK_SOCK_DIAG;
use rtnetlink::sys::{Socket, SocketAddr as KernelAddress};

/// `SOCK_DIAG_BY_FAMILY`, `NLM_F_REQUEST`, `NLMSG_ERROR`, `TCP_LISTEN`.
const BY_FAMILY: u16 = 20;
const REQUEST: u16 = 1;
const ERROR: u16 = 2;
const LISTEN: u8 = 10;

/// `AF_INET`, `AF_INET6`, `IPPROTO_TCP`.
const INET: u8 = 2;
const INET6: u8 = 10;
const TCP: u8 = 6;

/// `struct nlmsghdr`; then `struct inet_diag_msg` with its state, source port, source address and uid.
const HEADER: usize = 16;
const STATE: usize = HEADER + 1;
const PORT: usize = HEADER + 4;
const ADDRESS: usize = HEADER + 8;
const UID: usize = HEADER + 64;

/// The user whose TCP socket listens at exactly this address.
///
/// # Errors
/// An error of the kernel, usually a missing `inet_diag`.
pub(crate) fn listener(address: SocketAddr) -> io::Result<Option<u32>> {
    let socket = Socket::new(NETLINK_SOCK_DIAG)?;
    socket.connect(&KernelAddress::new(0, 0))?;
    socket.send(&request(address), 0)?;
    let (answer, _) = socket.recv_from_full()?;
    let number = |at: usize| answer.get(at..at + 4)?.try_into().ok().map(u32::from_ne_bytes);
    let kind = answer.get(4..6).ok_or(io::ErrorKind::InvalidData)?;
    if kind == ERROR.to_ne_bytes() {
        let code = number(HEADER).ok_or(io::ErrorKind::InvalidData)?.wrapping_neg();
        let error = io::Error::from_raw_os_error(i32::try_from(code).unwrap_or(0));
        return if error.kind() == io::ErrorKind::NotFound { Ok(None) } else { Err(error) };
    }
    let ip = octets(address.ip());
    // A wildcard socket is found too.
    let is_own = answer.get(STATE) == Some(&LISTEN)
        && answer.get(PORT..PORT + 2) == Some(&address.port().to_be_bytes()[..])
        && answer.get(ADDRESS..ADDRESS + 16) == Some(&ip[..]);
    Ok(number(UID).filter(|_| is_own))
}

/// `struct inet_diag_req_v2` for the socket that would accept a connection to this address.
fn request(address: SocketAddr) -> Vec<u8> {
    let mut body = vec![if address.is_ipv4() { INET } else { INET6 }, TCP, 0, 0];
    body.extend((1_u32 << LISTEN).to_ne_bytes());
    body.extend(address.port().to_be_bytes());
    body.extend([0; 2]);
    body.extend(octets(address.ip()));
    body.extend([0; 16 + 4]);
    // Any cookie.
    body.extend([0xff; 8]);
    let length = u32::try_from(HEADER + body.len()).unwrap_or(0);
    let mut bytes = length.to_ne_bytes().to_vec();
    bytes.extend(BY_FAMILY.to_ne_bytes());
    bytes.extend(REQUEST.to_ne_bytes());
    bytes.extend([0; 8]);
    bytes.extend(body);
    bytes
}

/// The address format of sock_diag for both families.
fn octets(ip: IpAddr) -> [u8; 16] {
    let mut octets = [0; 16];
    match ip {
        IpAddr::V4(ip) => octets[..4].copy_from_slice(&ip.octets()),
        IpAddr::V6(ip) => octets = ip.octets(),
    }
    octets
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use nix::unistd::geteuid;

    use super::*;

    #[test]
    fn listener_is_found_at_its_own_address_only() {
        for ip in ["127.0.0.1", "::1"] {
            let socket = TcpListener::bind((ip, 0)).unwrap();
            let address = socket.local_addr().unwrap();
            assert_eq!(listener(address).unwrap(), Some(geteuid().as_raw()), "{address}");
            drop(socket);
            assert_eq!(listener(address).unwrap(), None, "{address}");
        }
        let everywhere = TcpListener::bind("0.0.0.0:0").unwrap();
        let address = SocketAddr::new([127, 0, 0, 1].into(), everywhere.local_addr().unwrap().port());
        assert_eq!(listener(address).unwrap(), None);
    }
}
