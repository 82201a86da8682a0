//! Runs the program: a measurement, its report, and error cases.

#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

use std::collections::HashSet;
use std::io::{BufRead as _, BufReader, Lines};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, Output, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use portolan_bench::Record;

const PROGRAM: &str = env!("CARGO_BIN_EXE_portolan-bench");

fn run(arguments: &[&str]) -> Output {
    Command::new(PROGRAM).args(arguments).output().unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn report_of_a_run_is_self_contained() {
    let directory = tempfile::tempdir().unwrap();
    let (results, page) = (directory.path().join("run"), directory.path().join("report.html"));
    let measured = run(&["latency", "--rounds", "1", "--only", "rr,cold,open", "--out", text(&results)]);
    assert!(measured.status.success(), "{}", stderr(&measured));
    let record = Record::read(&results.join("latency.json")).unwrap();
    let loads: Vec<&str> = record.comparisons.iter().map(|comparison| comparison.title.as_str()).collect();
    for load in ["RR", "RR 1 B", "RR 65536 B", "RR x16", "cold", "open loop 1000/s", "open loop 8000/s"] {
        assert!(loads.contains(&load), "{load} in {loads:?}");
    }
    assert!(record.comparisons.iter().flat_map(|comparison| &comparison.paths).all(|path| path.requests > 0));
    assert!(results.join("latency-rr-direct.hlog").is_file() && results.join("latency-blocks.csv").is_file());
    let reported = run(&["report", "--in", text(&results), "--out", text(&page)]);
    assert!(reported.status.success(), "{}", stderr(&reported));
    let html = std::fs::read_to_string(&page).unwrap();
    for part in
        ["<h1>", "a Service", "<svg", "ADD p50", "not in this run: proxy, dns, cni, scale", &record.command]
    {
        assert!(html.contains(part), "{part}");
    }
    for foreign in ["<script", "src=", "href=", "NaN", ">inf<"] {
        assert!(!html.contains(foreign), "{foreign}");
    }
}

#[test]
fn interrupted_run_keeps_partial_results_and_leaves_no_process() {
    let directory = tempfile::tempdir().unwrap();
    // Each load is announced: once the second one is, the first one is complete.
    let arguments = ["latency", "--rounds", "2", "--only", "rr,open", "--out", text(directory.path())];
    let (mut child, stderr, daemons) = begin(&arguments, "RR 1 B");
    kill(pid(&child), Signal::SIGINT).unwrap();
    let lines: Vec<String> = stderr.map_while(Result::ok).collect();
    assert!(!child.wait().unwrap().success());
    assert!(lines.iter().any(|line| line.contains("results are partial")), "{lines:?}");
    let record = Record::read(&directory.path().join("latency.json")).unwrap();
    assert!(record.comparison("RR").is_some() && record.comparison("open loop 8000/s").is_none());
    assert!(record.interrupted.unwrap().contains("signal"));
    for daemon in daemons {
        assert!(!Path::new("/proc").join(&daemon).exists(), "process {daemon} still exists");
    }
}

/// The first signal alone, here SIGHUP of a closed terminal, would end the run in order.
#[test]
fn second_signal_kills_the_run_and_all_its_children_at_once() {
    let (mut child, _stderr, daemons) = begin(&["latency", "--rounds", "2", "--only", "rr"], "RR,");
    let network = |process: &str| std::fs::read_link(format!("/proc/{process}/ns/net")).ok();
    let networks: HashSet<PathBuf> = daemons.iter().filter_map(|daemon| network(daemon)).collect();
    assert!(networks.len() >= 3 && !networks.contains(&network("self").unwrap()), "{networks:?}");
    // Both signals are pending when the process continues: the first alone might end it before the second
    // arrives.
    for signal in [Signal::SIGSTOP, Signal::SIGHUP, Signal::SIGINT, Signal::SIGCONT] {
        kill(pid(&child), signal).unwrap();
    }
    assert_eq!(child.wait().unwrap().code(), Some(130));
    let left = || -> Vec<String> {
        let processes = std::fs::read_dir("/proc").unwrap().flatten();
        let names = processes.filter_map(|entry| entry.file_name().into_string().ok());
        names.filter(|name| network(name).is_some_and(|own| networks.contains(&own))).collect()
    };
    // Killed processes exit when they are next scheduled.
    let deadline = Instant::now() + Duration::from_secs(10);
    while !left().is_empty() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(left(), Vec::<String>::new(), "processes are left in the namespaces of the run");
}

/// Starts a run and waits for an announcement. Returns the run, its further output and the daemons that it
/// has started.
fn begin(arguments: &[&str], announced: &str) -> (Child, Lines<BufReader<ChildStderr>>, Vec<String>) {
    let mut run = Command::new(PROGRAM);
    let mut child = run.args(arguments).stderr(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    assert!(lines.by_ref().map_while(Result::ok).any(|line| line.starts_with(announced)));
    let daemons = children(pid(&child));
    assert!(daemons.len() >= 6, "a proxy and a DNS server on each of three nodes: {daemons:?}");
    (child, lines, daemons)
}

fn pid(child: &Child) -> Pid {
    Pid::from_raw(i32::try_from(child.id()).unwrap())
}

/// Returns the child processes of all threads of a process.
fn children(pid: Pid) -> Vec<String> {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten();
    let of = |thread: std::fs::DirEntry| {
        std::fs::read_to_string(thread.path().join("children")).unwrap_or_default()
    };
    threads.map(of).collect::<String>().split_whitespace().map(str::to_owned).collect()
}

#[test]
fn missing_privilege_is_reported_with_the_fix() {
    let limited = Command::new("setpriv")
        .args(["--bounding-set", "-sys_admin", PROGRAM, "latency", "--quick"])
        .output()
        .unwrap();
    assert!(!limited.status.success());
    assert!(stderr(&limited).contains("run it as root"), "{}", stderr(&limited));
}

#[test]
fn missing_peer_is_skipped_and_the_record_says_how_to_install_it() {
    let script = format!("mount -t tmpfs none /usr/lib/nginx; {}", without("nft"));
    let record = run_after(&script, "proxy --rounds 1 --only rr");
    assert_missing(&record, &[("nginx", "nginx-light libnginx-mod-stream"), ("nftables", "nftables")]);
    let rr = record.comparison("RR").unwrap();
    assert!(rr.path("HAProxy").is_some() && rr.path("nginx").is_none() && rr.path("nftables").is_none());
}

#[test]
fn without_reference_plugins_portolan_cni_is_measured_alone() {
    let peers = ["reference bridge", "reference ptp"].map(|peer| (peer, "containernetworking-plugins"));
    let latency = run_after("mount -t tmpfs none /usr/lib/cni", "latency --rounds 1 --only rr");
    assert_missing(&latency, &peers);
    let rr = latency.comparison("RR").unwrap();
    assert!(rr.path("bridge mode").is_some() && rr.path("VXLAN").is_some());
    assert!(rr.path("reference bridge").is_none() && rr.path("reference ptp").is_none());
    let cni = run_after("mount -t tmpfs none /usr/lib/cni", "cni --quick");
    assert_missing(&cni, &peers);
    let figure = |id: &str| cni.figures.iter().find(|figure| figure.id == id).unwrap().measured;
    assert!(figure("del-kernel").is_some() && figure("burst-failures").is_some());
    assert!(figure("add-bridge").is_none() && figure("add-ptp").is_none() && figure("burst-rate").is_none());
}

/// Returns a script that hides one program in the current mount namespace.
fn without(program: &str) -> String {
    format!(
        "mount -t tmpfs none /mnt; mkdir /mnt/upper /mnt/work\n\
         mount -t overlay none -o lowerdir=/usr/sbin,upperdir=/mnt/upper,workdir=/mnt/work /usr/sbin\n\
         rm /usr/sbin/{program}\n"
    )
}

/// Runs a script and then a measurement in a private mount namespace. Returns the record.
fn run_after(script: &str, arguments: &str) -> Record {
    let file = tempfile::NamedTempFile::new().unwrap();
    let script = format!("{script}\nexec {PROGRAM} {arguments} --json {}", file.path().display());
    let output = Command::new("unshare").args(["-m", "sh", "-ec", &script]).output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    Record::read(file.path()).unwrap()
}

fn assert_missing(record: &Record, peers: &[(&str, &str)]) {
    for (peer, packages) in peers {
        let note =
            format!("{peer}: not installed; `apt-get install --no-install-recommends {packages}` as root");
        assert!(record.not_measured.contains(&note), "{note} in {:?}", record.not_measured);
    }
}

#[test]
fn missing_results_are_reported_with_the_command_that_creates_them() {
    let directory = tempfile::tempdir().unwrap();
    let output = run(&["report", "--in", text(directory.path()), "--out", "/dev/null"]);
    assert!(!output.status.success());
    assert!(stderr(&output).contains("portolan-bench all --quick --out"), "{}", stderr(&output));
}

/// Uses a debug build of the server: the figures are not meaningful, but the procedure is.
#[test]
fn dns_servers_are_compared_and_missing_ones_are_reported() {
    let script = without("unbound") + "export PORTOLAN_TOOLS=/mnt";
    let record = run_after(&script, "dns --rounds 1 --only hits,missing,half-load,overload");
    assert_missing(&record, &[("unbound", "unbound")]);
    let notes = &record.not_measured;
    assert!(notes.iter().any(|note| note.contains("CoreDNS: not built; `make tools`")), "{notes:?}");
    for title in ["hits", "NXDOMAIN", "half load"] {
        let comparison = record.comparison(title).unwrap();
        let peers = ["portolan-dns", "portolan-dns again", "knotd", "hickory"];
        let measured = if title == "NXDOMAIN" { 3 } else { 4 };
        for server in &peers[..measured] {
            assert!(comparison.path(server).unwrap().requests > 0, "{title}: {server}");
        }
        assert!(comparison.path("CoreDNS").is_none());
    }
    // On a busy machine the server may get no CPU time.
    let has_tenth = !notes.iter().any(|note| note.starts_with("overload: "));
    let figures =
        ["udp-knotd", "udp-hickory", "cpu-knotd", "nxdomain", "dnsperf", "half-load", "overload-rate"];
    for figure in figures.iter().filter(|figure| has_tenth || **figure != "overload-rate") {
        let figure = record.figures.iter().find(|known| known.id == *figure).unwrap();
        assert!(figure.measured.is_some_and(|measured| measured.value.is_finite()), "{}", figure.id);
    }
}

#[test]
fn without_knotd_external_names_are_skipped_and_cluster_names_are_measured() {
    let script = without("knotd") + "export PORTOLAN_TOOLS=/mnt";
    let record = run_after(&script, "dns --rounds 1 --only hits,cached");
    assert_missing(&record, &[("knotd", "knot")]);
    let notes = &record.not_measured;
    assert!(notes.iter().any(|note| note.starts_with("external names: knotd serves them")), "{notes:?}");
    let hits = record.comparison("hits").unwrap();
    assert!(hits.path("hickory").is_some() && hits.path("knotd").is_none());
    assert!(record.comparison("cached").is_none());
}
