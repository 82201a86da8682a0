//! The record that CNI ADD leaves behind for the daemons: who got which address.
//!
//! ```text
//! ADD ──write──> /run/portolan/attachments/<network>/<containerID>-<ifname>.json ──watch──> daemons
//! DEL ──remove─┘
//! ```
//!
//! Files appear and disappear whole (write, then rename), so a reader never sees half a record. Readers
//! ignore names that do not end in `.json`, which is how the temporary files of a killed writer stay
//! invisible.

mod ports;
mod record;
mod store;

pub use ports::{Conflict, PortMapping};
pub use record::{Attachment, Pod, PortRange, RESERVED_PORTS};
pub use store::{Error, Key, Store};

/// Where the records live unless told otherwise. Under `/run`, because pods do not survive a reboot.
pub const DEFAULT_DIRECTORY: &str = "/run/portolan/attachments";
