//! The record that CNI ADD writes for the daemons: the pod and its addresses.
//!
//! ```text
//! ADD ──write──> /run/portolan/attachments/<network>/<containerID>-<ifname>.json ──watch──> daemons
//! DEL ──remove─┘
//! ```
//!
//! Records are written atomically (write, then rename), so a reader never sees half of one. Readers ignore
//! names that do not end in `.json`, so they do not see the temporary files of a killed writer.

mod ports;
mod record;
mod store;

pub use ports::{Conflict, PortMapping};
pub use record::{Attachment, Pod, PortRange, RESERVED_PORTS};
pub use store::{Error, Key, Store};

/// The default directory of the records. It is under `/run` because pods do not survive a reboot.
pub const DEFAULT_DIRECTORY: &str = "/run/portolan/attachments";
