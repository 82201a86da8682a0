//! A running portolan-dns with manifests of its own.

use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// Stopped when dropped.
pub(crate) struct Server {
    child: Child,
    pub(crate) address: SocketAddr,
    manifests: tempfile::TempDir,
}

impl Server {
    pub(crate) fn start(files: &[(&str, &str)], arguments: &[&str]) -> Self {
        let manifests = tempfile::tempdir().unwrap();
        let address: SocketAddr = ([127, 0, 0, 1], testbed::free_port().unwrap()).into();
        for (name, text) in files {
            apply(manifests.path(), name, text);
        }
        let server = Self { child: spawn(manifests.path(), address, arguments), address, manifests };
        let domain =
            arguments.iter().find_map(|a| a.strip_prefix("--cluster-domain=")).unwrap_or("cluster.local");
        testbed::wait_for("the server to be ready", || {
            let status = server.status(&format!("dns-version.{domain} TXT"));
            anyhow::ensure!(status == "NOERROR", "{status:?}");
            Ok(())
        })
        .unwrap();
        server
    }

    /// Puts a manifest in place in one step.
    pub(crate) fn apply(&self, name: &str, text: &str) {
        apply(self.manifests.path(), name, text);
    }

    /// What dig prints.
    pub(crate) fn dig(&self, arguments: &str) -> String {
        let server = format!("@{}", self.address.ip());
        let port = self.address.port().to_string();
        let mut command = Command::new("dig");
        command.args([&server, "-p", &port, "+tries=1", "+time=4"]).args(arguments.split_whitespace());
        String::from_utf8(command.output().unwrap().stdout).unwrap()
    }

    /// The code of the reply.
    pub(crate) fn status(&self, question: &str) -> String {
        let output = self.dig(question);
        let status = output.split("status: ").nth(1).and_then(|rest| rest.split(',').next());
        status.unwrap_or_default().to_owned()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn apply(directory: &Path, name: &str, text: &str) {
    let new = directory.join("new");
    std::fs::write(&new, text).unwrap();
    std::fs::rename(&new, directory.join(name)).unwrap();
}

fn spawn(manifests: &Path, address: SocketAddr, arguments: &[&str]) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_portolan-dns"));
    command
        .arg("--manifests")
        .arg(manifests)
        .args(["--attachments", "/nonexistent/attachments", "--listen", &address.to_string()])
        .args(["--metrics-bind-address=127.0.0.1:0", "--health-bind-address=127.0.0.1:0"])
        .args(["--ready-bind-address=127.0.0.1:0", "--allow-loopback-upstreams"])
        .args(arguments)
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    if !arguments.iter().any(|a| a.starts_with("--upstream")) {
        // Nobody answers there: tests must not depend on the machine's resolv.conf.
        command.arg("--upstream=127.0.0.1:1");
    }
    command.spawn().unwrap()
}
