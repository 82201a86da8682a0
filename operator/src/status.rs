//! What runs on this node, by what the daemons themselves say.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use daemon::page;
use serde::{Deserialize, Serialize};

use crate::doctor::sources::STALE;
use crate::pages::{self, Pages};
use crate::table::Table;
use crate::{attached, exposition, process};

/// Flags of `portolan status`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    pages: pages::Args,

    /// Only Services whose namespace/name contains this.
    #[arg(value_name = "SERVICE")]
    filter: Option<String>,
}

/// The report.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Status {
    /// Both daemons are ready, follow their sources, and nothing failed.
    pub(crate) healthy: bool,
    programs: Vec<Program>,
    services: Vec<Service>,
    /// Pods that the CNI plugin has attached here.
    pods: usize,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Program {
    name: &'static str,
    state: State,
    /// More than one while one takes over from another.
    pids: Vec<u32>,
    version: Option<String>,
    /// Of the state in force.
    generation: Option<u64>,
    seconds_since_change: Option<u64>,
    /// What it says of each source and of itself.
    conditions: Vec<String>,
    /// Counters, by what they count.
    traffic: BTreeMap<&'static str, u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum State {
    Ready,
    /// It serves, but a source has said nothing for longer than passing trouble takes.
    Stale,
    NotReady,
    /// A process is there, its pages are not.
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
    /// Namespace and name, where it is attached to this node.
    pod: Option<String>,
    connections: u64,
    /// It does not accept connections, and is left alone for a while.
    ejected: bool,
}

/// `/debug/services?format=json` of the proxy.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Served {
    pub(crate) seconds_since_change: Option<u64>,
    pub(crate) failures: Vec<String>,
    pub(crate) frontends: Vec<ServedFrontend>,
    pub(crate) without_endpoints: Vec<Idle>,
}

/// A Service with virtual IPs and nobody behind them.
#[derive(Debug, Deserialize)]
pub(crate) struct Idle {
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
    /// Whether it gets traffic; one that is not ready, or is for other nodes, is shown too.
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

/// Asks the daemons.
pub(crate) fn status(args: &Args) -> Status {
    let pages = args.pages.find();
    let served = served(pages);
    let mut proxy =
        program("portolan-proxy", pages.proxy_metrics, "/readyz", pages.proxy_metrics, &PROXY_TRAFFIC);
    let dns = program("portolan-dns", pages.dns_ready, "/ready", pages.dns_metrics, &DNS_TRAFFIC);
    let failures = served.as_ref().map_or(0, |served| served.failures.len());
    proxy.seconds_since_change = served.as_ref().and_then(|served| served.seconds_since_change);
    let programs = vec![proxy, dns];
    Status {
        healthy: failures == 0 && programs.iter().all(|program| program.state == State::Ready),
        services: services(served.unwrap_or_default(), args.filter.as_deref().unwrap_or_default()),
        programs,
        pods: attached::all(attachment::DEFAULT_DIRECTORY.as_ref()).len(),
    }
}

/// What the proxy serves; `None` when it does not answer.
pub(crate) fn served(pages: Pages) -> Option<Served> {
    let page = page::get(pages.proxy_metrics, "/debug/services?format=json").ok()?;
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
    let stale = exposition::max(&metrics, &format!("{prefix}_source_stale_seconds"));
    let (state, conditions) = match ready {
        Ok(page) if page.is_ok() && stale > Some(STALE) => (State::Stale, conditions(&page.body)),
        Ok(page) if page.is_ok() => (State::Ready, conditions(&page.body)),
        Ok(page) => (State::NotReady, conditions(&page.body)),
        Err(error) if !pids.is_empty() => (State::Silent, vec![error.to_string()]),
        Err(_) => (State::Stopped, Vec::new()),
    };
    let counter =
        |(what, metric): &(&'static str, &str)| Some((*what, whole(exposition::sum(&metrics, metric)?)));
    let generation = format!("{prefix}_snapshot_generation");
    Program {
        name,
        state,
        pids,
        version: exposition::label(&metrics, "portolan_build_info", "version").map(str::to_owned),
        generation: exposition::sum(&metrics, &generation).map(whole),
        seconds_since_change: None,
        conditions,
        traffic: counters.iter().filter_map(counter).collect(),
    }
}

/// The lines of a readiness page, without its last one, which says it all again.
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
    let records = attached::all(attachment::DEFAULT_DIRECTORY.as_ref());
    let mut services: BTreeMap<String, Vec<Frontend>> = BTreeMap::new();
    for idle in served.without_endpoints {
        services.entry(idle.service).or_default();
    }
    for ServedFrontend { frontend, service, endpoints } in served.frontends {
        let endpoint = |endpoint: ServedEndpoint| Endpoint {
            pod: endpoint
                .address
                .parse::<SocketAddr>()
                .ok()
                .and_then(|at| attached::owner(&records, at.ip())),
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
        writeln!(f, "\n{} pods attached to this node\n", self.pods)?;
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
    /// The Service's name and a frontend's address show once, before the first of their lines.
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
                let passed_over = if endpoint.ejected { ", passed over: does not accept" } else { "" };
                table.row([
                    std::mem::take(&mut name),
                    std::mem::take(&mut address),
                    endpoint.address.clone(),
                    or_dash(endpoint.pod.clone().unwrap_or_default()),
                    format!("{}{passed_over}", endpoint.connections),
                ]);
            }
        }
    }
}
