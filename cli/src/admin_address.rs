//! Addresses of the daemons' metrics and health servers on this node.
//!
//! They come from a flag, or from the command line of the running daemon and its config file. If that file
//! was changed since the daemon started, the addresses are those after its next restart; use the flags until
//! then.

use std::net::{Ipv4Addr, SocketAddr};

use crate::process;

/// Flags for the addresses.
#[derive(Clone, Debug, clap::Args)]
#[group(skip)]
pub(crate) struct Args {
    /// `--metrics-bind-address` of portolan-proxy [default: that of the running daemon, else
    /// 127.0.0.1:10249].
    #[arg(long, value_name = "ADDR:PORT")]
    proxy_metrics: Option<SocketAddr>,

    /// `--metrics-bind-address` of portolan-dns [default: that of the running daemon, else 127.0.0.1:10262].
    #[arg(long, value_name = "ADDR:PORT")]
    dns_metrics: Option<SocketAddr>,

    /// `--ready-bind-address` of portolan-dns [default: that of the running daemon, else 127.0.0.1:10264].
    #[arg(long, value_name = "ADDR:PORT")]
    dns_ready: Option<SocketAddr>,
}

/// The addresses.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AdminAddresses {
    pub(crate) proxy_metrics: SocketAddr,
    pub(crate) dns_metrics: SocketAddr,
    pub(crate) dns_ready: SocketAddr,
}

impl Args {
    /// Finds the addresses.
    pub(crate) fn find(&self) -> AdminAddresses {
        let (proxy, dns) = ("portolan-proxy", "portolan-dns");
        let or_configured =
            |given: Option<_>, program, flag, port| given.unwrap_or_else(|| configured(program, flag, port));
        AdminAddresses {
            proxy_metrics: or_configured(self.proxy_metrics, proxy, "metrics-bind-address", 10249),
            dns_metrics: or_configured(self.dns_metrics, dns, "metrics-bind-address", 10262),
            dns_ready: or_configured(self.dns_ready, dns, "ready-bind-address", 10264),
        }
    }
}

/// Returns the configured address of a program; by default that port of 127.0.0.1.
pub(crate) fn configured(program: &str, flag: &str, port: u16) -> SocketAddr {
    let address = process::flag(program, flag).and_then(|text| text.parse().ok());
    address.unwrap_or_else(|| (Ipv4Addr::LOCALHOST, port).into())
}
