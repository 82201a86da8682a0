//! A Service that changes among 10,000 that do not. Its address encodes the number of the change.

use std::fs;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;

use super::servers::Lab;
use super::workload::{self, Queries};

/// The name that changes.
pub(super) const NAME: &str = "changing.default.svc.cluster.local";

/// Deadline for a change to be visible.
pub(super) const DEADLINE: Duration = Duration::from_secs(5);

/// The manifest of the Service.
pub(super) struct ChangingService {
    /// Temporary file outside the watched directory.
    new: PathBuf,
    target: PathBuf,
}

impl ChangingService {
    /// Starts portolan-dns in the lab, with the Service before its first change.
    pub(super) fn start(lab: &mut Lab, queries: &Queries) -> Result<Self> {
        let manifests = lab.directory().join("manifests");
        fs::create_dir(&manifests)?;
        workload::write_manifests(&manifests)?;
        let changing = Self { new: lab.directory().join("new"), target: manifests.join("changing.yaml") };
        changing.write(0)?;
        changing.publish()?;
        lab.start_portolan(&manifests, &[], queries)?;
        Ok(changing)
    }

    /// Writes a change to the temporary file.
    pub(super) fn write(&self, change: usize) -> Result<()> {
        Ok(fs::write(&self.new, manifest(change))?)
    }

    /// Applies the last written change by a rename.
    pub(super) fn publish(&self) -> Result<()> {
        Ok(fs::rename(&self.new, &self.target)?)
    }
}

/// Returns the address of the name after that change, counted from 10.22.0.0.
pub(super) fn address(change: usize) -> Ipv4Addr {
    Ipv4Addr::from(0x0a16_0000 + u32::try_from(change).unwrap_or(0))
}

fn manifest(change: usize) -> String {
    let address = address(change);
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: changing}}\n\
         spec: {{clusterIP: None, ports: [{{port: 80}}]}}\n---\n\
         apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
         metadata: {{name: changing-1, labels: {{kubernetes.io/service-name: changing}}}}\n\
         addressType: IPv4\n\
         ports: [{{port: 80}}]\nendpoints: [{{addresses: [{address}]}}]\n"
    )
}
