//! The trusted certificates of upstream servers over TLS.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, InvalidDnsNameError, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

/// The TLS settings of a server.
#[derive(Clone)]
pub(super) struct Tls {
    pub(super) config: ClientConfig,
    pub(super) name: ServerName<'static>,
}

/// Why TLS cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("--upstream-ca {0}: cannot be read as PEM: {1}")]
    Read(PathBuf, String),
    #[error("--upstream-ca {0}: has no certificate; it must be PEM with a CERTIFICATE section")]
    Empty(PathBuf),
    #[error("no trusted certificates are on this machine; name a file with --upstream-ca")]
    NoRoots,
    #[error("--upstream tls://...#{0}: is neither a host name nor an address")]
    Name(String, #[source] InvalidDnsNameError),
}

/// A configuration that trusts the certificates of a file, or those of the machine.
pub(super) fn config(ca: Option<&Path>) -> Result<ClientConfig, Error> {
    let mut roots = RootCertStore::empty();
    match ca {
        Some(file) => {
            let unreadable = |error| Error::Read(file.to_owned(), format!("{error:?}"));
            let certificates = CertificateDer::pem_file_iter(file).map_err(unreadable)?;
            for certificate in certificates {
                let added = roots.add(certificate.map_err(unreadable)?);
                added.map_err(|error| Error::Read(file.to_owned(), error.to_string()))?;
            }
            if roots.is_empty() {
                return Err(Error::Empty(file.to_owned()));
            }
        }
        None => {
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            if roots.is_empty() {
                return Err(Error::NoRoots);
            }
        }
    }
    Ok(ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("ring offers what the default versions need")
        .with_root_certificates(roots)
        .with_no_client_auth())
}

/// The settings for a server whose certificate must be for `name`.
pub(super) fn to(config: ClientConfig, name: &str) -> Result<Tls, Error> {
    let name = ServerName::try_from(name.to_owned()).map_err(|error| Error::Name(name.to_owned(), error))?;
    Ok(Tls { config, name })
}
