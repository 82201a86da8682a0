//! A Service that changes, among 10,000 that do not: the address of its name is the number of the change.

use std::fs;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;

use super::names::{self, Queries};
use super::servers::Lab;

/// The name that changes.
pub(super) const NAME: &str = "changing.default.svc.cluster.local";

/// A change that is not seen by then is a failure.
pub(super) const DEADLINE: Duration = Duration::from_secs(5);

/// Where its manifest is.
pub(super) struct Changing {
    /// Outside the directory that is watched.
    new: PathBuf,
    target: PathBuf,
}

impl Changing {
    /// Starts portolan-dns in the lab, with the Service as it is before the first change.
    pub(super) fn start(lab: &mut Lab, queries: &Queries) -> Result<Self> {
        let manifests = lab.directory().join("manifests");
        fs::create_dir(&manifests)?;
        names::write_manifests(&manifests)?;
        let changing = Self { new: lab.directory().join("new"), target: manifests.join("changing.yaml") };
        changing.write(0)?;
        changing.publish()?;
        lab.start_portolan(&manifests, &[], queries)?;
        Ok(changing)
    }

    /// Writes a change down, where nobody sees it yet.
    pub(super) fn write(&self, change: usize) -> Result<()> {
        Ok(fs::write(&self.new, manifest(change))?)
    }

    /// Puts what was written last in force, by a rename.
    pub(super) fn publish(&self) -> Result<()> {
        Ok(fs::rename(&self.new, &self.target)?)
    }
}

/// What the name's address is after that change: from 10.22.0.0 on.
pub(super) fn address(change: usize) -> Ipv4Addr {
    Ipv4Addr::from(0x0a16_0000 + u32::try_from(change).unwrap_or(0))
}

fn manifest(change: usize) -> String {
    let address = address(change);
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: changing}}\nspec: {{clusterIP: None, ports: [{{port: 80}}]}}\n---\n\
         apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
         metadata: {{name: changing-1, labels: {{kubernetes.io/service-name: changing}}}}\naddressType: IPv4\n\
         ports: [{{port: 80}}]\nendpoints: [{{addresses: [{address}]}}]\n"
    )
}
