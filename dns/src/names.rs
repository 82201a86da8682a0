//! Options for names that the specification leaves open, with the names of CoreDNS's options.

use clap::ValueEnum;
use ipnetwork::IpNetwork;

/// The options, as flags.
#[derive(Clone, Debug, clap::Args)]
#[group(skip)]
pub struct Names {
    /// Names of pods by address, 10-22-0-7.default.pod.cluster.local
    #[arg(long, value_name = "MODE", default_value = "disabled")]
    pub pods: Pods,

    /// Name an endpoint without a hostname by its pod instead of its address, if it has a pod
    #[arg(long)]
    pub endpoint_pod_names: bool,

    /// Answer NXDOMAIN for a Service with a virtual IP and without ready endpoints
    #[arg(long)]
    pub ignore_empty_service: bool,

    /// Namespaces to serve; others do not exist [default: all]
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    pub namespaces: Vec<String>,

    /// Clients that may transfer the whole zone (AXFR over TCP) [default: none]
    #[arg(long, value_name = "CIDR", value_delimiter = ',', value_parser = discovery::parse_cidr)]
    pub transfer_to: Vec<IpNetwork>,

    /// What to do if CoreDNS and the RFCs differ; see docs/dns.md
    #[arg(long, value_name = "MODE", default_value = "rfc")]
    pub compat: Compat,
}

/// Which pods have names by their addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Pods {
    /// None
    Disabled,
    /// Any address in existing namespaces, whether or not there is a pod
    Insecure,
    /// Existing pods in their namespaces. On a cluster this watches all pods
    Verified,
}

/// Which behaviour to implement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Compat {
    /// The RFCs
    Rfc,
    /// CoreDNS
    #[value(name = "coredns")]
    CoreDns,
}

impl Names {
    /// Whether a namespace is served.
    pub(crate) fn has_namespace(&self, namespace: &str) -> bool {
        self.namespaces.is_empty() || self.namespaces.iter().any(|name| name == namespace)
    }

    /// Whether to behave like CoreDNS.
    pub(crate) fn is_coredns(&self) -> bool {
        self.compat == Compat::CoreDns
    }
}
