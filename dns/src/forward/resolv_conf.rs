//! The upstream servers of the node.

use std::net::{IpAddr, SocketAddr};

/// Where the node's own resolver finds them.
const RESOLV_CONF: &str = "/etc/resolv.conf";

/// glibc looks at no more than three.
const MAX_SERVERS: usize = 3;

/// The servers of `/etc/resolv.conf`, without those that are ourselves. None if the file is missing.
pub(crate) fn upstreams(ourselves: &[SocketAddr]) -> Vec<SocketAddr> {
    let text = std::fs::read_to_string(RESOLV_CONF).unwrap_or_default();
    let (ours, others): (Vec<_>, Vec<_>) =
        parse(&text).into_iter().partition(|server| ourselves.contains(server));
    for server in ours {
        tracing::warn!(%server, "{RESOLV_CONF} names this server itself, which would ask itself for ever; left out");
    }
    others
}

fn parse(text: &str) -> Vec<SocketAddr> {
    let servers = text.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        words.next().filter(|word| *word == "nameserver")?;
        let address: IpAddr = words.next()?.parse().ok()?;
        Some(SocketAddr::new(address, 53))
    });
    servers.take(MAX_SERVERS).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_nameserver_lines_count_and_three_of_them() {
        let text = "# nameserver 9.9.9.9\nsearch a b\nnameserver 192.0.2.1\n nameserver\t2001:db8::1 \nnameserver x\nnameserver 192.0.2.2\nnameserver 192.0.2.3\n";
        let found: Vec<String> = parse(text).iter().map(ToString::to_string).collect();
        assert_eq!(found, ["192.0.2.1:53", "[2001:db8::1]:53", "192.0.2.2:53"]);
    }
}
