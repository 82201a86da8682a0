//! The pages that the daemons serve on this node.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context as _;

/// A daemon of this node answers at once, or is in trouble.
const DEADLINE: Duration = Duration::from_secs(3);

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

/// What a page answered, whatever its status.
#[derive(Debug)]
pub(crate) struct Page {
    pub(crate) is_ok: bool,
    pub(crate) body: String,
}

/// Asks for a page.
///
/// # Errors
/// When nobody answers there.
pub(crate) fn get(address: SocketAddr, path: &str) -> anyhow::Result<Page> {
    let config = ureq::Agent::config_builder()
        .timeout_global(Some(DEADLINE))
        // The page of a node's own daemon is never behind a proxy, whatever the environment says.
        .proxy(None)
        .http_status_as_error(false)
        .build();
    let url = format!("http://{address}{path}");
    let mut response = ureq::Agent::new_with_config(config).get(&url).call().with_context(|| url.clone())?;
    let is_ok = response.status().is_success();
    Ok(Page { is_ok, body: response.body_mut().read_to_string().with_context(|| url)? })
}
