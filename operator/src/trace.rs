//! Walks a request as it travels: name, route, virtual IP, endpoints, and then the request itself.

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

use crate::attached;
use crate::pages::{self, Pages};
use crate::status::{Served, ServedFrontend, served};
use client::Client;
use kernel::{Route, connect, route};
use step::{Outcome, Step};

/// A headless Service may have thousands of endpoints; so many tell.
const MAX_ADDRESSES: usize = 8;

/// Flags of `portolan trace`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// A name as a pod would write it, or an address; without PORT every port that is served there.
    #[arg(value_name = "NAME[:PORT]")]
    target: String,

    /// The pod that asks: its name, namespace/name or container ID [default: the node].
    #[arg(long, value_name = "POD")]
    from: Option<String>,

    /// Where portolan-dns answers.
    #[arg(long, value_name = "ADDR:PORT", default_value = "10.96.0.10:53")]
    dns: SocketAddr,

    /// `--cluster-domain` of portolan-dns.
    #[arg(long, value_name = "DOMAIN", default_value = "cluster.local")]
    cluster_domain: String,

    /// Directory where the CNI plugin records which pod has which address.
    #[arg(long, value_name = "DIR", default_value = attachment::DEFAULT_DIRECTORY)]
    attachments: PathBuf,

    #[command(flatten)]
    pages: pages::Args,
}

/// The report.
#[derive(Debug, Serialize)]
pub(crate) struct Trace {
    target: String,
    /// The last step, the request itself, was answered.
    pub(crate) reached: bool,
    steps: Vec<Step>,
}

/// Everything a step needs.
struct Walk<'a> {
    args: &'a Args,
    client: Client,
    records: Vec<attachment::Attachment>,
    pages: Pages,
    served: Option<Served>,
    steps: Vec<Step>,
}

/// Goes the whole way, as far as it goes.
///
/// # Errors
/// When the command line names a pod or port that does not exist.
pub(crate) fn trace(args: &Args) -> anyhow::Result<Trace> {
    let (name, port) = split(&args.target)?;
    let records = attached::all(&args.attachments);
    let client = Client::find(args.from.as_deref(), &records)?;
    let pages = args.pages.find();
    let mut walk = Walk { args, client, records, pages, served: served(pages), steps: Vec::new() };
    walk.introduce();
    let addresses = walk.resolve(name);
    let reached =
        addresses.iter().map(|address| walk.follow(*address, port)).fold(false, |any, one| any | one);
    Ok(Trace { target: args.target.clone(), reached, steps: walk.steps })
}

/// `web`, `web:80`, `10.96.0.10:53`, `fd00::1`, `[fd00::1]:80`.
fn split(target: &str) -> anyhow::Result<(&str, Option<u16>)> {
    if target.parse::<IpAddr>().is_ok() {
        return Ok((target, None));
    }
    let Some((name, port)) = target.rsplit_once(':') else { return Ok((target, None)) };
    let port =
        port.parse().with_context(|| format!("port {port:?} of {target:?} is not a number (1-65535)"))?;
    Ok((name.trim_start_matches('[').trim_end_matches(']'), Some(port)))
}

impl Walk<'_> {
    fn introduce(&mut self) {
        let mut step = Step::new("client", Outcome::Fine, format!("{} asks", self.client.name));
        if self.served.is_none() {
            let page = self.pages.proxy_metrics;
            step = Step::new(
                "proxy",
                Outcome::Failed,
                format!("no proxy answers at http://{page}/debug/services"),
            )
            .fix("start portolan-proxy, or say where it is: --proxy-metrics ADDR:PORT");
        }
        self.steps.push(step);
    }

    /// The name's addresses, asked for as a resolver does.
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
                    self.steps.push(self.no_name_server(&candidate, &error));
                    return Vec::new();
                }
            }
        }
        let step = Step::new("name", Outcome::Failed, format!("no address by the name {name}"));
        self.steps.push(step.fix("`portolan status` lists the Services; `portolan-proxy --check-config` says what is wrong with their manifests"));
        Vec::new()
    }

    fn no_name_server(&self, name: &str, error: &io::Error) -> Step {
        let server = self.args.dns;
        let fix = if route(server.ip()).is_ok_and(|route| route.is_local) {
            "start portolan-dns, or say where it answers: --dns ADDR:PORT"
        } else {
            "the address is not local to this node: it is while portolan-proxy runs with a --service-cidr around it"
        };
        Step::new("name", Outcome::Failed, format!("{server} does not answer for {name}: {error}")).fix(fix)
    }

    /// From an address to an answer; whether there is one.
    fn follow(&mut self, address: IpAddr, port: Option<u16>) -> bool {
        let is_virtual = self.route_to(address);
        let served = self.served.take().unwrap_or_default();
        let here: Vec<&ServedFrontend> = served
            .frontends
            .iter()
            .filter(|frontend| socket_of(&frontend.frontend).is_some_and(|(at, _)| at.ip() == address))
            .collect();
        let reached = if here.is_empty() {
            self.without_frontend(address, port, is_virtual, &served)
        } else {
            self.frontends(&here, address, port, is_virtual)
        };
        self.served = Some(served);
        reached
    }

    /// Whether the node takes the address for its own.
    fn route_to(&mut self, address: IpAddr) -> bool {
        let (step, is_local) = match route(address) {
            Ok(Route { is_local: true, .. }) => {
                let said = format!("{address} is local to this node: no packet is rewritten");
                (Step::new("route", Outcome::Fine, said), true)
            }
            Ok(Route { said, .. }) => (Step::new("route", Outcome::Fine, said), false),
            Err(error) => {
                let step = Step::new("route", Outcome::Failed, format!("no route to {address}: {error}"));
                (step.fix("a virtual IP is local while portolan-proxy runs; a pod's address while it is attached"), false)
            }
        };
        self.steps.push(step);
        is_local
    }

    /// An address that the proxy does not serve: of a Service without endpoints, of a pod, or of something else.
    fn without_frontend(
        &mut self,
        address: IpAddr,
        port: Option<u16>,
        is_local: bool,
        served: &Served,
    ) -> bool {
        if let Some(idle) = served.without_endpoints.iter().find(|idle| idle.addresses.contains(&address)) {
            let said = format!(
                "{address} is Service {}, which has no ready endpoint: the kernel refuses",
                idle.service
            );
            self.steps.push(Step::new("frontend", Outcome::Failed, said).fix(
                "do its pods run, and does its selector match their labels? `portolan-proxy --check-config` reads the manifests",
            ));
            return false;
        }
        let said = match attached::owner(&self.records, address) {
            Some(pod) => format!("{address} is pod {pod} itself: the proxy is not in the way"),
            None if is_local => format!("the proxy serves nothing at {address}; another program may"),
            None => format!("{address} is no virtual IP: the proxy is not in the way"),
        };
        self.steps.push(Step::new("frontend", Outcome::Note, said));
        if let Some(port) = port {
            return self.request(SocketAddr::new(address, port));
        }
        self.steps.push(Step::new("request", Outcome::Note, "no port was named, so none was tried".into()));
        !is_local
    }

    /// The ports of an address that is served.
    fn frontends(
        &mut self,
        here: &[&ServedFrontend],
        address: IpAddr,
        port: Option<u16>,
        is_local: bool,
    ) -> bool {
        let is_asked = |at: &SocketAddr| port.is_none_or(|port| at.port() == port);
        let asked: Vec<(&ServedFrontend, SocketAddr, bool)> = here
            .iter()
            .filter_map(|frontend| socket_of(&frontend.frontend).map(|(at, is_tcp)| (*frontend, at, is_tcp)))
            .filter(|(_, at, _)| is_asked(at))
            .collect();
        if let Some(port) = port.filter(|_| asked.is_empty() && !is_local) {
            // An external IP: only the Service's ports are taken.
            let said =
                format!("port {port} of {address} is none of a Service's: the proxy is not in the way");
            self.steps.push(Step::new("frontend", Outcome::Note, said));
            return self.request(SocketAddr::new(address, port));
        }
        if asked.is_empty() {
            let served: Vec<&str> = here.iter().map(|frontend| frontend.frontend.as_str()).collect();
            let said =
                format!("port {} is not one of the Service's: the kernel refuses it", port.unwrap_or(0));
            let step = Step::new("frontend", Outcome::Failed, said);
            self.steps.push(step.fix(&format!("ask for one that is served: {}", served.join(", "))));
        }
        asked.iter().fold(false, |any, (frontend, at, is_tcp)| self.frontend(frontend, *at, *is_tcp) | any)
    }

    fn frontend(&mut self, frontend: &ServedFrontend, at: SocketAddr, is_tcp: bool) -> bool {
        let said = format!(
            "{} is Service {} with {} endpoints",
            frontend.frontend,
            frontend.service,
            frontend.endpoints.len()
        );
        self.steps.push(Step::new("frontend", Outcome::Fine, said));
        for endpoint in &frontend.endpoints {
            self.endpoint(&endpoint.address, endpoint.ejected, is_tcp);
        }
        if is_tcp {
            return self.request(at);
        }
        let said =
            "UDP has no handshake: whether the Service answers, only its own client can say".to_owned();
        self.steps.push(Step::new("request", Outcome::Note, said));
        !frontend.endpoints.is_empty()
    }

    /// An endpoint, as the proxy would connect to it.
    fn endpoint(&mut self, address: &str, ejected: bool, is_tcp: bool) {
        let Ok(at) = address.parse::<SocketAddr>() else { return };
        let pod = attached::owner(&self.records, at.ip())
            .map_or_else(|| "not attached here".into(), |pod| format!("pod {pod}"));
        let passed_over = if ejected { "; the proxy passes it over for now" } else { "" };
        let step = if !is_tcp {
            Step::new("endpoint", Outcome::Note, format!("{address} ({pod}){passed_over}"))
        } else {
            match connect(at) {
                Ok(taken) => Step::new("endpoint", Outcome::Fine, format!("{address} ({pod}) accepts{passed_over}")).took(taken),
                Err(error) => Step::new("endpoint", Outcome::Failed, format!("{address} ({pod}) does not accept: {error}{passed_over}"))
                    .fix("does the program in the pod listen on that port, on the pod's address and not on localhost alone?"),
            }
        };
        self.steps.push(step);
    }

    /// The request itself, from where the client is.
    fn request(&mut self, at: SocketAddr) -> bool {
        let connected = self.client.run(|| connect(at));
        let step = match &connected {
            Ok(taken) => Step::new("request", Outcome::Fine, format!("connected to {at}")).took(*taken),
            Err(error) => Step::new("request", Outcome::Failed, format!("cannot connect to {at}: {error}"))
                .fix("if every step before is fine: `portolan doctor`"),
        };
        self.steps.push(step);
        connected.is_ok()
    }
}

/// `10.96.0.10:53/udp`, and whether it is TCP.
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
    fn a_target_is_a_name_or_an_address_with_or_without_a_port() {
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
