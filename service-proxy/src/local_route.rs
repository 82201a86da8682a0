//! AnyIP: one route a range makes every virtual IP local to the node.
//!
//! `local 10.96.0.0/12 dev lo src <node>` in the table the kernel asks first. A packet for a virtual IP then ends on
//! this node, from pods and from the node itself, and a port nobody listens on is refused by the kernel. Without
//! `src`, a connection from the node would take the virtual IP for its own source.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

use ipnetwork::IpNetwork;
use rtnetlink::packet_route::route::{RouteMessage, RouteScope, RouteType};
use rtnetlink::{Handle, RouteMessageBuilder};
use tokio::task::JoinSet;
use tracing::info;

/// `RT_TABLE_LOCAL`.
const LOCAL_TABLE: u32 = 255;

/// The loopback device has this index in every network namespace (`LOOPBACK_IFINDEX`).
const LOOPBACK: u32 = 1;

/// What went wrong with a route.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("open a netlink socket: {0}")]
    Socket(#[source] std::io::Error),
    #[error("make {cidr} local to this node: {source}")]
    Add { cidr: IpNetwork, source: Box<rtnetlink::Error> },
}

/// The routes this process added.
#[derive(Debug)]
pub(crate) struct LocalRoutes {
    handle: Handle,
    routes: Vec<RouteMessage>,
    /// Runs the netlink connection.
    connection: JoinSet<()>,
}

impl LocalRoutes {
    /// Makes every address of `cidrs` local. Repeating it is fine; a route left by an earlier run is taken over.
    pub(crate) async fn ensure(cidrs: &[IpNetwork]) -> Result<Self, Error> {
        let (connection, handle, _) = rtnetlink::new_connection().map_err(Error::Socket)?;
        let mut tasks = JoinSet::new();
        tasks.spawn(connection);
        let mut added = Self { handle, routes: Vec::new(), connection: tasks };
        for cidr in cidrs {
            let route = route(*cidr, node_address(cidr.is_ipv4()));
            added
                .handle
                .route()
                .add(route.clone())
                .replace()
                .execute()
                .await
                .map_err(|source| Error::Add { cidr: *cidr, source: Box::new(source) })?;
            info!(%cidr, "virtual IPs are local to this node");
            added.routes.push(route);
        }
        Ok(added)
    }

    /// Takes the routes away again. One that is gone already is fine.
    pub(crate) async fn remove(mut self) {
        for route in self.routes.drain(..) {
            drop(self.handle.route().del(route).execute().await);
        }
        self.connection.shutdown().await;
    }
}

fn route(cidr: IpNetwork, source: Option<IpAddr>) -> RouteMessage {
    match cidr {
        IpNetwork::V4(cidr) => {
            let builder = RouteMessageBuilder::<Ipv4Addr>::new()
                .destination_prefix(cidr.network(), cidr.prefix())
                .table_id(LOCAL_TABLE)
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
                .kind(RouteType::Local)
                .output_interface(LOOPBACK);
            match source {
                Some(IpAddr::V6(source)) => builder.pref_source(source).build(),
                _ => builder.build(),
            }
        }
    }
}

/// The address the node uses towards the rest of the world, if it has one. Connecting a UDP socket sends nothing; the
/// destination is from the ranges for documentation.
fn node_address(v4: bool) -> Option<IpAddr> {
    let (local, remote): (SocketAddr, SocketAddr) = if v4 {
        ((Ipv4Addr::UNSPECIFIED, 0).into(), (Ipv4Addr::new(198, 51, 100, 1), 9).into())
    } else {
        ((Ipv6Addr::UNSPECIFIED, 0).into(), (Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1), 9).into())
    };
    let socket = UdpSocket::bind(local).ok()?;
    socket.connect(remote).ok()?;
    socket.local_addr().ok().map(|address| address.ip()).filter(|ip| !ip.is_unspecified())
}
