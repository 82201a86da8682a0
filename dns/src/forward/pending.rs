//! Query coalescing: a query for a question that is being resolved waits for the same answer.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;

use super::entry::Entry;
use super::failure::Failure;
use super::upstream_query::Key;

/// The result of a query.
pub(super) type Outcome = Result<Arc<Entry>, Failure>;

/// The questions that are being resolved.
#[derive(Debug, Default)]
pub(super) struct Pending(Mutex<HashMap<Key, watch::Receiver<Option<Outcome>>>>);

/// The role of a query among equal ones.
pub(super) enum Place {
    /// Another query resolves the question.
    Waiting(Waiting),
    /// No other query does: resolve it, and report the outcome with [`Pending::finish`].
    First(First),
}

/// Completes with the outcome.
pub(super) struct Waiting(watch::Receiver<Option<Outcome>>);

/// The query that resolves the question. Dropping it without an outcome ends the waiting queries without one.
pub(super) struct First(watch::Sender<Option<Outcome>>);

impl Pending {
    /// Joins the queries for this question.
    pub(super) fn join(&self, key: &Key) -> Place {
        let mut pending = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // If its sender was dropped, it was cancelled.
        if let Some(receiver) = pending.get(key).filter(|receiver| receiver.has_changed().is_ok()) {
            return Place::Waiting(Waiting(receiver.clone()));
        }
        let (sender, receiver) = watch::channel(None);
        pending.insert(key.clone(), receiver);
        Place::First(First(sender))
    }

    /// Reports the outcome. A later query resolves the question again, or finds the answer in the cache.
    pub(super) fn finish(&self, key: &Key, first: First, outcome: Outcome) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(key);
        first.0.send_replace(Some(outcome));
    }
}

impl First {
    pub(super) fn wait(&self) -> Waiting {
        Waiting(self.0.subscribe())
    }
}

impl Waiting {
    /// The outcome; `None` if the first query was cancelled.
    pub(super) async fn outcome(mut self) -> Option<Outcome> {
        let outcome = self.0.wait_for(Option::is_some).await.ok()?;
        outcome.clone()
    }
}
