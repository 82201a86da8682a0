//! Policy routing: marked packets are local to the node.
//!
//! Two kinds are marked: replies to connections with a preserved client address, and packets to the frontends
//! of external IPs, which are not local (see [`crate::kernel::interception`]).
//!
//! A socket bound to a foreign address (`IP_TRANSPARENT`) can send, but replies are routed to the owner of
//! the address. So packets of such a socket are marked before routing, and marked packets are local:
//!
//! ```text
//! nft:      socket transparent 1 socket wildcard 0 meta mark set meta mark | 0x1000     (see interception)
//! ip rule:  from all fwmark 0x1000/0x1000 lookup 7061
//! ip route: local default dev lo table 7061
//! ```

use std::io;
use std::sync::LazyLock;

use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::route::{RouteMessage, RouteScope, RouteType};
use rtnetlink::packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use rtnetlink::{Handle, RouteMessageBuilder};
use tokio::task::JoinSet;

use std::net::{Ipv4Addr, Ipv6Addr};

/// A bit that others do not use: kube-proxy has 0x4000 and 0x8000, portmap and netavark 0x2000, Cilium 0xf00,
/// Calico the upper half.
pub(crate) const MARK: u32 = 0x1000;

/// The mark of what the proxy sends to endpoints. If such a packet arrives at the proxy again, for a virtual
/// IP, it is not proxied a second time (see [`crate::kernel::interception`]). The mark does not leave the
/// network namespace or the node.
pub(crate) const PROXIED: u32 = 0x40;

/// The routing table, and the priority of its rule: after `local` (0), before `main` (32766).
const ROUTES: u32 = 7061;
const PRIORITY: u32 = 100;

/// The index of the loopback device in every network namespace (`LOOPBACK_IFINDEX`).
const LOOPBACK: u32 = 1;

/// The rules and routes.
#[derive(Debug)]
pub(crate) struct PolicyRouting {
    handle: Handle,
    routes: Vec<RouteMessage>,
    rules: Vec<RuleMessage>,
    /// The task of the netlink connection.
    connection: JoinSet<()>,
}

impl PolicyRouting {
    /// Adds everything. Idempotent; rules and routes of an earlier process are kept.
    ///
    /// # Errors
    /// An error of the kernel, usually a missing privilege or module. Nothing is left half done.
    pub(crate) async fn ensure() -> io::Result<Self> {
        let (connection, handle, _) = rtnetlink::new_connection()?;
        let mut tasks = JoinSet::new();
        tasks.spawn(connection);
        let mut policy_routing = Self {
            handle,
            routes: vec![
                local_default(RouteMessageBuilder::<Ipv4Addr>::new().build(), AddressFamily::Inet),
                local_default(RouteMessageBuilder::<Ipv6Addr>::new().build(), AddressFamily::Inet6),
            ],
            rules: vec![rule(AddressFamily::Inet), rule(AddressFamily::Inet6)],
            connection: tasks,
        };
        match policy_routing.set_up().await {
            Ok(()) => Ok(policy_routing),
            Err(error) => {
                policy_routing.take_down().await;
                policy_routing.connection.shutdown().await;
                Err(error)
            }
        }
    }

    /// Removes everything. What is missing is fine.
    pub(crate) async fn remove(mut self) {
        self.take_down().await;
        self.connection.shutdown().await;
    }

    /// Restores what another program has deleted.
    ///
    /// # Errors
    /// An error of the kernel.
    pub(crate) async fn repair(&self) -> io::Result<()> {
        self.set_up().await
    }

    async fn set_up(&self) -> io::Result<()> {
        for route in &self.routes {
            match self.handle.route().add(route.clone()).execute().await {
                Err(error) if !is_there_already(&error) => return Err(io::Error::other(error)),
                _ => {}
            }
        }
        for rule in &self.rules {
            let mut adding = self.handle.rule().add();
            *adding.message_mut() = rule.clone();
            match adding.execute().await {
                Err(error) if !is_there_already(&error) => return Err(io::Error::other(error)),
                _ => {}
            }
        }
        Ok(())
    }

    async fn take_down(&mut self) {
        for rule in self.rules.drain(..) {
            // What is missing is fine.
            let _ = self.handle.rule().del(rule).execute().await;
        }
        for route in self.routes.drain(..) {
            let _ = self.handle.route().del(route).execute().await;
        }
    }
}

/// `local default dev lo table 7061`
fn local_default(mut route: RouteMessage, family: AddressFamily) -> RouteMessage {
    use rtnetlink::packet_route::route::RouteAttribute;
    route.header.address_family = family;
    route.header.destination_prefix_length = 0;
    route.header.kind = RouteType::Local;
    route.header.scope = if family == AddressFamily::Inet { RouteScope::Host } else { RouteScope::Universe };
    route.attributes = vec![RouteAttribute::Table(ROUTES), RouteAttribute::Oif(LOOPBACK)];
    route
}

/// `fwmark 0x1000/0x1000 lookup 7061`
fn rule(family: AddressFamily) -> RuleMessage {
    let mut rule = RuleMessage::default();
    rule.header.family = family;
    rule.header.action = RuleAction::ToTable;
    rule.attributes = vec![
        RuleAttribute::FwMark(MARK),
        RuleAttribute::FwMask(MARK),
        RuleAttribute::Table(ROUTES),
        RuleAttribute::Priority(PRIORITY),
    ];
    rule
}

/// Whether `socket` finds the socket of a reply to a masqueraded IPv6 address, as it does for IPv4: since
/// Linux 6.15 it looks the original address up in conntrack. Stable kernels with a backport count as without
/// it.
pub(crate) fn finds_masqueraded_v6() -> bool {
    static RELEASE: LazyLock<String> =
        LazyLock::new(|| std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default());
    is_at_least(&RELEASE, (6, 15))
}

fn is_at_least(release: &str, wanted: (u32, u32)) -> bool {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    matches!((numbers.next(), numbers.next()), (Some(Ok(major)), Some(Ok(minor))) if (major, minor) >= wanted)
}

pub(super) fn is_there_already(error: &rtnetlink::Error) -> bool {
    let rtnetlink::Error::NetlinkError(message) = error else { return false };
    message.to_io().kind() == io::ErrorKind::AlreadyExists
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_are_compared_by_number() {
        for (release, expected) in
            [("6.1.0-38-amd64", false), ("6.15.0", true), ("6.9-rc1", false), ("10.0", true), ("", false)]
        {
            assert_eq!(is_at_least(release, (6, 15)), expected, "{release}");
        }
    }
}
