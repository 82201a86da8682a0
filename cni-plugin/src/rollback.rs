//! Undoing a failed ADD.

use crate::error::Error;

/// What to undo, last first, unless everything went well.
#[derive(Default)]
pub(crate) struct Rollback<'a>(Vec<Box<dyn FnOnce() + 'a>>);

impl<'a> Rollback<'a> {
    /// Undo this too. It must not fail loudly: the error that led here is the one to report.
    pub(crate) fn push(&mut self, undo: impl FnOnce() + 'a) {
        self.0.push(Box::new(undo));
    }

    /// Commits on success; on failure undoes everything and passes the error on.
    pub(crate) fn finish<T>(mut self, result: Result<T, Error>) -> Result<T, Error> {
        if result.is_err() {
            while let Some(undo) = self.0.pop() {
                undo();
            }
        }
        result
    }
}
