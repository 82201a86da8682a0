//! What the node as a whole does: which pods' traffic is masqueraded, that pods send from their own addresses
//! only, and that dead pods are unreachable.
//!
//! ```text
//! table inet portolan {
//!     chain own-addresses { type filter hook prerouting priority raw
//!         iifname "ptl*" fib saddr . iif oif 0 drop     # the node's routes know which addresses are whose
//!         iifname "ptl*" icmpv6 type nd-router-advert drop
//!     }
//!     chain masquerade { type nat hook postrouting priority srcnat
//!         ip saddr @pods-v4-<name> jump network-<name>  # of each network that masquerades
//!         ip6 saddr @pods-v6-<name> jump network-<name>
//!     }
//!     chain ports { … }                                 # ports of the node: see the module of that name
//!     set pods-v4-<name> { type ipv4_addr }             # one element a pod
//!     set pods-v6-<name> { type ipv6_addr }
//!     chain network-<name> {
//!         ip daddr <range> return                       # one rule a range that pods reach as themselves
//!         masquerade
//!     }
//! }
//! unreachable <pool> metric 4294967294                  # so that a dead pod's address refuses at once
//! ```
//! ADD and DEL change one element a family, and no rule. Rules are written again only when a network comes or
//! changes what it asks for, or when the table was flushed; then all of it in one transaction.
//! `networks/<name>.json` says what each network has asked for.
//!
//! The last pod leaves the table behind, with no pod in it: writing it anew for the next one and deleting it
//! again would take the kernel several RCU grace periods (13 ms of an ADD's 15 and 28 ms of a DEL's 56 were
//! that). What stays is removed by GC, of a network that has no attachment any more, and by `portolan-cni
//! cleanup`, of all.

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

/// Records an attachment and tells the node about it. `subnets` are those its addresses are of.
pub(crate) fn join(
    conf: &NetConf,
    attachment: &Attachment,
    subnets: &[IpNetwork],
    netlink: &mut Netlink,
) -> Result<()> {
    let netfilter = open()?;
    let joined = join_by(conf, attachment, subnets, netlink, &netfilter);
    close(netfilter);
    joined
}

fn join_by(
    conf: &NetConf,
    attachment: &Attachment,
    subnets: &[IpNetwork],
    netlink: &mut Netlink,
    netfilter: &Netfilter,
) -> Result<()> {
    let holder = ports::Holder::of(attachment);
    record(conf, attachment, subnets, netlink, netfilter)?;
    // No other command waits for it: the lock is released first.
    span(Span::Nft, || flows::forget_elsewhere(netfilter, netlink, holder.as_ref()))
}

/// What of it other commands must not see half done.
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
        // The note comes first: what it asks for is then found by DEL and GC, whatever happens in between.
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

/// Takes back what [`join`] did. Everything is tried; what was removed already is fine. The record goes last,
/// so that the command after a killed one finds what is still to do.
pub(crate) fn leave(
    header: &Header,
    key: &Key,
    addresses: &[IpAddr],
    netlink: &mut Netlink,
    netfilter: &Netfilter,
) -> Vec<Error> {
    // A DEL before any ADD: nothing is to be made for it.
    if addresses.is_empty() && !header.state_dir.exists() {
        return Vec::new();
    }
    let lock = match Lock::acquire(&header.state_dir) {
        Ok(lock) => lock,
        Err(error) => return vec![error],
    };
    let (held, mut errors) = unrecord(header, key, addresses, netlink, netfilter);
    // No other command waits for it.
    drop(lock);
    let forgotten = held.map(|held| span(Span::Nft, || flows::forget_translated(netfilter, &held)));
    errors.extend(forgotten.and_then(Result::err));
    errors
}

/// What of it other commands must not see half done. Returns the ports that the pod had, for their flows.
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
    // A refused ADD has no port, and must not take it from its holder. A record that was written again names
    // no ports.
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

/// Whether this kernel and this process can have a table at all: STATUS.
pub(crate) fn check_available() -> Result<()> {
    let asked = open()?.has_table(TABLE).map(drop);
    asked.map_err(kernel("ask the kernel for its nft tables"))
}

/// Whether the pod is recorded, and the node's tables know it.
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

/// Where pods of the network may have reservations by former configurations.
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

/// Records the network's pods again where the state directory was emptied.
pub(crate) fn restore(header: &Header, links: &[Link], netlink: &mut Netlink) -> Result<()> {
    let _lock = Lock::acquire(&header.state_dir)?;
    repair::records(header, links, netlink)
}

/// Forgets what a network asks for, if it has no attachment any more; with the last network the tables go.
/// `ranges` are its own where nothing else says which they were.
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
    // Where the state directory was emptied nothing says what their networks ask for: until their next ADD
    // all stays.
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

/// Removes what all networks have asked for, noted or not. No pod may be attached.
pub(crate) fn remove_all(netlink: &mut Netlink, netfilter: &Netfilter) -> Result<()> {
    for pool in netlink.unreachable().map_err(kernel("list routes"))? {
        withdraw(pool, netlink)?;
    }
    frames::remove_table(netfilter)?;
    rules::remove_table(netfilter)
}

/// Whether an attachment has no interface: with its network namespace the kernel has deleted both ends.
fn has_no_interface(netlink: &mut Netlink, key: &Key) -> Result<bool> {
    let name = veth::host_interface(&key.network, &key.container_id, &key.ifname);
    let found = netlink.link(&name).map_err(kernel(format!("look for interface {name}")))?;
    Ok(found.is_none())
}

fn links(netlink: &mut Netlink) -> Result<Vec<Link>> {
    netlink.links().map_err(kernel("list interfaces"))
}

/// For everything that follows. It is closed last: see [`Netfilter`].
pub(crate) fn open() -> Result<Netfilter> {
    span(Span::Nft, Netfilter::open).map_err(kernel("open a netfilter socket"))
}

pub(crate) fn close(netfilter: Netfilter) {
    span(Span::Nft, || drop(netfilter));
}

/// The network's last pod was deleted: its pools are no longer this node's, unless another network with pods
/// has one too.
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
    removed.map(drop).map_err(kernel(format!("delete route unreachable {pool}")))
}

fn unreachable(pool: IpNetwork) -> Route {
    Route::new(pool, RouteTarget::Unreachable)
}
