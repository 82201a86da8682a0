//! The connection to the API server.

use std::path::PathBuf;
use std::time::Duration;

use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use kube::client::{Body, ConfigExt as _};
use kube::config::{KubeConfigOptions, Kubeconfig};
use tower::{BoxError, ServiceBuilder};

/// Timeout for a connection attempt to one address.
const CONNECT: Duration = Duration::from_secs(5);

/// A broken connection is detected after [`KEEPALIVE`] and [`PROBES`] times [`PROBE`]: 14 s.
const KEEPALIVE: Duration = Duration::from_secs(5);
const PROBE: Duration = Duration::from_secs(3);
const PROBES: u32 = 3;

/// The address of the API server, and our credentials.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Access {
    /// From a kubeconfig file. Files that it refers to may change at any time.
    Kubeconfig(PathBuf),
    /// From a pod's environment and service account: `KUBERNETES_SERVICE_HOST` and `KUBERNETES_SERVICE_PORT`.
    InCluster,
}

/// Why the API server cannot be reached.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("kubeconfig {0}: {1}")]
    Kubeconfig(PathBuf, #[source] kube::config::KubeconfigError),
    #[error("the environment of a pod is missing: {0}; use --kubeconfig outside a cluster")]
    InCluster(#[source] kube::config::InClusterError),
    #[error("{0}")]
    Client(#[source] kube::Error),
}

impl Access {
    /// Creates a client from the current content of the files. Certificates and tokens are read again for
    /// each client, so that a client created after a failure has the current ones.
    pub(crate) async fn client(&self) -> Result<kube::Client, Error> {
        let config = self.config().await?;
        let mut http = HttpConnector::new();
        http.enforce_http(false);
        http.set_nodelay(true);
        http.set_connect_timeout(Some(CONNECT));
        http.set_keepalive(Some(KEEPALIVE));
        http.set_keepalive_interval(Some(PROBE));
        http.set_keepalive_retries(Some(PROBES));
        http.set_tcp_user_timeout(Some(KEEPALIVE + PROBE * PROBES));
        let https = config.rustls_https_connector_with_connector(http).map_err(Error::Client)?;
        let hyper: hyper_util::client::legacy::Client<_, Body> =
            hyper_util::client::legacy::Client::builder(TokioExecutor::new()).build(https);
        let service = ServiceBuilder::new()
            .layer(config.base_uri_layer())
            .layer(config.extra_headers_layer().map_err(Error::Client)?)
            .option_layer(config.auth_layer().map_err(Error::Client)?)
            .map_err(BoxError::from)
            .service(hyper);
        Ok(kube::Client::new(service, config.default_namespace))
    }

    /// The configuration from the files.
    pub(crate) async fn config(&self) -> Result<kube::Config, Error> {
        match self {
            Self::Kubeconfig(path) => {
                let wrong = |error| Error::Kubeconfig(path.clone(), error);
                let kubeconfig = Kubeconfig::read_from(path).map_err(wrong)?;
                let options = KubeConfigOptions::default();
                kube::Config::from_custom_kubeconfig(kubeconfig, &options).await.map_err(wrong)
            }
            Self::InCluster => kube::Config::incluster().map_err(Error::InCluster),
        }
    }
}
