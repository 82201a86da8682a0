//! The certificate authority, using `openssl`.

use std::path::{Path, PathBuf};

use anyhow::Result;

use super::ADMIN;
use crate::node::shell;

/// A certificate authority with all its certificates in one directory.
#[derive(Debug)]
pub(super) struct Authority {
    directory: PathBuf,
    address: String,
}

impl Authority {
    /// Creates an authority with a certificate for an API server at `address` and a key for service account
    /// tokens.
    pub(super) fn new(directory: &Path, address: &str) -> Result<Self> {
        std::fs::create_dir(directory)?;
        let authority = Self { directory: directory.to_owned(), address: address.to_owned() };
        authority.run("openssl genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:2048 -out accounts.key")?;
        authority.renew()?;
        Ok(authority)
    }

    /// Replaces the authority and renews all certificates.
    pub(super) fn renew(&self) -> Result<()> {
        self.run(
            "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 60 -subj \
             /CN=authority -keyout ca.key -out ca.crt",
        )?;
        let names = format!("IP:{},IP:127.0.0.1,IP:10.96.0.1,DNS:kubernetes.default.svc", self.address);
        self.make("server", "/CN=kube-apiserver", &format!("subjectAltName={names}"))?;
        for known in std::fs::read_dir(&self.directory)? {
            let name = known?.file_name().to_string_lossy().into_owned();
            if let Some(user) = name.strip_suffix(".kubeconfig") {
                self.make_user(user)?;
            }
        }
        Ok(())
    }

    /// Creates a certificate for a user, unless there is one.
    pub(super) fn certify(&self, user: &str) -> Result<()> {
        if self.path(&format!("{user}.crt")).exists() { Ok(()) } else { self.make_user(user) }
    }

    /// Returns the path of a file of the authority.
    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    fn make_user(&self, user: &str) -> Result<()> {
        let subject = if user == ADMIN {
            "/O=system:masters/CN=admin".to_owned()
        } else {
            format!("/CN=system:serviceaccount:kube-system:{user}")
        };
        self.make(user, &subject, "extendedKeyUsage=clientAuth")
    }

    fn make(&self, name: &str, subject: &str, extension: &str) -> Result<()> {
        self.run(&format!(
            "openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj {subject} -keyout {name}.key -out {name}.csr
             echo {extension} > {name}.ext
             openssl x509 -req -in {name}.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 60 -extfile {name}.ext -out {name}.new
             mv {name}.new {name}.crt"
        ))
    }

    /// Runs a script with certificates valid from a month ago, for nodes with wrong clocks.
    fn run(&self, script: &str) -> Result<()> {
        let script = script.replace("openssl ", "faketime -f -30d openssl ");
        shell(&format!(
            "cd {}; {{ {script}\n}} 2>openssl.log || {{ cat openssl.log >&2; false; }}",
            self.directory.display()
        ))
        .map(|_output| ())
    }
}
