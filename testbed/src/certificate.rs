//! Creates server certificates with `openssl`.

use std::path::Path;

use anyhow::Result;

use crate::node::shell;

/// Writes a self-signed certificate and key of a server. Clients trust it with the certificate itself as CA.
///
/// # Errors
/// When `openssl` fails.
pub fn certify(name: &str, certificate: &Path, key: &Path) -> Result<()> {
    let script = format!(
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN={name} \
         -addext subjectAltName=DNS:{name} -addext basicConstraints=critical,CA:FALSE -keyout {} -out {}",
        key.display(),
        certificate.display()
    );
    shell(&script).map(|_output| ())
}
