use clap::Parser;
use tempfile::TempDir;

use super::*;

#[derive(Parser)]
struct Flags {
    #[command(flatten)]
    settings: Settings,
}

fn settings(flags: &str) -> Settings {
    let flags = ["portolan-proxy"].into_iter().chain(flags.split_whitespace());
    Flags::try_parse_from(flags).map(|flags| flags.settings).unwrap_or_else(|e| panic!("{e}"))
}

/// A kernel with the settings in `files` and two processors, and the settings of `flags`.
fn conntrack(files: &[(&str, &str)], flags: &str) -> (TempDir, Conntrack) {
    let directory = TempDir::new().unwrap();
    for (name, value) in files {
        fs::write(directory.path().join(name), format!("{value}\n")).unwrap();
    }
    let at = |name| directory.path().join(name);
    let files = Files { sysctls: at(""), hash_size: at("hashsize") };
    (directory, Conntrack { files, sysctls: settings(flags).sysctls(2), has_reported_absence: false })
}

fn value(directory: &TempDir, name: &str) -> u32 {
    read(&directory.path().join(name)).unwrap()
}

#[test]
fn limit_is_scaled_between_the_minimum_and_a_million() {
    let limit = |flags, processors| settings(flags).limit(processors);
    assert_eq!(limit("", 2), 131_072, "the minimum");
    assert_eq!(limit("", 8), 262_144, "32768 for each");
    assert_eq!(limit("", 512), 1_048_576, "not without end");
    assert_eq!(limit("--conntrack-max-per-core 4000000000", 4_000_000_000), 1_048_576);
    assert_eq!(limit("--conntrack-max-per-core 10 --conntrack-min 5", 2), 20);
    assert_eq!(
        limit("--conntrack-max-per-core 0 --conntrack-min 5", 2),
        0,
        "0 leaves it, whatever the minimum"
    );
}

#[test]
fn limit_is_raised_with_the_hash_table_and_never_lowered() {
    let (kernel, mut conntrack) = conntrack(&[("nf_conntrack_max", "65536"), ("hashsize", "16384")], "");
    conntrack.sysctls.truncate(1);
    conntrack.apply();
    assert_eq!((value(&kernel, "nf_conntrack_max"), value(&kernel, "hashsize")), (131_072, 32_768));

    let larger = [("nf_conntrack_max", "262144"), ("hashsize", "262144")];
    let (kernel, mut conntrack) = self::conntrack(&larger, "");
    conntrack.sysctls.truncate(1);
    conntrack.apply();
    assert_eq!((value(&kernel, "nf_conntrack_max"), value(&kernel, "hashsize")), (262_144, 262_144));
}

#[test]
fn hash_table_stays_if_the_limit_cannot_be_raised() {
    let (kernel, mut conntrack) = conntrack(&[("hashsize", "16384")], "");
    // A directory cannot be written, not even by root.
    fs::create_dir(kernel.path().join("nf_conntrack_max")).unwrap();
    conntrack.apply();
    assert_eq!(value(&kernel, "hashsize"), 16_384);
    assert!(conntrack.sysctls.is_empty(), "not tried again");
}

#[test]
fn settings_wait_for_conntrack_and_are_applied_once() {
    let timeout = "nf_conntrack_tcp_timeout_close_wait";
    let flags = "--conntrack-max-per-core 0 --conntrack-tcp-timeout-established 0";
    let (kernel, mut conntrack) = conntrack(&[(timeout, "60")], flags);
    conntrack.apply();
    assert_eq!(value(&kernel, timeout), 60, "no nf_conntrack_max, no conntrack");
    fs::write(kernel.path().join("nf_conntrack_max"), "262144").unwrap();
    conntrack.apply();
    assert_eq!(value(&kernel, timeout), 3600);
    fs::write(kernel.path().join(timeout), "100").unwrap();
    conntrack.apply();
    assert_eq!(value(&kernel, timeout), 100, "the administrator's");
}

#[test]
fn durations_are_seconds_or_written_as_for_kube_proxy() {
    for (text, expected) in [
        ("0", 0),
        ("3600", 3600),
        ("1h0m0s", 3600),
        ("24h0m0s", 86_400),
        ("90s", 90),
        ("1h30m", 5400),
        ("1500ms", 1),
    ] {
        assert_eq!(seconds(text), Ok(expected), "{text}");
    }
    for text in ["", "-1", "-1h", "soon", "1 fortnight", "2000000h"] {
        assert!(seconds(text).is_err(), "{text}");
    }
}

#[test]
fn liberal_mode_is_a_switch_that_takes_a_value() {
    for (flags, expected) in [
        ("", false),
        ("--conntrack-tcp-be-liberal", true),
        ("--conntrack-tcp-be-liberal=true", true),
        ("--conntrack-tcp-be-liberal=false", false),
    ] {
        assert_eq!(settings(flags).conntrack_tcp_be_liberal, expected, "{flags}");
    }
}

#[test]
fn processors_are_counted_from_the_kernels_list() {
    for (list, expected) in [("0", Some(1)), ("0-1", Some(2)), ("0-3,8", Some(5)), ("", None), ("3-0", None)]
    {
        assert_eq!(count(list), expected, "{list}");
    }
}
