//! `portolan-proxy`: carries the stable virtual IP of a Service to the pods behind it, in userspace.
//!
//! ```text
//! discovery ──Snapshot──> Proxier ──open, close──> Frontend (a VIP:port) ──> tcp::serve | udp::serve on a worker
//! ```
//!
//! The main thread watches the world and opens sockets. Workers, one event loop a core, carry the traffic: a
//! connection stays on the loop that accepted it, both of its sockets too, so that no byte crosses a thread.

mod args;
mod clock;
mod divert;
mod endpoints;
mod frontend;
mod local_route;
mod metrics;
mod poller;
mod proxier;
mod run;
mod socket;
mod source;
mod tcp;
mod udp;
mod worker;

pub use args::{Args, SourceAddress};
pub use run::{Config, run};
