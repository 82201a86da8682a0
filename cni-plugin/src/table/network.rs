//! The settings of a network for the node's rules, on disk.

use std::fs;
use std::path::{Path, PathBuf};

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};

use crate::atomic_file;
use crate::error::{Code, Error, Result, io};
use crate::ipam::RangeSet;
use crate::netconf::{Header, NetConf};

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Network {
    pub(super) name: String,
    pub(super) masquerade: bool,
    pub(super) exclusions: Vec<IpNetwork>,
    /// Directories in which its pods have had reservations.
    #[serde(default)]
    pub(super) reservations: Vec<PathBuf>,
    /// Ranges whose addresses are unreachable while no pod has them. In mode `bridge` the bridge has the
    /// ranges.
    pub(super) pools: Vec<IpNetwork>,
    /// The bridge of its pods.
    #[serde(default)]
    pub(super) bridge: Option<String>,
    /// Earlier bridges of its pods.
    #[serde(default)]
    pub(super) former_bridges: Vec<String>,
    #[serde(default)]
    pub(super) mac_spoof_check: bool,
    /// The version of the table's layout that its pods are in. An upgrade rewrites the table.
    #[serde(default)]
    layout: u32,
}

/// Incremented with every change of chains, sets and rules.
const LAYOUT: u32 = 1;

impl Network {
    /// `subnets` are the subnets of the pod's addresses, which another IPAM plugin may have chosen.
    pub(super) fn of(conf: &NetConf, subnets: &[IpNetwork]) -> Self {
        let mut exclusions = conf.exclusions.clone();
        for address in subnets {
            let subnet = IpNetwork::new(address.network(), address.prefix()).unwrap_or(*address);
            if !exclusions.contains(&subnet) {
                exclusions.push(subnet);
            }
        }
        let pools = conf.ranges.iter().flat_map(RangeSet::subnets);
        Self {
            name: conf.header.name.clone(),
            masquerade: conf.masquerade,
            exclusions,
            reservations: vec![conf.header.ipam_dir.clone()],
            former_bridges: Vec::new(),
            pools: pools.filter(|_| conf.bridge.is_none()).collect(),
            bridge: conf.bridge.as_ref().map(|bridge| bridge.name.clone()),
            mac_spoof_check: conf.checks_mac(),
            layout: LAYOUT,
        }
    }

    /// Keeps what earlier configurations left on the node: their pools, bridges and directories are removed
    /// with the rest.
    pub(super) fn with_former(mut self, old: Option<&Self>) -> Self {
        let Some(old) = old else { return self };
        extend(&mut self.pools, &old.pools);
        self.pools.sort();
        extend(&mut self.reservations, &old.reservations);
        self.reservations.sort();
        extend(&mut self.former_bridges, &old.former_bridges);
        extend(&mut self.former_bridges, old.bridge.as_slice());
        self.former_bridges.retain(|bridge| self.bridge.as_ref() != Some(bridge));
        self.former_bridges.sort();
        self
    }

    /// Whether this version of the plugin wrote its part of the table.
    pub(super) fn is_current(&self) -> bool {
        self.layout == LAYOUT
    }

    pub(super) fn into_current(self) -> Self {
        Self { layout: LAYOUT, ..self }
    }

    pub(super) fn read(header: &Header) -> Result<Option<Self>> {
        read_file(&path(header))
    }

    pub(super) fn write(&self, header: &Header) -> Result<()> {
        let path = path(header);
        let directory = header.state_dir.join("networks");
        fs::create_dir_all(&directory).map_err(io("create", &directory))?;
        let json = serde_json::to_vec(self).map_err(|e| Error::new(Code::Io, e.to_string()))?;
        atomic_file::write(&path, &json).map_err(io("write", &path))
    }
}

fn extend<T: Clone + PartialEq>(list: &mut Vec<T>, more: &[T]) {
    for item in more {
        if !list.contains(item) {
            list.push(item.clone());
        }
    }
}

/// Every network that has had a pod on this node and was not removed since.
pub(super) fn all(state_dir: &Path) -> Result<Vec<Network>> {
    let directory = state_dir.join("networks");
    let mut found = Vec::new();
    for path in fs::read_dir(&directory).into_iter().flatten().flatten().map(|entry| entry.path()) {
        if path.extension().is_none_or(|extension| extension == atomic_file::TEMPORARY) {
            continue;
        }
        found.extend(read_file(&path)?);
    }
    Ok(found)
}

pub(super) fn path(header: &Header) -> PathBuf {
    header.state_dir.join("networks").join(format!("{}.json", header.name))
}

/// An unreadable file (truncated on a full disk) counts as missing: the next ADD rewrites it.
fn read_file(path: &Path) -> Result<Option<Network>> {
    match fs::read(path) {
        Ok(bytes) => Ok(serde_json::from_slice(&bytes).ok()),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(io("read", path)(e)),
    }
}
