//! A cluster of several nodes.

use std::path::PathBuf;

use anyhow::{Result, ensure};
use tempfile::TempDir;

use crate::cluster::Source;
use crate::{Cluster, Router, wait_for};

/// Several nodes with both daemons, which read one manifest directory. It has a Node document for each node
/// with its addresses and pod CIDR, 10.22.1.0/24 for `node-1` and so on, so that the proxies maintain routes
/// to each other's pods.
#[derive(Debug)]
pub struct Fleet {
    /// The nodes `node-1`, `node-2`, …, each with a proxy and a DNS server that have its name.
    pub members: Vec<Cluster>,
    directory: TempDir,
}

impl Fleet {
    /// Starts a node for each entry of `subnets`, on subnet 0 or 1 of a [`Router`], and waits until all are
    /// ready.
    ///
    /// # Errors
    /// As [`Cluster::start`].
    pub fn start(subnets: &[usize]) -> Result<Self> {
        Self::start_with(subnets, &[])
    }

    /// As [`Fleet::start`], with more flags for every proxy.
    ///
    /// # Errors
    /// As [`Cluster::start`].
    pub fn start_with(subnets: &[usize], proxy_flags: &[&str]) -> Result<Self> {
        Self::launch(subnets, proxy_flags, |index| vec![pod_cidr(index)])
    }

    /// As [`Fleet::start`], with these pod ranges for each node instead of 10.22.1.0/24 and so on. A pod gets
    /// an address of each range.
    ///
    /// # Errors
    /// As [`Cluster::start`].
    pub fn start_with_ranges(subnets: &[usize], ranges: impl Fn(usize) -> Vec<String>) -> Result<Self> {
        Self::launch(subnets, &[], ranges)
    }

    fn launch(
        subnets: &[usize],
        proxy_flags: &[&str],
        ranges: impl Fn(usize) -> Vec<String>,
    ) -> Result<Self> {
        let directory = TempDir::new()?;
        let manifests = directory.path().join("manifests");
        std::fs::create_dir(&manifests)?;
        let mut router = Router::new()?;
        let mut nodes = Vec::new();
        for (index, subnet) in subnets.iter().enumerate() {
            let node = router.add_node(*subnet)?;
            let text = node_manifest(&node_name(index), &node.addresses(), &ranges(index));
            std::fs::write(manifests.join(format!("{}.yaml", node_name(index))), text)?;
            nodes.push(node);
        }
        let start = |(index, node)| {
            let (name, own) = (node_name(index), TempDir::new_in(directory.path())?);
            let flags = [&["--node-name", &name], proxy_flags].concat();
            let ranges = ranges(index);
            let ranges: Vec<&str> = ranges.iter().map(String::as_str).collect();
            Cluster::start_on(node, own, Source::Manifests(manifests.clone()), &ranges, &flags)
        };
        let members = nodes.into_iter().enumerate().map(start).collect::<Result<_>>()?;
        Ok(Self { members, directory })
    }

    /// Waits until every node has a route to the pods of every other node.
    ///
    /// # Errors
    /// When a route is missing after the deadline of [`wait_for`].
    pub fn route_pods(&self) -> Result<()> {
        for (from, member) in self.members.iter().enumerate() {
            for range in (0..self.members.len()).filter(|to| *to != from).map(pod_cidr) {
                wait_for(&format!("a route to {range}"), || {
                    let route = member.node.shell(&format!("ip route show {range}"))?;
                    ensure!(!route.is_empty(), "{}", member.logs());
                    Ok(())
                })?;
            }
        }
        Ok(())
    }

    /// Returns the manifest directory of all nodes. [`Cluster::apply`] of any node writes to it.
    pub fn manifests(&self) -> PathBuf {
        self.directory.path().join("manifests")
    }
}

fn node_name(index: usize) -> String {
    format!("node-{}", index + 1)
}

fn pod_cidr(index: usize) -> String {
    format!("10.22.{}.0/24", index + 1)
}

fn node_manifest(name: &str, addresses: &[std::net::IpAddr], pod_cidrs: &[String]) -> String {
    let addresses: Vec<String> =
        addresses.iter().map(|ip| format!("{{type: InternalIP, address: \"{ip}\"}}")).collect();
    format!(
        "apiVersion: v1\nkind: Node\nmetadata: {{name: {name}}}\nspec: {{podCIDRs: {pod_cidrs:?}}}\n\
         status: {{addresses: [{}]}}\n",
        addresses.join(", ")
    )
}
