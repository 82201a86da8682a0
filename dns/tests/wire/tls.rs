//! DNS over TLS (RFC 7858), with kdig and openssl as clients.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::server::Server;

const WEB: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec: {clusterIP: 10.96.0.9, ports: [{port: 80}]}\n";
const NAME: &str = "web.default.svc.cluster.local";

/// A new certificate and key, beside the server's own.
fn certificate(directory: &Path, name: &str) {
    testbed::certify(name, &directory.join("new.pem"), &directory.join("new.key")).unwrap();
}

/// Installs them in place of the server's, one after the other.
fn install(directory: &Path) {
    std::fs::rename(directory.join("new.key"), directory.join("tls.key")).unwrap();
    std::fs::rename(directory.join("new.pem"), directory.join("tls.pem")).unwrap();
}

pub(crate) struct Secure {
    pub(crate) server: Server,
    port: u16,
    arguments: Vec<String>,
    directory: tempfile::TempDir,
}

impl Secure {
    pub(crate) fn start(name: &str, arguments: &[&str]) -> Self {
        Self::start_with(WEB, name, arguments)
    }

    fn start_with(manifest: &str, name: &str, arguments: &[&str]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        certificate(directory.path(), name);
        install(directory.path());
        let port = testbed::free_port().unwrap();
        let at = directory.path().display();
        let flags = [
            format!("--tls-listen=127.0.0.1:{port}"),
            format!("--tls-cert={at}/tls.pem"),
            format!("--tls-key={at}/tls.key"),
        ];
        let arguments: Vec<String> =
            flags.into_iter().chain(arguments.iter().map(ToString::to_string)).collect();
        let all: Vec<&str> = arguments.iter().map(String::as_str).collect();
        Self { server: Server::start(&[("web.yaml", manifest)], &all), port, arguments, directory }
    }

    /// Starts the next process, and waits until the previous one has exited.
    pub(crate) fn succeed(&mut self) {
        let arguments: Vec<&str> = self.arguments.iter().map(String::as_str).collect();
        self.server.succeed(&arguments);
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// The output of kdig, if the certificate must be for `name`.
    fn kdig(&self, name: &str, arguments: &str) -> String {
        self.kdig_at(self.port, name, arguments)
    }

    pub(crate) fn kdig_at(&self, port: u16, name: &str, arguments: &str) -> String {
        kdig(&self.file("tls.pem"), port, name, arguments)
    }
}

/// The output of kdig, if the certificate must be this one and for `name`.
pub(crate) fn kdig(certificate: &Path, port: u16, name: &str, arguments: &str) -> String {
    let output = Command::new("kdig")
        .args(["@127.0.0.1", "-p", &port.to_string(), "+timeout=5", "+retry=0"])
        .arg(format!("+tls-ca={}", certificate.display()))
        .arg(format!("+tls-hostname={name}"))
        .args(arguments.split_whitespace())
        .output()
        .unwrap();
    String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
}

/// RFC 7858, RFC 7830, RFC 8467 §4.1
#[test]
fn replies_over_tls_equal_those_over_tcp_and_are_padded_and_many_per_connection() {
    let secure = Secure::start("dns.example", &["--nsid=node-7"]);
    let answer = secure.kdig("dns.example", &format!("+short {NAME} A"));
    assert_eq!(answer.trim(), "10.96.0.9");
    let padded = secure.kdig("dns.example", &format!("+padding +nsid {NAME} A"));
    assert!(
        padded.contains("Received 468 B") && padded.contains("PADDING") && padded.contains("node-7"),
        "{padded}"
    );
    let plain = secure.kdig("dns.example", &format!("+nopadding {NAME} A"));
    assert!(!plain.contains("PADDING") && plain.contains("TLS1.3"), "{plain}");
    let many = secure.kdig("dns.example", &format!("+keepopen +short {NAME} A {NAME} A {NAME} A"));
    assert_eq!(many.matches("10.96.0.9").count(), 3, "{many}");
    let wrong = secure.kdig("other.example", &format!("+short {NAME} A"));
    assert!(!wrong.contains("10.96.0.9"), "{wrong}");
    // A client that does not use TLS harms no other.
    assert_eq!(
        secure.server.dig(&format!("+tcp -p {} +short {NAME} A", secure.port)).matches("10.96").count(),
        0
    );
    assert_eq!(secure.kdig("dns.example", &format!("+short {NAME} A")).trim(), "10.96.0.9");
    assert_eq!(secure.server.metric("coredns_dns_requests_total{proto=\"tls\",type=\"A\"}"), "7");
}

/// More endpoints than a message can contain: no padding fits after them.
#[test]
fn reply_of_the_maximum_length_is_padded_as_far_as_possible() {
    let mut manifest = WEB.replace("10.96.0.9", "None");
    for slice in 0..5 {
        let addresses: String = (0..1000)
            .map(|number| {
                format!("- {{addresses: [10.22.{}.{}]}}\n", slice * 4 + number / 250, number % 250 + 1)
            })
            .collect();
        manifest += &format!(
            "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: web-{slice}, labels: \
             {{kubernetes.io/service-name: web}}}}\naddressType: IPv4\nports: [{{port: 80}}]\nendpoints:\n{addresses}"
        );
    }
    let secure = Secure::start_with(&manifest, "dns.example", &[]);
    let answer = secure.kdig("dns.example", &format!("+padding +bufsize=4096 {NAME} A"));
    assert!(answer.contains("status: NOERROR") && answer.contains("Received 65"), "{answer:.600}");
    assert!(answer.matches("\tA\t10.22.").count() > 4000, "{answer:.600}");
}

#[test]
fn new_certificate_is_used_at_once_and_an_invalid_one_never() {
    let secure = Secure::start("one.example", &[]);
    let answers = |name: &str| secure.kdig(name, &format!("+short {NAME} A")).trim() == "10.96.0.9";
    assert!(answers("one.example") && !answers("two.example"));
    certificate(secure.directory.path(), "two.example");
    install(secure.directory.path());
    testbed::wait_for("the new certificate", || {
        anyhow::ensure!(answers("two.example"));
        Ok(())
    })
    .unwrap();
    assert!(!answers("one.example"));
    // A key of another certificate, an invalid key, no certificate: one after the other, and the last good
    // one stays.
    let failures = || {
        let count = secure.server.metric("portolan_dns_certificate_reload_failures_total");
        count.parse::<u32>().unwrap()
    };
    std::fs::copy(secure.file("tls.pem"), secure.file("kept.pem")).unwrap();
    std::fs::copy(secure.file("tls.key"), secure.file("kept.key")).unwrap();
    certificate(secure.directory.path(), "three.example");
    for (file, bad) in
        [("tls.key", std::fs::read(secure.file("new.key")).unwrap()), ("tls.key", b"no key".to_vec())]
    {
        let before = failures();
        std::fs::write(secure.file(file), bad).unwrap();
        testbed::wait_for("the failure to be counted", || {
            anyhow::ensure!(failures() > before);
            Ok(())
        })
        .unwrap();
        assert!(answers("two.example"));
    }
    std::fs::rename(secure.file("kept.key"), secure.file("tls.key")).unwrap();
    std::fs::rename(secure.file("kept.pem"), secure.file("tls.pem")).unwrap();
    assert!(answers("two.example"));
}

#[test]
fn invalid_certificate_is_reported_at_the_start() {
    let directory = tempfile::tempdir().unwrap();
    let at = directory.path().display();
    let start = || {
        let output = Command::new(env!("CARGO_BIN_EXE_portolan-dns"))
            .args([
                "--manifests=/nonexistent",
                "--upstream=192.0.2.1",
                "--listen=127.0.0.1:0",
                "--tls-listen=127.0.0.1:0",
            ])
            .args([format!("--tls-cert={at}/tls.pem"), format!("--tls-key={at}/tls.key")])
            .output()
            .unwrap();
        assert!(!output.status.success());
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    assert!(start().contains("tls.pem"), "{}", start());
    certificate(directory.path(), "dns.example");
    std::fs::copy(directory.path().join("new.pem"), directory.path().join("tls.pem")).unwrap();
    certificate(directory.path(), "dns.example");
    std::fs::copy(directory.path().join("new.key"), directory.path().join("tls.key")).unwrap();
    assert!(start().contains("do they belong together?"), "{}", start());
}
