//! Finds the addresses on which a portolan-dns of this node listens.
//!
//! portolan-dns holds an abstract Unix socket named after each of its addresses while it runs. The kernel
//! lists these per network namespace, and removes the name when the process ends. Any process can hold such a
//! name. So a name counts only if a TCP socket listens at exactly that address: binding its port requires the
//! privilege to serve it (`CAP_NET_BIND_SERVICE`).

use std::collections::BTreeSet;
use std::io;
use std::net::SocketAddr;
use std::sync::LazyLock;

use daemon::log::RateLimit;
use nix::unistd::geteuid;
use tracing::warn;

use crate::kernel::socket_diag;

/// The kernel shows this in place of the first byte of an abstract name, which is 0.
const PREFIX: &str = "@portolan-dns/";

/// The ports that a name may claim, DNS and DNS over TLS: a name must not take any other port from a Service.
const PORTS: [u16; 2] = [53, 853];

/// Lower ports require `CAP_NET_BIND_SERVICE`.
const UNPRIVILEGED: &str = "/proc/sys/net/ipv4/ip_unprivileged_port_start";

static WARNINGS: LazyLock<RateLimit> = LazyLock::new(RateLimit::default);

/// The addresses and ports of every portolan-dns in this network namespace.
pub(crate) fn listeners() -> BTreeSet<SocketAddr> {
    let mut claimed = parse(&std::fs::read_to_string("/proc/net/unix").unwrap_or_default());
    claimed.retain(|address| {
        is_listening(*address).unwrap_or_else(|error| {
            if let Some(suppressed) = WARNINGS.admit() {
                warn!(%address, %error, suppressed, "cannot find out whether portolan-dns listens: its Service has the address");
            }
            false
        })
    });
    claimed
}

/// Parses `/proc/net/unix`: the name is the last word of a line. The kernel does not escape spaces, but an
/// address has none.
fn parse(table: &str) -> BTreeSet<SocketAddr> {
    let names = table.lines().filter_map(|line| line.rsplit(' ').next()?.strip_prefix(PREFIX));
    names
        .filter_map(|name| name.parse().ok())
        .filter(|address: &SocketAddr| !address.ip().is_unspecified() && PORTS.contains(&address.port()))
        .collect()
}

/// Whether a process with the necessary privilege listens at exactly this address. For an unprivileged port
/// this is root or this user.
fn is_listening(address: SocketAddr) -> io::Result<bool> {
    let Some(uid) = socket_diag::listener(address)? else { return Ok(false) };
    let unprivileged = std::fs::read_to_string(UNPRIVILEGED)?.trim().parse::<u16>().unwrap_or(0);
    Ok(address.port() < unprivileged || uid == 0 || uid == geteuid().as_raw())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_addresses_count() {
        let table = "Num       RefCount Protocol Flags    Type St Inode Path\n\
            ffff0001: 00000002 00000000 00010000 0001 01 1234 @portolan-dns/10.96.0.10:53\n\
            ffff0002: 00000002 00000000 00010000 0001 01 1235 @portolan-dns/[fd00:10:96::a]:53\n\
            ffff0003: 00000002 00000000 00010000 0001 01 1236 @portolan-dns/0.0.0.0:53\n\
            ffff0006: 00000002 00000000 00010000 0001 01 1239 @portolan-dns/10.96.3.4:8080\n\
            ffff0004: 00000002 00000000 00010000 0001 01 1237 /run/portolan-dns/10.96.0.11:53\n\
            ffff0005: 00000003 00000000 00000000 0001 03 1238\n";
        let expected = ["10.96.0.10:53", "[fd00:10:96::a]:53"].map(|address| address.parse().unwrap());
        assert_eq!(parse(table), expected.into());
    }
}
