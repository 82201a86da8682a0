//! What the node as a whole is told: which pods' traffic is masqueraded, and that dead pods are unreachable.
//!
//! ```text
//! table inet portolan {
//!     set masquerade-sources { type ipv4_addr }                 # one element a pod
//!     chain masquerade { type nat hook postrouting priority srcnat
//!         ip saddr @masquerade-sources ip daddr <range> return  # one rule a range that pods reach as themselves
//!         ip saddr @masquerade-sources masquerade
//!     }
//! }
//! unreachable <pool> metric 4294967294                          # so that a dead pod's address refuses at once
//! ```
//! ADD and DEL change one element. Rules are written again only when a network comes, goes or changes its ranges, or
//! when somebody has flushed the table; then all of it in one transaction. `networks/<name>.json` says what each
//! network has asked for. The last pod of the last network takes the table along.

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use attachment::{Attachment, Key};
use ipnetwork::{IpNetwork, Ipv4Network};
use nftables::{Batch, Rule};
use serde::{Deserialize, Serialize};

use crate::error::{Code, Error, Result, io, kernel};
use crate::ipam::RangeSet;
use crate::lock::Lock;
use crate::netconf::{Header, NetConf};
use crate::netlink::{Netlink, RouteTarget};
use crate::trace::{Span, span};

const TABLE: &str = "portolan";
const CHAIN: &str = "masquerade";
const SOURCES: &str = "masquerade-sources";

/// Multicast leaves no node through here.
const MULTICAST: &str = "224.0.0.0/4";

/// What one network asks of the node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Network {
    name: String,
    masquerade: bool,
    exclusions: Vec<IpNetwork>,
    pools: Vec<IpNetwork>,
}

/// Records an attachment and tells the node about it.
pub(crate) fn join(conf: &NetConf, attachment: &Attachment, netlink: &mut Netlink) -> Result<()> {
    let _lock = Lock::acquire(&conf.header.state_dir)?;
    let network = Network {
        name: conf.header.name.clone(),
        masquerade: conf.masquerade,
        exclusions: conf.exclusions.clone(),
        pools: conf.ranges.iter().flat_map(RangeSet::subnets).collect(),
    };
    for pool in v4(&network.pools) {
        let destination = (pool.network(), pool.prefix());
        let refuse = netlink.replace_route(destination, RouteTarget::Unreachable);
        refuse.map_err(kernel(format!("add route unreachable {pool}")))?;
    }
    let is_news = read_network(&conf.header)? != Some(network.clone());
    if is_news {
        write_network(&conf.header, &network)?;
    }
    conf.header.attachments().write(attachment)?;
    if !conf.masquerade && !is_news {
        return Ok(());
    }
    let added =
        if is_news { Err(std::io::ErrorKind::NotFound.into()) } else { add_elements(&v4_of(attachment)) };
    match added {
        // Somebody has flushed the ruleset, or the rules are no longer right.
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => rewrite(&conf.header),
        other => other.map_err(kernel(format!("add the pod to nft set {SOURCES}"))),
    }
}

/// Takes back what [`join`] did. Everything is tried; what is gone already is fine.
pub(crate) fn leave(header: &Header, key: &Key, addresses: &[Ipv4Addr]) -> Vec<Error> {
    let mut errors = Vec::new();
    if !header.state_dir.exists() {
        return errors;
    }
    let _lock = match Lock::acquire(&header.state_dir) {
        Ok(lock) => lock,
        Err(error) => return vec![error],
    };
    let store = header.attachments();
    let recorded = store.read(key).ok().flatten();
    errors.extend(store.remove(key).err().map(Error::from));
    let mut leaving = recorded.as_ref().map(v4_of).unwrap_or_default();
    leaving
        .extend(addresses.iter().filter(|address| !leaving.contains(address)).copied().collect::<Vec<_>>());
    for address in leaving {
        let mut batch = Batch::new(TABLE);
        batch.delete_element(SOURCES, address);
        match span(Span::Nft, || batch.commit()) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                errors.push(kernel(format!("remove {address} from nft set {SOURCES}"))(e));
            }
            _ => {}
        }
    }
    if is_empty(&store.directory().join(&header.name)) {
        errors.extend(forget_network(header).err());
    }
    errors
}

/// Whether the node masquerades this address.
pub(crate) fn covers(address: Ipv4Addr) -> Result<bool> {
    nftables::contains(TABLE, SOURCES, address)
        .map_err(kernel(format!("look {address} up in nft set {SOURCES}")))
}

/// The network's last pod has gone: what it asked for goes too.
fn forget_network(header: &Header) -> Result<()> {
    let Some(network) = read_network(header)? else { return Ok(()) };
    let mut netlink = Netlink::open().map_err(kernel("open a netlink socket"))?;
    for pool in v4(&network.pools) {
        let removed = netlink.delete_route((pool.network(), pool.prefix()), RouteTarget::Unreachable);
        removed.map_err(kernel(format!("delete route unreachable {pool}")))?;
    }
    let path = network_path(header);
    fs::remove_file(&path).map_err(io("remove", &path))?;
    // Best effort: these are empty directories, unless another pod has just come.
    drop(fs::remove_dir(header.attachments().directory().join(&header.name)));
    rewrite(header)
}

fn add_elements(addresses: &[Ipv4Addr]) -> std::io::Result<()> {
    let mut batch = Batch::new(TABLE);
    batch.add_elements(SOURCES, addresses);
    span(Span::Nft, || batch.commit())
}

/// Writes the whole table anew from what is on disk, or removes it if no network wants it.
fn rewrite(header: &Header) -> Result<()> {
    let networks: Vec<Network> = networks(header)?.into_iter().filter(|network| network.masquerade).collect();
    let mut batch = Batch::new(TABLE);
    // Adding before deleting makes deleting what is not there no error.
    batch.add_table();
    if networks.is_empty() {
        batch.delete_table();
        return batch.commit().map_err(kernel(format!("delete nft table inet {TABLE}")));
    }
    batch.add_postrouting_nat_chain(CHAIN);
    batch.add_address_set(SOURCES, 1);
    batch.flush_chain(CHAIN);
    batch.flush_set(SOURCES);
    let store = header.attachments();
    let pods: Vec<Ipv4Addr> =
        networks.iter().flat_map(|network| store.list(&network.name).0).flat_map(|pod| v4_of(&pod)).collect();
    batch.add_elements(SOURCES, &pods);
    let multicast = MULTICAST.parse().expect("a constant");
    let mut exclusions: Vec<Ipv4Network> =
        networks.iter().flat_map(|network| v4(&network.exclusions)).collect();
    exclusions.push(multicast);
    exclusions.sort();
    exclusions.dedup();
    for range in exclusions {
        batch.add_rule(CHAIN, &Rule::default().source_in(SOURCES).destination_in(range).stop());
    }
    batch.add_rule(CHAIN, &Rule::default().source_in(SOURCES).masquerade());
    span(Span::Nft, || batch.commit()).map_err(kernel(format!("write nft table inet {TABLE}")))
}

fn networks(header: &Header) -> Result<Vec<Network>> {
    let directory = header.state_dir.join("networks");
    let mut found = Vec::new();
    for path in fs::read_dir(&directory).into_iter().flatten().flatten().map(|entry| entry.path()) {
        found.extend(read_network_file(&path)?);
    }
    Ok(found)
}

fn read_network(header: &Header) -> Result<Option<Network>> {
    read_network_file(&network_path(header))
}

/// An illegible file (a full disk cut it short) counts as none: the next ADD writes it again.
fn read_network_file(path: &Path) -> Result<Option<Network>> {
    match fs::read(path) {
        Ok(bytes) => Ok(serde_json::from_slice(&bytes).ok()),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(io("read", path)(e)),
    }
}

fn write_network(header: &Header, network: &Network) -> Result<()> {
    let path = network_path(header);
    let directory = header.state_dir.join("networks");
    fs::create_dir_all(&directory).map_err(io("create", &directory))?;
    let json = serde_json::to_vec(network).map_err(|e| Error::new(Code::Io, e.to_string()))?;
    fs::write(&path, json).map_err(io("write", &path))
}

fn network_path(header: &Header) -> PathBuf {
    header.state_dir.join("networks").join(format!("{}.json", header.name))
}

fn is_empty(directory: &Path) -> bool {
    fs::read_dir(directory).map_or(true, |mut entries| entries.next().is_none())
}

fn v4(networks: &[IpNetwork]) -> Vec<Ipv4Network> {
    let only_v4 = |network: &IpNetwork| if let IpNetwork::V4(v4) = network { Some(*v4) } else { None };
    networks.iter().filter_map(only_v4).collect()
}

fn v4_of(attachment: &Attachment) -> Vec<Ipv4Addr> {
    attachment
        .ips
        .iter()
        .filter_map(|ip| if let std::net::IpAddr::V4(v4) = ip { Some(*v4) } else { None })
        .collect()
}
