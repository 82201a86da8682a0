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

use super::plan::{Hop, Plan, Reach};

/// Who made a route (`rtm_protocol`): a number that `/etc/iproute2/rt_protos` does not have. Others' are
/// never touched.
const OURS: RouteProtocol = RouteProtocol::Other(113);

/// What an interface that does not tell is taken to carry, bytes.
const DEFAULT_MTU: u32 = 1500;

/// Our routes, as they are.
#[derive(Debug)]
pub(super) struct Table(BTreeMap<IpNetwork, RouteMessage>);

impl Table {
    /// Reads them. The kernel leaves out those of others.
    pub(super) async fn read(handle: &Handle) -> Result<Self, Error> {
        let mut found = BTreeMap::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut request = RouteMessage::default();
            request.header.address_family = family;
            request.header.protocol = OURS;
            request.header.table = RouteHeader::RT_TABLE_MAIN;
            let mut routes = handle.route().get(request).execute();
            while let Some(route) = routes.try_next().await? {
                // A kernel without strict checking (before 4.20) sends all of them.
                if route.header.protocol == OURS {
                    found.extend(destination(&route).map(|range| (range, route)));
                }
            }
        }
        Ok(Self(found))
    }

    /// Makes them what the plan says, with `device` as the tunnel's index; returns what is in the way.
    pub(super) async fn apply(&self, handle: &Handle, plan: &Plan, device: Option<u32>) -> Vec<String> {
        let mut problems = Vec::new();
        for (range, route) in self.0.iter().filter(|(range, _)| !plan.routes.contains_key(range)) {
            problems.extend(delete(handle, *range, route).await);
        }
        for (range, hop) in &plan.routes {
            let (via, device) = match (hop, device) {
                (Hop::Direct(address), _) => (*address, None),
                (Hop::Tunnel(_), Some(device)) => (range.network(), Some(device)),
                // The log has the reason why there is no tunnel.
                (Hop::Tunnel(_), None) => continue,
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

    /// Takes all of them away.
    pub(super) async fn remove_all(&self, handle: &Handle) -> Vec<String> {
        self.apply(handle, &Plan::default(), None).await
    }
}

/// How the kernel would send to each of these; one it has no route to is left out.
pub(super) async fn reach(
    handle: &Handle,
    addresses: impl Iterator<Item = IpAddr>,
) -> HashMap<IpAddr, Reach> {
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
        found.insert(address, Reach { on_link, mtu: mtus[&device] });
    }
    found
}

/// The error number behind an error of the kernel's.
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
    // ESRCH: it was deleted already.
    let error = deleted.err().filter(|error| errno(error).is_none_or(|e| e.raw_os_error() != Some(3)))?;
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
    // The default route has no destination; it is never ours, but nothing prevents anybody.
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
