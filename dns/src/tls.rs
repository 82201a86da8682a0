//! The certificate for clients over TLS, HTTPS and QUIC, read again when its files change.
//!
//! A handshake uses the current certificate. An invalid one is never applied: the old certificate stays, and
//! the log and a metric report the error.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arc_swap::ArcSwap;
use prometheus::IntCounter;
use tokio::time::{MissedTickBehavior, interval};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::{ClientHello, ResolvesServerCert};
use tokio_rustls::rustls::sign::CertifiedKey;
use tokio_rustls::rustls::{self, ServerConfig};

use crate::watched_file::{CHECK_INTERVAL, Watched};

/// The ALPN protocol of DNS over TLS (RFC 7858, IANA).
pub(crate) const PROTOCOL: &[u8] = b"dot";

/// The addresses for TLS, HTTPS and QUIC, and the certificate.
#[derive(Clone, Debug)]
pub struct Config {
    /// Addresses and ports for DNS over TLS.
    pub listen: Vec<SocketAddr>,
    /// Addresses and ports for DNS over HTTPS.
    pub https: Vec<SocketAddr>,
    /// Addresses and ports for DNS over QUIC.
    pub quic: Vec<SocketAddr>,
    /// PEM: the server's certificate, then its chain.
    pub certificate: PathBuf,
    /// PEM: the private key.
    pub key: PathBuf,
}

/// Why a certificate is invalid.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("certificate file {0}: {1}")]
    Certificate(PathBuf, String),
    #[error("key file {0}: {1}")]
    Key(PathBuf, String),
    #[error("certificate {certificate} and key {key}: {source}; do they belong together?")]
    Pair { certificate: PathBuf, key: PathBuf, source: rustls::Error },
}

/// The current certificate.
#[derive(Debug)]
pub(crate) struct Certificate {
    config: Config,
    watched: [Watched; 2],
    current: Arc<Current>,
}

/// The key for the next handshake.
#[derive(Debug)]
pub(crate) struct Current(ArcSwap<CertifiedKey>);

impl Current {
    /// Accepts TLS with the current certificate, for clients of this protocol.
    pub(crate) fn acceptor(self: &Arc<Self>, protocol: &[u8]) -> TlsAcceptor {
        TlsAcceptor::from(Arc::new(self.server(protocol)))
    }

    /// The TLS settings without a stream.
    pub(crate) fn server(self: &Arc<Self>, protocol: &[u8]) -> ServerConfig {
        let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("ring offers what the default versions need")
            .with_no_client_auth()
            .with_cert_resolver(Arc::clone(self) as Arc<dyn ResolvesServerCert>);
        config.alpn_protocols = vec![protocol.to_vec()];
        config
    }
}

impl ResolvesServerCert for Current {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.load_full())
    }
}

impl Certificate {
    /// Reads the certificate for the first time.
    pub(crate) fn open(config: Config) -> Result<Self, Error> {
        let watched = [Watched::new(&config.certificate), Watched::new(&config.key)];
        let current = Arc::new(Current(ArcSwap::from_pointee(read(&config)?)));
        Ok(Self { config, watched, current })
    }

    /// The certificate for handshakes.
    pub(crate) fn current(&self) -> Arc<Current> {
        Arc::clone(&self.current)
    }

    /// Watches the files for ever.
    pub(crate) async fn watch(&mut self, failures: &IntCounter) {
        let mut ticks = interval(CHECK_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            // Check both each time: one of them may change first.
            let due = self.watched.each_mut().map(Watched::is_due);
            if !due.contains(&true) {
                continue;
            }
            let read = read(&self.config);
            let is_news = self.watched[0].record(read.as_ref().err().map(ToString::to_string));
            match read {
                Ok(new) => {
                    self.current.0.store(Arc::new(new));
                    tracing::info!(file = %self.config.certificate.display(), "the certificate has changed");
                }
                Err(error) if is_news => {
                    failures.inc();
                    tracing::error!(%error, "the certificate has changed and cannot be used; the last one stays");
                }
                Err(_) => {}
            }
        }
    }
}

fn read(config: &Config) -> Result<CertifiedKey, Error> {
    let certificates = read_certificates(&config.certificate)
        .map_err(|reason| Error::Certificate(config.certificate.clone(), reason))?;
    let key = PrivateKeyDer::from_pem_file(&config.key)
        .map_err(|error| Error::Key(config.key.clone(), error.to_string()))?;
    CertifiedKey::from_der(certificates, key, &ring::default_provider()).map_err(|source| Error::Pair {
        certificate: config.certificate.clone(),
        key: config.key.clone(),
        source,
    })
}

fn read_certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let read = CertificateDer::pem_file_iter(file).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    match read {
        Ok(none) if none.is_empty() => {
            Err("has no certificate; it must be PEM with a CERTIFICATE section".into())
        }
        Ok(certificates) => Ok(certificates),
        Err(error) => Err(error.to_string()),
    }
}
