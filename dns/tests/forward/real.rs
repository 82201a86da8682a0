//! Real upstream servers: unbound over UDP, TCP and TLS, and knotd.

use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use crate::server::Server;

/// Killed when dropped.
pub(crate) struct Daemon(Child);

impl Drop for Daemon {
    fn drop(&mut self) {
        // It may have exited already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub(crate) fn run(program: &str, arguments: &[&str], port: u16) -> Daemon {
    let mut command = Command::new(program);
    let child = command.args(arguments).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let daemon = Daemon(child);
    testbed::wait_for(program, || Ok(TcpStream::connect(("127.0.0.1", port)).map(drop)?)).unwrap();
    daemon
}

/// unbound with a few names of its own; with a certificate it also serves TLS.
fn unbound(directory: &Path, port: u16, tls: Option<(u16, &Path, &Path)>) -> Daemon {
    let tls = tls.map_or_else(String::new, |(port, certificate, key)| {
        format!(
            "  interface: 127.0.0.1@{port}\n  tls-port: {port}\n  tls-service-pem: {}\n  tls-service-key: {}\n",
            certificate.display(),
            key.display()
        )
    });
    let large: String =
        (0..200).map(|n| format!("  local-data: \"large.test. 60 IN A 192.0.2.{n}\"\n")).collect();
    let file = directory.join(format!("unbound-{port}.conf"));
    let text = format!(
        "server:\n  interface: 127.0.0.1@{port}\n{tls}  do-daemonize: no\n  chroot: \"\"\n  username: \"\"\n  \
         pidfile: \"\"\n  use-syslog: no\n  do-not-query-localhost: no\n  local-zone: test. static\n  \
         local-data: \"test. 60 IN SOA ns.test. hm.test. 1 2 3 4 60\"\n  \
         local-data: \"www.test. 60 IN A 192.0.2.1\"\n  local-data: \"www.test. 60 IN AAAA 2001:db8::1\"\n{large}\
         remote-control:\n  control-enable: no\n"
    );
    std::fs::write(&file, text).unwrap();
    run("unbound", &["-d", "-c", &file.to_string_lossy()], port)
}

fn certificate(directory: &Path, name: &str) -> (std::path::PathBuf, std::path::PathBuf) {
    let (certificate, key) =
        (directory.join(format!("{name}.pem")), directory.join(format!("{name}-key.pem")));
    testbed::certify(name, &certificate, &key).unwrap();
    (certificate, key)
}

#[test]
fn unbound_answers_every_kind_of_question_over_udp_and_tcp() {
    let directory = tempfile::tempdir().unwrap();
    let port = testbed::free_port().unwrap();
    let _unbound = unbound(directory.path(), port, None);
    for scheme in ["udp", "tcp"] {
        let server = Server::start(&[&format!("--upstream={scheme}://127.0.0.1:{port}")]);
        assert_eq!(server.short("www.test A"), "192.0.2.1");
        assert_eq!(server.short("www.test AAAA"), "2001:db8::1");
        assert_eq!(server.short("+tcp large.test A").lines().count(), 200);
        assert_eq!(server.status("www.test MX"), "NOERROR");
        for _ in 0..2 {
            let reply = server.dig("none.test A");
            assert!(reply.contains("NXDOMAIN") && reply.contains("SOA"), "{reply}");
        }
    }
}

/// RFC 7858, RFC 8310 §8.1
#[test]
fn over_tls_the_certificate_must_be_for_the_name_and_from_a_trusted_authority() {
    let directory = tempfile::tempdir().unwrap();
    let (port, tls_port) = (testbed::free_port().unwrap(), testbed::free_port().unwrap());
    let (certificate, key) = certificate(directory.path(), "dns.example");
    let _unbound = unbound(directory.path(), port, Some((tls_port, &certificate, &key)));
    let upstream = |name: &str| format!("--upstream=tls://127.0.0.1:{tls_port}#{name}");
    let ca = format!("--upstream-ca={}", certificate.display());
    let server = Server::start(&[&upstream("dns.example"), &ca]);
    assert_eq!(server.short("www.test A"), "192.0.2.1");
    assert_eq!(server.short("+tcp large.test A").lines().count(), 200);
    let server = Server::start(&[&upstream("other.example"), &ca]);
    assert_eq!(server.status("www.test A"), "SERVFAIL", "another name");
    let _other = self::certificate(directory.path(), "other");
    let other = format!("--upstream-ca={}", directory.path().join("other.pem").display());
    let right = upstream("dns.example");
    for ca in [&[other.as_str()][..], &[]] {
        let server = Server::start(&[&[right.as_str()], ca].concat());
        assert_eq!(server.status("www.test A"), "SERVFAIL", "an authority that is not trusted: {ca:?}");
    }
}

#[test]
fn knotd_is_an_upstream_of_a_stub_domain() {
    let directory = tempfile::tempdir().unwrap();
    let port = testbed::free_port().unwrap();
    let at = directory.path().display();
    let zone = "$ORIGIN corp.test.\n@ 60 SOA ns hm 1 2 3 4 60\n@ NS ns\nns A 192.0.2.53\nwww 60 A 192.0.2.5\nalias 60 CNAME www\n";
    std::fs::write(directory.path().join("zone"), zone).unwrap();
    let text = format!(
        "server:\n  rundir: {at}\n  listen: 127.0.0.1@{port}\ndatabase:\n  storage: {at}/db\nzone:\n  - domain: corp.test\n    storage: {at}\n    file: zone\n"
    );
    let file = directory.path().join("knot.conf");
    std::fs::write(&file, text).unwrap();
    let _knotd = run("knotd", &["-c", &file.to_string_lossy()], port);
    let server = Server::start(&[&format!("--stub=corp.test=127.0.0.1:{port}")]);
    testbed::wait_for("the zone", || {
        let answer = server.short("alias.corp.test A");
        anyhow::ensure!(answer == "www.corp.test.\n192.0.2.5", "{answer}");
        Ok(())
    })
    .unwrap();
    assert_eq!(server.status("none.corp.test A"), "NXDOMAIN");
    // There is no server for other names.
    assert_eq!(server.status("www.test A"), "REFUSED");
}
