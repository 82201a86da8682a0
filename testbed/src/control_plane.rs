//! A real Kubernetes control plane on a node: etcd, kube-apiserver, controllers, scheduler and kubectl.
//!
//! All of them are one program, which `make setup` builds (`testbed/control-plane`). Their state is in the
//! node's private `/run` and is removed with the node. The API server starts in three seconds, so each test
//! may have its own.

mod authority;
mod controllers;

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use tempfile::TempDir;

use authority::Authority;

use crate::{Node, Program, go_tool};

/// Port of the API server, on every address of its node.
const PORT: u16 = 6443;

/// Deadline for the start of the API server. It takes a few seconds, and longer on a busy machine.
const START: Duration = Duration::from_secs(60);

/// The administrator.
const ADMIN: &str = "admin";

/// A control plane.
#[derive(Debug)]
pub struct ControlPlane {
    node: Node,
    binary: PathBuf,
    directory: TempDir,
    authority: Authority,
    etcd: Option<Program>,
    server: Option<Program>,
    controllers: Option<Program>,
    scheduler: Option<Program>,
    flags: Vec<String>,
}

impl ControlPlane {
    /// Starts etcd and the API server on a node and waits until it is ready.
    ///
    /// # Errors
    /// When the program is not built, or does not become ready.
    pub fn start(node: &Node) -> Result<Self> {
        Self::start_with(node, &[])
    }

    /// As [`ControlPlane::start`], with more flags for the API server.
    ///
    /// # Errors
    /// As [`ControlPlane::start`].
    pub fn start_with(node: &Node, flags: &[&str]) -> Result<Self> {
        let directory = TempDir::new()?;
        let authority = Authority::new(&directory.path().join("authority"), node.address())?;
        let mut control_plane = Self {
            node: node.clone(),
            binary: go_tool("control-plane")?,
            authority,
            etcd: None,
            server: None,
            controllers: None,
            scheduler: None,
            flags: flags.iter().map(|flag| (*flag).to_owned()).collect(),
            directory,
        };
        control_plane.start_etcd()?;
        control_plane.start_server()?;
        Ok(control_plane)
    }

    /// Starts etcd with the data of its previous run, if any.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start_etcd(&mut self) -> Result<()> {
        let flags = [
            "etcd",
            "--data-dir=/run/etcd",
            "--unsafe-no-fsync",
            "--listen-client-urls=http://127.0.0.1:2379",
            "--advertise-client-urls=http://127.0.0.1:2379",
            "--listen-peer-urls=http://127.0.0.1:2380",
            "--initial-advertise-peer-urls=http://127.0.0.1:2380",
            "--initial-cluster=default=http://127.0.0.1:2380",
        ];
        self.etcd = Some(self.run(&flags, "etcd.log")?);
        Ok(())
    }

    /// Starts the API server and waits until it is ready.
    ///
    /// # Errors
    /// When it is not ready within a minute.
    pub fn start_server(&mut self) -> Result<()> {
        let file = |name: &str| self.authority.path(name).display().to_string();
        let flags = [
            "kube-apiserver".to_owned(),
            "--etcd-servers=http://127.0.0.1:2379".to_owned(),
            "--service-cluster-ip-range=10.96.0.0/12".to_owned(),
            format!("--secure-port={PORT}"),
            format!("--advertise-address={}", self.node.address()),
            format!("--client-ca-file={}", file("ca.crt")),
            format!("--tls-cert-file={}", file("server.crt")),
            format!("--tls-private-key-file={}", file("server.key")),
            format!("--service-account-key-file={}", file("accounts.key")),
            format!("--service-account-signing-key-file={}", file("accounts.key")),
            "--service-account-issuer=https://kubernetes.default.svc".to_owned(),
            "--authorization-mode=RBAC".to_owned(),
        ];
        let flags: Vec<&str> = flags.iter().chain(&self.flags).map(String::as_str).collect();
        self.server = Some(self.run(&flags, "kube-apiserver.log")?);
        self.wait_until_ready()
    }

    /// Kills the API server.
    pub fn stop_server(&mut self) {
        self.server = None;
    }

    /// Kills etcd.
    pub fn stop_etcd(&mut self) {
        self.etcd = None;
    }

    /// The API server.
    ///
    /// # Errors
    /// When it does not run.
    pub fn server(&self) -> Result<&Program> {
        self.server.as_ref().context("the API server does not run")
    }

    /// Renews all certificates with a new authority, and restarts the API server with them.
    ///
    /// # Errors
    /// As [`ControlPlane::start_server`].
    pub fn rotate_certificates(&mut self) -> Result<()> {
        self.stop_server();
        self.authority.renew()?;
        self.start_server()
    }

    /// Returns a kubeconfig for a user: an administrator if named `admin`, otherwise a service account of
    /// `kube-system`. It refers to the certificate files, which are replaced when certificates are rotated.
    ///
    /// # Errors
    /// When the certificate cannot be created.
    pub fn kubeconfig(&self, user: &str) -> Result<PathBuf> {
        self.authority.certify(user)?;
        let path = self.authority.path(&format!("{user}.kubeconfig"));
        let file = |name: &str| self.authority.path(name).display().to_string();
        let text = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: it\n\
             contexts: [{{name: it, context: {{cluster: it, user: it}}}}]\n\
             clusters: [{{name: it, cluster: {{server: \"https://{}:{PORT}\", certificate-authority: \
             {}}}}}]\n\
             users: [{{name: it, user: {{client-certificate: {}, client-key: {}}}}}]\n",
            self.node.address(),
            file("ca.crt"),
            file(&format!("{user}.crt")),
            file(&format!("{user}.key")),
        );
        std::fs::write(&path, text)?;
        Ok(path)
    }

    /// Runs `kubectl` as an administrator and returns what it prints.
    ///
    /// # Errors
    /// When it fails; the error has its standard error.
    pub fn kubectl(&self, arguments: &[&str], input: &str) -> Result<String> {
        self.kubectl_as(ADMIN, arguments, input)
    }

    /// Runs `kubectl` as a user.
    ///
    /// # Errors
    /// When it fails; the error has its standard error.
    pub fn kubectl_as(&self, user: &str, arguments: &[&str], input: &str) -> Result<String> {
        let kubeconfig = self.kubeconfig(user)?;
        let output = self.node.run(|| -> Result<_> {
            let mut child = Command::new(&self.binary)
                .args(["kubectl", "--cache-dir=/run/kubectl", "--kubeconfig"])
                .arg(kubeconfig)
                .args(arguments)
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()?;
            let mut stdin = child.stdin.take().context("kubectl has no input")?;
            stdin.write_all(input.as_bytes())?;
            drop(stdin);
            Ok(child.wait_with_output()?)
        })?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        ensure!(output.status.success(), "kubectl {}: {}", arguments.join(" "), text(&output.stderr));
        Ok(text(&output.stdout))
    }

    /// `kubectl apply` of manifests.
    ///
    /// # Errors
    /// When the API server rejects them.
    pub fn apply(&self, manifests: &str) -> Result<()> {
        self.kubectl(&["apply", "--server-side", "--force-conflicts", "-f", "-"], manifests).map(|_output| ())
    }

    /// Compacts etcd to the current revision.
    ///
    /// # Errors
    /// When etcd does not answer.
    pub fn compact(&self) -> Result<()> {
        let post = |path: &str, body: &str| {
            self.node.shell(&format!("curl -fsS -m 5 -d '{body}' http://127.0.0.1:2379/v3/{path}"))
        };
        // A new revision makes an API server that starts later newer than every client's version: all must
        // relist.
        let put = post("kv/put", r#"{"key": "cG9ydG9sYW4="}"#)?;
        let put: serde_json::Value = serde_json::from_str(&put)?;
        let revision = put["header"]["revision"].as_str().context("etcd has no revision")?;
        post("kv/compaction", &format!("{{\"revision\": {revision}}}")).map(|_output| ())
    }

    /// Copies the data of etcd, which must not run.
    ///
    /// # Errors
    /// When there are no data.
    pub fn back_up(&self) -> Result<()> {
        self.node.shell("rm -rf /run/etcd-backup; cp -r /run/etcd /run/etcd-backup").map(|_output| ())
    }

    /// Restores the copy of the data of etcd, which must not run.
    ///
    /// # Errors
    /// When there is no copy.
    pub fn restore(&self) -> Result<()> {
        self.node.shell("rm -rf /run/etcd; mv /run/etcd-backup /run/etcd").map(|_output| ())
    }

    /// Returns the last lines of all logs.
    pub fn logs(&self) -> String {
        let tail = |name: &str| {
            let text = std::fs::read_to_string(self.directory.path().join(name)).unwrap_or_default();
            let lines: Vec<&str> = text.lines().rev().take(15).collect();
            format!("{name}:\n{}\n", lines.into_iter().rev().collect::<Vec<_>>().join("\n"))
        };
        ["etcd.log", "kube-apiserver.log", "kube-controller-manager.log", "kube-scheduler.log"]
            .map(tail)
            .concat()
    }

    fn wait_until_ready(&mut self) -> Result<()> {
        let deadline = Instant::now() + START;
        loop {
            let Err(error) = self.kubectl(&["get", "--raw", "/readyz"], "") else { return Ok(()) };
            if Instant::now() > deadline {
                bail!("the API server does not become ready: {error:#}\n{}", self.logs());
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    fn run(&self, arguments: &[&str], log: &str) -> Result<Program> {
        Program::start(&self.node, &self.binary, arguments, &self.directory.path().join(log))
    }

    /// Returns the node of the control plane.
    pub fn node(&self) -> &Node {
        &self.node
    }

    /// Returns the directory for files of this control plane.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }
}
