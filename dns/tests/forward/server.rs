//! A running portolan-dns without Services.

use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Stopped when dropped.
pub(crate) struct Server {
    child: Child,
    pub(crate) address: SocketAddr,
    metrics: u16,
    /// Has an empty directory of manifests, and the log.
    directory: tempfile::TempDir,
}

impl Server {
    pub(crate) fn start(arguments: &[&str]) -> Self {
        Self::start_at(([127, 0, 0, 1], testbed::free_port().unwrap()).into(), arguments)
    }

    pub(crate) fn start_at(address: SocketAddr, arguments: &[&str]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let manifests = directory.path().join("manifests");
        std::fs::create_dir(&manifests).unwrap();
        let log = std::fs::File::create(directory.path().join("log")).unwrap();
        let metrics = testbed::free_port().unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_portolan-dns"))
            .arg("--manifests")
            .arg(manifests)
            .args(["--listen", &address.to_string()])
            .arg(format!("--metrics-bind-address=127.0.0.1:{metrics}"))
            .args(["--health-bind-address=127.0.0.1:0", "--ready-bind-address=127.0.0.1:0"])
            .arg("--allow-loopback-upstreams")
            .args(["--resolv-conf", "--attachments"].into_iter().filter_map(|flag| {
                let is_given = arguments.iter().any(|argument| argument.starts_with(flag));
                (!is_given).then(|| format!("{flag}=/nonexistent/file"))
            }))
            .args(arguments)
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        let mut server = Self { child, address, metrics, directory };
        let answers = testbed::wait_for("the server to answer", || {
            if server.child.try_wait()?.is_some() {
                return Ok(false);
            }
            let status = server.status("dns-version.cluster.local TXT");
            anyhow::ensure!(status == "NOERROR", "{status:?}");
            Ok(true)
        });
        assert!(matches!(answers, Ok(true)), "{answers:?}; its log:\n{}", server.log());
        server
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.directory.path().join("log")).unwrap()
    }

    /// What dig prints.
    pub(crate) fn dig(&self, arguments: &str) -> String {
        let server = format!("@{}", self.address.ip());
        let port = self.address.port().to_string();
        let mut command = Command::new("dig");
        command.args([&server, "-p", &port, "+tries=1", "+time=5"]).args(arguments.split_whitespace());
        String::from_utf8(command.output().unwrap().stdout).unwrap()
    }

    /// The addresses, and the response time.
    pub(crate) fn timed(&self, question: &str) -> (String, Duration) {
        let started = Instant::now();
        let answer = self.dig(&format!("+short {question}"));
        (answer.trim().to_owned(), started.elapsed())
    }

    pub(crate) fn short(&self, question: &str) -> String {
        self.timed(question).0
    }

    /// The code of the reply.
    pub(crate) fn status(&self, question: &str) -> String {
        let output = self.dig(question);
        let status = output.split("status: ").nth(1).and_then(|rest| rest.split(',').next());
        status.unwrap_or_default().to_owned()
    }

    /// The TTL of the first record.
    pub(crate) fn ttl(&self, question: &str) -> u32 {
        let output = self.dig(&format!("+noall +answer {question}"));
        output.split_whitespace().nth(1).and_then(|ttl| ttl.parse().ok()).expect(&output)
    }

    /// The number of queries that needed an upstream server, independent of the number of attempts: on a busy
    /// machine an answer may be late.
    pub(crate) fn exchanges(&self) -> f64 {
        self.metric("coredns_cache_misses_total") - self.metric("portolan_dns_coalesced_total")
    }

    /// A line of /metrics.
    pub(crate) fn metric(&self, name: &str) -> f64 {
        let url = format!("http://127.0.0.1:{}/metrics", self.metrics);
        let page = Command::new("curl").args(["-fsS", "-m2", &url]).output().unwrap().stdout;
        let page = String::from_utf8(page).unwrap();
        let line = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("no {name} in {page}")).parse().unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have exited already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
