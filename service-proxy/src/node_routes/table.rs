//! Our routes in the kernel's main table.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use futures_util::TryStreamExt as _;
use ipnetwork::IpNetwork;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::link::LinkAttribute;
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteType,
};
use rtnetlink::{Error, Handle, RouteMessageBuilder};

use super::plan::{NextHop, Path, Plan};

/// The protocol (`rtm_protocol`) of our routes, a number that `/etc/iproute2/rt_protos` does not have. Routes
/// of other protocols are never changed.
const OURS: RouteProtocol = RouteProtocol::Other(113);

/// MTU in bytes of an interface that does not report one.
const DEFAULT_MTU: u32 = 1500;

/// Our current routes.
#[derive(Debug)]
pub(super) struct Table(BTreeMap<IpNetwork, RouteMessage>);

impl Table {
    /// Reads the routes. The kernel filters by protocol.
    pub(super) async fn read(handle: &Handle) -> Result<Self, Error> {
        let mut found = BTreeMap::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut request = RouteMessage::default();
            request.header.address_family = family;
            request.header.protocol = OURS;
            request.header.table = RouteHeader::RT_TABLE_MAIN;
            let mut routes = handle.route().get(request).execute();
            while let Some(route) = routes.try_next().await? {
                // A kernel without strict checking (before 4.20) does not filter.
                if route.header.protocol == OURS {
                    found.extend(destination(&route).map(|range| (range, route)));
                }
            }
        }
        Ok(Self(found))
    }

    /// Updates the routes to the plan, with `device` as the tunnel's index. Returns the problems.
    pub(super) async fn apply(&self, handle: &Handle, plan: &Plan, device: Option<u32>) -> Vec<String> {
        let mut problems = Vec::new();
        for (range, route) in self.0.iter().filter(|(range, _)| !plan.routes.contains_key(range)) {
            problems.extend(delete(handle, *range, route).await);
        }
        for (range, next_hop) in &plan.routes {
            let (via, device) = match (next_hop, device) {
                (NextHop::Direct(address), _) => (*address, None),
                (NextHop::Tunnel(_), Some(device)) => (range.network(), Some(device)),
                // The reason why there is no tunnel is logged already.
                (NextHop::Tunnel(_), None) => continue,
            };
            let present = self.0.get(range);
            if present.is_some_and(|route| is_as_wanted(route, via, device)) {
                continue;
            }
            let adding = handle.route().add(message(*range, via, device));
            let adding = if present.is_some() { adding.replace() } else { adding };
            if let Err(error) = adding.execute().await {
                let error = errno(&error).map_or_else(|| error.to_string(), |errno| errno.to_string());
                problems.push(format!("add the route to {range} via {via}: {error}"));
            }
        }
        problems
    }

    /// Removes all routes.
    pub(super) async fn remove_all(&self, handle: &Handle) -> Vec<String> {
        self.apply(handle, &Plan::default(), None).await
    }
}

/// How the kernel would send to each address. Addresses without a route are left out.
pub(super) async fn paths(handle: &Handle, addresses: impl Iterator<Item = IpAddr>) -> HashMap<IpAddr, Path> {
    let (mut found, mut mtus) = (HashMap::new(), HashMap::new());
    for address in addresses {
        let mut request = RouteMessage::default();
        let (family, prefix, destination) = match address {
            IpAddr::V4(ip) => (AddressFamily::Inet, 32, RouteAddress::Inet(ip)),
            IpAddr::V6(ip) => (AddressFamily::Inet6, 128, RouteAddress::Inet6(ip)),
        };
        request.header.address_family = family;
        request.header.destination_prefix_length = prefix;
        request.attributes.push(RouteAttribute::Destination(destination));
        let Ok(Some(route)) = handle.route().get(request).execute().try_next().await else { continue };
        let Some(device) = device_of(&route).filter(|_| route.header.kind == RouteType::Unicast) else {
            continue;
        };
        if let std::collections::hash_map::Entry::Vacant(unknown) = mtus.entry(device) {
            unknown.insert(mtu_of(handle, device).await.unwrap_or(DEFAULT_MTU));
        }
        let on_link = gateway_of(&route).is_none();
        found.insert(address, Path { on_link, mtu: mtus[&device] });
    }
    found
}

/// The error number of a kernel error.
pub(super) fn errno(error: &Error) -> Option<io::Error> {
    match error {
        Error::NetlinkError(message) => Some(message.to_io()),
        _ => None,
    }
}

async fn mtu_of(handle: &Handle, device: u32) -> Option<u32> {
    let link = handle.link().get().match_index(device).execute().try_next().await.ok()??;
    link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Mtu(mtu) => Some(*mtu),
        _ => None,
    })
}

async fn delete(handle: &Handle, range: IpNetwork, route: &RouteMessage) -> Option<String> {
    let deleted = handle.route().del(route.clone()).execute().await;
    let error =
        deleted.err().filter(|error| errno(error).is_none_or(|e| e.raw_os_error() != Some(libc::ESRCH)))?;
    Some(format!("delete the route to {range}: {error}"))
}

fn message(range: IpNetwork, via: IpAddr, device: Option<u32>) -> RouteMessage {
    let mut builder = RouteMessageBuilder::<IpAddr>::new()
        .destination_prefix(range.network(), range.prefix())
        .expect("a network has a prefix of its own family")
        .gateway(via)
        .expect("a gateway has the family of its range")
        .protocol(OURS);
    if let Some(device) = device {
        builder = builder.output_interface(device).onlink();
    }
    builder.build()
}

fn is_as_wanted(route: &RouteMessage, via: IpAddr, device: Option<u32>) -> bool {
    gateway_of(route) == Some(via) && device.is_none_or(|device| device_of(route) == Some(device))
}

fn destination(route: &RouteMessage) -> Option<IpNetwork> {
    let address = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Destination(address) => to_ip(address),
        _ => None,
    });
    // The default route has no destination. It is never ours, but another program may use our protocol
    // number.
    let unspecified = match route.header.address_family {
        AddressFamily::Inet6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        _ => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
    };
    IpNetwork::new(address.unwrap_or(unspecified), route.header.destination_prefix_length).ok()
}

fn gateway_of(route: &RouteMessage) -> Option<IpAddr> {
    route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Gateway(address) => to_ip(address),
        _ => None,
    })
}

fn device_of(route: &RouteMessage) -> Option<u32> {
    route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Oif(index) => Some(*index),
        _ => None,
    })
}

fn to_ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(ip) => Some(IpAddr::V4(*ip)),
        RouteAddress::Inet6(ip) => Some(IpAddr::V6(*ip)),
        _ => None,
    }
}
