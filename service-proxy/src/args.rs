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
use crate::node_routes::NodeRoutes;
use crate::run::Config;
use crate::surroundings::Place;
use crate::worker::patience::Patience;

/// Carries Service virtual IPs to pods.
///
/// Reads ordinary Kubernetes YAML (Service, Pod, EndpointSlice, Node, Namespace) from a directory, or follows
/// the API server of a cluster, and the records the CNI plugin leaves; makes every virtual IP local to this
/// node and relays TCP and UDP to the endpoints. Changes take effect at once.
#[derive(Clone, Debug, Parser)]
#[command(
    name = "portolan-proxy",
    version,
    after_help = "Example:\n  portolan-proxy --manifests ./services\n  portolan-proxy --kubeconfig /etc/portolan/kubeconfig --node-name node-1\n  portolan-proxy status\n\n\
                  SIGTERM drains: new connections are refused, open ones may finish. A second one aborts.\n\
                  Every flag can be a key of the config file, without the dashes."
)]
pub struct Args {
    /// Shared with the other daemon.
    #[command(flatten)]
    pub discovery: discovery::Args,

    /// Name of this node, as in Node manifests and `nodeName` of endpoints [default: the host's name].
    #[arg(long, value_name = "NAME")]
    pub node_name: Option<String>,

    /// Carry the Services whose label `service.kubernetes.io/service-proxy-name` is this, and no others
    /// [default: those without the label].
    #[arg(long, value_name = "NAME")]
    pub service_proxy_name: Option<String>,

    /// Which of the node's addresses node ports are opened on: `primary`, the one towards the rest of the
    /// world, `localhost`, `all`, or ranges, in any combination.
    #[arg(long, value_name = "primary|localhost|all|CIDR", value_delimiter = ',', default_value = "primary")]
    pub node_port_addresses: Vec<NodePortAddress>,

    /// Serve `externalIPs` of Services. They let anybody who may write a Service take traffic for any address
    /// (CVE-2020-8554), and Kubernetes gives them up (KEP-5707).
    #[arg(long, value_name = "true|false", default_value_t = true, action = clap::ArgAction::Set)]
    pub allow_service_external_ips: bool,

    /// Ranges of the pods of this node, where no CNI plugin of ours records them.
    #[arg(long, value_name = "CIDR", value_delimiter = ',', value_parser = discovery::parse_cidr)]
    pub pod_cidr: Vec<IpNetwork>,

    /// How the pods of other nodes are reached, by spec.podCIDRs of their Node: directly where the node is on
    /// the same link and by VXLAN (UDP port 8472) where it is not; only directly; or not at all, where
    /// another program routes.
    #[arg(long, value_name = "HOW", default_value = "auto")]
    pub node_routes: NodeRoutes,

    /// Write the configuration of portolan-cni to this file once the Node says which addresses its pods get
    /// (spec.podCIDRs), and keep it so; for example /etc/cni/net.d/10-portolan.conflist. Only --cleanup with
    /// this flag takes it away.
    #[arg(long, value_name = "FILE")]
    pub cni_conflist: Option<PathBuf>,

    /// Ranges of the pods of all nodes, which see each other's own addresses: the controller manager's
    /// setting of this name. For --cni-conflist.
    #[arg(long, value_name = "CIDR", value_delimiter = ',', value_parser = discovery::parse_cidr)]
    pub cluster_cidr: Vec<IpNetwork>,

    /// Take away all that a proxy has left on this node, routes to other nodes' pods too, and exit. For a
    /// node that is given up: not while a proxy runs.
    #[arg(long)]
    pub cleanup: bool,

    /// What endpoints see as the source of a connection: the client's own address where that is possible, or
    /// the node's.
    #[arg(long, value_name = "WHOSE", default_value = "client")]
    pub source_address: SourceAddress,

    /// Event loops that carry traffic; 0 means one a core.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub workers: usize,

    /// Microseconds for which a worker looks for the next event before it sleeps, where it learns that this
    /// pays; 0 never does. Costs processor time that would be idle, and saves a wake-up a message.
    #[arg(long, value_name = "MICROSECONDS", default_value_t = 100, value_parser = clap::value_parser!(u64).range(0..=1000))]
    pub poll: u64,

    /// Seconds that the last endpoint to be tried is given to accept: more than 1, after which a lost packet
    /// is sent again. The first of several gets an eighth, the second a quarter.
    #[arg(long, value_name = "SECONDS", default_value_t = 2)]
    pub connect_timeout: u64,

    /// Seconds for which a connection that one side has closed may be quiet, twice that at most; 0 means for
    /// ever.
    #[arg(long, value_name = "SECONDS", default_value_t = 3600)]
    pub half_closed_timeout: u64,

    /// Seconds for which an open TCP connection may be quiet, twice that at most; 0 means for ever.
    #[arg(long, value_name = "SECONDS", default_value_t = 0)]
    pub tcp_idle_timeout: u64,

    /// Seconds after which a UDP flow without datagrams is forgotten, at least 1.
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..))]
    pub udp_idle_timeout: u64,

    /// UDP flows one virtual IP and port may have at a time, an equal share in each event loop; the client
    /// with the most gives one up for a newer one.
    #[arg(long, value_name = "N", default_value_t = 4096)]
    pub udp_max_flows: usize,

    /// TCP connections carried at a time; newer ones are reset and counted [default: as many as open files
    /// allow].
    #[arg(long, value_name = "N")]
    pub max_connections: Option<usize>,

    /// What the kernel's connection tracking is set to.
    #[command(flatten)]
    pub conntrack: conntrack::Settings,

    /// Seconds that open connections are given to finish after SIGTERM.
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    pub drain_timeout: u64,

    /// Address of /metrics.
    #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:10249", global = true)]
    pub metrics_bind_address: SocketAddr,

    /// Address of /healthz, /livez and /readyz.
    #[arg(long, value_name = "ADDR:PORT", default_value = "0.0.0.0:10256")]
    pub healthz_bind_address: SocketAddr,

    /// Shared with the other daemon.
    #[command(flatten)]
    pub program: daemon::program::Args,

    /// Something else than carrying.
    #[command(subcommand)]
    pub command: Option<Command>,
}

/// Something else than carrying.
#[derive(Clone, Debug, clap::Subcommand)]
pub enum Command {
    /// Shows what the proxy on this machine serves: Services, their endpoints and how they are, open
    /// connections.
    Status {
        /// Only this Service.
        #[arg(value_name = "NAMESPACE/NAME")]
        service: Option<String>,
        /// For programs.
        #[arg(long)]
        json: bool,
    },
}

/// Whose address endpoints see.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum SourceAddress {
    /// The client's, where replies to it come back through this node.
    Client,
    /// The node's.
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
            place: Place {
                node_name,
                proxy_name,
                pod_cidrs: args.pod_cidr,
                node_port_addresses: args.node_port_addresses,
                allow_external_ips: args.allow_service_external_ips,
            },
            node_routes: args.node_routes,
            cni: args.cni_conflist.map(|file| CniConfig { file, cluster_cidrs: args.cluster_cidr }),
            borrow_addresses: args.source_address == SourceAddress::Client,
            workers: if args.workers == 0 { cores } else { args.workers },
            poll: Duration::from_micros(args.poll),
            connect_timeout: Duration::from_secs(args.connect_timeout),
            patience: Patience {
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

/// 0 stands for no limit.
fn seconds(number: u64) -> Option<Duration> {
    (number > 0).then(|| Duration::from_secs(number))
}

/// Node names are lower case, whatever the host calls itself.
fn host_name() -> String {
    nix::unistd::gethostname().unwrap_or_default().to_string_lossy().to_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flow_of_datagrams_is_kept_for_some_time() {
        let parsed = |seconds| Args::try_parse_from(["portolan-proxy", "--udp-idle-timeout", seconds]);
        assert!(parsed("1").is_ok());
        let refused = parsed("0").unwrap_err().to_string();
        assert!(refused.contains("--udp-idle-timeout"), "{refused}");
    }
}
