//! The flags that say where to look, the same for every daemon.

use std::path::PathBuf;

use ipnetwork::IpNetwork;

use crate::convert::parse_cidr;
use crate::discovery::Config;

/// Where the state comes from.
#[derive(Clone, Debug, clap::Args)]
#[group(skip)]
pub struct Args {
    /// Directory of Kubernetes YAML to read and watch.
    #[arg(long, value_name = "DIR", default_value = "/etc/portolan/manifests")]
    pub manifests: PathBuf,

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

impl From<Args> for Config {
    fn from(args: Args) -> Self {
        Self {
            manifests: args.manifests,
            attachments: Some(args.attachments),
            service_cidrs: args.service_cidr,
        }
    }
}
