//! Nodes with wrong clocks.

use std::path::{Path, PathBuf};

use testbed::Program;

use super::*;

/// libfaketime: shifts the wall clock of a program, but not its monotonic clock.
const SHIFTER: &str = "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1";

/// Starts a daemon whose wall clock is shifted by the offset in a file.
fn start(fixture: &Fixture, name: &str, clock: &Path, flags: &[&str]) -> Program {
    let binary = testbed::Binaries::find().unwrap().path(name);
    let kubeconfig = fixture.control_plane.kubeconfig(name).unwrap();
    let environment = [
        format!("LD_PRELOAD={SHIFTER}"),
        format!("FAKETIME_TIMESTAMP_FILE={}", clock.display()),
        "FAKETIME_NO_CACHE=1".to_owned(),
        "DONT_FAKE_MONOTONIC=1".to_owned(),
        binary.display().to_string(),
        format!("--kubeconfig={}", kubeconfig.display()),
    ];
    let arguments: Vec<&str> = environment.iter().map(String::as_str).chain(flags.iter().copied()).collect();
    let log =
        fixture.cluster.directory().join(format!("{name}-{}.log", clock.file_name().unwrap().display()));
    Program::start(&fixture.cluster.node, Path::new("/usr/bin/env"), &arguments, &log).unwrap()
}

/// Sets a clock offset.
fn set(clock: &Path, seconds: i32) {
    let new = clock.with_extension("new");
    std::fs::write(&new, format!("{seconds:+}\n")).unwrap();
    std::fs::rename(new, clock).unwrap();
}

fn readyz(fixture: &Fixture) -> String {
    fixture.page("127.0.0.1:10256/readyz?verbose").unwrap()
}

#[test]
fn wrong_and_jumping_clocks_have_no_effect() {
    let mut fixture = Fixture::new();
    let replicas = ["web-1", "web-2"].map(|name| fixture.replica(name));
    let clock = |name: &str| -> PathBuf { fixture.cluster.directory().join(name) };
    let (ahead, behind) = (clock("ahead"), clock("behind"));
    set(&ahead, 3600);
    set(&behind, -3600);
    let upstream = format!("--upstream={}", fixture.cluster.node.outside_address());
    // One node's proxy and DNS server, and another node's DNS server, two hours behind.
    fixture.cluster.proxy.kill();
    fixture.cluster.proxy = start(&fixture, "portolan-proxy", &ahead, &["--node-name=node-1"]);
    fixture.cluster.dns.kill();
    fixture.cluster.dns = start(&fixture, "portolan-dns", &ahead, &[&upstream]);
    let addresses = "--listen=127.0.0.1:5353 --metrics-bind-address=127.0.0.1:5354 \
        --health-bind-address=127.0.0.1:5355 --ready-bind-address=127.0.0.1:5356";
    let flags: Vec<&str> = addresses.split(' ').chain([&*upstream]).collect();
    let _other = start(&fixture, "portolan-dns", &behind, &flags);
    let other = |fixture: &Fixture, name: &str| {
        let query =
            format!("dig +short +time=1 +tries=1 @127.0.0.1 -p 5353 {name}.default.svc.cluster.local");
        fixture.cluster.node.shell(&query)
    };

    for (round, jump) in [0, 7200, -7200, 86_400].into_iter().enumerate() {
        // The first offset applies at the start; later ones are jumps while the daemons run.
        set(&ahead, 3600 + jump);
        set(&behind, -3600 - jump);
        let name = format!("web-{round}x");
        let (pod, _) = &replicas[round % 2];
        // As the EndpointSlice controller writes it, with a correct clock.
        let triggered =
            "annotations: {endpoints.kubernetes.io/last-change-trigger-time: '2026-01-01T00:00:00Z'}, ";
        let now = fixture.cluster.node.shell("date -u +%FT%TZ").unwrap();
        let slice = slice(&name, &[&pod.ip]).replace(
            "metadata: {",
            &format!("metadata: {{{triggered}").replace("2026-01-01T00:00:00Z", now.trim()),
        );
        fixture.apply(&(service(&name, "") + &slice));
        fixture.expect(&name, &pod.name);
        let ip = fixture.cluster.virtual_ip(&name).unwrap();
        wait("the other node's answer", &fixture, || {
            let answer = other(&fixture, &name)?;
            ensure!(answer.trim() == ip, "{answer}");
            Ok(())
        });
        let page = readyz(&fixture);
        assert!(page.contains("readyz check passed") && !page.contains(" old"), "{page}");
        let stale = "portolan_proxy_source_stale_seconds{source=\"kubernetes/services\"}";
        assert_eq!(fixture.metric("127.0.0.1:10249", stale).unwrap(), 0.0);
    }
    // The age of the state uses the monotonic clock.
    fixture.control_plane.stop_server();
    set(&ahead, 7 * 86_400);
    for (address, name) in [("127.0.0.1:10249", "portolan_proxy"), ("127.0.0.1:5354", "portolan_dns")] {
        let name = format!("{name}_source_stale_seconds{{source=\"kubernetes/services\"}}");
        let seconds = wait("an age", &fixture, || {
            let seconds = fixture.metric(address, &name)?;
            ensure!(seconds > 0.0, "{seconds}");
            Ok(seconds)
        });
        assert!(seconds < 120.0, "{seconds}");
    }
    fixture.expect("web-0x", "web-1");
    fixture.control_plane.start_server().unwrap();
    fixture.apply(&slice("web-0x", &[&replicas[1].0.ip]));
    fixture.expect("web-0x", "web-2");
}
