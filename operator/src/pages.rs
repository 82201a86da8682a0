//! Where the daemons serve their pages on this node.
//!
//! A flag says so, else the daemon itself: the command line of the process that runs, and the config file that goes with it. A
//! process does not tell which file it has read, nor does the file tell whether it was changed since; so after such a change
//! the pages are looked for where they will be once the daemon is restarted, and a flag is the way out until then.

use std::net::{Ipv4Addr, SocketAddr};

use crate::process;

/// Flags that say where.
#[derive(Clone, Debug, clap::Args)]
#[group(skip)]
pub(crate) struct Args {
    /// `--metrics-bind-address` of portolan-proxy [default: as it was started, else 127.0.0.1:10249].
    #[arg(long, value_name = "ADDR:PORT")]
    proxy_metrics: Option<SocketAddr>,

    /// `--metrics-bind-address` of portolan-dns [default: as it was started, else 127.0.0.1:10262].
    #[arg(long, value_name = "ADDR:PORT")]
    dns_metrics: Option<SocketAddr>,

    /// `--ready-bind-address` of portolan-dns [default: as it was started, else 127.0.0.1:10264].
    #[arg(long, value_name = "ADDR:PORT")]
    dns_ready: Option<SocketAddr>,
}

/// Where they are.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pages {
    pub(crate) proxy_metrics: SocketAddr,
    pub(crate) dns_metrics: SocketAddr,
    pub(crate) dns_ready: SocketAddr,
}

impl Args {
    /// Looks at what runs.
    pub(crate) fn find(&self) -> Pages {
        let (proxy, dns) = ("portolan-proxy", "portolan-dns");
        let or_set =
            |given: Option<_>, program, flag, port| given.unwrap_or_else(|| set(program, flag, port));
        Pages {
            proxy_metrics: or_set(self.proxy_metrics, proxy, "metrics-bind-address", 10249),
            dns_metrics: or_set(self.dns_metrics, dns, "metrics-bind-address", 10262),
            dns_ready: or_set(self.dns_ready, dns, "ready-bind-address", 10264),
        }
    }
}

/// What an address of a program is set to, else its default: that port of 127.0.0.1.
pub(crate) fn set(program: &str, flag: &str, port: u16) -> SocketAddr {
    let set = process::flag(program, flag).and_then(|text| text.parse().ok());
    set.unwrap_or_else(|| (Ipv4Addr::LOCALHOST, port).into())
}
