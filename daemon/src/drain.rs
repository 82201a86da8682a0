//! The one-way switch from serving to stopping.

use tokio_util::sync::CancellationToken;

/// Shared by everything that has to know. Once started, a drain cannot be called off.
#[derive(Clone, Debug, Default)]
pub struct Drain(CancellationToken);

impl Drain {
    /// Stop accepting new work.
    pub fn start(&self) {
        self.0.cancel();
    }

    /// Whether it has begun.
    pub fn is_started(&self) -> bool {
        self.0.is_cancelled()
    }

    /// Returns when it begins. Cancel-safe.
    pub async fn started(&self) {
        self.0.cancelled().await;
    }
}
