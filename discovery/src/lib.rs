//! What the cluster looks like right now: Services, their endpoints, and where that knowledge comes from.
//!
//! ```text
//! source (manifests | kubernetes, attachments) ──Event──> Index (one writer) ──> Arc<Snapshot> ──watch──> proxy, DNS
//! ```
//!
//! A source turns what it sees into model objects and hands over everything one origin (a file, an API
//! object) says, whole. The index merges the origins, derives endpoints and virtual IPs, and publishes an
//! immutable [`Snapshot`]. A reader takes one snapshot a connection or query and never mixes two. Both
//! daemons see the same files and every derivation is a pure function of them, so they agree without talking
//! to each other.

mod allocate;
mod args;
mod convert;
mod derive;
mod discovery;
mod event;
mod index;
pub mod model;
mod notice;
mod problem;
mod shared_map;
mod snapshot;
mod source;
mod staleness;

pub use args::Args;
pub use convert::parse_cidr;
pub use discovery::{
    Config, ControlPlane, Discovery, Interest, ServiceInterest, Snapshots, check, start, start_with,
};
pub use event::{Event, Object, Origin, Outage, Resource, Sourced};
pub use index::Index;
pub use notice::{Notice, Recorder, Regarding};
pub use problem::{Location, Problem, Severity};
pub use shared_map::SharedMap;
pub use snapshot::{Precedence, ServiceEntry, Snapshot, SourceState};
#[cfg(feature = "kubernetes")]
pub use source::Access;
pub use staleness::Staleness;
