//! Where a portolan-dns of this node listens.
//!
//! It holds an abstract Unix socket named after each of its addresses for as long as it runs. The kernel lists these for every
//! network namespace, and removes the name when the process ends, however it ends.

use std::collections::BTreeSet;
use std::net::SocketAddr;

/// Abstract names are shown with this in place of their first byte, which is 0.
const PREFIX: &str = "@portolan-dns/";

/// The ports that a name may claim, DNS and DNS over TLS. Abstract names have no owner that the kernel shows here, so a process without
/// privileges can hold one: it must not be able to take any other port from a Service, nor bind what it took.
const PORTS: [u16; 2] = [53, 853];

/// The addresses and ports of every portolan-dns in this network namespace.
pub(crate) fn listeners() -> BTreeSet<SocketAddr> {
    parse(&std::fs::read_to_string("/proc/net/unix").unwrap_or_default())
}

/// Reads `/proc/net/unix`: the name is the last word of a line. The kernel would show a space in it as it is, but an address has none.
fn parse(table: &str) -> BTreeSet<SocketAddr> {
    let names = table.lines().filter_map(|line| line.rsplit(' ').next()?.strip_prefix(PREFIX));
    names
        .filter_map(|name| name.parse().ok())
        .filter(|address: &SocketAddr| !address.ip().is_unspecified() && PORTS.contains(&address.port()))
        .collect()
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
