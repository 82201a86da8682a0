//! `portolan-cni import`: imports the addresses that the reference plugin `host-local` has assigned, so that
//! none of them is assigned again.
//!
//! `host-local` keeps one file per address, named after it, with the container ID and, on a second line, the
//! interface. The import does not change these files, so that a return to `host-local` is possible.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::{fmt, fs};

use serde_json::{Value, json};

use crate::error::{Error, Result, io};
use crate::ipam::Owner;
use crate::lock::Lock;
use crate::netconf::{Config, Header, NetConf, invalid};
use crate::role::Role;

/// The default data directory of `host-local`.
const DEFAULT_SOURCE: &str = "/var/lib/cni/networks";

/// The interface of files from versions that did not store it.
const DEFAULT_IFNAME: &str = "eth0";

/// The imported addresses.
#[derive(Debug)]
pub(crate) struct Imported {
    pub(crate) network: String,
    pub(crate) source: PathBuf,
    pub(crate) addresses: Vec<(IpAddr, Owner)>,
    /// What could not be imported. Everything else was.
    pub(crate) errors: Vec<Error>,
}

impl Imported {
    /// The JSON output.
    pub(crate) fn to_json(&self) -> Value {
        let addresses: Vec<Value> = self
            .addresses
            .iter()
            .map(|(address, owner)| {
                json!({ "address": address, "containerID": owner.container_id, "ifname": owner.ifname })
            })
            .collect();
        json!({ "network": self.network, "from": self.source, "addresses": addresses })
    }
}

/// The table output.
impl fmt::Display for Imported {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:<40} {:<15} CONTAINER", "ADDRESS", "INTERFACE")?;
        for (address, owner) in &self.addresses {
            writeln!(f, "{:<40} {:<15} {}", address.to_string(), owner.ifname, owner.container_id)?;
        }
        let (count, network, source) = (self.addresses.len(), &self.network, self.source.display());
        writeln!(f, "{count} addresses of network {network} imported; the files in {source} are unchanged")
    }
}

/// Reads a conflist for portolan-cni, or for `host-local` as a link to it, and imports the reservations of
/// its network from `from` or from the configured directory. Idempotent.
pub(crate) fn import(conflist: &Path, from: Option<&Path>) -> Result<Imported> {
    let raw = read_conflist(conflist)?;
    let data_dir = raw["ipam"]["dataDir"].as_str().filter(|directory| !directory.is_empty());
    let source = from.unwrap_or_else(|| Path::new(data_dir.unwrap_or(DEFAULT_SOURCE))).to_owned();
    // Parse it as if this were the plugin.
    let header = Header::parse(Role::HostLocal, &raw)?;
    let conf = NetConf::parse(&header, &Config::parse(raw.to_string())?, "1.1.0")?;
    let source = source.join(&conf.header.name);
    if !source.is_dir() {
        let suggestion = "name the directory that has it with --from";
        return Err(invalid(format!("{} is not there: {suggestion}", source.display())));
    }
    // host-local locks the same file. If both stores share a directory, our lock covers it.
    let lock = (source != conf.header.ipam_dir).then(|| Lock::acquire(&source)).transpose()?;
    let (found, last, mut errors) = read_files(&source)?;
    let mut by_owner: BTreeMap<(String, String), Vec<IpAddr>> = BTreeMap::new();
    for (address, owner) in found {
        by_owner.entry((owner.container_id, owner.ifname)).or_default().push(address);
    }
    let by_owner = by_owner
        .into_iter()
        .map(|((container_id, ifname), addresses)| (Owner { container_id, ifname }, addresses));
    let imported = conf.header.reservations().import(by_owner.collect(), &conf.ranges, &last)?;
    errors.extend(imported.refused);
    drop(lock);
    Ok(Imported { network: conf.header.name, source, addresses: imported.addresses, errors })
}

/// The configuration of the first plugin with `ipam`.
fn read_conflist(path: &Path) -> Result<Value> {
    let bytes = fs::read(path).map_err(io("read", path))?;
    let wrong = |why: String| invalid(format!("{}: {why}", path.display()));
    let list: Value = serde_json::from_slice(&bytes).map_err(|e| wrong(e.to_string()))?;
    let plugins = list["plugins"].as_array().cloned().unwrap_or_else(|| vec![list.clone()]);
    let first = plugins.into_iter().find(|plugin| plugin["ipam"].is_object());
    let mut plugin = first.ok_or_else(|| wrong("no plugin in it has `ipam`".to_owned()))?;
    plugin["name"] = list["name"].clone();
    plugin["cniVersion"] = json!("1.1.0");
    Ok(plugin)
}

type Files = (Vec<(IpAddr, Owner)>, Vec<IpAddr>, Vec<Error>);

/// The addresses with their owners, and the last assigned address of each range.
fn read_files(source: &Path) -> Result<Files> {
    let (mut found, mut last, mut errors) = (Vec::new(), Vec::new(), Vec::new());
    for entry in fs::read_dir(source).map_err(io("list", source))?.flatten() {
        let path = entry.path();
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with("last_reserved_ip.") {
            last.extend(fs::read_to_string(&path).ok().and_then(|text| text.trim().parse::<IpAddr>().ok()));
        }
        let Ok(address) = name.parse::<IpAddr>() else { continue };
        let text = fs::read_to_string(&path).map_err(io("read", &path))?;
        let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
        match lines.next() {
            Some(container_id) => {
                let ifname = lines.next().unwrap_or(DEFAULT_IFNAME);
                let owner = Owner { container_id: container_id.to_owned(), ifname: ifname.to_owned() };
                found.push((address, owner));
            }
            // Left by a crash. The owner is unknown.
            None => {
                errors.push(invalid(format!("{} is empty: {address} is free from now on", path.display())))
            }
        }
    }
    Ok((found, last, errors))
}
