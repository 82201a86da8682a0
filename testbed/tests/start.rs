//! Before the first look at the manifests nothing is served and nothing is denied: a daemon that knows nothing says so.

use anyhow::ensure;
use testbed::{Binaries, Node, Program, wait_for};

#[test]
fn daemons_are_not_ready_and_deny_no_name_until_the_manifests_are_there() {
    let node = Node::new().unwrap();
    let binaries = Binaries::find().unwrap();
    let directory = tempfile::TempDir::new().unwrap();
    let manifests = directory.path().join("manifests");
    let arguments = ["--manifests", manifests.to_str().unwrap()];
    let log = |name: &str| directory.path().join(name);
    let _proxy =
        Program::start(&node, &binaries.path("portolan-proxy"), &arguments, &log("proxy.log")).unwrap();
    let arguments = [&arguments[..], &["--upstream", node.outside_address()]].concat();
    let _dns = Program::start(&node, &binaries.path("portolan-dns"), &arguments, &log("dns.log")).unwrap();

    let page = |url: &str| node.shell(&format!("curl -sS -m 2 -w ' %{{http_code}}' http://{url}"));
    let pages = ["127.0.0.1:10256/readyz?verbose", "127.0.0.1:8181/ready?verbose"];
    for url in pages {
        let told = wait_for(url, || {
            let text = page(url)?;
            ensure!(text.contains("No such file or directory"), "{text}");
            Ok(text)
        });
        assert!(told.unwrap().ends_with(" 503"), "{url}");
    }
    assert!(page("127.0.0.1:10256/livez").unwrap().ends_with(" 200"), "alive, if not ready");
    let name = "web.default.svc.cluster.local";
    let ask = || node.shell(&format!("dig @10.96.0.10 +tries=1 +time=2 {name}"));
    let answer = wait_for("an answer", ask).unwrap();
    assert!(answer.contains("status: SERVFAIL"), "{answer}");
    assert!(answer.contains("EDE: 14"), "{answer}");

    std::fs::create_dir(&manifests).unwrap();
    for url in pages {
        wait_for(url, || {
            let text = page(url)?;
            ensure!(text.ends_with(" 200"), "{text}");
            Ok(())
        })
        .unwrap();
    }
    let answer = ask().unwrap();
    assert!(answer.contains("status: NXDOMAIN"), "{answer}");
}
