//! The CNI configuration of this node, written once the Node has the ranges of its pods (`spec.podCIDRs`).
//!
//! The kubelet considers a node ready when a CNI configuration exists. So the file is written only when pods
//! can get addresses, and stays when the proxy stops: only `portolan-proxy --cleanup` removes it. A file of
//! another program is not changed.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use discovery::Snapshots;
use ipnetwork::IpNetwork;
use serde_json::{Value, json};
use tokio::time::sleep;
use tracing::{info, warn};

/// Marks a configuration as written by this program.
const WRITTEN_BY: &str = "portolan-proxy";

/// Interval of retries if the file cannot be written: a full disk, or a file of another program, may be
/// resolved.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// The content and the path of the configuration.
#[derive(Clone, Debug)]
pub struct CniConfig {
    /// The file that runtimes read: `/etc/cni/net.d/10-portolan.conflist`.
    pub file: PathBuf,
    /// Ranges of the pods of all nodes: no masquerading between them.
    pub cluster_cidrs: Vec<IpNetwork>,
}

/// Keeps the file up to date with the Node. Ends with the snapshots.
pub(crate) async fn run(config: CniConfig, node_name: String, healthz: SocketAddr, mut snapshots: Snapshots) {
    let mut written = None;
    let mut logged = None;
    loop {
        let snapshot = Arc::clone(&snapshots.borrow_and_update());
        let node = snapshot.nodes.get(node_name.as_str()).filter(|_| snapshot.synced);
        // A deleted Node may come back: running pods keep their addresses.
        let wanted = node.map(|node| &node.pod_cidrs).filter(|cidrs| !cidrs.is_empty());
        let mut retry = None;
        if let Some(cidrs) = wanted.filter(|cidrs| written.as_ref() != Some(*cidrs)) {
            match write(&config.file, &contents(cidrs, &config.cluster_cidrs, healthz)) {
                Ok(()) => {
                    info!(file = %config.file.display(), ranges = ?cidrs, "CNI configuration written");
                    (written, logged) = (Some(cidrs.clone()), None);
                }
                Err(error) => {
                    retry = Some(RETRY_INTERVAL);
                    // Logged once, not at every attempt.
                    let message = error.to_string();
                    if logged.as_ref() != Some(&message) {
                        warn!(file = %config.file.display(), %error, "no CNI configuration, trying again");
                        logged = Some(message);
                    }
                }
            }
        }
        tokio::select! {
            changed = snapshots.changed() => if changed.is_err() { return },
            () = sleep(retry.unwrap_or_default()), if retry.is_some() => {}
        }
    }
}

/// Removes the file if this program wrote it.
///
/// # Errors
/// If the file cannot be removed. A missing one is fine.
pub(crate) fn remove(file: &Path) -> io::Result<()> {
    match is_ours(file)? {
        Some(true) => std::fs::remove_file(file),
        Some(false) | None => Ok(()),
    }
}

fn contents(pod_cidrs: &[IpNetwork], cluster_cidrs: &[IpNetwork], healthz: SocketAddr) -> Value {
    let mut sets: BTreeMap<bool, Vec<Value>> = BTreeMap::new();
    for cidr in pod_cidrs {
        sets.entry(cidr.is_ipv6()).or_default().push(json!({ "subnet": cidr.to_string() }));
    }
    let ours: Vec<String> = cluster_cidrs.iter().map(ToString::to_string).collect();
    json!({
        "cniVersion": "1.0.0",
        // Current runtimes call STATUS only if the list contains 1.1.0.
        "cniVersions": ["1.0.0", "1.1.0"],
        "name": "portolan",
        "plugins": [{
            "type": "portolan-cni",
            "capabilities": { "bandwidth": true, "portMappings": true },
            "ipam": { "ranges": sets.into_values().collect::<Vec<_>>() },
            "nonMasqueradeCIDRs": ours,
            "serviceProxy": reachable(healthz).to_string(),
            "writtenBy": WRITTEN_BY,
        }],
    })
}

/// The address by which the node itself reaches a wildcard listener.
fn reachable(address: SocketAddr) -> SocketAddr {
    let loopback: IpAddr = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(loopback, address.port())
}

fn write(file: &Path, contents: &Value) -> io::Result<()> {
    let text = format!("{contents:#}\n");
    // Runtimes reload the configuration on every change.
    if std::fs::read(file).is_ok_and(|now| now == text.as_bytes()) {
        return Ok(());
    }
    if is_ours(file)? == Some(false) {
        let message = "another program has written it; remove it, or name another file with --cni-conflist";
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, message));
    }
    let directory = file.parent().unwrap_or_else(|| Path::new("/"));
    std::fs::create_dir_all(directory)?;
    // The temporary file needs another extension: runtimes read every file with this one.
    let new = file.with_extension("conflist.new");
    std::fs::write(&new, text)?;
    std::fs::rename(new, file)
}

/// Whether this program wrote the file; `None` if it does not exist.
fn is_ours(file: &Path) -> io::Result<Option<bool>> {
    match std::fs::read(file) {
        Ok(text) => {
            let config: Value = serde_json::from_slice(&text).unwrap_or_default();
            Ok(Some(config["plugins"][0]["writtenBy"] == WRITTEN_BY))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_range_set_per_family_and_no_masquerading_between_pods() {
        let cidrs =
            |texts: &[&str]| -> Vec<IpNetwork> { texts.iter().map(|text| text.parse().unwrap()).collect() };
        let own = cidrs(&["10.244.1.0/24", "fd00:10:244:1::/64"]);
        let config = contents(&own, &cidrs(&["10.244.0.0/16"]), "0.0.0.0:10256".parse().unwrap());
        let plugin = &config["plugins"][0];
        let ranges = json!([[{"subnet": "10.244.1.0/24"}], [{"subnet": "fd00:10:244:1::/64"}]]);
        assert_eq!(plugin["ipam"]["ranges"], ranges);
        assert_eq!(plugin["nonMasqueradeCIDRs"], json!(["10.244.0.0/16"]));
        assert_eq!(plugin["serviceProxy"], "127.0.0.1:10256");
    }

    #[tokio::test]
    async fn failed_write_is_retried() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("net.d/10-portolan.conflist");
        std::fs::write(directory.path().join("net.d"), "no directory").unwrap();
        let node = discovery::model::Node {
            name: "n1".into(),
            labels: BTreeMap::new(),
            addresses: vec![],
            external_addresses: vec![],
            pod_cidrs: vec!["10.244.1.0/24".parse().unwrap()],
            leaving: false,
        };
        let mut snapshot = discovery::Snapshot::empty();
        (snapshot.synced, snapshot.nodes) = (true, Arc::new([("n1".into(), Arc::new(node))].into()));
        let (_publisher, snapshots) = tokio::sync::watch::channel(Arc::new(snapshot));
        let config = CniConfig { file: file.clone(), cluster_cidrs: vec![] };
        let keeping = run(config, "n1".to_owned(), "127.0.0.1:1".parse().unwrap(), snapshots);
        let mending = async {
            sleep(RETRY_INTERVAL / 2).await;
            std::fs::remove_file(directory.path().join("net.d")).unwrap();
            while !file.exists() {
                sleep(RETRY_INTERVAL / 100).await;
            }
        };
        tokio::select! {
            () = keeping => panic!("the snapshots go on"),
            done = tokio::time::timeout(60 * RETRY_INTERVAL, mending) => done.unwrap(),
        }
    }

    #[test]
    fn file_of_another_program_is_neither_overwritten_nor_removed() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("10-portolan.conflist");
        remove(&file).unwrap();
        std::fs::write(&file, "{\"name\": \"theirs\"}").unwrap();
        let ours = contents(&["10.244.1.0/24".parse().unwrap()], &[], "127.0.0.1:1".parse().unwrap());
        assert_eq!(write(&file, &ours).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        remove(&file).unwrap();
        assert!(file.exists());
        std::fs::remove_file(&file).unwrap();
        write(&file, &ours).unwrap();
        write(&file, &ours).unwrap();
        remove(&file).unwrap();
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
    }
}
