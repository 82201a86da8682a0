//! The signal that starts the drain.

use tokio_util::sync::CancellationToken;

/// Shared by all parts of the program. A drain that was started cannot be cancelled.
#[derive(Clone, Debug, Default)]
pub struct Drain(CancellationToken);

impl Drain {
    /// Starts the drain: stop accepting new work.
    pub fn start(&self) {
        self.0.cancel();
    }

    /// Whether the drain has started.
    pub fn is_started(&self) -> bool {
        self.0.is_cancelled()
    }

    /// Waits until the drain starts. Cancel-safe.
    pub async fn started(&self) {
        self.0.cancelled().await;
    }
}
