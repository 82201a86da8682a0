//! The Debian package from installation to removal, on a node with its own systemd.

#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

mod deb;
mod guides;
mod machine;

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::ensure;
use testbed::{HostnameServer, Network, Plugin, wait_for};

use deb::provide;
use machine::Machine;

const WEB: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: web}\n\
    spec: {clusterIP: 10.96.7.7, selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}\n---\n\
    apiVersion: v1\nkind: Pod\nmetadata: {name: web-1, labels: {app: web}}\nspec: {containers: []}\n";

/// Asserts equality and shows only the lines that differ.
fn assert_same(now: &str, before: &str) {
    let lines = |text: &str| text.lines().map(str::to_owned).collect::<BTreeSet<_>>();
    let (now, before) = (lines(now), lines(before));
    let differ: Vec<&String> = now.symmetric_difference(&before).collect();
    assert!(differ.is_empty(), "{differ:#?}");
}

#[test]
fn package_is_installed_upgraded_under_load_and_removed_without_remains() {
    let machine = Machine::boot().unwrap();
    let [first, second] = provide(&machine);
    let before = machine.state().unwrap();

    machine.shell(&format!("dpkg -i {first}")).unwrap();
    let healthy = || machine.shell("portolan status");
    wait_for("both daemons", healthy).unwrap();
    assert_eq!(
        machine.shell("systemctl is-enabled portolan-proxy portolan-dns").unwrap(),
        "enabled\nenabled\n"
    );
    machine
        .shell(
            "dpkg -L portolan | grep -qx /usr/share/man/man1/portolan-trace.1.gz; portolan install \
        --runtime crio",
        )
        .unwrap();

    // Pods attached by the installed plugin, and a Service.
    let plugin = Plugin { binary: "/opt/cni/bin/portolan-cni".into(), node: machine.node.clone() };
    let conflist: serde_json::Value =
        serde_json::from_str(&machine.shell("cat /etc/cni/net.d/10-portolan.conflist").unwrap()).unwrap();
    let mut config = conflist["plugins"][0].clone();
    config["cniVersion"] = "1.0.0".into();
    config["name"] = "portolan".into();
    let network = Network::with_config(plugin, config);
    let (client, server) = (network.add("client").unwrap(), network.add("web-1").unwrap());
    client.netns.run(|| std::fs::write("/proc/sys/net/ipv4/tcp_tw_reuse", "1").unwrap()).unwrap();
    let listening = HostnameServer::start(&server, 8080).unwrap();
    machine
        .shell(&format!(
            "printf '{WEB}' > /etc/portolan/manifests/new; mv /etc/portolan/manifests/new \
        /etc/portolan/manifests/web.yaml"
        ))
        .unwrap();
    wait_for("the service", || client.ask("10.96.7.7:80")).unwrap();

    let old = machine.main_pid("portolan-proxy").unwrap();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let requests = scope.spawn(|| {
            let mut count = 0_u32;
            while !done.load(Ordering::Relaxed) {
                assert_eq!(client.ask("10.96.7.7:80").unwrap(), "web-1", "request {count}");
                count += 1;
            }
            count
        });
        machine.shell(&format!("dpkg -i {second}")).unwrap();
        machine.wait_for_hot_restart(old);
        done.store(true, Ordering::Relaxed);
        assert!(requests.join().unwrap() > 100);
    });
    assert_eq!(machine.shell("systemctl is-active portolan-proxy portolan-dns").unwrap(), "active\nactive\n");
    let program = machine.shell("readlink /proc/$(systemctl show -P MainPID portolan-proxy)/exe").unwrap();
    assert_eq!(program, "/usr/bin/portolan-proxy\n", "the program of the new package, not a deleted file");
    let again = machine.shell("systemctl show -P NRestarts portolan-proxy").unwrap();
    assert_eq!(again, "0\n", "a hot restart, not a restart by systemd");

    let refused = format!("{:#}", machine.shell("dpkg -r portolan 2>&1").unwrap_err());
    assert!(refused.contains("pods are attached") && refused.contains("default/web-1"), "{refused}");
    client.ask("10.96.7.7:80").unwrap();
    drop(listening);
    network.remove(&client).unwrap();
    network.remove(&server).unwrap();
    machine.shell("rm -r /etc/portolan/manifests/web.yaml /etc/netns; dpkg --purge portolan").unwrap();
    assert_same(&machine.state().unwrap(), &before);
}

#[test]
fn failed_reload_keeps_the_running_service() {
    let machine = Machine::boot().unwrap();
    let [package, _] = provide(&machine);
    machine.shell(&format!("dpkg -i {package}")).unwrap();
    wait_for("both daemons", || machine.shell("portolan status")).unwrap();
    let pid = machine.main_pid("portolan-proxy").unwrap();
    machine
        .shell("echo 'no-such-flag: 1' > /etc/portolan/config.yaml; systemctl reload portolan-proxy")
        .unwrap();
    // The next process logs the error and exits. After the file is fixed, a hot restart succeeds.
    wait_for("the refusal", || machine.shell("grep no-such-flag /run/systemd/services.log")).unwrap();
    machine.shell("echo > /etc/portolan/config.yaml").unwrap();
    assert_eq!(machine.main_pid("portolan-proxy").unwrap(), pid);
    machine.shell("systemctl reload portolan-proxy").unwrap();
    wait_for("the next proxy", || {
        ensure!(machine.main_pid("portolan-proxy")? != pid);
        machine.shell("systemctl is-active portolan-proxy")
    })
    .unwrap();
    // systemd restarts the proxy after a crash.
    let crashed = machine.main_pid("portolan-proxy").unwrap();
    machine.shell(&format!("kill -9 {crashed}")).unwrap();
    wait_for("the proxy after the crash", || {
        ensure!(machine.main_pid("portolan-proxy")? != crashed);
        machine.shell("portolan status")
    })
    .unwrap();
    // The daemons run under the restrictions of their units.
    let status = machine
        .shell("grep -E 'CapBnd|NoNewPrivs|Seccomp:' /proc/$(systemctl show -P MainPID portolan-dns)/status")
        .unwrap();
    assert!(status.contains("NoNewPrivs:\t1") && status.contains("Seccomp:\t2"), "{status}");
}

#[test]
fn units_are_valid_and_hardened() {
    let machine = Machine::boot().unwrap();
    let [package, _] = provide(&machine);
    machine.shell(&format!("dpkg -i {package}")).unwrap();
    for unit in ["portolan-proxy.service", "portolan-dns.service"] {
        let output = machine.shell(&format!("systemd-analyze verify {unit} 2>&1")).unwrap();
        assert_eq!(output, "", "{unit}");
        let score = machine
            .shell(&format!(
                "systemd-analyze security --offline=true /usr/lib/systemd/system/{unit} | tail -1"
            ))
            .unwrap();
        let quoted = include_str!("../../../docs/security.md");
        let score = score.split(": ").nth(1).unwrap().split(' ').next().unwrap().to_owned();
        let row = quoted.lines().find(|line| line.contains(unit) && line.contains(&format!("| {score} |")));
        assert!(row.is_some(), "docs/security.md quotes another score for {unit} than {score}");
    }
}
