//! AnyIP: one route per range makes every virtual IP local to the node.
//!
//! `local 10.96.0.0/12 dev lo src <node>` in the local table. A packet to a virtual IP then ends on this
//! node, from pods and from the node itself, and the kernel refuses ports without a listener. Without `src`,
//! a connection from the node would use the virtual IP as its source.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use daemon::log::RateLimit;
use futures_util::TryStreamExt as _;
use ipnetwork::IpNetwork;
use rtnetlink::packet_route::link::{InfoKind, LinkAttribute, LinkInfo};
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use rtnetlink::{Handle, RouteMessageBuilder};
use tokio::task::JoinSet;
use tracing::{info, warn};

use crate::kernel::policy_routing::is_there_already;
use crate::kernel::{node_address, untracked};

/// `RT_TABLE_LOCAL`.
const LOCAL_TABLE: u32 = 255;

/// The protocol (`rtm_protocol`) of our routes: 112, which is not in `/etc/iproute2/rt_protos`.
const OURS: RouteProtocol = RouteProtocol::Other(112);

/// The index of the loopback device in every network namespace (`LOOPBACK_IFINDEX`).
const LOOPBACK: u32 = 1;

/// An error about a route.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("open a netlink socket: {0}")]
    Socket(#[source] io::Error),
    #[error("make {cidr} local to this node: {source}")]
    Add { cidr: IpNetwork, source: io::Error },
}

/// The routes that this process added.
#[derive(Debug)]
pub(crate) struct LocalRoutes {
    handle: Handle,
    /// The service ranges: those of the flags, then those of ServiceCIDR objects.
    ranges: Vec<IpNetwork>,
    /// Cluster IPs outside of the ranges.
    singles: BTreeSet<IpAddr>,
    /// Single addresses whose route could not be added.
    unrouted: BTreeSet<IpAddr>,
    warnings: RateLimit,
    /// The task of the netlink connection.
    connection: JoinSet<()>,
}

impl LocalRoutes {
    /// Makes every address of `cidrs` local. Idempotent; routes of an earlier process are reused.
    pub(crate) async fn ensure(cidrs: &[IpNetwork]) -> Result<Self, Error> {
        let (connection, handle, _) = rtnetlink::new_connection().map_err(Error::Socket)?;
        let mut tasks = JoinSet::new();
        tasks.spawn(connection);
        let mut added = Self {
            handle,
            ranges: Vec::new(),
            singles: BTreeSet::new(),
            unrouted: BTreeSet::new(),
            warnings: RateLimit::default(),
            connection: tasks,
        };
        let ranges = added.load_singles(cidrs).await;
        // Before the routes: no packet to a virtual IP must be translated.
        report(untracked::write(&ranges, &added.singles));
        for cidr in &ranges {
            added.add(*cidr).await.map_err(|source| Error::Add { cidr: *cidr, source })?;
            info!(%cidr, "virtual IPs are local to this node");
            added.ranges.push(*cidr);
        }
        Ok(added)
    }

    /// Reads the single addresses of a killed process, so that they are removed if no Service has them.
    /// Returns its ranges, after these.
    async fn load_singles(&mut self, cidrs: &[IpNetwork]) -> Vec<IpNetwork> {
        let mut ranges = cidrs.to_vec();
        for family in
            [RouteMessageBuilder::<Ipv4Addr>::new().build(), RouteMessageBuilder::<Ipv6Addr>::new().build()]
        {
            let mut routes = self.handle.route().get(family).execute();
            while let Ok(Some(route)) = routes.try_next().await {
                let ours = route.header.protocol == OURS && route.header.kind == RouteType::Local;
                let Some(range) = destination(&route).filter(|_| ours) else { continue };
                if ranges.contains(&range) {
                    continue;
                }
                if range == IpNetwork::from(range.ip()) {
                    self.singles.insert(range.ip());
                } else {
                    ranges.push(range);
                }
            }
        }
        ranges
    }

    /// Makes exactly these ranges local.
    pub(crate) async fn set_ranges(&mut self, wanted: Vec<IpNetwork>) {
        if self.ranges == wanted {
            return;
        }
        // A range of one address has the same route as the single address.
        self.singles.retain(|address| !wanted.contains(&IpNetwork::from(*address)));
        report(untracked::write(&wanted, &self.singles));
        for range in self.ranges.iter().filter(|range| !wanted.contains(range)) {
            // A missing route is fine.
            let _ = self.handle.route().del(route(*range, None)).execute().await;
            info!(cidr = %range, "virtual IPs are no longer local to this node");
        }
        for range in wanted.iter().filter(|range| !self.ranges.contains(range)) {
            // `repair` retries a failure.
            match self.add(*range).await {
                Ok(()) => info!(cidr = %range, "virtual IPs are local to this node"),
                Err(error) => warn!(cidr = %range, %error, "cannot make virtual IPs local to this node"),
            }
        }
        self.ranges = wanted;
    }

    /// Makes exactly these addresses local besides the ranges.
    pub(crate) async fn set_singles(&mut self, mut wanted: BTreeSet<IpAddr>) {
        wanted.retain(|address| !self.ranges.contains(&IpNetwork::from(*address)));
        if self.singles == wanted {
            return;
        }
        // Before the routes: no packet to a virtual IP must be translated.
        report(untracked::write(&self.ranges, &wanted));
        for address in self.singles.difference(&wanted) {
            let _ = self.handle.route().del(route((*address).into(), None)).execute().await;
        }
        self.unrouted.retain(|address| wanted.contains(address));
        let before = std::mem::replace(&mut self.singles, wanted.clone());
        for address in wanted.difference(&before) {
            self.add_single(*address).await;
        }
    }

    /// Makes an address local. [`LocalRoutes::repair`] retries a failure.
    async fn add_single(&mut self, address: IpAddr) {
        match self.add(address.into()).await {
            Ok(()) => {
                self.unrouted.remove(&address);
            }
            Err(error) => {
                self.unrouted.insert(address);
                if let Some(suppressed) = self.warnings.admit() {
                    warn!(%address, %error, suppressed, "cannot make the address local to this node");
                }
            }
        }
    }

    /// Restores deleted routes. Checks the single addresses only if a range was deleted or one of them could
    /// not be added: there may be thousands.
    pub(crate) async fn repair(&mut self) {
        report(untracked::repair(&self.ranges, &self.singles));
        let mut was_lost = false;
        for range in &self.ranges {
            // Retried in a second; [`crate::proxier`] reports that the addresses cannot be read.
            let Ok(route) = message(*range) else { continue };
            match self.handle.route().add(route).execute().await {
                Ok(()) => {
                    was_lost = true;
                    warn!(cidr = %range, "the route that makes virtual IPs local to this node was deleted: adding it again");
                }
                Err(error) if is_there_already(&error) => {}
                Err(error) => warn!(cidr = %range, %error, "cannot make virtual IPs local to this node"),
            }
        }
        for address in if was_lost { &self.singles } else { &self.unrouted }.clone() {
            self.add_single(address).await;
        }
    }

    /// Whether there is a bridge on the node.
    pub(crate) async fn has_bridge(&self) -> bool {
        let mut request = self.handle.link().get();
        let kind = LinkInfo::Kind(InfoKind::Bridge);
        request.message_mut().attributes.push(LinkAttribute::LinkInfo(vec![kind]));
        let mut bridges = request.execute();
        matches!(bridges.try_next().await, Ok(Some(_)))
    }

    /// Removes the routes. A missing one is fine.
    pub(crate) async fn remove(mut self) {
        self.set_singles(BTreeSet::new()).await;
        for range in self.ranges.drain(..) {
            let _ = self.handle.route().del(route(range, None)).execute().await;
        }
        report(untracked::remove());
        self.connection.shutdown().await;
    }

    async fn add(&self, cidr: IpNetwork) -> io::Result<()> {
        self.handle.route().add(message(cidr)?).replace().execute().await.map_err(io::Error::other)
    }
}

/// Services work without this, until a program publishes one of their ports on the node.
fn report(result: io::Result<()>) {
    if let Err(error) = result {
        warn!(%error, "cannot keep virtual IPs out of the node's NAT (nft table inet portolan-virtual)");
    }
}

/// The destination of a route.
fn destination(route: &RouteMessage) -> Option<IpNetwork> {
    let address = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Destination(RouteAddress::Inet(ip)) => Some(IpAddr::V4(*ip)),
        RouteAttribute::Destination(RouteAddress::Inet6(ip)) => Some(IpAddr::V6(*ip)),
        _ => None,
    })?;
    IpNetwork::new(address, route.header.destination_prefix_length).ok()
}

/// # Errors
/// As [`node_address::primary`]: a route without the node's address would make virtual IPs the source of
/// connections.
fn message(cidr: IpNetwork) -> io::Result<RouteMessage> {
    Ok(route(cidr, node_address::primary(cidr.is_ipv4())?))
}

fn route(cidr: IpNetwork, source: Option<IpAddr>) -> RouteMessage {
    match cidr {
        IpNetwork::V4(cidr) => {
            let builder = RouteMessageBuilder::<Ipv4Addr>::new()
                .destination_prefix(cidr.network(), cidr.prefix())
                .table_id(LOCAL_TABLE)
                .protocol(OURS)
                .kind(RouteType::Local)
                .scope(RouteScope::Host)
                .output_interface(LOOPBACK);
            match source {
                Some(IpAddr::V4(source)) => builder.pref_source(source).build(),
                _ => builder.build(),
            }
        }
        IpNetwork::V6(cidr) => {
            let builder = RouteMessageBuilder::<Ipv6Addr>::new()
                .destination_prefix(cidr.network(), cidr.prefix())
                .table_id(LOCAL_TABLE)
                .protocol(OURS)
                .kind(RouteType::Local)
                .output_interface(LOOPBACK);
            match source {
                Some(IpAddr::V6(source)) => builder.pref_source(source).build(),
                _ => builder.build(),
            }
        }
    }
}
