//! How far a long work is, on a terminal.

use std::io::{IsTerminal as _, Write as _};

/// A bar on standard error, which vanishes when dropped; where that is not a terminal, a line a work. It may be closed.
pub(crate) struct Progress {
    what: String,
    total: usize,
    is_shown: bool,
}

/// Characters of the bar.
const WIDTH: usize = 30;

impl Progress {
    /// `total` steps of something.
    pub(crate) fn new(what: &str, total: usize) -> Self {
        if !std::io::stderr().is_terminal() {
            writeln!(std::io::stderr(), "{what}, {total} times").ok();
        }
        Self { what: what.to_owned(), total, is_shown: std::io::stderr().is_terminal() }
    }

    /// So many of them are done.
    pub(crate) fn at(&mut self, done: usize) {
        if self.is_shown {
            let full = (done * WIDTH).checked_div(self.total).unwrap_or(WIDTH);
            write!(
                std::io::stderr(),
                "\r{:24} [{}{}] {done}/{}",
                self.what,
                "#".repeat(full),
                ".".repeat(WIDTH - full),
                self.total
            )
            .ok();
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.is_shown {
            write!(std::io::stderr(), "\r{:80}\r", "").ok();
        }
    }
}
