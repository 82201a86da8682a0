//! Many pods at once, full disks, results that no process reads, nodes without the necessary features: P40,
//! P43, P44.

use std::collections::HashSet;
use std::io;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::{Value, json};

use crate::fixture::{Fixture, NOTHING, address, config, merge};

const PODS: usize = 300;

/// Commands under way at once: more than any runtime starts, and fewer than this machine has memory for.
const CONCURRENCY: usize = 60;

/// Calls `work` with each number, many at once.
fn at_once<T: Send>(count: usize, work: impl Fn(usize) -> T + Sync) -> Vec<T> {
    let next = AtomicUsize::new(0);
    let worker = || {
        let mut done = Vec::new();
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= count {
                return done;
            }
            done.push(work(number));
        }
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..CONCURRENCY).map(|_| scope.spawn(worker)).collect();
        workers.into_iter().flat_map(|worker| worker.join().unwrap()).collect()
    })
}

/// P43
#[test]
fn three_hundred_concurrent_pods_get_distinct_addresses_and_leave_nothing() {
    let fixture = Fixture::new();
    let large = merge(
        config("1.1.0"),
        json!({ "ipam": { "cooldown": 0, "ranges": [[{ "subnet": "10.22.0.0/22" }]] } }),
    );
    for number in 0..PODS {
        fixture.netns(&format!("pod{number}"));
    }
    let call = |command: &str, number: usize| {
        let id = format!("pod{number}");
        let answer = fixture.try_call(command, &id, &format!("/run/netns/{id}"), &large);
        answer.unwrap_or_else(|error| panic!("{command} {id}: {error}"))
    };
    let addresses: HashSet<String> =
        at_once(PODS, |number| call("ADD", number)).iter().map(address).collect();
    assert_eq!(addresses.len(), PODS);
    // Delete and add every other one while the rest stays.
    at_once(PODS, |number| {
        if number % 2 == 0 {
            call("DEL", number);
            call("ADD", number);
        }
    });
    let records =
        "cat /run/portolan/attachments/pods/*.json | grep -o '\"ips\":\\[\"[0-9.]*\"' | sort | uniq | wc -l";
    assert_eq!(fixture.node().shell(records).unwrap(), format!("{PODS}\n"));
    at_once(PODS, |number| call("DEL", number));
    assert_eq!(fixture.traces_of_pods(), NOTHING);
    assert_eq!(fixture.node().shell("ls /run/portolan/ipam/pods/owners").unwrap(), "");
}

/// Runs ADD as a runtime would, with this standard output.
fn add_into(fixture: &Fixture, script: &str) -> bool {
    let line = format!(
        "export CNI_COMMAND=ADD CNI_CONTAINERID=a CNI_NETNS=/run/netns/a CNI_IFNAME=eth0 CNI_PATH=/usr/lib/cni; {script}"
    );
    let status = fixture.node().run(|| {
        let mut child = Command::new("bash")
            .args(["-c", &line.replace("PLUGIN", &fixture.plugin.binary.display().to_string())])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        io::Write::write_all(&mut child.stdin.take().unwrap(), config("1.1.0").to_string().as_bytes())?;
        // No process reads the pipe.
        drop(child.stdout.take());
        child.wait()
    });
    status.unwrap().success()
}

/// P44
#[test]
fn add_is_undone_if_its_result_cannot_be_read() {
    let fixture = Fixture::new();
    fixture.netns("a");
    for script in ["PLUGIN >&-", "PLUGIN > /dev/full", "sleep 0.1; exec PLUGIN"] {
        assert!(!add_into(&fixture, script), "{script}");
        assert_eq!(fixture.traces_of_pods(), NOTHING, "{script}");
        assert!(!fixture.node().shell("ip -n a link").unwrap().contains("eth0"), "{script}");
    }
    assert!(add_into(&fixture, "PLUGIN > /run/result"));
    assert_eq!(fixture.json("cat /run/result")["ips"][0]["address"], "10.22.0.4/32");
}

/// P44
#[test]
fn add_on_a_full_disk_fails_and_leaves_nothing_and_del_succeeds() {
    let fixture = Fixture::new();
    fixture.node().shell("mount -t tmpfs -o size=64k tmpfs /run/portolan").unwrap();
    fixture.add("before", &config("1.1.0"));
    let before = fixture.traces_of_pods();
    fixture.netns("a");
    let (mut failed, mut pages) = (0, 0);
    // From no free space up to enough, page by page: ADD gets further each time.
    fixture.node().shell("dd if=/dev/zero of=/run/portolan/ballast bs=4k 2>/dev/null || true").unwrap();
    while let Err(error) = fixture.try_call("ADD", "a", "/run/netns/a", &config("1.1.0")) {
        assert!(error["msg"].as_str().unwrap().contains("No space left on device"), "{error}");
        assert_eq!(fixture.traces_of_pods(), before, "with {pages} pages free");
        assert!(!fixture.node().shell("ip -n a link").unwrap().contains("eth0"));
        fixture.node().shell("truncate -s -4k /run/portolan/ballast").unwrap();
        (failed, pages) = (failed + 1, pages + 1);
        assert!(pages < 16, "{error}");
    }
    assert!(failed > 1, "{failed}");
    fixture
        .node()
        .shell("dd if=/dev/zero of=/run/portolan/ballast bs=4k oflag=append conv=notrunc 2>/dev/null || true")
        .unwrap();
    for id in ["a", "before"] {
        fixture.quiet("DEL", id, &config("1.1.0"));
    }
    assert_eq!(fixture.traces_of_pods(), NOTHING);
}

/// P40
#[test]
fn status_names_what_the_node_lacks() {
    let fixture = Fixture::new();
    fixture.quiet("STATUS", "x", &config("1.1.0"));
    // strace simulates a kernel without nf_tables, which has no such netlink family.
    let script = format!(
        "#!/bin/sh\nexec strace -qq -o /dev/null -e inject=socket:error=EPROTONOSUPPORT:when=WHEN {}\n",
        fixture.plugin.binary.display()
    );
    let refused = |when: &str| {
        let path = std::path::Path::new("/run/lacking");
        fixture
            .node()
            .run(|| {
                std::fs::write(path, script.replace("WHEN", when))?;
                std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o755))
            })
            .unwrap();
        let plugin = testbed::Plugin { binary: path.into(), node: fixture.node().clone() };
        plugin.command("STATUS", "x", std::path::Path::new(""), &config("1.1.0")).unwrap().unwrap_err()
    };
    for when in ["1", "2"] {
        let error: Value = refused(when);
        assert_eq!(error["code"], 50, "{error}");
        assert!(error["msg"].as_str().unwrap().contains("Protocol not supported"), "{error}");
    }
    fixture.node().shell("rm -r /run/portolan/*; mount -t tmpfs -o ro tmpfs /run/portolan").unwrap();
    let (code, text) = fixture.refused("STATUS", "x", "", &config("1.1.0"));
    assert_eq!(code, 50);
    assert!(text.contains("/run/portolan/ipam/pods") && text.contains("Read-only file system"), "{text}");
    // For an exhausted pool see `exhausted_pool_fails_add_and_status_with_code_50`.
}
