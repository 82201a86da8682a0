//! Notifications to a service manager such as systemd (`sd_notify(3)`). Without one none is sent.

use std::process;

use sd_notify::NotifyState;

/// This process serves, and it is the main one of its service now, also where another one was before.
pub fn ready() {
    let states = [NotifyState::Ready, NotifyState::MainPid(process::id())];
    if let Err(error) = sd_notify::notify(&states) {
        tracing::warn!(%error, "the service manager does not learn that this process serves");
    }
}
