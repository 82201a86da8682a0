//! The flags of the forwarder.

use std::path::PathBuf;

use clap::builder::RangedI64ValueParser;
use clap::value_parser;

use super::address::{Stub, Upstream};
use super::group::Policy;
use super::ttl::Limit;

/// How names outside the cluster are answered.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Forwarding")]
#[group(skip)]
pub struct Args {
    /// Servers for all other names [default: those of --resolv-conf]. ADDR for plain DNS, tcp://ADDR, or
    /// tls://ADDR#NAME, whose certificate must be for NAME; ADDR may be ADDR:PORT
    #[arg(long, value_name = "SERVER", value_delimiter = ',')]
    pub upstream: Vec<Upstream>,

    /// Servers for the names of one domain; can be repeated. Example: example.internal=10.0.0.53,10.0.1.53
    #[arg(long, value_name = "DOMAIN=SERVER,...")]
    pub stub: Vec<Stub>,

    /// File with the upstream servers, if --upstream names none. Read again when it changes
    #[arg(long, value_name = "FILE", default_value = "/etc/resolv.conf")]
    pub resolv_conf: PathBuf,

    /// Trusted certificates for tls:// servers, as PEM [default: those of the machine]
    #[arg(long, value_name = "FILE")]
    pub upstream_ca: Option<PathBuf>,

    /// Allow upstream servers on loopback addresses. Only if they certainly do not forward to this server
    #[arg(long)]
    pub allow_loopback_upstreams: bool,

    /// A hosts file whose names are answered from it. Read again when it changes
    #[arg(long, value_name = "FILE")]
    pub hosts: Option<PathBuf>,

    /// Size of the cache in MiB; 0 disables it
    #[arg(long, value_name = "MIB", default_value_t = 32, value_parser = value_parser!(u32).range(0..=4096))]
    pub cache_size: u32,

    /// Bounds for cached TTLs; can be repeated. WHAT is success, denial or a record type such as AAAA or
    /// TYPE65. The defaults are success=0-3600 and denial=0-1800
    #[arg(long, value_name = "WHAT=[MIN-]MAX")]
    pub cache_ttl: Vec<Limit>,

    /// Seconds for which an expired answer may still be served while no upstream server answers (RFC 8767)
    #[arg(long, value_name = "SECONDS", default_value_t = 86_400)]
    pub serve_stale: u32,

    /// Which of several servers is queried first
    #[arg(long, value_name = "POLICY", value_enum, default_value_t)]
    pub upstream_policy: Policy,

    /// Maximum number of queries that wait for the servers of one domain; further ones are refused
    #[arg(long, value_name = "NUMBER", default_value_t = 1000, value_parser = waiting())]
    pub max_concurrent: u32,

    /// Maximum number of queries of one client that wait for upstream servers; further ones are refused
    #[arg(long, value_name = "NUMBER", default_value_t = 250, value_parser = waiting())]
    pub max_concurrent_per_client: u32,

    /// Randomize the case of names in upstream queries, which makes forged replies harder (0x20)
    #[arg(long)]
    pub random_case: bool,
}

fn waiting() -> RangedI64ValueParser<u32> {
    value_parser!(u32).range(1..=5000)
}

impl From<Args> for super::Config {
    fn from(args: Args) -> Self {
        Self {
            upstreams: args.upstream,
            stubs: args.stub,
            resolv_conf: args.resolv_conf,
            ca: args.upstream_ca,
            allow_loopback: args.allow_loopback_upstreams,
            hosts: args.hosts,
            cache_bytes: usize::try_from(args.cache_size).unwrap_or_default() << 20,
            limits: args.cache_ttl.into_iter().collect(),
            serve_stale: args.serve_stale,
            max_concurrent: usize::try_from(args.max_concurrent).unwrap_or(usize::MAX),
            max_concurrent_per_client: usize::try_from(args.max_concurrent_per_client).unwrap_or(usize::MAX),
            policy: args.upstream_policy,
            random_case: args.random_case,
            hosts_ttl: 5,
        }
    }
}
