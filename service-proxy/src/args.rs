//! The command line.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;
use daemon::program::Settings;
use discovery::{Interest, ServiceInterest};
use ipnetwork::IpNetwork;

use crate::cni_config::CniConfig;
use crate::kernel::conntrack;
use crate::kernel::node_address::NodePortAddress;
use crate::node_context::NodeConfig;
use crate::node_routes::NodeRoutes;
use crate::run::Config;
use crate::worker::idle_timeout::IdleTimeouts;

/// Proxies connections to Service virtual IPs to the pods behind them.
///
/// Reads ordinary Kubernetes YAML (Service, Pod, EndpointSlice, Node, Namespace) from a directory, or watches
/// the API server of a cluster, and reads the records of the CNI plugin. Makes every virtual IP local to this
/// node and relays TCP and UDP to the endpoints. Changes take effect at once.
#[derive(Clone, Debug, Parser)]
#[command(
    name = "portolan-proxy",
    version,
    after_help = "Example:\n  portolan-proxy --manifests ./services\n  \
                  portolan-proxy --kubeconfig /etc/portolan/kubeconfig --node-name node-1\n  \
                  portolan-proxy status\n\n\
                  SIGTERM drains: new connections are refused, open ones may finish. A second one aborts.\n\
                  Every flag can be a key of the config file, without the dashes."
)]
pub struct Args {
    /// The flags for the source of Services.
    #[command(flatten)]
    pub discovery: discovery::Args,

    /// Name of this node, as in Node manifests and `nodeName` of endpoints [default: the host's name].
    #[arg(long, value_name = "NAME")]
    pub node_name: Option<String>,

    /// Serve the Services whose label `service.kubernetes.io/service-proxy-name` is this, and no others
    /// [default: those without the label]
    #[arg(long, value_name = "NAME")]
    pub service_proxy_name: Option<String>,

    /// The node's addresses on which node ports are opened: `primary`, the source address of its default
    /// route; `localhost`; `all`; or ranges, in any combination
    #[arg(long, value_name = "primary|localhost|all|CIDR", value_delimiter = ',', default_value = "primary")]
    pub node_port_addresses: Vec<NodePortAddress>,

    /// Serve `externalIPs` of Services. With them anyone who may write a Service can take the traffic for any
    /// address (CVE-2020-8554), and Kubernetes deprecates them (KEP-5707)
    #[arg(long, value_name = "true|false", default_value_t = true, action = clap::ArgAction::Set)]
    pub allow_service_external_ips: bool,

    /// Ranges of the pods of this node, if portolan-cni does not record them
    #[arg(long, value_name = "CIDR", value_delimiter = ',', value_parser = discovery::parse_cidr)]
    pub pod_cidr: Vec<IpNetwork>,

    /// How the pods of other nodes are reached, by spec.podCIDRs of their Node. auto: directly if the node is
    /// on the same link, by VXLAN (UDP port 8472) otherwise; direct: only directly; none: not at all, because
    /// another program adds the routes
    #[arg(long, value_name = "HOW", default_value = "auto")]
    pub node_routes: NodeRoutes,

    /// Write the configuration of portolan-cni to this file once the Node has the ranges of its pods
    /// (spec.podCIDRs), and keep it up to date; for example /etc/cni/net.d/10-portolan.conflist. Only
    /// --cleanup with this flag removes it
    #[arg(long, value_name = "FILE")]
    pub cni_conflist: Option<PathBuf>,

    /// Ranges of the pods of all nodes, which see each other's own addresses: the controller manager's
    /// setting of this name. For --cni-conflist
    #[arg(long, value_name = "CIDR", value_delimiter = ',', value_parser = discovery::parse_cidr)]
    pub cluster_cidr: Vec<IpNetwork>,

    /// Remove everything that a proxy has left on this node, including routes to pods of other nodes, and
    /// exit. For a node that is decommissioned: not while a proxy runs
    #[arg(long)]
    pub cleanup: bool,

    /// The source of a connection that endpoints see: the client's own address if possible, or the node's
    #[arg(long, value_name = "WHOSE", default_value = "client")]
    pub source_address: SourceAddress,

    /// Worker threads for traffic; 0 means one per core
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub workers: usize,

    /// Microseconds for which a worker polls for the next event before it sleeps, if it has learned that
    /// polling pays; 0 disables polling. Uses idle processor time, and saves a wake-up per message
    #[arg(long, value_name = "MICROSECONDS", default_value_t = 100, value_parser = clap::value_parser!(u64).range(0..=1000))]
    pub poll: u64,

    /// Connect timeout in seconds of the last endpoint that is tried: more than 1, after which a lost SYN is
    /// sent again. The first of several gets an eighth, the second a quarter
    #[arg(long, value_name = "SECONDS", default_value_t = 2)]
    pub connect_timeout: u64,

    /// Idle timeout in seconds of a half-closed TCP connection, at most twice that; 0 means none
    #[arg(long, value_name = "SECONDS", default_value_t = 3600)]
    pub half_closed_timeout: u64,

    /// Idle timeout in seconds of an open TCP connection, at most twice that; 0 means none
    #[arg(long, value_name = "SECONDS", default_value_t = 0)]
    pub tcp_idle_timeout: u64,

    /// Idle timeout in seconds of a UDP flow, at least 1
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..))]
    pub udp_idle_timeout: u64,

    /// Maximum number of UDP flows per virtual IP and port, an equal share for each worker; the client with
    /// the most flows loses one to a newer flow
    #[arg(long, value_name = "N", default_value_t = 4096)]
    pub udp_max_flows: usize,

    /// Maximum number of open TCP connections; newer ones are reset and counted [default: as many as open
    /// files allow]
    #[arg(long, value_name = "N")]
    pub max_connections: Option<usize>,

    /// The settings of conntrack.
    #[command(flatten)]
    pub conntrack: conntrack::Settings,

    /// Seconds that open connections may take to finish after SIGTERM
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    pub drain_timeout: u64,

    /// Address of /metrics
    #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:10249", global = true)]
    pub metrics_bind_address: SocketAddr,

    /// Address of /healthz, /livez and /readyz
    #[arg(long, value_name = "ADDR:PORT", default_value = "0.0.0.0:10256")]
    pub healthz_bind_address: SocketAddr,

    /// The flags of every daemon.
    #[command(flatten)]
    pub program: daemon::program::Args,

    /// A subcommand instead of proxying.
    #[command(subcommand)]
    pub command: Option<Command>,
}

/// A subcommand instead of proxying.
#[derive(Clone, Debug, clap::Subcommand)]
pub enum Command {
    /// Show what the proxy on this machine serves: Services, the state of their endpoints, open connections
    Status {
        /// Only this Service
        #[arg(value_name = "NAMESPACE/NAME")]
        service: Option<String>,
        /// JSON output
        #[arg(long)]
        json: bool,
    },
}

/// The source address that endpoints see.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum SourceAddress {
    /// The client's, if replies to it come back through this node
    Client,
    /// The node's
    Node,
}

impl From<(Args, Settings)> for Config {
    fn from((args, settings): (Args, Settings)) -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let node_name = args.node_name.unwrap_or_else(host_name);
        let proxy_name = args.service_proxy_name.filter(|name| !name.is_empty());
        let interest = Interest {
            services: ServiceInterest::CarriedBy(proxy_name.clone()),
            nodes: true,
            namespaces: false,
            pods: false,
            pod_names: false,
        };
        Self {
            discovery: args.discovery.config(interest),
            node_config: NodeConfig {
                node_name,
                proxy_name,
                pod_cidrs: args.pod_cidr,
                node_port_addresses: args.node_port_addresses,
                allow_external_ips: args.allow_service_external_ips,
            },
            node_routes: args.node_routes,
            cni: args.cni_conflist.map(|file| CniConfig { file, cluster_cidrs: args.cluster_cidr }),
            preserve_source_ip: args.source_address == SourceAddress::Client,
            workers: if args.workers == 0 { cores } else { args.workers },
            poll: Duration::from_micros(args.poll),
            connect_timeout: Duration::from_secs(args.connect_timeout),
            idle_timeouts: IdleTimeouts {
                half_closed: seconds(args.half_closed_timeout),
                idle: seconds(args.tcp_idle_timeout),
            },
            udp_idle_timeout: Duration::from_secs(args.udp_idle_timeout),
            udp_max_flows: args.udp_max_flows,
            max_connections: args.max_connections,
            conntrack: args.conntrack,
            drain_timeout: Duration::from_secs(args.drain_timeout),
            settings,
            metrics_address: args.metrics_bind_address,
            healthz_address: args.healthz_bind_address,
        }
    }
}

/// 0 means no limit.
fn seconds(number: u64) -> Option<Duration> {
    (number > 0).then(|| Duration::from_secs(number))
}

/// Node names are lower case, whatever the case of the host name.
fn host_name() -> String {
    nix::unistd::gethostname().unwrap_or_default().to_string_lossy().to_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn udp_idle_timeout_must_not_be_0() {
        let parsed = |seconds| Args::try_parse_from(["portolan-proxy", "--udp-idle-timeout", seconds]);
        assert!(parsed("1").is_ok());
        let refused = parsed("0").unwrap_err().to_string();
        assert!(refused.contains("--udp-idle-timeout"), "{refused}");
    }
}
