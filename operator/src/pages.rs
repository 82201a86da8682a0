//! Where the daemons serve their pages on this node.

use std::net::SocketAddr;

/// Where the daemons serve their pages.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Pages {
    /// `--metrics-bind-address` of portolan-proxy.
    #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:10249")]
    pub(crate) proxy_metrics: SocketAddr,

    /// `--metrics-bind-address` of portolan-dns.
    #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:9153")]
    pub(crate) dns_metrics: SocketAddr,

    /// `--ready-bind-address` of portolan-dns.
    #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:8181")]
    pub(crate) dns_ready: SocketAddr,
}
