//! The protocol without a container: environment, configuration, versions, errors (CNI 1.1 §2, §5).

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::io::Write as _;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

const VERSIONS: [&str; 7] = ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

struct Outcome {
    success: bool,
    stdout: String,
    stderr: String,
}

impl Outcome {
    /// A failure prints exactly one object, with version, code and message.
    fn error(&self) -> (u64, String) {
        assert!(!self.success, "succeeded: {}", self.stdout);
        let error: Value =
            serde_json::from_str(&self.stdout).unwrap_or_else(|e| panic!("{e}: {:?}", self.stdout));
        assert!(error["cniVersion"].is_string(), "{error}");
        let text =
            format!("{} {}", error["msg"].as_str().unwrap(), error["details"].as_str().unwrap_or_default());
        (error["code"].as_u64().unwrap(), text)
    }
}

fn run(variables: &[(&str, &str)], input: &[u8]) -> Outcome {
    let mut child = Command::new(env!("CARGO_BIN_EXE_portolan-cni"))
        .env_clear()
        .envs(variables.iter().copied())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // It fails if the plugin exits without reading its input.
    let _ = child.stdin.take().unwrap().write_all(input);
    let output = child.wait_with_output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    Outcome { success: output.status.success(), stdout: text(output.stdout), stderr: text(output.stderr) }
}

fn container(command: &str) -> Vec<(&str, &str)> {
    vec![
        ("CNI_COMMAND", command),
        ("CNI_CONTAINERID", "c1"),
        ("CNI_NETNS", "/run/netns/nowhere"),
        ("CNI_IFNAME", "eth0"),
        ("CNI_PATH", "/usr/lib/cni"),
    ]
}

fn with<'a>(command: &'a str, name: &'a str, value: &'a str) -> Vec<(&'a str, &'a str)> {
    let mut variables: Vec<_> = container(command).into_iter().filter(|(key, _)| *key != name).collect();
    variables.push((name, value));
    variables
}

/// The state directory does not exist, so that no test can change the machine's state.
fn config(version: &str) -> Value {
    json!({
        "cniVersion": version, "name": "pods", "type": "portolan-cni", "stateDir": "/proc/portolan-test",
        "ipam": { "ranges": [[{ "subnet": "10.22.0.0/24" }]] },
    })
}

fn call(command: &str, config: &Value) -> Outcome {
    run(&container(command), config.to_string().as_bytes())
}

/// P1
#[test]
fn started_without_cni_command_it_prints_what_it_is() {
    let outcome = run(&[], b"");
    assert!(outcome.success && outcome.stdout.is_empty());
    assert!(VERSIONS.iter().all(|v| outcome.stderr.contains(v)), "{}", outcome.stderr);
}

/// P2
#[test]
fn unknown_command_is_code_4() {
    for command in ["FOO", "add", "ADD "] {
        assert_eq!(call(command, &config("1.1.0")).error().0, 4);
    }
}

/// P3
#[test]
fn error_names_all_missing_variables() {
    let (code, text) = run(&[("CNI_COMMAND", "ADD")], config("1.1.0").to_string().as_bytes()).error();
    assert_eq!(code, 4);
    assert!(["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"].iter().all(|name| text.contains(name)), "{text}");
}

/// P4, P5
#[test]
fn invalid_names_are_code_4() {
    let config = config("1.1.0").to_string();
    for id in ["_x", "a/b", "../x", ""] {
        assert_eq!(run(&with("ADD", "CNI_CONTAINERID", id), config.as_bytes()).error().0, 4, "{id}");
    }
    for ifname in ["sixteen-bytes-xx", ".", "..", "a/b", "a:b", "a b"] {
        assert_eq!(run(&with("ADD", "CNI_IFNAME", ifname), config.as_bytes()).error().0, 4, "{ifname}");
    }
}

/// P6, P45
#[test]
fn input_that_is_not_a_json_object_is_code_6_however_large_or_deep() {
    let deep = "[".repeat(10_000);
    let large = format!("{{\"x\": \"{}\"", "y".repeat(20 << 20));
    for input in [&b""[..], b"{", b"[]", b"\xff\xfe", deep.as_bytes(), large.as_bytes()] {
        assert_eq!(run(&container("ADD"), input).error().0, 6, "{} bytes", input.len());
    }
}

/// P45
#[test]
fn ten_megabytes_of_json_are_read() {
    let mut large = config("1.1.0");
    large["x"] = "y".repeat(10 << 20).into();
    // The configuration is parsed; the error is about the missing namespace.
    assert_eq!(call("ADD", &large).error().0, 3);
    let mut deep = config("1.1.0").to_string();
    deep.truncate(deep.len() - 1);
    let deep = format!("{deep}, \"x\": {}1{} }}", "[".repeat(10_000), "]".repeat(10_000));
    assert_eq!(run(&container("ADD"), deep.as_bytes()).error().0, 6);
}

/// P7
#[test]
fn network_without_a_name_is_refused() {
    for name in [Value::Null, json!(""), json!("-x"), json!("a b"), json!("a/b")] {
        let mut config = config("1.1.0");
        config["name"] = name;
        assert_eq!(call("ADD", &config).error().0, 7);
    }
}

/// P8, P9, P10
#[test]
fn unsupported_version_is_code_1_and_lists_the_supported_ones() {
    for version in ["0.9.9", "1.1", "1.2.0", "9.0.0", "abc", "0.3.2"] {
        let (code, text) = call("ADD", &config(version)).error();
        assert_eq!(code, 1, "{version}");
        assert!(VERSIONS.iter().all(|v| text.contains(v)) && text.contains(version), "{text}");
    }
    // No version means 0.1.0, which has no CHECK.
    let mut absent = config("1.1.0");
    absent.as_object_mut().unwrap().remove("cniVersion");
    assert_eq!(call("CHECK", &absent).error().0, 1);
    absent["cniVersion"] = json!(1.1);
    assert_eq!(call("ADD", &absent).error().0, 6);
}

/// P11
#[test]
fn version_is_printed_while_the_input_stays_open() {
    let mut child = Command::new(env!("CARGO_BIN_EXE_portolan-cni"))
        .env_clear()
        .env("CNI_COMMAND", "VERSION")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let input = child.stdin.take();
    let deadline = Instant::now() + Duration::from_secs(10);
    while child.try_wait().unwrap().is_none() {
        assert!(Instant::now() < deadline, "VERSION waits for its input");
        std::thread::sleep(Duration::from_millis(1));
    }
    drop(input);
    let answer: Value = serde_json::from_slice(&child.wait_with_output().unwrap().stdout).unwrap();
    assert_eq!(answer["supportedVersions"], json!(VERSIONS));
}

/// P12
#[test]
fn version_needs_no_other_variable() {
    assert!(run(&[("CNI_COMMAND", "VERSION")], b"{\"cniVersion\": \"0.4.0\"}").success);
}

/// P13, P14
#[test]
fn commands_of_later_versions_are_refused() {
    for (command, versions) in [("CHECK", &VERSIONS[..4]), ("GC", &VERSIONS[..6]), ("STATUS", &VERSIONS[..6])]
    {
        for version in versions {
            assert_eq!(call(command, &config(version)).error().0, 1, "{command} {version}");
        }
    }
}

/// P15, P16
#[test]
fn check_without_prev_result_and_a_malformed_prev_result_are_refused() {
    assert_eq!(call("CHECK", &config("1.1.0")).error().0, 7);
    let mut config = config("1.1.0");
    config["prevResult"] = json!("nonsense");
    assert_eq!(call("CHECK", &config).error().0, 6);
}

/// P17
#[test]
fn cni_args_are_pairs_and_unknown_keys_need_ignore_unknown() {
    let config = config("1.1.0").to_string();
    for args in ["A", "A=B=C", "FOO=1", "IgnoreUnknown=0;FOO=1"] {
        assert_eq!(run(&with("ADD", "CNI_ARGS", args), config.as_bytes()).error().0, 4, "{args}");
    }
}

#[test]
fn configuration_errors_name_field_and_value() {
    for (patch, expected) in [
        (json!({ "mode": "tunnel" }), "mode: \"tunnel\" is not \"routed\" or \"bridge\""),
        (json!({ "bridge": "a/b" }), "bridge: \"a/b\": a bridge's name has 1 to 15 bytes"),
        (json!({ "hairpinMode": true, "promiscMode": true }), "hairpinMode and promiscMode are both true"),
        (json!({ "mtu": 12 }), "mtu: 12 is not between 68 and 65535"),
        (
            json!({ "nonMasqueradeCIDRs": ["10.0.0.1/8"] }),
            "nonMasqueradeCIDRs[0]: \"10.0.0.1/8\" has host bits set",
        ),
        (json!({ "ipam": {} }), "ipam.ranges is missing"),
        (json!({ "runtimeConfig": { "mac": "01:00:00:00:00:00" } }), "is not a unicast MAC address"),
        (
            json!({ "runtimeConfig": { "ips": ["10.22.0"] } }),
            "runtimeConfig.ips: \"10.22.0\" is not an IP address",
        ),
    ] {
        let mut config = config("1.1.0");
        config.as_object_mut().unwrap().extend(patch.as_object().unwrap().clone());
        let (code, text) = call("ADD", &config).error();
        assert_eq!(code, 7, "{text}");
        assert!(text.contains(expected), "{text}\ndoes not have\n{expected}");
    }
}
