//! Nodes whose clocks are wrong, and differ.

use std::path::{Path, PathBuf};

use testbed::Program;

use super::*;

/// Shifts the wall clock of a program; that which counts from the start of the machine stays (libfaketime).
const SHIFTER: &str = "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1";

/// A daemon in place of another one, with a wall clock that goes wrong by what a file says at the moment.
fn start(ground: &Ground, name: &str, clock: &Path, flags: &[&str]) -> Program {
    let binary = testbed::Binaries::find().unwrap().path(name);
    let kubeconfig = ground.control_plane.kubeconfig(name).unwrap();
    let environment = [
        format!("LD_PRELOAD={SHIFTER}"),
        format!("FAKETIME_TIMESTAMP_FILE={}", clock.display()),
        "FAKETIME_NO_CACHE=1".to_owned(),
        "DONT_FAKE_MONOTONIC=1".to_owned(),
        binary.display().to_string(),
        format!("--kubeconfig={}", kubeconfig.display()),
    ];
    let arguments: Vec<&str> = environment.iter().map(String::as_str).chain(flags.iter().copied()).collect();
    let log = ground.cluster.directory().join(format!("{name}-{}.log", clock.file_name().unwrap().display()));
    Program::start(&ground.cluster.node, Path::new("/usr/bin/env"), &arguments, &log).unwrap()
}

/// A clock that is `seconds` ahead.
fn set(clock: &Path, seconds: i32) {
    let new = clock.with_extension("new");
    std::fs::write(&new, format!("{seconds:+}\n")).unwrap();
    std::fs::rename(new, clock).unwrap();
}

fn readyz(ground: &Ground) -> String {
    ground.page("127.0.0.1:10256/readyz?verbose").unwrap()
}

#[test]
fn clocks_of_nodes_that_are_apart_and_jump_change_nothing() {
    let mut ground = Ground::new();
    let replicas = ["web-1", "web-2"].map(|name| ground.replica(name));
    let clock = |name: &str| -> PathBuf { ground.cluster.directory().join(name) };
    let (ahead, behind) = (clock("ahead"), clock("behind"));
    set(&ahead, 3600);
    set(&behind, -3600);
    let upstream = format!("--upstream={}", ground.cluster.node.outside_address());
    // One node's proxy and DNS server, and another node's DNS server, two hours behind.
    ground.cluster.proxy.kill();
    ground.cluster.proxy = start(&ground, "portolan-proxy", &ahead, &["--node-name=node-1"]);
    ground.cluster.dns.kill();
    ground.cluster.dns = start(&ground, "portolan-dns", &ahead, &[&upstream]);
    let elsewhere = "--listen=127.0.0.1:5353 --metrics-bind-address=127.0.0.1:5354 --health-bind-address=127.0.0.1:5355 --ready-bind-address=127.0.0.1:5356";
    let flags: Vec<&str> = elsewhere.split(' ').chain([&*upstream]).collect();
    let _other = start(&ground, "portolan-dns", &behind, &flags);
    let other = |ground: &Ground, name: &str| {
        let ask = format!("dig +short +time=1 +tries=1 @127.0.0.1 -p 5353 {name}.default.svc.cluster.local");
        ground.cluster.node.shell(&ask)
    };

    for (round, jump) in [0, 7200, -7200, 86_400].into_iter().enumerate() {
        // The first is how they start; the others happen while they run.
        set(&ahead, 3600 + jump);
        set(&behind, -3600 - jump);
        let name = format!("web-{round}x");
        let (pod, _) = &replicas[round % 2];
        // As the controller of slices writes it, whose clock is right.
        let triggered =
            "annotations: {endpoints.kubernetes.io/last-change-trigger-time: '2026-01-01T00:00:00Z'}, ";
        let now = ground.cluster.node.shell("date -u +%FT%TZ").unwrap();
        let slice = slice(&name, &[&pod.ip]).replace(
            "metadata: {",
            &format!("metadata: {{{triggered}").replace("2026-01-01T00:00:00Z", now.trim()),
        );
        ground.apply(&(service(&name, "") + &slice));
        ground.expect(&name, &pod.name);
        let ip = ground.cluster.virtual_ip(&name).unwrap();
        wait("the other node's answer", &ground, || {
            let answer = other(&ground, &name)?;
            ensure!(answer.trim() == ip, "{answer}");
            Ok(())
        });
        let page = readyz(&ground);
        assert!(page.contains("readyz check passed") && !page.contains(" old"), "{page}");
        let stale = "portolan_proxy_source_stale_seconds{source=\"kubernetes/services\"}";
        assert_eq!(ground.metric("127.0.0.1:10249", stale).unwrap(), 0.0);
    }
    // The age of a state is told by the clock that cannot be set.
    ground.control_plane.stop_server();
    set(&ahead, 7 * 86_400);
    for (address, name) in [("127.0.0.1:10249", "portolan_proxy"), ("127.0.0.1:5354", "portolan_dns")] {
        let name = format!("{name}_source_stale_seconds{{source=\"kubernetes/services\"}}");
        let seconds = wait("an age", &ground, || {
            let seconds = ground.metric(address, &name)?;
            ensure!(seconds > 0.0, "{seconds}");
            Ok(seconds)
        });
        assert!(seconds < 120.0, "{seconds}");
    }
    ground.expect("web-0x", "web-1");
    ground.control_plane.start_server().unwrap();
    ground.apply(&slice("web-0x", &[&replicas[1].0.ip]));
    ground.expect("web-0x", "web-2");
}
