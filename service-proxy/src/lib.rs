//! `portolan-proxy`: proxies connections to the stable virtual IP of a Service to the pods behind it, in
//! userspace.
//!
//! ```text
//! discovery ──Snapshot──> Proxier ──plan──> Frontend (address, port) ──> backend: endpoints, pool, affinity
//!                            └── kernel: routes, intercepted addresses ──connections──> tcp, udp on a worker
//! ```
//!
//! The main thread watches the sources and opens sockets. Workers, one event loop per core, handle the
//! traffic: a connection stays on the loop that accepted it, with both of its sockets, so that no byte
//! crosses a thread.

mod args;
mod backend;
mod budget;
mod cni_config;
mod frontend;
mod kernel;
mod known_addresses;
mod metrics;
mod node_context;
mod node_routes;
mod pages;
mod plan;
mod proxier;
mod run;
mod service_port;
mod serving;
mod tcp;
mod traffic;
mod udp;
mod worker;

pub use args::{Args, Command, SourceAddress};
pub use cni_config::CniConfig;
pub use kernel::conntrack::Settings as ConntrackSettings;
pub use kernel::node_address::NodePortAddress;
pub use node_context::NodeConfig;
pub use node_routes::NodeRoutes;
/// The abstract unix address by which the next proxy of a network namespace finds the running one.
const HANDOVER_NAME: &str = "portolan-proxy";

pub use run::{Config, clean_up, run};
pub use worker::idle_timeout::IdleTimeouts;
