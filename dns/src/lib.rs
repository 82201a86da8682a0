//! `portolan-dns`: answers names of Services and their endpoints by the Kubernetes DNS specification, and
//! forwards all other names to upstream servers.
//!
//! ```text
//! discovery ──Snapshot──> Zone ──ArcSwap──> Responder::answer_now <── UDP (a thread a core)
//!                                             │                  <── TCP, TLS, HTTPS, QUIC
//!                                             └──deferred──> RequestHandler ──> Forwarder ──> upstreams
//! ```
//!
//! A query uses one zone and never mixes two states. There is no cache in front of it, so the first query
//! after a change gets the new state.

mod acl;
mod args;
mod autopath;
mod background;
mod connections;
mod dnstap;
mod forward;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzz;
mod https;
mod listeners;
mod message;
mod metrics;
mod names;
mod query_log;
mod quic;
mod responder;
mod run;
mod socket;
mod tcp;
mod tls;
mod udp;
mod watched_file;
mod zone;

pub use acl::Limits;
pub use args::Args;
pub use forward::{Args as ForwardArgs, Config as ForwardConfig, Limit, Policy, Stub, Upstream};
pub use names::{Compat, Names, Pods};
pub use run::{Config, Domain, run};
pub use tls::Config as TlsConfig;
