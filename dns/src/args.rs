//! The command line.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgGroup, Parser};
use discovery::{Interest, ServiceInterest};

use crate::acl::Limits;
use crate::forward;
use crate::names;
use crate::responder::MAX_NSID;
use crate::run::{Config, Domain};
use crate::tls;

/// Answers queries for Service names, and forwards the rest.
///
/// Reads the same YAML, or watches the same API server, as portolan-proxy, and the same attachment records.
/// Changes take effect with the next query.
#[derive(Clone, Debug, Parser)]
#[command(
    name = "portolan-dns",
    version,
    group(ArgGroup::new("encrypted").args(["tls_listen", "https_listen", "quic_listen"]).multiple(true)),
    after_help = "Example:\n  portolan-dns --manifests ./services --listen 127.0.0.1:5353\n  \
                  dig @127.0.0.1 -p 5353 web.default.svc.cluster.local\n\n\
                  The default address, 10.96.0.10, is local to the node while portolan-proxy runs.\n\
                  Every flag can be a key of the config file, without the dashes."
)]
pub struct Args {
    /// The flags for the source of Services.
    #[command(flatten)]
    pub discovery: discovery::Args,

    /// Addresses for DNS over UDP and TCP
    #[arg(long, value_name = "ADDR:PORT", value_delimiter = ',', default_value = "10.96.0.10:53")]
    pub listen: Vec<SocketAddr>,

    /// Addresses for DNS over TLS (RFC 7858), usually port 853 of the same addresses
    #[arg(long, value_name = "ADDR:PORT", value_delimiter = ',', requires_all = ["tls_cert", "tls_key"])]
    pub tls_listen: Vec<SocketAddr>,

    /// Addresses for DNS over HTTPS (RFC 8484) at the path /dns-query, usually port 443
    #[arg(long, value_name = "ADDR:PORT", value_delimiter = ',', requires_all = ["tls_cert", "tls_key"])]
    pub https_listen: Vec<SocketAddr>,

    /// Addresses for DNS over QUIC (RFC 9250), usually port 853
    #[arg(long, value_name = "ADDR:PORT", value_delimiter = ',', requires_all = ["tls_cert", "tls_key"])]
    pub quic_listen: Vec<SocketAddr>,

    /// The server's certificate with its chain, in PEM; read again when it changes
    #[arg(long, value_name = "FILE", requires = "encrypted")]
    pub tls_cert: Option<PathBuf>,

    /// The certificate's private key, in PEM
    #[arg(long, value_name = "FILE", requires = "encrypted")]
    pub tls_key: Option<PathBuf>,

    /// The domain of the cluster's names
    #[arg(long, value_name = "DOMAIN", default_value = "cluster.local", value_parser = parse_domain)]
    pub cluster_domain: Domain,

    /// TTL in seconds of the cluster's records
    #[arg(long, value_name = "SECONDS", default_value_t = 5, value_parser = clap::value_parser!(u32).range(0..=3600))]
    pub ttl: u32,

    /// The server's name for clients that request it (NSID, `dig +nsid`), such as the node's name
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true, value_parser = parse_nsid)]
    pub nsid: String,

    /// Answer the first query of a pod's search list with the result of the whole list: one round trip
    /// instead of five. For pods that portolan-cni has attached to this node
    #[arg(long)]
    pub autopath: bool,

    /// The names that are served.
    #[command(flatten)]
    pub names: names::Names,

    /// Access control and rate limits.
    #[command(flatten)]
    pub limits: Limits,

    /// Log one of this many queries: 1 logs all
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..))]
    pub log_queries: Option<u32>,

    /// Unix socket of a dnstap collector, which receives all queries and replies. The collector may restart;
    /// what it does not accept is dropped and counted
    #[arg(long, value_name = "SOCKET")]
    pub dnstap: Option<PathBuf>,

    /// Seconds after SIGTERM during which queries are still answered while /health fails
    #[arg(long, value_name = "SECONDS", default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=600))]
    pub lameduck: u32,

    /// The settings of the forwarder.
    #[command(flatten)]
    pub forward: forward::Args,

    /// UDP worker threads [default: one per core]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    pub workers: Option<u16>,

    /// Address of /metrics
    #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:10262")]
    pub metrics_bind_address: SocketAddr,

    /// Address of /health
    #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:10263")]
    pub health_bind_address: SocketAddr,

    /// Address of /ready
    #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:10264")]
    pub ready_bind_address: SocketAddr,

    /// The flags of every daemon.
    #[command(flatten)]
    pub program: daemon::program::Args,
}

impl From<Args> for Config {
    fn from(args: Args) -> Self {
        let interest = Interest {
            services: ServiceInterest::All,
            nodes: false,
            namespaces: true,
            pods: args.names.pods == names::Pods::Verified,
            pod_names: args.names.endpoint_pod_names,
        };
        Self {
            discovery: args.discovery.config(interest),
            listen: args.listen,
            // clap requires all three or none.
            tls: args.tls_cert.zip(args.tls_key).map(|(certificate, key)| tls::Config {
                listen: args.tls_listen,
                https: args.https_listen,
                quic: args.quic_listen,
                certificate,
                key,
            }),
            cluster_domain: args.cluster_domain,
            ttl: args.ttl,
            nsid: args.nsid,
            names: args.names,
            limits: args.limits,
            log_queries: args.log_queries,
            dnstap: args.dnstap,
            lameduck: Duration::from_secs(args.lameduck.into()),
            autopath: args.autopath,
            workers: args.workers.map(usize::from),
            forward: args.forward.into(),
            metrics_address: args.metrics_bind_address,
            health_address: args.health_bind_address,
            ready_address: args.ready_bind_address,
        }
    }
}

fn parse_domain(text: &str) -> Result<Domain, String> {
    text.parse()
}

fn parse_nsid(text: &str) -> Result<String, String> {
    if text.len() > MAX_NSID {
        return Err(format!("longer than {MAX_NSID} bytes"));
    }
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn every_flag_is_in_the_documentation() {
        let page = include_str!("../../docs/dns.md");
        for flag in Args::command().get_arguments().filter_map(clap::Arg::get_long) {
            assert!(page.contains(&format!("`--{flag}")), "--{flag} is not in docs/dns.md");
        }
    }
}
