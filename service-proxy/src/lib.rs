//! `portolan-proxy`: carries the stable virtual IP of a Service to the pods behind it, in userspace.
//!
//! ```text
//! discovery ──Snapshot──> Proxier ──open, close──> Frontend (a VIP:port) ──> tcp::serve | udp::serve on a worker
//! ```
//!
//! The main thread watches the world and opens sockets. Workers, one event loop a core, carry the traffic: a
//! connection stays on the loop that accepted it, both of its sockets too, so that no byte crosses a thread.

mod affinity;
mod args;
mod catcher;
mod clock;
mod divert;
mod endpoint;
mod endpoints;
mod frontend;
mod health_check;
mod local_route;
mod metrics;
mod node_address;
mod pages;
mod plan;
mod poller;
mod pool;
mod proxier;
mod run;
mod socket;
mod source;
mod status;
mod succession;
mod surroundings;
mod tcp;
mod topology;
mod udp;
mod worker;

pub use args::{Args, SourceAddress};
pub use node_address::NodePortAddress;
pub use proxier::Place;
pub use run::{Config, run};
