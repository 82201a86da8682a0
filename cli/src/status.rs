//! Status of this node, from the daemons' own pages.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use daemon::page;
use serde::{Deserialize, Serialize};

use crate::admin_address::{self, AdminAddresses};
use crate::doctor::sources::STALE;
use crate::table::{Table, plural};
use crate::{attached_pods, metrics, process};

/// Flags of `portolan status`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    addresses: admin_address::Args,

    /// Only Services whose namespace/name contains this.
    #[arg(value_name = "SERVICE")]
    filter: Option<String>,
}

/// The report.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Status {
    /// Both daemons are ready and in sync with their sources, and no frontend failed.
    pub(crate) healthy: bool,
    programs: Vec<Program>,
    services: Vec<Service>,
    /// Number of pods that the CNI plugin has attached to this node.
    pods: usize,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Program {
    name: &'static str,
    state: State,
    /// More than one during a hot restart.
    pids: Vec<u32>,
    version: Option<String>,
    /// Generation of the applied snapshot.
    generation: Option<u64>,
    seconds_since_change: Option<u64>,
    /// Conditions of the readiness page.
    conditions: Vec<String>,
    /// Counters by name.
    traffic: BTreeMap<&'static str, u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum State {
    Ready,
    /// The daemon serves, but a source is stale for longer than [`STALE`].
    Stale,
    NotReady,
    /// The process runs, but its pages do not answer.
    Silent,
    Stopped,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Service {
    name: String,
    frontends: Vec<Frontend>,
    connections: u64,
}

#[derive(Debug, Serialize)]
struct Frontend {
    /// `10.96.0.10:80/tcp`
    address: String,
    endpoints: Vec<Endpoint>,
}

#[derive(Debug, Serialize)]
struct Endpoint {
    address: String,
    /// Namespace and name of the pod, if it is attached to this node.
    pod: Option<String>,
    connections: u64,
    /// The endpoint does not accept connections and is ejected.
    ejected: bool,
}

/// `/debug/services?format=json` of the proxy.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Served {
    pub(crate) seconds_since_change: Option<u64>,
    pub(crate) failures: Vec<String>,
    pub(crate) frontends: Vec<ServedFrontend>,
    pub(crate) without_endpoints: Vec<WithoutEndpoints>,
}

/// A Service with virtual IPs and without ready endpoints.
#[derive(Debug, Deserialize)]
pub(crate) struct WithoutEndpoints {
    pub(crate) service: String,
    pub(crate) addresses: Vec<IpAddr>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct ServedFrontend {
    pub(crate) frontend: String,
    pub(crate) service: String,
    pub(crate) endpoints: Vec<ServedEndpoint>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct ServedEndpoint {
    pub(crate) address: String,
    /// Whether it receives traffic. The page also has endpoints that are not ready or belong to other nodes.
    pub(crate) used: bool,
    pub(crate) connections: u64,
    pub(crate) ejected: bool,
}

const PROXY_TRAFFIC: [(&str, &str); 5] = [
    ("connections", "portolan_proxy_connections_opened_total"),
    ("failed", "portolan_proxy_connect_failures_total"),
    ("bytes sent", "portolan_proxy_sent_bytes_total"),
    ("bytes received", "portolan_proxy_received_bytes_total"),
    ("UDP flows", "portolan_proxy_udp_flows"),
];

const DNS_TRAFFIC: [(&str, &str); 4] = [
    ("queries", "coredns_dns_requests_total"),
    ("from memory", "coredns_cache_hits_total"),
    ("not forwarded", "portolan_dns_forward_failures_total"),
    ("shed", "coredns_shed_dropped_total"),
];

/// Queries the daemons.
pub(crate) fn status(args: &Args) -> Status {
    let addresses = args.addresses.find();
    let served = served(addresses);
    let mut proxy = program(
        "portolan-proxy",
        addresses.proxy_metrics,
        "/readyz",
        addresses.proxy_metrics,
        &PROXY_TRAFFIC,
    );
    let dns = program("portolan-dns", addresses.dns_ready, "/ready", addresses.dns_metrics, &DNS_TRAFFIC);
    let failures = served.as_ref().map_or(0, |served| served.failures.len());
    proxy.seconds_since_change = served.as_ref().and_then(|served| served.seconds_since_change);
    let programs = vec![proxy, dns];
    Status {
        healthy: failures == 0 && programs.iter().all(|program| program.state == State::Ready),
        services: services(served.unwrap_or_default(), args.filter.as_deref().unwrap_or_default()),
        programs,
        pods: attached_pods::all(attachment::DEFAULT_DIRECTORY.as_ref()).len(),
    }
}

/// Returns what the proxy serves; `None` if it does not answer.
pub(crate) fn served(addresses: AdminAddresses) -> Option<Served> {
    let page = page::get(addresses.proxy_metrics, "/debug/services?format=json").ok()?;
    let mut served: Served = serde_json::from_str(&page.body).ok()?;
    for frontend in &mut served.frontends {
        frontend.endpoints.retain(|endpoint| endpoint.used);
    }
    Some(served)
}

fn program(
    name: &'static str,
    ready_at: SocketAddr,
    ready_path: &str,
    metrics_at: SocketAddr,
    counters: &[(&'static str, &str)],
) -> Program {
    let pids: Vec<u32> = process::named(name).iter().map(|process| process.pid).collect();
    let ready = page::get(ready_at, &format!("{ready_path}?verbose"));
    let metrics = page::get(metrics_at, "/metrics").map(|page| page.body).unwrap_or_default();
    let prefix = name.replace('-', "_");
    let stale = metrics::max(&metrics, &format!("{prefix}_source_stale_seconds"));
    let (state, conditions) = match ready {
        Ok(page) if page.is_ok() && stale > Some(STALE) => (State::Stale, conditions(&page.body)),
        Ok(page) if page.is_ok() => (State::Ready, conditions(&page.body)),
        Ok(page) => (State::NotReady, conditions(&page.body)),
        Err(error) if !pids.is_empty() => (State::Silent, vec![error.to_string()]),
        Err(_) => (State::Stopped, Vec::new()),
    };
    let counter =
        |(what, metric): &(&'static str, &str)| Some((*what, whole(metrics::sum(&metrics, metric)?)));
    let generation = format!("{prefix}_snapshot_generation");
    Program {
        name,
        state,
        pids,
        version: metrics::label(&metrics, "portolan_build_info", "version").map(str::to_owned),
        generation: metrics::sum(&metrics, &generation).map(whole),
        seconds_since_change: None,
        conditions,
        traffic: counters.iter().filter_map(counter).collect(),
    }
}

/// Returns the conditions of a readiness page, without its last line, which repeats them.
fn conditions(page: &str) -> Vec<String> {
    let lines = page.lines().filter(|line| line.starts_with('['));
    lines.flat_map(|line| line.split("; ")).map(str::to_owned).collect()
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "counters are whole, positive and below 2^53"
)]
fn whole(value: f64) -> u64 {
    value as u64
}

fn services(served: Served, filter: &str) -> Vec<Service> {
    let records = attached_pods::all(attachment::DEFAULT_DIRECTORY.as_ref());
    let mut services: BTreeMap<String, Vec<Frontend>> = BTreeMap::new();
    for empty in served.without_endpoints {
        services.entry(empty.service).or_default();
    }
    for ServedFrontend { frontend, service, endpoints } in served.frontends {
        let endpoint = |endpoint: ServedEndpoint| Endpoint {
            pod: endpoint
                .address
                .parse::<SocketAddr>()
                .ok()
                .and_then(|at| attached_pods::owner(&records, at.ip())),
            address: endpoint.address,
            connections: endpoint.connections,
            ejected: endpoint.ejected,
        };
        let endpoints = endpoints.into_iter().map(endpoint).collect();
        services.entry(service).or_default().push(Frontend { address: frontend, endpoints });
    }
    services.retain(|name, _| name.contains(filter));
    let service = |(name, frontends): (String, Vec<Frontend>)| Service {
        connections: frontends.iter().flat_map(|f| &f.endpoints).map(|endpoint| endpoint.connections).sum(),
        name,
        frontends,
    };
    services.into_iter().map(service).collect()
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ready => "ready",
            Self::Stale => "STALE",
            Self::NotReady => "NOT READY",
            Self::Silent => "SILENT",
            Self::Stopped => "STOPPED",
        })
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut table = Table::new(&["PROGRAM", "STATE", "PID", "VERSION", "GENERATION", "TRAFFIC"]);
        for program in &self.programs {
            let pids: Vec<String> = program.pids.iter().map(u32::to_string).collect();
            let traffic = program.traffic.iter().map(|(what, count)| format!("{count} {what}"));
            table.row([
                program.name.to_owned(),
                program.state.to_string(),
                or_dash(pids.join(", ")),
                or_dash(program.version.clone().unwrap_or_default()),
                or_dash(generation(program)),
                or_dash(traffic.collect::<Vec<_>>().join(", ")),
            ]);
        }
        write!(f, "{table}")?;
        for program in &self.programs {
            for condition in &program.conditions {
                writeln!(f, "{}: {condition}", program.name)?;
            }
        }
        writeln!(f, "\n{} attached to this node\n", plural(self.pods, "pod"))?;
        let mut table = Table::new(&["SERVICE", "FRONTEND", "ENDPOINT", "POD", "CONNECTIONS"]);
        for service in &self.services {
            service.rows(&mut table);
        }
        write!(f, "{table}")
    }
}

fn generation(program: &Program) -> String {
    match (program.generation, program.seconds_since_change) {
        (Some(generation), Some(seconds)) => format!("{generation}, {seconds} s ago"),
        (Some(generation), None) => generation.to_string(),
        _ => String::new(),
    }
}

fn or_dash(text: String) -> String {
    if text.is_empty() { "-".to_owned() } else { text }
}

impl Service {
    /// Adds the rows of the Service. Its name and each frontend's address are shown only in the first row.
    fn rows(&self, table: &mut Table) {
        let mut name = self.name.clone();
        if self.frontends.is_empty() {
            table.row([name.clone(), "-".into(), "none ready".into(), "-".into(), "0".into()]);
        }
        for frontend in &self.frontends {
            let mut address = frontend.address.clone();
            if frontend.endpoints.is_empty() {
                table.row([std::mem::take(&mut name), address.clone(), "none".into()]);
            }
            for endpoint in &frontend.endpoints {
                let ejected = if endpoint.ejected { ", ejected: does not accept" } else { "" };
                table.row([
                    std::mem::take(&mut name),
                    std::mem::take(&mut address),
                    endpoint.address.clone(),
                    or_dash(endpoint.pod.clone().unwrap_or_default()),
                    format!("{}{ejected}", endpoint.connections),
                ]);
            }
        }
    }
}
