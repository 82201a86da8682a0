//! The holders of host ports: `ports/holders.json`, one holder per attachment. The file is an index of the
//! records, from which it is rebuilt if it is missing or unreadable.

use std::fs;
use std::io::ErrorKind;
use std::net::IpAddr;
use std::path::PathBuf;

use attachment::{Attachment, Key, Store};
use nftables::Element;
use serde::{Deserialize, Serialize};

use super::range::Range;
use crate::atomic_file;
use crate::error::{Result, io};
use crate::netconf::Header;

/// An attachment with host ports.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Holder {
    #[serde(flatten, with = "KeyFields")]
    pub(super) key: Key,
    /// The destination of its ports: the pod's first address of each family.
    addresses: Vec<IpAddr>,
    ranges: Vec<Range>,
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "Key", rename_all = "camelCase")]
struct KeyFields {
    network: String,
    container_id: String,
    ifname: String,
}

impl Holder {
    /// The ports of a pod. `None` if it has none.
    pub(crate) fn of(pod: &Attachment) -> Option<Self> {
        if pod.port_mappings.is_empty() {
            return None;
        }
        let first = |v4: bool| pod.ips.iter().find(|ip| ip.is_ipv4() == v4).copied();
        let addresses = [first(true), first(false)].into_iter().flatten().collect();
        Some(Self { key: pod.key(), addresses, ranges: pod.port_mappings.iter().map(Range::of).collect() })
    }

    /// A port that both have, at one address of the node.
    pub(super) fn common_port(&self, other: &Self) -> Option<String> {
        let is_of = |holder: &Self, range: &Range, v4: bool| {
            range.is_of(v4) && holder.addresses.iter().any(|address| address.is_ipv4() == v4)
        };
        let meet = |own: &Range, theirs: &Range| {
            own.overlaps(theirs)
                && [true, false].iter().any(|v4| is_of(self, own, *v4) && is_of(other, theirs, *v4))
        };
        self.ranges.iter().find_map(|own| {
            let theirs = other.ranges.iter().find(|theirs| meet(own, theirs))?;
            Some(own.first_common_port(theirs))
        })
    }

    /// The elements, each with its map.
    pub(super) fn elements(&self) -> impl Iterator<Item = (&'static str, Element)> {
        self.elements_by_range().map(|(_, map, element)| (map, element))
    }

    pub(super) fn elements_by_range(&self) -> impl Iterator<Item = (&Range, &'static str, Element)> {
        self.ranges.iter().flat_map(move |range| {
            let of_family = self.addresses.iter().filter(|address| range.is_of(address.is_ipv4()));
            of_family.flat_map(move |address| {
                let (map, elements) = range.elements(*address);
                elements.into_iter().map(move |element| (range, map, element))
            })
        })
    }

    /// Each address of the pod with UDP host ports, and these ports.
    pub(crate) fn udp(&self) -> impl Iterator<Item = (IpAddr, Vec<&Range>)> {
        self.addresses.iter().filter_map(|address| {
            let is_udp = |range: &&Range| range.protocol == "udp" && range.is_of(address.is_ipv4());
            let ranges: Vec<&Range> = self.ranges.iter().filter(is_udp).collect();
            (!ranges.is_empty()).then_some((*address, ranges))
        })
    }
}

/// All holders.
pub(crate) fn read(header: &Header) -> Result<Vec<Holder>> {
    read_except(header, None)
}

/// All holders except one.
pub(super) fn read_except(header: &Header, except: Option<&Key>) -> Result<Vec<Holder>> {
    let known = read_index(header)?;
    let mut holders = known.unwrap_or_else(|| of_records(&header.attachments(), except));
    holders.retain(|holder| Some(&holder.key) != except);
    Ok(holders)
}

/// The content of the file. `None` if it is missing or unreadable.
pub(super) fn read_index(header: &Header) -> Result<Option<Vec<Holder>>> {
    let path = path(header);
    match fs::read(&path) {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(io("read", &path)(e)),
        found => Ok(serde_json::from_slice(&found.unwrap_or_default()).ok()),
    }
}

/// Writes all holders. Without holders the file stays, empty: it says that there are none.
pub(super) fn write(header: &Header, holders: &[Holder]) -> Result<()> {
    let path = path(header);
    let directory = path.parent().expect("the file is in a directory");
    fs::create_dir_all(directory).map_err(io("create", directory))?;
    let json = serde_json::to_vec(holders).expect("holders have string keys only");
    atomic_file::write(&path, &json).map_err(io("write", &path))
}

/// Removes the file once there is no network left.
pub(crate) fn forget(header: &Header) -> Result<()> {
    let path = path(header);
    atomic_file::remove(&path).map_err(io("remove", &path))
}

/// The holders by the records of all networks, except the one that is about to be written. Of two that have
/// the same port, the first one counts.
fn of_records(store: &Store, except: Option<&Key>) -> Vec<Holder> {
    let mut holders: Vec<Holder> = Vec::new();
    let mut networks: Vec<_> = fs::read_dir(store.directory()).into_iter().flatten().flatten().collect();
    networks.sort_by_key(fs::DirEntry::file_name);
    for network in networks {
        for record in store.list(&network.file_name().to_string_lossy()).0 {
            let holder = Holder::of(&record).filter(|holder| Some(&holder.key) != except);
            let new = holder.filter(|holder| holders.iter().all(|other| other.common_port(holder).is_none()));
            holders.extend(new);
        }
    }
    holders
}

fn path(header: &Header) -> PathBuf {
    header.state_dir.join("ports").join("holders.json")
}
