//! Readiness of the program, with the reasons.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

/// The readiness of one part of the program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Condition {
    /// Whether it is ready for traffic.
    pub ready: bool,
    /// A text for people: what it has or lacks.
    pub detail: String,
}

type Check = Arc<dyn Fn() -> Condition + Send + Sync>;

/// The checks, by name. They run on every request, so that no state is copied.
#[derive(Clone, Default)]
pub struct Readiness(Arc<Mutex<Vec<(&'static str, Check)>>>);

/// The results of all checks at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report(Vec<(&'static str, Condition)>);

impl Readiness {
    /// Adds a check.
    pub fn add(&self, name: &'static str, check: impl Fn() -> Condition + Send + Sync + 'static) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push((name, Arc::new(check)));
    }

    /// Runs every check.
    pub fn report(&self) -> Report {
        let checks = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        Report(checks.into_iter().map(|(name, check)| (name, check())).collect())
    }
}

impl Report {
    /// Whether every check is ready.
    pub fn is_ready(&self) -> bool {
        self.0.iter().all(|(_, condition)| condition.ready)
    }
}

impl fmt::Debug for Readiness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.report(), f)
    }
}

/// The format of the Kubernetes components.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, Condition { ready, detail }) in &self.0 {
            let (sign, word) = if *ready { ('+', "ok") } else { ('-', "failed") };
            writeln!(f, "[{sign}]{name} {word}: {detail}")?;
        }
        writeln!(f, "readyz check {}", if self.is_ready() { "passed" } else { "failed" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_part_that_is_not_ready_makes_the_whole_not_ready_and_gives_the_reason() {
        let readiness = Readiness::default();
        readiness.add("manifests", || Condition { ready: true, detail: "3 files".into() });
        assert!(readiness.report().is_ready());
        readiness.add("sockets", || Condition { ready: false, detail: "port 53 is taken".into() });
        let report = readiness.report();
        assert!(!report.is_ready());
        assert_eq!(
            report.to_string(),
            "[+]manifests ok: 3 files\n[-]sockets failed: port 53 is taken\nreadyz check failed\n"
        );
    }
}
