//! Which names there are, where the specification leaves a choice: CoreDNS's options of the same names.

use clap::ValueEnum;
use ipnetwork::IpNetwork;

/// The choices, as flags.
#[derive(Clone, Debug, clap::Args)]
#[group(skip)]
pub struct Names {
    /// Names of pods by their address, 10-22-0-7.default.pod.cluster.local.
    #[arg(long, value_name = "MODE", default_value = "disabled")]
    pub pods: Pods,

    /// Call an endpoint without a hostname by its pod's name, where it has one, and not by its address.
    #[arg(long)]
    pub endpoint_pod_names: bool,

    /// A Service with a virtual IP that has no ready endpoint does not exist.
    #[arg(long)]
    pub ignore_empty_service: bool,

    /// Namespaces to tell of; the others do not exist. Without it, all.
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    pub namespaces: Vec<String>,

    /// Clients that may have the whole zone (AXFR, by TCP). Without it, nobody.
    #[arg(long, value_name = "CIDR", value_delimiter = ',', value_parser = discovery::parse_cidr)]
    pub transfer_to: Vec<IpNetwork>,

    /// What to do where CoreDNS and the RFCs disagree; docs/dns.md lists the places.
    #[arg(long, value_name = "MODE", default_value = "rfc")]
    pub compat: Compat,
}

/// Which pods have names by their addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Pods {
    /// None.
    Disabled,
    /// Any address, whether or not there is a pod: the name only says it in other words. In namespaces that exist.
    Insecure,
    /// Those that there are, in their namespaces. On a cluster, all pods are watched for it.
    Verified,
}

/// Whose behaviour is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Compat {
    /// The RFCs'.
    Rfc,
    /// CoreDNS's.
    #[value(name = "coredns")]
    CoreDns,
}

impl Names {
    /// Whether a namespace is told of.
    pub(crate) fn has_namespace(&self, namespace: &str) -> bool {
        self.namespaces.is_empty() || self.namespaces.iter().any(|name| name == namespace)
    }

    /// Whether to do as CoreDNS does.
    pub(crate) fn is_coredns(&self) -> bool {
        self.compat == Compat::CoreDns
    }
}
