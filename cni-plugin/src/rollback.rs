//! Undoes a failed ADD.

use crate::error::Error;

/// Undo steps, run in reverse order unless ADD succeeds.
#[derive(Default)]
pub(crate) struct Rollback<'a>(Vec<Box<dyn FnOnce() + 'a>>);

impl<'a> Rollback<'a> {
    /// Adds an undo step. It must not report errors: the error that led here is the one to report.
    pub(crate) fn push(&mut self, undo: impl FnOnce() + 'a) {
        self.0.push(Box::new(undo));
    }

    /// Commits on success. On failure runs every undo step and returns the error.
    pub(crate) fn finish<T>(mut self, result: Result<T, Error>) -> Result<T, Error> {
        if result.is_err() {
            while let Some(undo) = self.0.pop() {
                undo();
            }
        }
        result
    }
}
