//! The router between nodes.

use std::sync::Arc;

use anyhow::{Context, Result};
use ipnetwork::IpNetwork;
use netns::NetNs;

use crate::Node;
use crate::node::{Uplink, network, shell};

/// Subnets of a router: the first three octets of the IPv4 addresses and the IPv6 prefix. All are
/// documentation ranges.
const SUBNETS: [(&str, &str); 2] = [("192.0.2", "2001:db8:1::"), ("203.0.113", "2001:db8:2::")];

/// A router with a bridge for each subnet: nodes of one subnet share a link; nodes of different subnets are
/// routed by the router, which has no routes to pods.
#[derive(Debug)]
pub struct Router {
    outside: Arc<NetNs>,
    nodes: usize,
}

impl Router {
    /// A router with both its subnets, 192.0.2.0/24 (2001:db8:1::/64) and 203.0.113.0/24 (2001:db8:2::/64).
    ///
    /// # Errors
    /// When the kernel or `ip` refuses, usually for lack of root privileges.
    pub fn new() -> Result<Self> {
        let outside = NetNs::create_unnamed().context("create the network between nodes (root is needed)")?;
        let mut script = "ip link set lo up; echo 1 > /proc/sys/net/ipv4/ip_forward; \
                          echo 1 > /proc/sys/net/ipv6/conf/all/forwarding; \
                          echo 0 > /proc/sys/net/ipv6/conf/default/accept_dad; "
            .to_owned();
        for (number, (v4, v6)) in SUBNETS.iter().enumerate() {
            script += &format!(
                "ip link add switch{number} type bridge; ip link set switch{number} up; \
                 ip address add {v4}.1/24 dev switch{number}; ip address add {v6}1/64 dev \
                 switch{number} nodad; "
            );
        }
        outside.run(|| shell(&script))??;
        Ok(Self { outside: Arc::new(outside), nodes: 0 })
    }

    /// Adds a node on subnet 0 or 1 with addresses of both families. Its [`Node::outside`] is the router.
    ///
    /// # Errors
    /// As [`Node::new`].
    pub fn add_node(&mut self, subnet: usize) -> Result<Node> {
        let (v4, v6) = SUBNETS.get(subnet).with_context(|| format!("there is no subnet {subnet}"))?;
        self.nodes += 1;
        let (port, host) = (format!("port{}", self.nodes), self.nodes + 1);
        let addresses: [(IpNetwork, _); 2] = [
            (network(&format!("{v4}.{host}"), 24), format!("{v4}.1").parse()?),
            (network(&format!("{v6}{host:x}"), 64), format!("{v6}1").parse()?),
        ];
        let uplink = Uplink { port: port.clone(), addresses: addresses.into() };
        let node = Node::connected(Arc::clone(&self.outside), uplink)?;
        self.outside.run(|| shell(&format!("ip link set {port} master switch{subnet}")))??;
        Ok(node)
    }
}

#[cfg(test)]
mod tests {

    use super::*;

    #[test]
    fn nodes_of_one_subnet_share_a_link_and_others_use_the_router() {
        let mut router = Router::new().unwrap();
        let nodes = [0, 0, 1].map(|subnet| router.add_node(subnet).unwrap());
        for to in [&nodes[1], &nodes[2]] {
            for address in to.addresses() {
                nodes[0].shell(&format!("ping -c1 -W2 {address}")).unwrap();
            }
        }
        let neighbours = nodes[0].shell("ip -4 neighbour show").unwrap();
        assert!(neighbours.contains(nodes[1].address()), "{neighbours}");
        assert!(!neighbours.contains(nodes[2].address()), "{neighbours}");
    }
}
