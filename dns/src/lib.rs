//! `portolan-dns`: names for Services and their endpoints, as the Kubernetes DNS specification has them; every other
//! name is asked of the upstream servers.
//!
//! ```text
//! discovery ──Snapshot──> Zone ──ArcSwap──> Responder::answer_now <── UDP (a thread a core)
//!                                             │                  <── TCP, TLS, HTTPS, QUIC
//!                                             └──deferred──> RequestHandler ──> Forwarder ──> upstreams
//! ```
//!
//! A query loads one zone and never mixes two states; there is no cache in front of it, so the query after a change
//! sees the change.

mod acl;
mod args;
mod aside;
mod autopath;
mod connections;
mod dnstap;
mod file;
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
mod zone;

pub use acl::Limits;
pub use args::Args;
pub use forward::{Args as ForwardArgs, Config as ForwardConfig, Limit, Policy, Stub, Upstream};
pub use names::{Compat, Names, Pods};
pub use run::{Config, Domain, run};
pub use tls::Config as TlsConfig;
