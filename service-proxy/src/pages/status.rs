//! What is served right now, for people and for programs: `/debug/services`.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::SystemTime;

use discovery::{Snapshot, SourceState};
use serde_json::{Value, json};

use crate::frontend::Frontend;

/// A table: one line a frontend, one below for each endpoint.
pub(crate) fn table(snapshot: &Snapshot, frontends: &[Arc<Frontend>], failures: &[String]) -> String {
    let mut text =
        format!("{} frontends, state {} of {}\n", frontends.len(), snapshot.generation, age(snapshot));
    for (name, source) in &snapshot.sources {
        writeln!(text, "source {}", source.describe(name)).ok();
    }
    for failure in failures {
        writeln!(text, "FAILED {failure}").ok();
    }
    for frontend in frontends {
        let set = frontend.endpoints();
        writeln!(text, "\n{:<32} {}", frontend.key.to_string(), frontend.service).ok();
        for endpoint in set.endpoints() {
            let ejected = if endpoint.is_ejected() { "  passed over: does not accept" } else { "" };
            writeln!(text, "  {:<40} {:>6} connections{ejected}", endpoint.address, endpoint.connections())
                .ok();
        }
    }
    text
}

/// The same as JSON.
pub(crate) fn json(snapshot: &Snapshot, frontends: &[Arc<Frontend>], failures: &[String]) -> Value {
    let frontend = |frontend: &Arc<Frontend>| {
        let set = frontend.endpoints();
        let endpoints = set.endpoints().map(|endpoint| {
            json!({
                "address": endpoint.address.to_string(),
                "connections": endpoint.connections(),
                "ejected": endpoint.is_ejected(),
            })
        });
        json!({
            "frontend": frontend.key.to_string(),
            "service": frontend.service.to_string(),
            "endpoints": endpoints.collect::<Vec<_>>(),
        })
    };
    json!({
        "generation": snapshot.generation,
        "synced": snapshot.synced,
        "secondsSinceChange": since_change(snapshot),
        "sources": sources(snapshot),
        "failures": failures,
        "withoutEndpoints": without_endpoints(snapshot, frontends),
        "frontends": frontends.iter().map(frontend).collect::<Vec<_>>(),
    })
}

/// Services with a virtual IP that nobody serves: the kernel refuses their connections.
fn without_endpoints(snapshot: &Snapshot, frontends: &[Arc<Frontend>]) -> Vec<Value> {
    let served: BTreeSet<_> = frontends.iter().map(|frontend| &frontend.service).collect();
    let idle = snapshot
        .services()
        .filter(|entry| !entry.cluster_ips.is_empty() && !served.contains(&entry.service.name));
    let idle = idle
        .map(|entry| json!({ "service": entry.service.name.to_string(), "addresses": entry.cluster_ips }));
    idle.collect()
}

fn sources(snapshot: &Snapshot) -> Value {
    let source = |(name, source): (&&str, &SourceState)| {
        let state = json!({
            "synced": source.synced,
            "size": source.size,
            "staleSeconds": source.staleness().as_secs(),
            "problem": source.outage.as_ref().map(|outage| outage.problem.to_string()),
        });
        ((*name).to_owned(), state)
    };
    snapshot.sources.iter().map(source).collect()
}

fn age(snapshot: &Snapshot) -> String {
    since_change(snapshot).map_or_else(|| "no source yet".to_owned(), |seconds| format!("{seconds} s ago"))
}

/// Whole seconds; `None` before the first state.
fn since_change(snapshot: &Snapshot) -> Option<u64> {
    let elapsed = SystemTime::now().duration_since(snapshot.changed_at).ok()?;
    (snapshot.generation > 0).then_some(elapsed.as_secs())
}
