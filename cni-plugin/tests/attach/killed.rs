//! `kill -9` before every system call of ADD and of DEL that may change something. That covers every instant,
//! because nothing changes between two of them. strace injects the signal, so the shipped binary is tested.

use std::path::Path;

use serde_json::{Value, json};
use testbed::Plugin;

use crate::fixture::{Fixture, NOTHING, config, merge};

/// The signal arrives before the call. Between two of these calls nothing changes that outlives the process.
const CHANGES: [&str; 11] = [
    "openat",
    "write",
    "pwrite64",
    "ftruncate",
    "mkdir",
    "rename",
    "unlink",
    "unlinkat",
    "rmdir",
    "sendto",
    "exit_group",
];

fn dual() -> Value {
    let ranges = json!([[{ "subnet": "10.22.0.0/28" }], [{ "subnet": "fd00:22::/64" }]]);
    let ports = json!([{ "hostPort": 8080, "containerPort": 80, "protocol": "tcp" }]);
    merge(
        config("1.1.0"),
        json!({
            "ipam": { "ranges": ranges, "cooldown": 0 }, "runtimeConfig": { "portMappings": ports },
        }),
    )
}

/// The plugin under strace with these options.
pub(crate) fn traced(fixture: &Fixture, options: &str) -> Plugin {
    let script = Path::new("/run/traced");
    let plugin = fixture.plugin.binary.display();
    // Another process writes the script: a file that this process has open for writing is inherited by what a
    // parallel test starts, and cannot be executed meanwhile.
    let line = format!("exec /usr/bin/strace -qq {options} {plugin}");
    let write = format!("printf '#!/bin/sh\\n%s\\n' '{line}' > {0}; chmod +x {0}", script.display());
    fixture.node().shell(&write).unwrap();
    Plugin { binary: script.into(), node: fixture.node().clone() }
}

/// As bridge ports with macspoofchk and limits.
fn bridged() -> Value {
    let bridge = json!({
        "mode": "bridge", "bridge": "br0", "isDefaultGateway": true, "ipMasq": true, "hairpinMode": true,
        "macspoofchk": true,
    });
    let mut config = merge(dual(), bridge);
    config["runtimeConfig"]["bandwidth"] = json!({ "ingressRate": 8_000_000, "egressRate": 8_000_000 });
    config
}

fn call(plugin: &Plugin, command: &str, config: &Value) -> Result<Value, Value> {
    plugin.command(command, "a", Path::new("/run/netns/a"), config).unwrap()
}

/// The system calls of a command: the name of each, and its ordinal among those of that name.
pub(crate) fn system_calls(fixture: &Fixture, command: &str, config: &Value) -> Vec<(String, usize)> {
    call(&traced(fixture, "-o /run/trace"), command, config).unwrap();
    // The kernel restarts a write to a sysctl while another process holds the RTNL lock.
    let trace = fixture.node().shell("grep -v ERESTARTNOINTR /run/trace").unwrap();
    let mut names: Vec<String> = Vec::new();
    let mut calls: Vec<(String, usize)> = Vec::new();
    for name in trace.lines().filter_map(|line| Some(line.split_once('(')?.0.to_owned())) {
        // Waits for kernel workers repeat a request a varying number of times.
        if name == "clock_nanosleep" {
            let request = names.iter().rposition(|name| name == "sendto").unwrap();
            names.remove(request);
            calls.remove(request);
            continue;
        }
        calls.push((name.clone(), names.iter().filter(|other| **other == name).count() + 1));
        names.push(name);
    }
    // Calls before it reads its input belong to the loader.
    let start = trace.lines().position(|line| line.starts_with("read(0")).unwrap();
    assert!(calls.len() > start + 40, "{trace}");
    calls.split_off(start).into_iter().filter(|(name, _)| CHANGES.contains(&&**name)).collect()
}

/// A node that never had a pod, and a namespace for its first.
fn fresh() -> Fixture {
    let fixture = Fixture::new();
    fixture.netns("a");
    fixture
}

fn collect(fixture: &Fixture, config: &Value) {
    fixture.quiet("GC", "x", &merge(config.clone(), json!({ "cni.dev/valid-attachments": [] })));
}

/// P42. DEL cleans up every other time; otherwise GC, which also removes the tables and the bridge. `before`
/// prepares the node for the command.
fn kill_at_each_system_call(command: &str, before: &[&str], config: &Value) {
    let mut fixture = fresh();
    let prepare = |fixture: &Fixture| {
        before.iter().for_each(|command| drop(call(&fixture.plugin, command, config).unwrap()));
    };
    prepare(&fixture);
    let calls = system_calls(&fixture, command, config);
    collect(&fixture, config);
    let mut survived = Vec::new();
    for (number, (name, nth)) in calls.iter().enumerate() {
        // GC leaves directories. An ADD that finds them makes a fifth fewer calls.
        if before.is_empty() {
            fixture = fresh();
        }
        prepare(&fixture);
        // A separate file, so that it exists only if this strace wrote it.
        let trace = format!("/run/trace-{number}");
        let options = format!("-o {trace} -e trace=all -e inject={name}:signal=KILL:when={nth}");
        let outcome = call(&traced(&fixture, &options), command, config);
        let end = fixture.node().shell(&format!("tail -n 1 {trace}")).unwrap();
        if end != "+++ killed by SIGKILL +++\n" {
            assert!(outcome.is_ok(), "{command} not killed at {name} number {nth}: {outcome:?}, {end}");
            survived.push((name, nth));
        }
        if number % 2 == 0 {
            fixture.quiet("DEL", "a", config);
            fixture.node().shell("ip link del br0 2>/dev/null || true").unwrap();
            assert_eq!(
                fixture.traces_of_pods(),
                NOTHING,
                "{command} killed at {name} number {nth}, then DEL"
            );
        }
        collect(&fixture, config);
        let left = fixture.traces() + &fixture.traces_of_pods();
        assert_eq!(left, NOTHING.repeat(2), "{command} killed at {name} number {nth}, then GC");
    }
    // Waiting for a lock takes a varying number of calls: a few runs may complete without being killed.
    let most = calls.len() / 20;
    assert!(survived.len() <= most, "{command} of {} calls not killed at {survived:?}", calls.len());
}

/// With masquerading, host ports and limits: no `nft`, `iptables` or `tc`.
#[test]
fn add_and_del_start_no_other_program() {
    let fixture = Fixture::new();
    fixture.netns("a");
    for config in [dual(), bridged()] {
        for command in ["ADD", "DEL"] {
            call(&traced(&fixture, "-f -e trace=execve,execveat -o /run/trace"), command, &config).unwrap();
            let trace = fixture.node().shell("cat /run/trace").unwrap();
            let calls = trace.lines().filter(|line| line.contains('('));
            assert_eq!(calls.count(), 1, "the plugin's own start alone: {trace}");
        }
    }
}

#[test]
fn first_add_killed_anywhere_leaves_nothing_after_del_or_gc() {
    kill_at_each_system_call("ADD", &[], &dual());
}

#[test]
fn later_add_killed_anywhere_leaves_nothing_after_del_or_gc() {
    kill_at_each_system_call("ADD", &["ADD", "DEL"], &dual());
}

#[test]
fn del_killed_anywhere_is_completed_by_the_next_del_or_gc() {
    kill_at_each_system_call("DEL", &["ADD"], &dual());
}

#[test]
fn bridged_add_killed_anywhere_leaves_nothing_after_del_or_gc() {
    kill_at_each_system_call("ADD", &[], &bridged());
}

#[test]
fn bridged_del_killed_anywhere_is_completed_by_the_next_del_or_gc() {
    kill_at_each_system_call("DEL", &["ADD"], &bridged());
}
