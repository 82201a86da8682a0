//! The current state for people and programs: `/debug/services`, `portolan-proxy status`.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::SystemTime;

use discovery::model::{Endpoint as Described, IpFamily, NamespacedName};
use discovery::{Snapshot, SourceState};
use serde_json::{Value, json};

use super::Shown;
use crate::backend::endpoint::Endpoint;
use crate::frontend::{Frontend, FrontendKey};

/// The data of the page.
pub(super) struct View<'a> {
    pub(super) snapshot: &'a Snapshot,
    pub(super) frontends: Vec<&'a Arc<Frontend>>,
    pub(super) shown: &'a Shown,
    /// The only Service to show.
    pub(super) service: Option<&'a str>,
    /// The proxy's own name, if it is not the default one.
    pub(super) proxy_name: Option<&'a str>,
}

/// An endpoint of a frontend's Service port, with its use, if it gets traffic.
struct Row<'a> {
    address: SocketAddr,
    described: Option<&'a Described>,
    used: Option<&'a Arc<Endpoint>>,
}

impl View<'_> {
    /// A table: one line per frontend, followed by one per endpoint.
    pub(super) fn table(&self) -> String {
        let snapshot = self.snapshot;
        let mut text = format!(
            "{} frontends, state {} of {}\n",
            self.frontends.len(),
            snapshot.generation,
            age(snapshot)
        );
        for (name, source) in &snapshot.sources {
            writeln!(text, "source {}", source.describe(name)).ok();
        }
        for failure in &self.shown.failures {
            writeln!(text, "FAILED {failure}").ok();
        }
        for (service, key) in self.served_by_dns() {
            writeln!(text, "LEFT TO PORTOLAN-DNS {service}: {key}").ok();
        }
        for (service, addresses) in self.without_endpoints() {
            let addresses: Vec<String> = addresses.iter().map(ToString::to_string).collect();
            writeln!(text, "NO ENDPOINTS {service}: refused at {}", addresses.join(", ")).ok();
        }
        for frontend in &self.frontends {
            let set = frontend.endpoints();
            let name = frontend.traffic.port.to_string();
            let total = frontend.traffic.counted().map_or(0, |counters| counters.opened.get());
            let (open, since) = (frontend.traffic.open(), set.since.elapsed().as_secs());
            writeln!(
                text,
                "\n{:<32} {name:<24} {open} open, {total} so far, endpoints since {since} s",
                frontend.key.to_string(),
            )
            .ok();
            let used: HashMap<_, _> = set.endpoints().map(|used| (used.address, used)).collect();
            for row in self.rows(frontend, &used) {
                let (state, open) = (row.state(), row.used.map_or(0, |used| used.connections()));
                let line = format!("  {:<40} {state:<28} {open:>6} open  {}", row.address, row.place());
                writeln!(text, "{}", line.trim_end()).ok();
            }
        }
        text
    }

    /// The same as JSON.
    pub(super) fn json(&self) -> Value {
        let frontend = |frontend: &&Arc<Frontend>| {
            let set = frontend.endpoints();
            let used: HashMap<_, _> = set.endpoints().map(|used| (used.address, used)).collect();
            let endpoints = self.rows(frontend, &used).into_iter().map(|row| {
                json!({
                    "address": row.address.to_string(),
                    "state": row.state(),
                    "used": row.used.is_some(),
                    "connections": row.used.map_or(0, |used| used.connections()),
                    "ejected": row.used.is_some_and(|used| used.is_ejected()),
                    "node": row.described.and_then(|described| described.node_name.as_deref()),
                    "zone": row.described.and_then(|described| described.zone.as_deref()),
                })
            });
            json!({
                "frontend": frontend.key.to_string(),
                "service": frontend.service().to_string(),
                "port": &*frontend.traffic.port.name,
                "connections": frontend.traffic.open(),
                "connectionsSoFar": frontend.traffic.counted().map_or(0, |counters| counters.opened.get()),
                "secondsSinceEndpointsChanged": set.since.elapsed().as_secs(),
                "endpoints": endpoints.collect::<Vec<_>>(),
            })
        };
        let left = self.served_by_dns();
        let left =
            left.map(|(service, key)| json!({ "service": service.to_string(), "frontend": key.to_string() }));
        let idle = self.without_endpoints().into_iter();
        let idle = idle.map(|(service, addresses)| json!({ "service": service, "addresses": addresses }));
        json!({
            "generation": self.snapshot.generation,
            "synced": self.snapshot.synced,
            "secondsSinceChange": since_change(self.snapshot),
            "sources": sources(self.snapshot),
            "failures": self.shown.failures,
            "leftToDns": left.collect::<Vec<_>>(),
            "withoutEndpoints": idle.collect::<Vec<_>>(),
            "frontends": self.frontends.iter().map(frontend).collect::<Vec<_>>(),
        })
    }

    /// Services with a virtual IP that is not served, by name: the kernel refuses connections to them.
    fn without_endpoints(&self) -> BTreeMap<String, &[IpAddr]> {
        let served: BTreeSet<_> = self.frontends.iter().map(|frontend| frontend.service()).collect();
        let idle = self.snapshot.services().filter(|entry| {
            let name = &entry.service.name;
            let is_selected = self.service.is_none_or(|service| name.to_string() == service);
            let is_ours = entry.service.rules.proxy_class.matches(self.proxy_name);
            let is_served = served.contains(name) || self.shown.served_by_dns.contains_key(name);
            is_selected && is_ours && !entry.cluster_ips.is_empty() && !is_served
        });
        idle.map(|entry| (entry.service.name.to_string(), &entry.cluster_ips[..])).collect()
    }

    /// Frontends that portolan-dns serves in place of Services.
    fn served_by_dns(&self) -> impl Iterator<Item = (&NamespacedName, &FrontendKey)> {
        let all = self.shown.served_by_dns.iter();
        let wanted = all.filter(|(name, _)| self.service.is_none_or(|service| name.to_string() == service));
        wanted.flat_map(|(name, keys)| keys.iter().map(move |key| (name, key)))
    }

    /// The endpoints of the Service port in order, including those without traffic.
    fn rows<'a>(
        &'a self,
        frontend: &Frontend,
        used: &HashMap<SocketAddr, &'a Arc<Endpoint>>,
    ) -> Vec<Row<'a>> {
        let (port, family) = (&frontend.traffic.port, IpFamily::of(frontend.key.address.ip()));
        let described = self.snapshot.service(&port.service).and_then(|entry| {
            let is_it =
                |p: &&discovery::model::ServicePort| p.name == port.name && p.protocol == port.protocol;
            let found = entry.service.ports.iter().find(is_it)?;
            Some(entry.endpoints(found, family, self.proxy_name, |_| false))
        });
        let mut rows: Vec<Row<'a>> = described
            .into_iter()
            .flatten()
            .map(|(address, described)| Row {
                address,
                described: Some(described),
                used: used.get(&address).copied(),
            })
            .collect();
        let is_described = |address: &SocketAddr| rows.iter().any(|row| row.address == *address);
        let rest: Vec<_> = used.iter().filter(|(address, _)| !is_described(address)).collect();
        rows.extend(rest.into_iter().map(|(address, used)| Row {
            address: *address,
            described: None,
            used: Some(used),
        }));
        rows.sort_by_key(|row| row.address);
        rows
    }
}

impl Row<'_> {
    /// The state of the endpoint as text.
    fn state(&self) -> &'static str {
        let Some(described) = self.described else { return "deleted" };
        let conditions = described.conditions;
        match self.used {
            Some(used) if used.is_ejected() => "ejected: does not accept",
            Some(_) if conditions.ready => "ready",
            Some(_) => "terminating, serves",
            // Not selected by a policy of Local or by topology hints.
            None if conditions.ready => "ready, not selected",
            None if conditions.terminating => "terminating",
            None => "not ready",
        }
    }

    fn place(&self) -> String {
        let place = |described: &Described| {
            let parts = described.node_name.iter().chain(&described.zone);
            parts.map(|part| &**part).collect::<Vec<_>>().join(" ")
        };
        self.described.map(place).unwrap_or_default()
    }
}

fn sources(snapshot: &Snapshot) -> Value {
    let source = |(name, source): (&&str, &SourceState)| {
        let state = json!({
            "synced": source.synced,
            "size": source.size,
            "staleSeconds": source.staleness().as_secs(),
            "problem": source.failure.as_ref().map(|failure| failure.problem.to_string()),
        });
        ((*name).to_owned(), state)
    };
    snapshot.sources.iter().map(source).collect()
}

fn age(snapshot: &Snapshot) -> String {
    since_change(snapshot)
        .map_or_else(|| "nothing read yet".to_owned(), |seconds| format!("changed {seconds} s ago"))
}

/// Whole seconds; `None` before the first state.
fn since_change(snapshot: &Snapshot) -> Option<u64> {
    let elapsed = SystemTime::now().duration_since(snapshot.changed_at).ok()?;
    (snapshot.generation > 0).then_some(elapsed.as_secs())
}
