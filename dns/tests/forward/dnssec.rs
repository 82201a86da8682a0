//! A validating resolver behind the server accepts what it accepts directly.

use std::path::Path;
use std::process::Command;

use crate::real::run;
use crate::server::Server;

const ZONE: &str = "$ORIGIN signed.example.\n\
    @ 60 SOA ns hm 1 2 3 4 60\n@ NS ns\nns A 192.0.2.53\nwww A 192.0.2.1\nalias CNAME www\n\
    *.wild A 192.0.2.2\ntowild CNAME some.wild\nold DNAME new\na.new A 192.0.2.3\n";

fn dig(port: u16, arguments: &str) -> String {
    let mut command = Command::new("dig");
    command.args(["@127.0.0.1", "-p", &port.to_string(), "+tries=1", "+time=5"]);
    let output = command.args(arguments.split_whitespace()).output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

/// Serves the zone, signed. `nsec3` says how absence is proved.
fn knotd(directory: &Path, port: u16, nsec3: bool) -> crate::real::Daemon {
    let at = directory.display();
    std::fs::create_dir_all(directory.join("db")).unwrap();
    let large: String = (0..60).map(|n| format!("large TXT \"{n} {}\"\n", "x".repeat(100))).collect();
    std::fs::write(directory.join("zone"), format!("{ZONE}{large}")).unwrap();
    let text = format!(
        "server:\n  rundir: {at}\n  listen: 127.0.0.1@{port}\ndatabase:\n  storage: {at}/db\npolicy:\n  \
         - id: p\n    nsec3: {}\nzone:\n  - domain: signed.example\n    storage: {at}\n    file: zone\n    \
         dnssec-signing: on\n    dnssec-policy: p\n    zonefile-sync: -1\n",
        if nsec3 { "on" } else { "off" }
    );
    let file = directory.join("knot.conf");
    std::fs::write(&file, text).unwrap();
    run("knotd", &["-c", &file.to_string_lossy()], port)
}

/// Validates what the server at `upstream` says.
fn unbound(directory: &Path, port: u16, upstream: u16, key: &str) -> crate::real::Daemon {
    let file = directory.join(format!("validator-{port}.conf"));
    let text = format!(
        "server:\n  interface: 127.0.0.1@{port}\n  do-daemonize: no\n  chroot: \"\"\n  username: \"\"\n  pidfile: \"\"\n  \
         use-syslog: no\n  do-not-query-localhost: no\n  module-config: \"validator iterator\"\n  \
         trust-anchor: \"{key}\"\n  aggressive-nsec: no\nforward-zone:\n  name: \".\"\n  \
         forward-addr: 127.0.0.1@{upstream}\nremote-control:\n  control-enable: no\n"
    );
    std::fs::write(&file, text).unwrap();
    run("unbound", &["-d", "-c", &file.to_string_lossy()], port)
}

/// RFC 4035 §3.1, RFC 5155 §7.2
#[test]
fn validating_resolver_behind_accepts_every_kind_of_answer() {
    for nsec3 in [false, true] {
        let directory = tempfile::tempdir().unwrap();
        let [authority, validator] = [(); 2].map(|()| testbed::free_port().unwrap());
        let _knotd = knotd(directory.path(), authority, nsec3);
        let key = testbed::wait_for("the signed zone", || {
            let keys = dig(authority, "+short signed.example DNSKEY");
            let key = keys.lines().find(|line| line.starts_with("257 ")).map(str::to_owned);
            anyhow::ensure!(dig(authority, "+dnssec www.signed.example A").contains("RRSIG"));
            key.ok_or_else(|| anyhow::anyhow!("{keys}"))
        })
        .unwrap();
        let server = Server::start(&[&format!("--upstream=127.0.0.1:{authority}")]);
        let key = format!("signed.example. DNSKEY {key}");
        let _unbound = unbound(directory.path(), validator, server.address.port(), &key);
        for (question, status) in [
            ("www.signed.example A", "NOERROR"),
            ("www.signed.example MX", "NOERROR"),
            ("none.signed.example A", "NXDOMAIN"),
            ("any.wild.signed.example A", "NOERROR"),
            ("any.wild.signed.example MX", "NOERROR"),
            ("alias.signed.example A", "NOERROR"),
            ("towild.signed.example A", "NOERROR"),
            ("a.old.signed.example A", "NOERROR"),
            ("b.old.signed.example A", "NXDOMAIN"),
            ("large.signed.example TXT", "NOERROR"),
        ] {
            let reply = dig(validator, &format!("+dnssec {question}"));
            let flags = reply.split("flags: ").nth(1).and_then(|rest| rest.split(';').next());
            let is_authentic = flags.is_some_and(|flags| flags.split(' ').any(|flag| flag == "ad"));
            assert!(reply.contains(&format!("status: {status}")) && is_authentic, "NSEC3 {nsec3}: {reply}");
        }
    }
}

/// RFC 4035 §3.1.1
#[test]
fn negative_answer_whose_proofs_do_not_fit_has_tc() {
    let directory = tempfile::tempdir().unwrap();
    let authority = testbed::free_port().unwrap();
    let _knotd = knotd(directory.path(), authority, true);
    let server = Server::start(&[&format!("--upstream=127.0.0.1:{authority}")]);
    testbed::wait_for("the signed zone", || {
        let reply = server.dig("+dnssec +ignore +bufsize=512 none.signed.example A");
        anyhow::ensure!(reply.contains("NXDOMAIN"), "{reply}");
        let flags = reply.split("flags: ").nth(1).and_then(|rest| rest.split(';').next()).unwrap_or_default();
        anyhow::ensure!(flags.split(' ').any(|flag| flag == "tc"), "{reply}");
        Ok(())
    })
    .unwrap();
    let whole = server.dig("+dnssec +tcp none.signed.example A");
    assert!(whole.matches("NSEC3").count() >= 3, "{whole}");
}
