//! Progress of a long task on a terminal.

use std::io::{IsTerminal as _, Write as _};

/// A progress bar on standard error that is erased on drop. Where standard error is not a terminal, one line
/// a task.
pub(crate) struct Progress {
    what: String,
    total: usize,
    is_shown: bool,
}

/// Characters of the bar.
const WIDTH: usize = 30;

impl Progress {
    /// Starts a task of `total` steps.
    pub(crate) fn new(what: &str, total: usize) -> Self {
        if !std::io::stderr().is_terminal() {
            let _ = writeln!(std::io::stderr(), "{what}, {total} times"); // Standard error may be closed.
        }
        Self { what: what.to_owned(), total, is_shown: std::io::stderr().is_terminal() }
    }

    /// Shows that `done` steps are complete.
    pub(crate) fn at(&mut self, done: usize) {
        if self.is_shown {
            let full = (done * WIDTH).checked_div(self.total).unwrap_or(WIDTH);
            let _ = write!(
                std::io::stderr(),
                "\r{:24} [{}{}] {done}/{}",
                self.what,
                "#".repeat(full),
                ".".repeat(WIDTH - full),
                self.total
            );
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.is_shown {
            let _ = write!(std::io::stderr(), "\r{:80}\r", "");
        }
    }
}
