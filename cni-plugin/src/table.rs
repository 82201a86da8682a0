//! The node's nftables rules: masquerading of pods, source address checks of pods, host ports; and the routes
//! that make the addresses of deleted pods unreachable.
//!
//! ```text
//! table inet portolan {
//!     chain own-addresses { type filter hook prerouting priority raw
//!         iifname "ptl*" fib saddr . iif oif 0 drop     # reverse-path check by the node's routes
//!         iifname "ptl*" icmpv6 type nd-router-advert drop
//!     }
//!     chain masquerade { type nat hook postrouting priority srcnat
//!         ip saddr @pods-v4-<name> jump network-<name>  # of each network that masquerades
//!         ip6 saddr @pods-v6-<name> jump network-<name>
//!     }
//!     chain ports { … }                                 # host ports: see module `ports`
//!     set pods-v4-<name> { type ipv4_addr }             # one element a pod
//!     set pods-v6-<name> { type ipv6_addr }
//!     chain network-<name> {
//!         ip daddr <range> return                       # one rule per range that is not masqueraded
//!         masquerade
//!     }
//! }
//! unreachable <pool> metric 4294967294                  # the address of a deleted pod refuses at once
//! ```
//! ADD and DEL change one element per family, and no rule. The rules are rewritten only if a network is new
//! or its configuration has changed, or if the table was flushed; then the whole table in one transaction.
//! `networks/<name>.json` stores the settings of each network.
//!
//! The last DEL leaves the table without pods: creating it for the next pod and deleting it again would cost
//! several RCU grace periods (13 ms of 15 ms of an ADD and 28 ms of 56 ms of a DEL). GC removes the rules of
//! a network without attachments, and `portolan-cni cleanup` removes everything.

mod elements;
mod flows;
mod frames;
mod network;
mod ports;
mod repair;
mod rules;

use std::net::IpAddr;
use std::path::PathBuf;

use attachment::{Attachment, Key};
use ipnetwork::IpNetwork;
use nftables::{Element, Family, Netfilter};

use crate::alias::Alias;
use crate::error::{Code, Error, Result, io, kernel};
use crate::ipam::RangeSet;
use crate::lock::Lock;
use crate::netconf::{Header, NetConf, parse_mac};
use crate::netlink::{Batch, Link, Netlink, Route, RouteTarget};
use crate::trace::{Span, span};
use crate::{atomic_file, veth};
use network::Network;

const TABLE: &str = "portolan";

/// Records an attachment and adds it to the node's rules. `subnets` are the subnets of its addresses.
pub(crate) fn register(
    conf: &NetConf,
    attachment: &Attachment,
    subnets: &[IpNetwork],
    netlink: &mut Netlink,
) -> Result<()> {
    let netfilter = open()?;
    let joined = register_with(conf, attachment, subnets, netlink, &netfilter);
    close(netfilter);
    joined
}

fn register_with(
    conf: &NetConf,
    attachment: &Attachment,
    subnets: &[IpNetwork],
    netlink: &mut Netlink,
    netfilter: &Netfilter,
) -> Result<()> {
    let holder = ports::Holder::of(attachment);
    record(conf, attachment, subnets, netlink, netfilter)?;
    // Release the lock first: no other command waits for this.
    span(Span::Nft, || flows::delete_stale(netfilter, netlink, holder.as_ref()))
}

/// The part that holds the lock.
fn record(
    conf: &NetConf,
    attachment: &Attachment,
    subnets: &[IpNetwork],
    netlink: &mut Netlink,
    netfilter: &Netfilter,
) -> Result<()> {
    let _lock = Lock::acquire(&conf.header.state_dir)?;
    let (network, is_news, abandoned) = span(Span::Store, || {
        let old = Network::read(&conf.header)?;
        let network = Network::of(conf, subnets).with_former(old.as_ref());
        let is_news = old.as_ref() != Some(&network);
        // Write the network's settings first: DEL and GC then find what they describe, wherever this process
        // is killed.
        if is_news {
            network.write(&conf.header)?;
        }
        conf.header.attachments().write(attachment)?;
        if is_news {
            repair::records(&conf.header, &links(netlink)?, netlink)?;
        }
        let abandoned = ports::reserve(&conf.header, attachment, |holder| has_no_interface(netlink, holder))?;
        Ok::<_, Error>((network, is_news, abandoned))
    })?;
    let mut refuse = Batch::default();
    for pool in &network.pools {
        refuse.replace_route(&unreachable(*pool), &format!("unreachable {pool}"));
    }
    refuse.commit(netlink)?;
    span(Span::Nft, || {
        for holder in &abandoned {
            ports::remove(netfilter, Some(holder), None)?;
        }
        if network.mac_spoof_check {
            frames::add(netfilter, &conf.header, attachment)?;
        }
        if is_news {
            rules::rewrite(netfilter, &conf.header)
        } else {
            rules::add(netfilter, &conf.header, &network, attachment)
        }
    })
}

/// Undoes [`register`]. Every step is tried; what is already removed is fine. The record is removed last, so
/// that the command after a killed one finds what is left to do.
pub(crate) fn unregister(
    header: &Header,
    key: &Key,
    addresses: &[IpAddr],
    netlink: &mut Netlink,
    netfilter: &Netfilter,
) -> Vec<Error> {
    // A DEL before any ADD must not create the state directory.
    if addresses.is_empty() && !header.state_dir.exists() {
        return Vec::new();
    }
    let lock = match Lock::acquire(&header.state_dir) {
        Ok(lock) => lock,
        Err(error) => return vec![error],
    };
    let (held, mut errors) = unrecord(header, key, addresses, netlink, netfilter);
    // Release the lock first: no other command waits for the rest.
    drop(lock);
    let forgotten = held.map(|held| span(Span::Nft, || flows::delete_translated(netfilter, &held)));
    errors.extend(forgotten.and_then(Result::err));
    errors
}

/// The part that holds the lock. Returns the ports of the pod, for its conntrack flows.
fn unrecord(
    header: &Header,
    key: &Key,
    addresses: &[IpAddr],
    netlink: &mut Netlink,
    netfilter: &Netfilter,
) -> (Option<ports::Holder>, Vec<Error>) {
    let mut errors = Vec::new();
    let store = header.attachments();
    let recorded = store.read(key).ok().flatten();
    let mut leaving = recorded.as_ref().map(|record| record.ips.clone()).unwrap_or_default();
    leaving
        .extend(addresses.iter().filter(|address| !leaving.contains(address)).copied().collect::<Vec<_>>());
    // A refused ADD has no port and must not remove the one of its holder. A restored record names no ports.
    let held = ports::held(header, key, recorded.as_ref()).unwrap_or_else(|error| {
        errors.push(error);
        None
    });
    let mut is_released = held.is_some();
    span(Span::Nft, || {
        let removed = ports::remove(netfilter, held.as_ref(), recorded.as_ref());
        // The next DEL finds what is still to do.
        is_released &= removed.is_ok();
        errors.extend(removed.err());
        if let Some(record) = &recorded {
            errors.extend(record.bridge.as_ref().and_then(|_| frames::remove(netfilter, record)));
        }
        errors.extend(rules::remove_pod(netfilter, &header.name, &leaving));
    });
    if is_released {
        errors.extend(ports::release(header, key).err());
    }
    errors.extend(span(Span::Store, || store.remove(key)).err().map(Error::from));
    if store.remove_network_if_empty(&header.name) {
        errors.extend(withdraw_routes(header, netlink).err());
    }
    errors.extend(span(Span::Nft, || repair::tables(netfilter, header)).err());
    (held, errors)
}

/// STATUS: whether this kernel and this process can use nftables.
pub(crate) fn check_available() -> Result<()> {
    let result = open()?.has_table(TABLE);
    result.map_err(kernel("list nft tables"))?;
    Ok(())
}

/// CHECK: the pod is recorded and in the node's tables.
pub(crate) fn check(conf: &NetConf, key: &Key) -> Result<()> {
    let lost = |message: String| Err(Error::new(Code::Conflict, message));
    let Some(record) = conf.header.attachments().read(key).ok().flatten() else {
        return lost("its attachment record is missing: Services do not find it".to_owned());
    };
    let netfilter = open()?;
    if let Some(chain) = rules::lost(&netfilter, &conf.header)? {
        return lost(format!(
            "chain {chain} of nft table inet {TABLE} has lost rules: the next ADD writes them"
        ));
    }
    for address in record.ips.iter().filter(|_| conf.masquerade) {
        let set = rules::pods(&conf.header.name, *address);
        let element = Element::Key(rules::key(*address));
        let looked = netfilter.contains(Family::Inet, TABLE, &set, &element);
        if !looked.map_err(kernel(format!("look {address} up in nft table inet {TABLE}")))? {
            return lost(format!("{address} is no longer in nft table inet {TABLE}: it is not masqueraded"));
        }
    }
    if conf.checks_mac() && !frames::has(&netfilter, &record.host_interface, parse_mac(&record.mac)?)? {
        let interface = record.host_interface;
        return lost(format!("{interface} is no longer in nft table bridge {TABLE}: macspoofchk"));
    }
    match ports::lost(&netfilter, &record)? {
        Some(port) => lost(format!("port {port} of the node no longer leads to it")),
        None => Ok(()),
    }
}

/// Directories of earlier configurations in which pods of the network may have reservations.
pub(crate) fn noted_reservations(header: &Header) -> Vec<PathBuf> {
    Network::read(header).ok().flatten().map(|network| network.reservations).unwrap_or_default()
}

/// The bridges that pods of the network are or were ports of.
pub(crate) fn noted_bridges(header: &Header) -> Vec<String> {
    let network = Network::read(header).ok().flatten();
    network
        .map(|network| [network.former_bridges, Vec::from_iter(network.bridge)].concat())
        .unwrap_or_default()
}

/// Restores the records of the network's pods if the state directory was emptied.
pub(crate) fn restore(header: &Header, links: &[Link], netlink: &mut Netlink) -> Result<()> {
    let _lock = Lock::acquire(&header.state_dir)?;
    repair::records(header, links, netlink)
}

/// Removes the settings of a network without attachments; with the last network, the tables. `ranges` are its
/// ranges, in case they are recorded nowhere else.
pub(crate) fn forget(
    header: &Header,
    ranges: &[RangeSet],
    netlink: &mut Netlink,
    netfilter: &Netfilter,
) -> Result<()> {
    if !header.state_dir.exists() {
        return Ok(());
    }
    let _lock = Lock::acquire(&header.state_dir)?;
    if !header.attachments().remove_network_if_empty(&header.name) {
        return repair::tables(netfilter, header);
    }
    withdraw_routes(header, netlink)?;
    ranges.iter().flat_map(RangeSet::subnets).try_for_each(|pool| withdraw(pool, netlink))?;
    let others = network::all(&header.state_dir)?.into_iter().filter(|other| other.name != header.name);
    let others: Vec<Network> = others.collect();
    // If the state directory was emptied, the settings of the other networks are unknown: keep everything
    // until their next ADD.
    if others.is_empty() && links(netlink)?.iter().any(|link| Alias::of(link).is_some()) {
        return Ok(());
    }
    span(Span::Nft, || {
        frames::write(netfilter, &header.attachments(), &others)?;
        rules::write(netfilter, header, &others)
    })?;
    if others.is_empty() {
        ports::forget(header)?;
    }
    let path = network::path(header);
    atomic_file::remove(&path).map_err(io("remove", &path))
}

/// Removes the settings of all networks, recorded or not. No pod may be attached.
pub(crate) fn remove_all(netlink: &mut Netlink, netfilter: &Netfilter) -> Result<()> {
    for pool in netlink.unreachable().map_err(kernel("list routes"))? {
        withdraw(pool, netlink)?;
    }
    frames::remove_table(netfilter)?;
    rules::remove_table(netfilter)
}

/// Whether an attachment has no interface: the kernel deletes both ends with the network namespace.
fn has_no_interface(netlink: &mut Netlink, key: &Key) -> Result<bool> {
    let name = veth::host_interface(&key.network, &key.container_id, &key.ifname);
    let found = netlink.link(&name).map_err(kernel(format!("look for interface {name}")))?;
    Ok(found.is_none())
}

fn links(netlink: &mut Netlink) -> Result<Vec<Link>> {
    netlink.links().map_err(kernel("list interfaces"))
}

/// Opens the netfilter socket for all later steps. It is closed last, see [`Netfilter`].
pub(crate) fn open() -> Result<Netfilter> {
    span(Span::Nft, Netfilter::open).map_err(kernel("open a netfilter socket"))
}

pub(crate) fn close(netfilter: Netfilter) {
    span(Span::Nft, || drop(netfilter));
}

/// Removes the unreachable routes of the pools after the last pod of the network was deleted, unless another
/// network with pods shares a pool.
fn withdraw_routes(header: &Header, netlink: &mut Netlink) -> Result<()> {
    let (own, others): (Vec<_>, Vec<_>) =
        network::all(&header.state_dir)?.into_iter().partition(|network| network.name == header.name);
    let store = header.attachments();
    let is_kept = |pool: &IpNetwork| {
        let mut users = others.iter().filter(|network| network.pools.contains(pool));
        users.any(|network| store.directory().join(&network.name).exists())
    };
    let pools = own.into_iter().flat_map(|network| network.pools);
    pools.filter(|pool| !is_kept(pool)).try_for_each(|pool| withdraw(pool, netlink))
}

fn withdraw(pool: IpNetwork, netlink: &mut Netlink) -> Result<()> {
    let removed = netlink.delete_route(&unreachable(pool));
    removed.map_err(kernel(format!("delete route unreachable {pool}")))?;
    Ok(())
}

fn unreachable(pool: IpNetwork) -> Route {
    Route::new(pool, RouteTarget::Unreachable)
}
