//! Traces a request step by step: name, route, virtual IP, endpoints, and then the request itself.

mod client;
mod kernel;
mod lookup;
mod step;

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use anyhow::Context as _;
use serde::Serialize;

use crate::admin_address::{self, AdminAddresses};
use crate::attached_pods;
use crate::status::{Served, ServedFrontend, served};
use crate::table::plural;
use client::Client;
use kernel::{Route, connect, route};
use step::{Outcome, Step};

/// Maximum number of addresses to trace: a headless Service may have thousands.
const MAX_ADDRESSES: usize = 8;

/// Flags of `portolan trace`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// A name as a pod writes it, or an address. Without PORT, all ports that are served at that address.
    #[arg(value_name = "NAME[:PORT]")]
    target: String,

    /// The client pod: its name, namespace/name or container ID [default: the node].
    #[arg(long, value_name = "POD")]
    from: Option<String>,

    /// Address of portolan-dns.
    #[arg(long, value_name = "ADDR:PORT", default_value = "10.96.0.10:53")]
    dns: SocketAddr,

    /// `--cluster-domain` of portolan-dns.
    #[arg(long, value_name = "DOMAIN", default_value = "cluster.local")]
    cluster_domain: String,

    /// Directory of the CNI plugin's attachment records.
    #[arg(long, value_name = "DIR", default_value = attachment::DEFAULT_DIRECTORY)]
    attachments: PathBuf,

    #[command(flatten)]
    addresses: admin_address::Args,
}

/// The report.
#[derive(Debug, Serialize)]
pub(crate) struct Trace {
    target: String,
    /// Whether the last step, the request itself, succeeded.
    pub(crate) reached: bool,
    steps: Vec<Step>,
}

/// The state of a trace.
struct Tracer<'a> {
    args: &'a Args,
    client: Client,
    records: Vec<attachment::Attachment>,
    addresses: AdminAddresses,
    served: Option<Served>,
    steps: Vec<Step>,
}

/// Traces the request until a step fails.
///
/// # Errors
/// When the command line names a pod or port that does not exist.
pub(crate) fn trace(args: &Args) -> anyhow::Result<Trace> {
    let (name, port) = split(&args.target)?;
    let records = attached_pods::all(&args.attachments);
    let client = Client::find(args.from.as_deref(), &records)?;
    let admin = args.addresses.find();
    let mut tracer =
        Tracer { args, client, records, addresses: admin, served: served(admin), steps: Vec::new() };
    tracer.add_client_step();
    let addresses = tracer.resolve(name);
    let reached = addresses
        .iter()
        .map(|address| tracer.trace_address(*address, port))
        .fold(false, |any, one| any | one);
    Ok(Trace { target: args.target.clone(), reached, steps: tracer.steps })
}

/// Splits a target: `web`, `web:80`, `10.96.0.10:53`, `fd00::1`, `[fd00::1]:80`.
fn split(target: &str) -> anyhow::Result<(&str, Option<u16>)> {
    if target.parse::<IpAddr>().is_ok() {
        return Ok((target, None));
    }
    let Some((name, port)) = target.rsplit_once(':') else { return Ok((target, None)) };
    let port =
        port.parse().with_context(|| format!("port {port:?} of {target:?} is not a number (1-65535)"))?;
    Ok((name.trim_start_matches('[').trim_end_matches(']'), Some(port)))
}

impl Tracer<'_> {
    fn add_client_step(&mut self) {
        let mut step = Step::new("client", Outcome::Fine, format!("from {}", self.client.name));
        if self.served.is_none() {
            let page = self.addresses.proxy_metrics;
            step = Step::new(
                "proxy",
                Outcome::Failed,
                format!("no proxy answers at http://{page}/debug/services"),
            )
            .fix("start portolan-proxy, or give its address: --proxy-metrics ADDR:PORT");
        }
        self.steps.push(step);
    }

    /// Resolves the name as a pod's resolver does.
    fn resolve(&mut self, name: &str) -> Vec<IpAddr> {
        if let Ok(address) = name.parse() {
            return vec![address];
        }
        let server = self.args.dns;
        for candidate in lookup::candidates(name, &self.client.namespace, &self.args.cluster_domain) {
            let answers = self.client.run(|| lookup::addresses(server, &candidate));
            match answers {
                Ok(found) => {
                    self.steps.extend(found.steps);
                    if !found.addresses.is_empty() {
                        return found.addresses.into_iter().take(MAX_ADDRESSES).collect();
                    }
                }
                Err(error) => {
                    self.steps.push(self.dns_failure(&candidate, &error));
                    return Vec::new();
                }
            }
        }
        let step = Step::new("name", Outcome::Failed, format!("no address by the name {name}"));
        self.steps.push(step.fix(
            "`portolan status` lists the Services; `portolan-proxy --check-config` \
            validates their manifests",
        ));
        Vec::new()
    }

    fn dns_failure(&self, name: &str, error: &io::Error) -> Step {
        let server = self.args.dns;
        let fix = if route(server.ip()).is_ok_and(|route| route.is_local) {
            "start portolan-dns, or give its address: --dns ADDR:PORT"
        } else {
            "the address is not local to this node: portolan-proxy makes it local if it runs with a \
             --service-cidr that contains it"
        };
        Step::new("name", Outcome::Failed, format!("{server} does not answer for {name}: {error}")).fix(fix)
    }

    /// Traces a request to an address. Returns whether it succeeds.
    fn trace_address(&mut self, address: IpAddr, port: Option<u16>) -> bool {
        let is_virtual = self.route_to(address);
        let served = self.served.take().unwrap_or_default();
        let frontends: Vec<&ServedFrontend> = served
            .frontends
            .iter()
            .filter(|frontend| socket_of(&frontend.frontend).is_some_and(|(at, _)| at.ip() == address))
            .collect();
        let reached = if frontends.is_empty() {
            self.without_frontend(address, port, is_virtual, &served)
        } else {
            self.frontends(&frontends, address, port, is_virtual)
        };
        self.served = Some(served);
        reached
    }

    /// Adds the route step. Returns whether the address is local to the node.
    fn route_to(&mut self, address: IpAddr) -> bool {
        let (step, is_local) = match route(address) {
            Ok(Route { is_local: true, .. }) => {
                let text = format!("{address} is local to this node: no packet is rewritten");
                (Step::new("route", Outcome::Fine, text), true)
            }
            Ok(Route { description, .. }) => (Step::new("route", Outcome::Fine, description), false),
            Err(error) => {
                let step = Step::new("route", Outcome::Failed, format!("no route to {address}: {error}"));
                (
                    step.fix(
                        "a virtual IP is local while portolan-proxy runs; a pod's address has a route \
                    while the pod is attached",
                    ),
                    false,
                )
            }
        };
        self.steps.push(step);
        is_local
    }

    /// Traces a request to an address without frontends: of a Service without endpoints, a pod, or another
    /// host.
    fn without_frontend(
        &mut self,
        address: IpAddr,
        port: Option<u16>,
        is_local: bool,
        served: &Served,
    ) -> bool {
        if let Some(empty) = served.without_endpoints.iter().find(|empty| empty.addresses.contains(&address))
        {
            let text = format!(
                "{address} is Service {}, which has no ready endpoint: the kernel refuses connections",
                empty.service
            );
            self.steps.push(Step::new("frontend", Outcome::Failed, text).fix(
                "check that its pods run and that its selector matches their labels; `portolan-proxy \
                 --check-config` validates the manifests",
            ));
            return false;
        }
        let text = match attached_pods::owner(&self.records, address) {
            Some(pod) => format!("{address} is pod {pod} itself: the proxy is not on the path"),
            None if is_local => format!("the proxy serves nothing at {address}; another program may listen"),
            None => format!("{address} is no virtual IP: the proxy is not on the path"),
        };
        self.steps.push(Step::new("frontend", Outcome::Note, text));
        if let Some(port) = port {
            return self.request(SocketAddr::new(address, port));
        }
        self.steps.push(Step::new(
            "request",
            Outcome::Note,
            "no port given, so no connection \
            was attempted"
                .into(),
        ));
        !is_local
    }

    /// Traces the ports of an address with frontends.
    fn frontends(
        &mut self,
        frontends: &[&ServedFrontend],
        address: IpAddr,
        port: Option<u16>,
        is_local: bool,
    ) -> bool {
        let is_selected = |at: &SocketAddr| port.is_none_or(|port| at.port() == port);
        let selected: Vec<(&ServedFrontend, SocketAddr, bool)> = frontends
            .iter()
            .filter_map(|frontend| socket_of(&frontend.frontend).map(|(at, is_tcp)| (*frontend, at, is_tcp)))
            .filter(|(_, at, _)| is_selected(at))
            .collect();
        if let Some(port) = port.filter(|_| selected.is_empty() && !is_local) {
            // Of an external IP the proxy intercepts only the Service's ports.
            let text =
                format!("port {port} of {address} belongs to no Service: the proxy is not on the path");
            self.steps.push(Step::new("frontend", Outcome::Note, text));
            return self.request(SocketAddr::new(address, port));
        }
        if selected.is_empty() {
            let served: Vec<&str> = frontends.iter().map(|frontend| frontend.frontend.as_str()).collect();
            let text =
                format!("port {} is not one of the Service's: the kernel refuses it", port.unwrap_or(0));
            let step = Step::new("frontend", Outcome::Failed, text);
            self.steps.push(step.fix(&format!("use a port that is served: {}", served.join(", "))));
        }
        selected.iter().fold(false, |any, (frontend, at, is_tcp)| self.frontend(frontend, *at, *is_tcp) | any)
    }

    fn frontend(&mut self, frontend: &ServedFrontend, at: SocketAddr, is_tcp: bool) -> bool {
        let text = format!(
            "{} is Service {} with {}",
            frontend.frontend,
            frontend.service,
            plural(frontend.endpoints.len(), "endpoint")
        );
        self.steps.push(Step::new("frontend", Outcome::Fine, text));
        for endpoint in &frontend.endpoints {
            self.endpoint(&endpoint.address, endpoint.ejected, is_tcp);
        }
        if is_tcp {
            return self.request(at);
        }
        let text = "UDP has no handshake: only a client of the protocol can tell whether the \
             Service answers"
            .to_owned();
        self.steps.push(Step::new("request", Outcome::Note, text));
        !frontend.endpoints.is_empty()
    }

    /// Connects to an endpoint as the proxy does.
    fn endpoint(&mut self, address: &str, ejected: bool, is_tcp: bool) {
        let Ok(at) = address.parse::<SocketAddr>() else { return };
        let pod = attached_pods::owner(&self.records, at.ip())
            .map_or_else(|| "not attached here".into(), |pod| format!("pod {pod}"));
        let ejected = if ejected { "; the proxy has ejected it" } else { "" };
        let step = if !is_tcp {
            Step::new("endpoint", Outcome::Note, format!("{address} ({pod}){ejected}"))
        } else {
            match connect(at) {
                Ok(taken) => {
                    Step::new("endpoint", Outcome::Fine, format!("{address} ({pod}) accepts{ejected}"))
                        .took(taken)
                }
                Err(error) => Step::new(
                    "endpoint",
                    Outcome::Failed,
                    format!(
                        "{address} ({pod}) does not \
                    accept: {error}{ejected}"
                    ),
                )
                .fix(
                    "check that the program in the pod listens on that port, and on the pod's address \
                        and not only on localhost",
                ),
            }
        };
        self.steps.push(step);
    }

    /// Sends the request itself, from the client's network namespace.
    fn request(&mut self, at: SocketAddr) -> bool {
        let connected = self.client.run(|| connect(at));
        let step = match &connected {
            Ok(taken) => Step::new("request", Outcome::Fine, format!("connected to {at}")).took(*taken),
            Err(error) => Step::new("request", Outcome::Failed, format!("cannot connect to {at}: {error}"))
                .fix("if all previous steps are ok: `portolan doctor`"),
        };
        self.steps.push(step);
        connected.is_ok()
    }
}

/// Parses `10.96.0.10:53/udp`. Returns the address and whether the protocol is TCP.
fn socket_of(frontend: &str) -> Option<(SocketAddr, bool)> {
    let (address, protocol) = frontend.rsplit_once('/')?;
    Some((address.parse().ok()?, protocol.eq_ignore_ascii_case("tcp")))
}

impl fmt::Display for Trace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for step in &self.steps {
            write!(f, "{step}")?;
        }
        writeln!(f, "\n{} {}", self.target, if self.reached { "can be reached" } else { "CANNOT be reached" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn target_is_a_name_or_an_address_with_or_without_a_port() {
        for (target, expected) in [
            ("web", ("web", None)),
            ("web.shop:80", ("web.shop", Some(80))),
            ("10.96.0.10:53", ("10.96.0.10", Some(53))),
            ("fd00::1", ("fd00::1", None)),
            ("[fd00::1]:80", ("fd00::1", Some(80))),
        ] {
            assert_eq!(split(target).unwrap(), expected);
        }
        let error = format!("{:#}", split("web:http").unwrap_err());
        assert!(error.contains("\"http\" of \"web:http\" is not a number"), "{error}");
    }
}
