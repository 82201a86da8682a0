//! The peers that portolan-proxy is compared with: HAProxy, nginx, kube-proxy's nftables rules. Checks what
//! is installed.

use std::path::Path as FilePath;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use testbed::Program;

use crate::interleave::Path;
use crate::load::Shape;
use crate::load::server::{ECHO_PORT, SINK_PORT};
use crate::processor::Process;
use crate::record::{Configuration, Record};
use crate::topology::{ECHO, SINK, Topology};

/// Ports of a peer with its own address: echo, sink.
pub(crate) const PORTS: (u16, u16) = (ECHO, SINK);

/// A virtual IP that exists only in the nftables rules.
pub(crate) const NFTABLES_ADDRESS: &str = "10.128.0.1";

const HAPROXY_PORTS: (u16, u16) = (8001, 8002);
const NGINX_PORTS: (u16, u16) = (8003, 8004);

/// A running peer.
pub(crate) struct Peer<'a> {
    pub(crate) path: Path<'a>,
    pub(crate) configuration: Configuration,
    /// Stops when dropped.
    pub(crate) program: Program,
}

/// Starts a peer on the node of a topology.
pub(crate) type Start = for<'a> fn(&'a Topology) -> Result<Peer<'a>>;

/// Files of a peer and their Debian packages.
type Package = (&'static [&'static str], &'static str);

pub(crate) const HAPROXY: Package = (&["/usr/sbin/haproxy"], "haproxy");
pub(crate) const NGINX: Package =
    (&["/usr/sbin/nginx", "/usr/lib/nginx/modules/ngx_stream_module.so"], "nginx-light libnginx-mod-stream");
/// `nft`; kube-proxy runs it too.
pub(crate) const NFT: Package = (&["/usr/sbin/nft"], "nftables");
pub(crate) const KNOT: Package = (&["/usr/sbin/knotd"], "knot");
pub(crate) const UNBOUND: Package = (&["/usr/sbin/unbound"], "unbound");
/// The reference plugins, and host-local, which both run.
pub(crate) const BRIDGE: Package =
    (&["/usr/lib/cni/bridge", "/usr/lib/cni/host-local"], "containernetworking-plugins");
pub(crate) const PTP: Package =
    (&["/usr/lib/cni/ptp", "/usr/lib/cni/host-local"], "containernetworking-plugins");

/// portmap runs `iptables`.
pub(crate) const PORTMAP: Package =
    (&["/usr/lib/cni/portmap", "/usr/sbin/iptables"], "containernetworking-plugins iptables");

/// Returns whether a peer is installed. If not, records how to install it.
pub(crate) fn is_installed(record: &mut Record, peer: &str, (files, packages): Package) -> bool {
    let is_installed = files.iter().all(|file| FilePath::new(file).exists());
    if !is_installed {
        record.not_measured.push(format!(
            "{peer}: not installed; `apt-get install --no-install-recommends {packages}` as root"
        ));
    }
    is_installed
}

/// Starts HAProxy with `mode tcp`, as in the examples of its documentation.
pub(crate) fn haproxy(topology: &Topology) -> Result<Peer<'_>> {
    let (echo, sink) = HAPROXY_PORTS;
    let server = &topology.server.ip;
    let config = format!(
        "global\n  maxconn 4096\ndefaults\n  mode tcp\n  option splice-auto\n  timeout connect 5s\n  \
         timeout client 1h\n  \
         timeout server 1h\nlisten echo\n  bind *:{echo}\n  server pod {server}:{ECHO_PORT}\n\
         listen sink\n  bind *:{sink}\n  \
         server pod {server}:{SINK_PORT}\n"
    );
    let file = topology.cluster.directory().join("haproxy.cfg");
    std::fs::write(&file, &config)?;
    let file = file.to_string_lossy().into_owned();
    let binary = FilePath::new("/usr/sbin/haproxy");
    let mut peer = start(topology, "HAProxy", binary, &["-db", "-f", &file], HAPROXY_PORTS, config)?;
    peer.path.without = &[Shape::Datagrams, Shape::Cold];
    Ok(peer)
}

/// Starts nginx with its stream module and one worker a core.
pub(crate) fn nginx(topology: &Topology) -> Result<Peer<'_>> {
    let (echo, sink) = NGINX_PORTS;
    let server = &topology.server.ip;
    let directory = topology.cluster.directory().to_string_lossy().into_owned();
    let config = format!(
        "load_module /usr/lib/nginx/modules/ngx_stream_module.so;\ndaemon off;\nworker_processes auto;\n\
         user root;\n\
         pid {directory}/nginx.pid;\nerror_log {directory}/nginx-error.log;\n\
         events {{ worker_connections 4096; }}\nstream {{\n  proxy_half_close on;\n  \
         server {{ listen {echo} reuseport; proxy_pass {server}:{ECHO_PORT}; }}\n  \
         server {{ listen {echo} udp reuseport; proxy_pass {server}:{ECHO_PORT}; proxy_timeout 60s; }}\n  \
         server {{ listen {sink} reuseport; proxy_pass {server}:{SINK_PORT}; }}\n}}\n"
    );
    let file = topology.cluster.directory().join("nginx.conf");
    std::fs::write(&file, &config)?;
    let file = file.to_string_lossy().into_owned();
    // The path of the temporary directory does not matter to a reader.
    let config = config.replace(&directory, "DIR");
    let mut peer =
        start(topology, "nginx", FilePath::new("/usr/sbin/nginx"), &["-c", &file], NGINX_PORTS, config)?;
    peer.path.without = &[Shape::Cold];
    Ok(peer)
}

/// Loads rules like kube-proxy's nftables mode: a verdict map to a chain for each Service, which selects an
/// endpoint by `numgen`.
pub(crate) fn nftables(topology: &Topology) -> Result<Configuration> {
    let server = &topology.server.ip;
    let chain = |protocol: &str, port: u16| {
        format!(
            "meta l4proto {protocol} numgen random mod 1 vmap {{ 0 : goto endpoint-{protocol}-{port} }}; }}\n\
             chain endpoint-{protocol}-{port} {{ meta l4proto {protocol} dnat to {server}:{port};"
        )
    };
    let rules = format!(
        "table ip bench-kube-proxy {{\n\
         chain endpoint-tcp {{ {} }}\nchain endpoint-udp {{ {} }}\nchain endpoint-sink {{ {} }}\n\
         map service-ips {{ type ipv4_addr . inet_proto . inet_service : verdict; elements = {{\n\
         {NFTABLES_ADDRESS} . tcp . {ECHO} : goto endpoint-tcp, {NFTABLES_ADDRESS} . udp . {ECHO} : goto \
         endpoint-udp,\n\
         {NFTABLES_ADDRESS} . tcp . {SINK} : goto endpoint-sink }} }}\n\
         chain services {{ ip daddr . meta l4proto . th dport vmap @service-ips; }}\n\
         chain nat-prerouting {{ type nat hook prerouting priority dstnat; jump services; }}\n}}\n",
        chain("tcp", ECHO_PORT),
        chain("udp", ECHO_PORT),
        chain("tcp", SINK_PORT),
    );
    let file = topology.cluster.directory().join("kube-proxy.nft");
    std::fs::write(&file, &rules)?;
    topology.cluster.node.shell(&format!("nft -f {}", file.display()))?;
    topology.wait(NFTABLES_ADDRESS, ECHO)?;
    let version = version(FilePath::new("/usr/sbin/nft"));
    Ok(Configuration { name: "nftables, as kube-proxy".to_owned(), version, text: rules })
}

fn start<'a>(
    topology: &'a Topology,
    name: &'static str,
    binary: &FilePath,
    arguments: &[&str],
    ports: (u16, u16),
    text: String,
) -> Result<Peer<'a>> {
    let address = topology.cluster.node.address();
    let log = topology.cluster.directory().join(format!("{name}.log"));
    let program = Program::start(&topology.cluster.node, binary, arguments, &log)?;
    let path = topology.path(name, address, ports, "server", Some(Process(program.id())))?;
    // Errors such as `Address already in use` are in its log.
    let output = || std::fs::read_to_string(&log).unwrap_or_default();
    topology.wait(address, ports.0).with_context(|| format!("{name}: {}", output()))?;
    // Another process may have accepted the connection.
    ensure!(Process(program.id()).is_running(), "{name} has exited: {}", output());
    let configuration = Configuration { name: name.to_owned(), version: version(binary), text };
    Ok(Peer { path, configuration, program })
}

/// Returns the first line that the program prints for `-v`.
fn version(binary: &FilePath) -> String {
    let Ok(output) = Command::new(binary).arg("-v").output() else { return "unknown".to_owned() };
    let text = [output.stdout, output.stderr].concat();
    String::from_utf8_lossy(&text).lines().next().unwrap_or("unknown").to_owned()
}
