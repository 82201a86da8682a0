//! Notifications for a service manager such as systemd (`sd_notify(3)`). Without one none is sent.

use std::process;

use sd_notify::NotifyState;

/// Reports that this process serves and is the main process of its service, also after a hot restart.
pub fn ready() {
    let states = [NotifyState::Ready, NotifyState::MainPid(process::id())];
    if let Err(error) = sd_notify::notify(&states) {
        tracing::warn!(%error, "cannot notify the service manager");
    }
}
