//! The client of a traced request: the node, or one of its pods.

use std::io;
use std::net::IpAddr;

use anyhow::{Context as _, bail};
use netns::NetNs;

use crate::attached_pods;

/// The client.
pub(super) struct Client {
    pub(super) name: String,
    /// Namespace of the first search domain.
    pub(super) namespace: String,
    /// `None` for the node.
    netns: Option<NetNs>,
}

impl Client {
    /// Finds a pod by name, `namespace/name` or container ID; `None` is the node.
    ///
    /// # Errors
    /// When no such pod is attached to this node.
    pub(super) fn find(from: Option<&str>, records: &[attachment::Attachment]) -> anyhow::Result<Self> {
        let Some(wanted) = from else {
            return Ok(Self { name: "the node".into(), namespace: "default".into(), netns: None });
        };
        let matches = |record: &&attachment::Attachment| {
            let name = attached_pods::name(record);
            name == wanted || name.ends_with(&format!("/{wanted}")) || record.container_id.starts_with(wanted)
        };
        let Some(record) = records.iter().find(matches) else {
            let known: Vec<String> = records.iter().map(attached_pods::name).collect();
            bail!("no pod {wanted:?} is attached to this node; there are: {}", known.join(", "));
        };
        let netns =
            NetNs::open(&record.netns).context("open the pod's network namespace (root is needed)")?;
        let namespace = record.pod.as_ref().map_or("default", |pod| pod.namespace.as_str());
        let addresses: Vec<String> = record.ips.iter().map(IpAddr::to_string).collect();
        let name = format!(
            "pod {} ({} on network {})",
            attached_pods::name(record),
            addresses.join(", "),
            record.network
        );
        Ok(Self { name, namespace: namespace.to_owned(), netns: Some(netns) })
    }

    /// Runs `work` in the client's network namespace.
    pub(super) fn run<T: Send>(&self, work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
        match &self.netns {
            None => work(),
            Some(netns) => netns.run(work).map_err(io::Error::other)?,
        }
    }
}
