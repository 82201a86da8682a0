//! The frames that a collector receives, captured by fstrm_capture and decoded by dnstap-read.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::server::Server;

const WEB: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec: {clusterIP: 10.96.0.9, ports: [{port: 80}]}\n";
const NAME: &str = "web.default.svc.cluster.local";

/// Writes received frames to a file, until it is stopped.
struct Collector {
    child: Child,
    file: PathBuf,
}

impl Collector {
    fn start(socket: &Path, file: PathBuf) -> Self {
        let mut command = Command::new("fstrm_capture");
        command.args(["-t", "protobuf:dnstap.Dnstap", "-u"]).arg(socket).arg("-w").arg(&file);
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        Self { child, file }
    }

    /// A line per received message.
    fn read(mut self) -> Vec<String> {
        let kill = Command::new("kill").arg(self.child.id().to_string()).status();
        assert!(kill.unwrap().success() && self.child.wait().unwrap().success());
        let output = Command::new("dnstap-read").arg(&self.file).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        // It may have exited already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn lost(server: &Server) -> u64 {
    server.metric("portolan_dns_dnstap_lost_total").parse().unwrap()
}

/// Sends queries until the server counts a lost one.
fn wait_for_loss(server: &Server) {
    let before = lost(server);
    testbed::wait_for("a loss", || {
        assert_eq!(server.status(&format!("{NAME} A")), "NOERROR");
        anyhow::ensure!(lost(server) > before);
        Ok(())
    })
    .unwrap();
}

#[test]
fn collector_gets_every_query_and_reply_and_may_restart() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("socket");
    let mut server =
        Server::start(&[("web.yaml", WEB)], &[&format!("--dnstap={}", socket.display()), "--nsid=node-7"]);
    server.wait_for_log("no dnstap collector takes frames");
    wait_for_loss(&server);
    let first = Collector::start(&socket, directory.path().join("first"));
    server.wait_for_log("the dnstap collector takes frames");
    drop(first);
    wait_for_loss(&server);

    let second = Collector::start(&socket, directory.path().join("second"));
    server.wait_for_log("the dnstap collector takes frames");
    let before = lost(&server);
    assert_eq!(server.status(&format!("{NAME} A")), "NOERROR");
    assert_eq!(server.status(&format!("+tcp none.{NAME} TXT")), "NXDOMAIN");
    assert_eq!(server.status("+edns outside.example AAAA"), "SERVFAIL");
    assert_eq!(lost(&server), before);
    // When the server stops, the stream ends, and everything has been received.
    server.tell_to_end();
    testbed::wait_for("the end of the server", || {
        anyhow::ensure!(!server.is_running());
        Ok(())
    })
    .unwrap();
    let lines = second.read();
    for kind in ["CQ", "CR"] {
        for (protocol, question) in [
            ("UDP", format!("{NAME}/IN/A")),
            ("TCP", format!("none.{NAME}/IN/TXT")),
            ("UDP", "outside.example/IN/AAAA".to_owned()),
        ] {
            let is_it = |line: &&String| {
                line.contains(&format!(" {kind} ")) && line.contains(protocol) && line.ends_with(&question)
            };
            assert_eq!(lines.iter().filter(is_it).count(), 1, "{kind} {protocol} {question}: {lines:#?}");
        }
    }
    assert!(lines.len() == 6 && lines.iter().all(|line| line.contains("127.0.0.1:")), "{lines:#?}");
}
