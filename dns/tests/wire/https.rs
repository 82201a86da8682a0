//! DNS over HTTPS (RFC 8484) with curl and kdig as clients, and over QUIC (RFC 9250) with kdig.

use std::net::UdpSocket;
use std::process::Command;

use crate::message::{Query, Reply};
use crate::tls::Secure;

const NAME: &str = "web.default.svc.cluster.local";

/// A server that answers over TLS, HTTPS and QUIC at the same port.
pub(crate) fn start(arguments: &[&str]) -> (Secure, u16) {
    let port = testbed::free_port().unwrap();
    let flags = [format!("--https-listen=127.0.0.1:{port}"), format!("--quic-listen=127.0.0.1:{port}")];
    let arguments = [flags.each_ref().map(String::as_str).as_slice(), arguments].concat();
    (Secure::start("dns.example", &arguments), port)
}

/// What curl says to a request: the status, the header fields, then the body.
fn curl(secure: &Secure, port: u16, path: &str, arguments: &[&str]) -> Vec<u8> {
    let output = Command::new("curl")
        .args(["-sS", "-m10", "--http2", "-i", "--resolve", &format!("dns.example:{port}:127.0.0.1")])
        .args(["--cacert", &secure.file("tls.pem").display().to_string()])
        .args(arguments)
        .arg(format!("https://dns.example:{port}{path}"))
        .output()
        .unwrap();
    [output.stdout, output.stderr].concat()
}

#[test]
fn https_client_resolves_names_and_reads_answers() {
    let (secure, port) = start(&[]);
    // curl resolves the name of a URL, which no other server has, by this server.
    let output = Command::new("curl")
        .args(["-sSv", "-m10", "--doh-insecure", "--resolve", &format!("dns.example:{port}:127.0.0.1")])
        .args(["--doh-url", &format!("https://dns.example:{port}/dns-query")])
        .args(["--connect-timeout", "2", &format!("http://{NAME}:1/")])
        .output()
        .unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(stderr.contains("10.96.0.9"), "{stderr}");
    for method in ["+https", "+https-get"] {
        let answer = secure.kdig_at(port, "dns.example", &format!("{method} +padding {NAME} A"));
        assert!(answer.contains("10.96.0.9") && answer.contains("Received 468 B"), "{method}: {answer}");
    }
    let counted = secure.server.metric("coredns_dns_requests_total{proto=\"https\",type=\"A\"}");
    assert!(counted.parse::<u32>().unwrap() >= 3, "{counted}");
}

/// RFC 8484 §4, §5.1
#[test]
fn https_requests_that_are_no_queries_have_the_status_their_fault_has() {
    let (secure, port) = start(&[]);
    let query = Query::new(NAME, 1).wire(0);
    let file = secure.file("query");
    std::fs::write(&file, &query).unwrap();
    let body = format!("@{}", file.display());
    let post = ["--data-binary", &body, "-H", "content-type: application/dns-message"];
    let answer = curl(&secure, port, "/dns-query", &post);
    let text = String::from_utf8_lossy(&answer).into_owned();
    assert!(text.contains("HTTP/2 200") && text.contains("max-age=5"), "{text}");
    let wire = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n").unwrap() + 4;
    assert_eq!(Reply::parse(&answer[wire..]).counts, [1, 1, 0, 0]);
    let long_get = format!("/dns-query?dns={}", "A".repeat(5500));
    std::fs::write(secure.file("long"), vec![0; 5000]).unwrap();
    let long = format!("@{}", secure.file("long").display());
    for (status, path, arguments) in [
        (404, "/", &post[..]),
        (400, "/dns-query", &[]),
        (400, "/dns-query?dns=!", &[]),
        (405, "/dns-query", &["-X", "PUT"]),
        (415, "/dns-query", &["--data-binary", &body]),
        (413, "/dns-query", &["--data-binary", &long, "-H", "content-type: application/dns-message"]),
        (413, &long_get, &[]),
    ] {
        let reply = String::from_utf8_lossy(&curl(&secure, port, path, arguments)).into_owned();
        assert!(reply.contains(&format!("HTTP/2 {status}")), "{status} {path} {arguments:?}: {reply}");
    }
}

/// RFC 9250
#[test]
fn quic_client_reads_answers_and_garbage_costs_nothing() {
    let (secure, port) = start(&["--nsid=node-7"]);
    let garbage = UdpSocket::bind("127.0.0.1:0").unwrap();
    for length in [1, 20, 1200] {
        garbage.send_to(&vec![0xc3; length], ("127.0.0.1", port)).unwrap();
    }
    let answer = secure.kdig_at(port, "dns.example", &format!("+quic +padding +nsid {NAME} A"));
    assert!(answer.contains("10.96.0.9") && answer.contains("Received 468 B"), "{answer}");
    assert!(answer.contains("node-7"), "{answer}");
    // A name to query upstream, where no server listens here.
    let failed = secure.kdig_at(port, "dns.example", "+quic www.example.org A");
    assert!(failed.contains("SERVFAIL"), "{failed}");
    assert_eq!(secure.server.metric("coredns_dns_requests_total{proto=\"quic\",type=\"A\"}"), "2");
}
