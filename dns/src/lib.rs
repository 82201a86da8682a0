//! `portolan-dns`: names for Services and their endpoints, as the Kubernetes DNS specification has them; every other
//! name is asked of the upstream servers.
//!
//! ```text
//! discovery ──Snapshot──> Zone (every record, built once a change) ──ArcSwap──> Handler <── hickory Server (UDP, TCP)
//!                                                                                  └──────> Forwarder ──> upstreams
//! ```
//!
//! A query loads one zone and never mixes two states; there is no cache in front of it, so the query after a change
//! sees the change.

mod args;
mod autopath;
mod forward;
mod handler;
mod message;
mod metrics;
mod query;
mod reply;
mod run;
mod socket;
mod zone;

pub use args::Args;
pub use forward::{Args as ForwardArgs, Config as ForwardConfig, Limit, Stub, Upstream};
pub use run::{Config, run};
