//! The flags for the source of Services, the same for every daemon.

use std::path::PathBuf;

use ipnetwork::IpNetwork;

use crate::convert::parse_cidr;
use crate::discovery::{Config, ControlPlane, Interest};

/// Where the state comes from.
#[derive(Clone, Debug, clap::Args)]
#[group(skip)]
pub struct Args {
    /// Directory of Kubernetes YAML to read and watch.
    #[arg(long, value_name = "DIR", default_value = "/etc/portolan/manifests", conflicts_with_all = CLUSTER)]
    pub manifests: PathBuf,

    /// Follow the API server that this kubeconfig file names, in place of a directory. Certificates and
    /// tokens are read anew for each connection.
    #[cfg(feature = "kubernetes")]
    #[arg(long, value_name = "FILE", conflicts_with = "in_cluster")]
    pub kubeconfig: Option<PathBuf>,

    /// Follow the API server of the cluster whose pod this is, with its service account:
    /// KUBERNETES_SERVICE_HOST, _PORT.
    #[cfg(feature = "kubernetes")]
    #[arg(long)]
    pub in_cluster: bool,

    /// Directory where the CNI plugin records which pod has which address.
    #[arg(long, value_name = "DIR", default_value = attachment::DEFAULT_DIRECTORY)]
    pub attachments: PathBuf,

    /// Ranges of virtual IPs, one a family; portolan-proxy and portolan-dns must be given the same.
    #[arg(
        long,
        value_name = "CIDR",
        value_delimiter = ',',
        default_value = "10.96.0.0/12,fd00:10:96::/112",
        value_parser = parse_cidr
    )]
    pub service_cidr: Vec<IpNetwork>,
}

/// The flags that name an API server in place of a directory.
#[cfg(feature = "kubernetes")]
const CLUSTER: [&str; 2] = ["kubeconfig", "in_cluster"];
#[cfg(not(feature = "kubernetes"))]
const CLUSTER: [&str; 0] = [];

impl Args {
    /// Returns the configuration for a program with this interest.
    pub fn config(self, interest: Interest) -> Config {
        Config {
            control_plane: self.control_plane(),
            interest,
            attachments: Some(self.attachments),
            service_cidrs: self.service_cidr,
        }
    }

    fn control_plane(&self) -> ControlPlane {
        #[cfg(feature = "kubernetes")]
        {
            use crate::source::Access;
            if let Some(file) = &self.kubeconfig {
                return ControlPlane::Kubernetes(Access::Kubeconfig(file.clone()));
            }
            if self.in_cluster {
                return ControlPlane::Kubernetes(Access::InCluster);
            }
        }
        ControlPlane::Manifests(self.manifests.clone())
    }
}
