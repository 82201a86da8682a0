//! The certificate for clients over TLS, HTTPS and QUIC, read anew when its files change.
//!
//! A handshake takes whatever is in force. What cannot be used never gets there: the old certificate goes on, and the log and a
//! metric say what is wrong with the new one.

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

use crate::file::{LOOK, Watched};

/// What clients that negotiate call DNS over TLS (RFC 7858, IANA).
pub(crate) const PROTOCOL: &[u8] = b"dot";

/// Where to answer over TLS, HTTPS and QUIC, and with which certificate.
#[derive(Clone, Debug)]
pub struct Config {
    /// Addresses and ports for DNS over TLS.
    pub listen: Vec<SocketAddr>,
    /// Addresses and ports for DNS over HTTPS.
    pub https: Vec<SocketAddr>,
    /// Addresses and ports for DNS over QUIC.
    pub quic: Vec<SocketAddr>,
    /// PEM: the server's certificate first, then those that lead to an authority.
    pub certificate: PathBuf,
    /// PEM: its private key.
    pub key: PathBuf,
}

/// Why a certificate cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("certificate file {0}: {1}")]
    Certificate(PathBuf, String),
    #[error("key file {0}: {1}")]
    Key(PathBuf, String),
    #[error("certificate {certificate} and key {key}: {source}; do they belong together?")]
    Pair { certificate: PathBuf, key: PathBuf, source: rustls::Error },
}

/// The certificate in force.
#[derive(Debug)]
pub(crate) struct Certificate {
    config: Config,
    watched: [Watched; 2],
    current: Arc<Current>,
}

/// The key that the next handshake uses.
#[derive(Debug)]
pub(crate) struct Current(ArcSwap<CertifiedKey>);

impl Current {
    /// Speaks TLS with the current certificate, to clients of this protocol.
    pub(crate) fn acceptor(self: &Arc<Self>, protocol: &[u8]) -> TlsAcceptor {
        TlsAcceptor::from(Arc::new(self.server(protocol)))
    }

    /// The same, without a stream.
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
    /// Reads it for the first time.
    pub(crate) fn open(config: Config) -> Result<Self, Error> {
        let watched = [Watched::new(&config.certificate), Watched::new(&config.key)];
        let current = Arc::new(Current(ArcSwap::from_pointee(read(&config)?)));
        Ok(Self { config, watched, current })
    }

    /// What handshakes take.
    pub(crate) fn current(&self) -> Arc<Current> {
        Arc::clone(&self.current)
    }

    /// Follows the files for ever.
    pub(crate) async fn follow(&mut self, failures: &IntCounter) {
        let mut ticks = interval(LOOK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            // Both are looked at each time: one of them may change first.
            let due = self.watched.each_mut().map(Watched::is_due);
            if !due.contains(&true) {
                continue;
            }
            let read = read(&self.config);
            let is_news = self.watched[0].note(read.as_ref().err().map(ToString::to_string));
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
