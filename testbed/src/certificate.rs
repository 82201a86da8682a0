//! A certificate of a server, made by `openssl`.

use std::path::Path;

use anyhow::Result;

use crate::node::shell;

/// Writes a certificate and key of a server by that name, trusted by whoever trusts the certificate itself.
///
/// # Errors
/// What `openssl` says.
pub fn certify(name: &str, certificate: &Path, key: &Path) -> Result<()> {
    let script = format!(
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN={name} \
         -addext subjectAltName=DNS:{name} -addext basicConstraints=critical,CA:FALSE -keyout {} -out {}",
        key.display(),
        certificate.display()
    );
    shell(&script).map(drop)
}
