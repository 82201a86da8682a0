//! The VXLAN interface to nodes on other links, and its peers.
//!
//! Without learning and flooding: each node has one forwarding entry (its MAC address in the tunnel -> its
//! address), and each of its pod ranges one neighbour entry (first address of the range -> its MAC address).
//! This node's end has the first address of its own ranges, which no pod is assigned: the node's packets to
//! remote pods have it as their source, so that the replies come back through the tunnel.

use std::collections::BTreeMap;
use std::net::IpAddr;

use futures_util::TryStreamExt as _;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::address::{AddressAttribute, AddressFlags};
use rtnetlink::packet_route::link::{
    InfoData, InfoKind, InfoVxlan, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};
use rtnetlink::packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use rtnetlink::{Error, Handle, LinkUnspec, LinkVxlan};

use super::plan::{Mac, NextHop, Own, Plan, mac};
use super::table::errno;

/// The name of the interface.
pub(super) const NAME: &str = "portolan-vxlan";

/// Like flannel: VNI 1, and the port that Linux used before 4789 was assigned.
const VNI: u32 = 1;
const PORT: u16 = 8472;

/// Bytes of the outer headers: Ethernet 14, VXLAN 8, UDP 8, and IPv4 20 or IPv6 40.
const fn overhead(v4: bool) -> u32 {
    if v4 { 50 } else { 70 }
}

/// Updates the interface and its entries to the plan. Returns its index.
pub(super) async fn ensure(handle: &Handle, own: &Own, plan: &Plan) -> Result<u32, Error> {
    let local = own.underlay.expect("a plan with peers has an underlay");
    let mtu = plan.underlay_mtu.saturating_sub(overhead(local.is_ipv4()));
    let address = mac(&own.name);
    let index = match find(handle).await? {
        Some(link) if is_as_wanted(&link, address, local) => {
            adjust(handle, &link, mtu).await?;
            link.header.index
        }
        other => {
            if let Some(link) = other {
                handle.link().del(link.header.index).execute().await?;
            }
            create(handle, address, local, mtu).await?
        }
    };
    for range in &own.pod_cidrs {
        let mut adding = handle.address().add(index, range.network(), if range.is_ipv4() { 32 } else { 128 });
        if range.is_ipv6() {
            adding.message_mut().attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
        }
        unless_there(adding.execute().await)?;
    }
    let ranges = plan.routes.iter().filter_map(|(range, next_hop)| match next_hop {
        NextHop::Tunnel(mac) => Some((range.network(), *mac)),
        NextHop::Direct(_) => None,
    });
    set_neighbours(handle, index, &ranges.collect()).await?;
    set_forwarding(handle, index, &plan.peers).await?;
    Ok(index)
}

/// Removes the interface with all its entries. A missing one is fine.
pub(super) async fn remove(handle: &Handle) -> Result<(), Error> {
    match find(handle).await? {
        Some(link) => handle.link().del(link.header.index).execute().await,
        None => Ok(()),
    }
}

async fn find(handle: &Handle) -> Result<Option<LinkMessage>, Error> {
    match handle.link().get().match_name(NAME).execute().try_next().await {
        Err(error) if errno(&error).is_some_and(|e| e.raw_os_error() == Some(libc::ENODEV)) => Ok(None),
        other => other,
    }
}

async fn create(handle: &Handle, address: Mac, local: IpAddr, mtu: u32) -> Result<u32, Error> {
    let link = LinkVxlan::new(NAME, VNI).port(PORT).learning(false).address(address.to_vec()).mtu(mtu).up();
    let link = match local {
        IpAddr::V4(local) => link.local(local),
        IpAddr::V6(local) => link.local6(local),
    };
    handle.link().add(link.build()).execute().await?;
    find(handle).await?.map(|link| link.header.index).ok_or(Error::RequestFailed)
}

fn is_as_wanted(link: &LinkMessage, address: Mac, local: IpAddr) -> bool {
    let begins_at = match local {
        IpAddr::V4(local) => InfoVxlan::Local(local),
        IpAddr::V6(local) => InfoVxlan::Local6(local),
    };
    let wanted = [InfoVxlan::Id(VNI), InfoVxlan::Port(PORT), InfoVxlan::Learning(false), begins_at];
    let has_address = link.attributes.contains(&LinkAttribute::Address(address.to_vec()));
    let info = link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::LinkInfo(info) if info.contains(&LinkInfo::Kind(InfoKind::Vxlan)) => Some(info),
        _ => None,
    });
    let is_wanted = |info: &LinkInfo| match info {
        LinkInfo::Data(InfoData::Vxlan(data)) => wanted.iter().all(|option| data.contains(option)),
        _ => false,
    };
    has_address && info.is_some_and(|info| info.iter().any(is_wanted))
}

async fn adjust(handle: &Handle, link: &LinkMessage, mtu: u32) -> Result<(), Error> {
    if link.header.flags.contains(LinkFlags::Up) && link.attributes.contains(&LinkAttribute::Mtu(mtu)) {
        return Ok(());
    }
    let change = LinkUnspec::new_with_index(link.header.index).up().mtu(mtu).build();
    handle.link().set(change).execute().await
}

async fn set_neighbours(handle: &Handle, index: u32, wanted: &BTreeMap<IpAddr, Mac>) -> Result<(), Error> {
    let mut present = BTreeMap::new();
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        for entry in entries(handle, index, family).await? {
            if let (Some(ip), Some(mac), NeighbourState::Permanent) =
                (ip_of(&entry), mac_of(&entry), entry.header.state)
            {
                present.insert(ip, mac);
            }
        }
    }
    for ip in present.keys().filter(|ip| !wanted.contains_key(ip)) {
        let mut stale = NeighbourMessage::default();
        stale.header.family = if ip.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
        stale.header.ifindex = index;
        stale.attributes.push(NeighbourAttribute::Destination(to_neighbour_address(*ip)));
        unless_missing(handle.neighbours().del(stale).execute().await)?;
    }
    for (ip, mac) in wanted.iter().filter(|(ip, mac)| present.get(ip) != Some(mac)) {
        handle.neighbours().add(index, *ip).link_layer_address(mac).replace().execute().await?;
    }
    Ok(())
}

async fn set_forwarding(handle: &Handle, index: u32, wanted: &BTreeMap<Mac, IpAddr>) -> Result<(), Error> {
    let entries = entries(handle, index, AddressFamily::Bridge).await?;
    let present: BTreeMap<Mac, IpAddr> =
        entries.iter().filter_map(|entry| mac_of(entry).zip(ip_of(entry))).collect();
    for (mac, ip) in present.iter().filter(|(mac, _)| !wanted.contains_key(*mac)) {
        let mut stale = NeighbourMessage::default();
        stale.header.family = AddressFamily::Bridge;
        stale.header.ifindex = index;
        stale.header.flags = NeighbourFlags::Own;
        stale.attributes.push(NeighbourAttribute::LinkLayerAddress(mac.to_vec()));
        stale.attributes.push(NeighbourAttribute::Destination(to_neighbour_address(*ip)));
        unless_missing(handle.neighbours().del(stale).execute().await)?;
    }
    for (mac, ip) in wanted.iter().filter(|(mac, ip)| present.get(*mac) != Some(ip)) {
        let adding = handle.neighbours().add_bridge(index, mac).destination(*ip);
        adding.flags(NeighbourFlags::Own).replace().execute().await?;
    }
    Ok(())
}

async fn entries(handle: &Handle, index: u32, family: AddressFamily) -> Result<Vec<NeighbourMessage>, Error> {
    let mut request = handle.neighbours().get().set_address_family(family);
    request.message_mut().attributes.push(NeighbourAttribute::IfIndex(index));
    let all: Vec<NeighbourMessage> = request.execute().try_collect().await?;
    Ok(all.into_iter().filter(|entry| entry.header.ifindex == index).collect())
}

fn mac_of(entry: &NeighbourMessage) -> Option<Mac> {
    entry.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::LinkLayerAddress(mac) => mac.as_slice().try_into().ok(),
        _ => None,
    })
}

fn ip_of(entry: &NeighbourMessage) -> Option<IpAddr> {
    entry.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::Destination(NeighbourAddress::Inet(ip)) => Some(IpAddr::V4(*ip)),
        NeighbourAttribute::Destination(NeighbourAddress::Inet6(ip)) => Some(IpAddr::V6(*ip)),
        // The destination of a forwarding entry may be of another family than the entry.
        NeighbourAttribute::Destination(NeighbourAddress::Other(bytes)) => match bytes.len() {
            4 => <[u8; 4]>::try_from(bytes.as_slice()).ok().map(IpAddr::from),
            16 => <[u8; 16]>::try_from(bytes.as_slice()).ok().map(IpAddr::from),
            _ => None,
        },
        _ => None,
    })
}

fn to_neighbour_address(ip: IpAddr) -> NeighbourAddress {
    match ip {
        IpAddr::V4(ip) => NeighbourAddress::Inet(ip),
        IpAddr::V6(ip) => NeighbourAddress::Inet6(ip),
    }
}

fn unless_there(result: Result<(), Error>) -> Result<(), Error> {
    unless(result, libc::EEXIST)
}

fn unless_missing(result: Result<(), Error>) -> Result<(), Error> {
    unless(result, libc::ENOENT)
}

fn unless(result: Result<(), Error>, number: i32) -> Result<(), Error> {
    result.or_else(|error| match errno(&error) {
        Some(errno) if errno.raw_os_error() == Some(number) => Ok(()),
        _ => Err(error),
    })
}
