//! A running portolan-dns with its own manifests.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

/// Stopped when dropped.
pub(crate) struct Server {
    child: Child,
    pub(crate) address: SocketAddr,
    metrics: SocketAddr,
    /// Contains the directory `manifests`.
    directory: tempfile::TempDir,
}

impl Server {
    pub(crate) fn start(files: &[(&str, &str)], arguments: &[&str]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let manifests = directory.path().join("manifests");
        std::fs::create_dir(&manifests).unwrap();
        for (name, text) in files {
            apply(&manifests, name, text);
        }
        Self::spawn(directory, arguments, "NOERROR")
    }

    /// Starts one whose manifests cannot be read: it answers, but is not synced.
    pub(crate) fn start_unready(arguments: &[&str]) -> Self {
        Self::spawn(tempfile::tempdir().unwrap(), arguments, "SERVFAIL")
    }

    /// Starts one that refuses the test's clients.
    pub(crate) fn start_refusing(arguments: &[&str]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir(directory.path().join("manifests")).unwrap();
        Self::spawn(directory, arguments, "REFUSED")
    }

    /// Starts one and waits until it answers with this code.
    fn spawn(directory: tempfile::TempDir, arguments: &[&str], expected: &str) -> Self {
        let free = || SocketAddr::from(([127, 0, 0, 1], testbed::free_port().unwrap()));
        let (address, metrics) = (free(), free());
        let manifests = directory.path().join("manifests");
        let log = directory.path().join("log");
        let child = spawn(&manifests, (address, metrics), &log, arguments);
        let mut server = Self { child, address, metrics, directory };
        let domain =
            arguments.iter().find_map(|a| a.strip_prefix("--cluster-domain=")).unwrap_or("cluster.local");
        let answers = testbed::wait_for("the server to answer", || {
            if !server.is_running() {
                return Ok(false);
            }
            let status = server.status(&format!("dns-version.{domain} TXT"));
            anyhow::ensure!(status == expected, "{status:?}");
            Ok(true)
        });
        assert!(matches!(answers, Ok(true)), "{answers:?}; its log:\n{}", server.log());
        server
    }

    /// The watched directory.
    pub(crate) fn manifests(&self) -> PathBuf {
        self.directory.path().join("manifests")
    }

    /// Starts another process beside it, which replaces it once it has read its files.
    pub(crate) fn spawn_beside(&self, manifests: &Path, arguments: &[&str]) -> Child {
        spawn(manifests, (self.address, self.metrics), &self.directory.path().join("log-beside"), arguments)
    }

    /// Starts another process beside it, and waits until the previous one has exited.
    pub(crate) fn succeed(&mut self, arguments: &[&str]) {
        let log = self.directory.path().join("log");
        let new =
            spawn(&self.directory.path().join("manifests"), (self.address, self.metrics), &log, arguments);
        assert!(self.give_way_to(new).success());
    }

    /// Waits until the process has exited, and continues with the next one.
    pub(crate) fn give_way_to(&mut self, new: Child) -> ExitStatus {
        let mut old = std::mem::replace(&mut self.child, new);
        testbed::wait_for("the old process to end", || {
            old.try_wait()?.ok_or_else(|| anyhow::anyhow!("{}", self.log()))
        })
        .unwrap()
    }

    /// Kills it, and continues with the other process.
    pub(crate) fn replace(&mut self, new: Child) {
        let mut old = std::mem::replace(&mut self.child, new);
        old.kill().unwrap();
        old.wait().unwrap();
    }

    /// Waits for a line of the log.
    pub(crate) fn wait_for_log(&self, line: &str) {
        let log = self.directory.path().join("log");
        testbed::wait_for(line, || {
            let text = std::fs::read_to_string(&log)?;
            let rest = text.split_once(line).map(|(_, rest)| rest.to_owned());
            // A line that was seen once is not seen again.
            Ok(std::fs::write(&log, rest.ok_or_else(|| anyhow::anyhow!("{text}"))?)?)
        })
        .unwrap();
    }

    /// Creates the directory of manifests.
    pub(crate) fn create_manifests(&self) {
        std::fs::create_dir(self.directory.path().join("manifests")).unwrap();
    }

    /// A line of /proc/PID/status: KiB, or a number.
    pub(crate) fn memory(&self, name: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).unwrap();
        line.split_whitespace().next().unwrap().parse().unwrap()
    }

    /// Sends SIGTERM.
    pub(crate) fn tell_to_end(&self) {
        let kill = Command::new("kill").arg(self.child.id().to_string()).status();
        assert!(kill.unwrap().success());
    }

    /// How many files it has open.
    pub(crate) fn open_files(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.child.id())).unwrap().count()
    }

    pub(crate) fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.directory.path().join("log")).unwrap()
    }

    /// Removes the manifests.
    pub(crate) fn hide_manifests(&self) {
        let directory = self.directory.path();
        std::fs::rename(directory.join("manifests"), directory.join("hidden")).unwrap();
    }

    /// Restores the manifests.
    pub(crate) fn show_manifests(&self) {
        let directory = self.directory.path();
        std::fs::rename(directory.join("hidden"), directory.join("manifests")).unwrap();
    }

    /// A value of /metrics, or nothing.
    pub(crate) fn metric(&self, name: &str) -> String {
        let url = format!("http://{}/metrics", self.metrics);
        let page = Command::new("curl").args(["-fsS", "-m2", &url]).output().unwrap().stdout;
        let page = String::from_utf8(page).unwrap();
        let line = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.unwrap_or_default().to_owned()
    }

    /// Installs a manifest atomically.
    pub(crate) fn apply(&self, name: &str, text: &str) {
        apply(&self.directory.path().join("manifests"), name, text);
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
        // It may have exited already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn apply(directory: &Path, name: &str, text: &str) {
    let new = directory.join("new");
    std::fs::write(&new, text).unwrap();
    std::fs::rename(&new, directory.join(name)).unwrap();
}

fn spawn(
    manifests: &Path,
    (address, metrics): (SocketAddr, SocketAddr),
    log: &Path,
    arguments: &[&str],
) -> Child {
    let log = std::fs::OpenOptions::new().create(true).append(true).open(log).unwrap();
    // With the limit on open files of a systemd service.
    let mut command = Command::new("prlimit");
    command
        .args(["--nofile=1024:", env!("CARGO_BIN_EXE_portolan-dns"), "--manifests"])
        .arg(manifests)
        .args(["--attachments", "/nonexistent/attachments", "--listen", &address.to_string()])
        .args(["--metrics-bind-address", &metrics.to_string(), "--allow-loopback-upstreams"])
        .args(arguments)
        .stdout(Stdio::null())
        .stderr(log);
    for flag in ["--health-bind-address", "--ready-bind-address"] {
        if !arguments.iter().any(|a| a.starts_with(flag)) {
            command.arg(format!("{flag}=127.0.0.1:0"));
        }
    }
    if !arguments.iter().any(|a| a.starts_with("--upstream")) {
        // No server answers there: tests must not depend on the machine's resolv.conf.
        command.arg("--upstream=127.0.0.1:1");
    }
    command.spawn().unwrap()
}
