//! How far a long work is, on a terminal.

use std::io::IsTerminal as _;

/// A bar on standard error, which vanishes when dropped; where that is not a terminal, a line a work.
pub(crate) struct Progress {
    what: String,
    total: usize,
    is_shown: bool,
}

/// Characters of the bar.
const WIDTH: usize = 30;

impl Progress {
    /// `total` steps of something.
    #[expect(clippy::print_stderr, reason = "progress, for people")]
    pub(crate) fn new(what: &str, total: usize) -> Self {
        if !std::io::stderr().is_terminal() {
            eprintln!("{what}, {total} times");
        }
        Self { what: what.to_owned(), total, is_shown: std::io::stderr().is_terminal() }
    }

    /// So many of them are done.
    #[expect(clippy::print_stderr, reason = "progress, for people")]
    pub(crate) fn at(&mut self, done: usize) {
        if self.is_shown {
            let full = (done * WIDTH).checked_div(self.total).unwrap_or(WIDTH);
            eprint!(
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
    #[expect(clippy::print_stderr, reason = "takes the bar away")]
    fn drop(&mut self) {
        if self.is_shown {
            eprint!("\r{:80}\r", "");
        }
    }
}
