//! The current state of the cluster: Services and their endpoints, from several sources.
//!
//! ```text
//! source (manifests | kubernetes, attachments) ──Event──> Index ──> Arc<Snapshot> ──watch──> proxy, DNS
//! ```
//!
//! A source converts what it reads to model objects and sends all objects of an origin (a file, an API
//! object) as a whole. The index merges the origins, derives endpoints and virtual IPs, and publishes an
//! immutable [`Snapshot`]. A reader uses one snapshot per connection or query and never mixes two. Both
//! daemons read the same files and every derivation is a pure function of them, so they agree without
//! communication.

mod allocate;
mod args;
mod convert;
mod derive;
mod discovery;
mod event;
mod event_record;
mod index;
pub mod model;
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
pub use event::{Event, Object, Origin, Resource, SourceFailure, Sourced};
pub use event_record::{EventRecord, Recorder, Regarding};
pub use index::Index;
pub use problem::{Location, Problem, Severity};
pub use shared_map::SharedMap;
pub use snapshot::{Precedence, ServiceEntry, Snapshot, SourceState};
#[cfg(feature = "kubernetes")]
pub use source::Access;
pub use staleness::Staleness;
