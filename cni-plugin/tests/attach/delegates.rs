//! Other IPAM plugins, correct and faulty ones (CNI 1.1 §4).

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::fixture::{Fixture, NOTHING, config, merge};

/// Writes its input and environment to files, then does what `$answer` says.
const SCRIPT: &str = r#"#!/bin/sh
mkdir -p /run/fake/log
cat > /run/fake/log/stdin.$CNI_COMMAND
env > /run/fake/log/env.$CNI_COMMAND
[ "$CNI_COMMAND" = ADD ] || exit 0
"#;

const RESULT: &str = r#"echo '{"cniVersion":"1.1.0","ips":[{"address":"10.30.0.5/24","gateway":"10.30.0.1"}],"dns":{"nameservers":["10.30.0.2"]}}'"#;

/// Installs an IPAM plugin of that name with this answer to ADD.
fn add_delegate(fixture: &Fixture, name: &str, answer: &str) {
    let text = format!("{SCRIPT}{answer}\n");
    let write = || {
        let path = std::path::Path::new("/run/fake").join(name);
        std::fs::create_dir_all("/run/fake")?;
        std::fs::write(&path, text)?;
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755))
    };
    fixture.node().run(write).unwrap();
}

fn delegated(name: &str) -> Value {
    merge(
        config("1.1.0"),
        json!({ "ipam": { "type": name, "anything": [1, { "x": null }] }, "unknown": "key" }),
    )
}

fn call(fixture: &Fixture, command: &str, config: &Value) -> Result<Value, Value> {
    let variables = [
        ("CNI_COMMAND", command),
        ("CNI_CONTAINERID", "a"),
        ("CNI_NETNS", "/run/netns/a"),
        ("CNI_IFNAME", "eth0"),
        ("CNI_PATH", "/nowhere:/run/fake"),
        ("CNI_ARGS", "IgnoreUnknown=1;K8S_POD_NAME=web-0;X=y"),
        ("TRACEPARENT", "00-1-2-01"),
    ];
    fixture.plugin.call(&variables, &config.to_string()).unwrap()
}

/// The input of the delegate for a command.
fn stdin(fixture: &Fixture, command: &str) -> Value {
    fixture.json(&format!("cat /run/fake/log/stdin.{command}"))
}

fn assert_nothing_left(fixture: &Fixture) {
    assert_eq!(fixture.traces_of_pods(), NOTHING);
    assert!(!fixture.node().shell("ip -n a link").unwrap().contains("eth0"));
}

/// P27, P39
#[test]
fn delegate_gets_the_complete_input_and_environment_with_each_command() {
    let fixture = Fixture::new();
    fixture.netns("a");
    add_delegate(&fixture, "fake", RESULT);
    let config = delegated("fake");
    let result = call(&fixture, "ADD", &config).unwrap();
    assert_eq!(result["ips"][0]["address"], "10.30.0.5/32");
    assert_eq!(result["dns"], json!({ "nameservers": ["10.30.0.2"] }));
    let checked = merge(config.clone(), json!({ "prevResult": result }));
    let collected = merge(
        config.clone(),
        json!({ "cni.dev/valid-attachments": [{ "containerID": "a", "ifname": "eth0" }] }),
    );
    // CHECK compares with the delegate's result, not with the one that mode `routed` made of it.
    let mut own = checked.clone();
    own["prevResult"]["ips"] = json!([{ "address": "10.30.0.5/24", "gateway": "10.30.0.1", "interface": 1 }]);
    own["prevResult"]["routes"] = json!([]);
    for (command, input, given) in [
        ("CHECK", &checked, &own),
        ("STATUS", &config, &config),
        ("GC", &collected, &collected),
        ("DEL", &config, &config),
    ] {
        assert_eq!(call(&fixture, command, input), Ok(Value::Null), "{command}");
        assert_eq!(stdin(&fixture, command), *given, "{command}");
    }
    assert_eq!(stdin(&fixture, "ADD"), config);
    for command in ["ADD", "DEL"] {
        let environment = fixture.node().shell(&format!("cat /run/fake/log/env.{command}")).unwrap();
        for expected in [
            &*format!("CNI_COMMAND={command}"),
            "CNI_CONTAINERID=a",
            "CNI_NETNS=/run/netns/a",
            "CNI_IFNAME=eth0",
            "CNI_PATH=/nowhere:/run/fake",
            "CNI_ARGS=IgnoreUnknown=1;K8S_POD_NAME=web-0;X=y",
            "TRACEPARENT=00-1-2-01",
        ] {
            assert!(
                environment.lines().any(|line| line == expected),
                "{command}: {expected} is not in {environment}"
            );
        }
    }
    assert_nothing_left(&fixture);
}

/// P26, P27
#[test]
fn delegate_gets_del_when_a_later_step_of_add_fails() {
    let fixture = Fixture::new();
    fixture.netns("a");
    add_delegate(&fixture, "fake", RESULT);
    // A gateway that the pod cannot reach: the kernel refuses the route after links and addresses were
    // created.
    let mut config = delegated("fake");
    config["ipam"]["routes"] = json!([{ "dst": "10.9.0.0/16", "gw": "10.8.0.1" }]);
    let error = call(&fixture, "ADD", &config).unwrap_err();
    assert!(error["msg"].as_str().unwrap().contains("add route 10.9.0.0/16"), "{error}");
    assert_eq!(stdin(&fixture, "DEL"), config);
    assert_nothing_left(&fixture);
}

/// P28
#[test]
fn error_of_a_delegate_is_reported_and_add_is_undone() {
    let fixture = Fixture::new();
    fixture.netns("a");
    for (name, answer, code, expected) in [
        ("garbage", "echo certainly", 100, "its result is not JSON: certainly"),
        ("nothing", "exit 0", 100, "its result is not JSON"),
        ("addressless", "echo '{\"ips\": []}'", 7, "gave no address"),
        ("wrong", "echo '{\"ips\": [{\"address\": \"10.30.0.5\"}]}'", 6, "10.30.0.5"),
        ("telling", "echo '{\"code\": 123, \"msg\": \"no lease\"}'; exit 1", 123, "telling ADD: no lease"),
        ("silent", "exit 3", 100, "exit status: 3"),
        ("stopped", "kill -9 $$", 100, "signal: 9"),
    ] {
        add_delegate(&fixture, name, answer);
        let error = call(&fixture, "ADD", &delegated(name)).unwrap_err();
        assert_eq!(error["code"], code, "{name}: {error}");
        assert!(error["msg"].as_str().unwrap().contains(expected), "{name}: {error}");
        assert_eq!(stdin(&fixture, "DEL"), delegated(name), "{name}");
        assert_nothing_left(&fixture);
    }
    for (name, expected) in
        [("missing", "not found in CNI_PATH (/nowhere:/run/fake)"), ("../sh", "is not a plugin's name")]
    {
        let error = call(&fixture, "ADD", &delegated(name)).unwrap_err();
        assert!(error["msg"].as_str().unwrap().contains(expected), "{error}");
        assert_nothing_left(&fixture);
    }
}

/// P28
#[test]
fn hanging_delegate_is_killed_before_the_runtime_times_out() {
    let fixture = Fixture::new();
    fixture.netns("a");
    add_delegate(&fixture, "hanging", "exec sleep 1000");
    let start = Instant::now();
    let error = call(&fixture, "ADD", &delegated("hanging")).unwrap_err();
    assert!(error["msg"].as_str().unwrap().contains("no answer after 20s, stopped"), "{error}");
    assert!(start.elapsed() < Duration::from_secs(55), "{:?}", start.elapsed());
    assert_eq!(stdin(&fixture, "DEL"), delegated("hanging"));
    assert_nothing_left(&fixture);
}

/// P29
#[test]
fn failed_del_of_a_delegate_is_reported_and_everything_else_is_removed() {
    let fixture = Fixture::new();
    fixture.netns("a");
    add_delegate(&fixture, "fake", RESULT);
    call(&fixture, "ADD", &delegated("fake")).unwrap();
    let refusing = "#!/bin/sh\necho '{\"code\": 11, \"msg\": \"later\"}'; exit 1\n";
    fixture.node().run(|| std::fs::write("/run/fake/fake", refusing)).unwrap();
    let error = call(&fixture, "DEL", &delegated("fake")).unwrap_err();
    assert_eq!(
        (&error["code"], error["msg"].as_str().unwrap().contains("DEL: later")),
        (&json!(11), true),
        "{error}"
    );
    assert_nothing_left(&fixture);
}

/// The configuration no longer names the delegate, so DEL uses the record of the ADD.
#[test]
fn record_of_a_delegate_stays_until_its_del_succeeds() {
    for command in ["DEL", "GC"] {
        let fixture = Fixture::new();
        fixture.netns("a");
        add_delegate(&fixture, "fake", RESULT);
        call(&fixture, "ADD", &delegated("fake")).unwrap();
        let refusing = "#!/bin/sh\necho '{\"code\": 11, \"msg\": \"later\"}'; exit 1\n";
        fixture.node().run(|| std::fs::write("/run/fake/fake", refusing)).unwrap();
        let other = merge(config("1.1.0"), json!({ "cni.dev/valid-attachments": [] }));
        for _ in 0..2 {
            let error = call(&fixture, command, &other).unwrap_err();
            assert!(error["msg"].as_str().unwrap().contains("DEL: later"), "{command}: {error}");
        }
        add_delegate(&fixture, "fake", RESULT);
        assert_eq!(call(&fixture, command, &other), Ok(Value::Null));
        assert_eq!(stdin(&fixture, "DEL"), delegated("fake"), "{command}");
        assert_nothing_left(&fixture);
    }
}
