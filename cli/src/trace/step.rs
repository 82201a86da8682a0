//! One step of a trace with its result.

use std::fmt;
use std::time::Duration;

use serde::Serialize;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Outcome {
    Fine,
    Note,
    Failed,
}

#[derive(Debug, Serialize)]
pub(super) struct Step {
    step: &'static str,
    outcome: Outcome,
    #[serde(rename = "said")]
    text: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    microseconds: Option<u128>,
    #[serde(skip_serializing_if = "Option::is_none")]
    fix: Option<String>,
}

impl Step {
    pub(super) fn new(step: &'static str, outcome: Outcome, text: String) -> Self {
        Self { step, outcome, text, microseconds: None, fix: None }
    }

    pub(super) fn took(self, time: Duration) -> Self {
        Self { microseconds: Some(time.as_micros()), ..self }
    }

    pub(super) fn fix(self, fix: &str) -> Self {
        Self { fix: Some(fix.to_owned()), ..self }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = match self.outcome {
            Outcome::Fine => "ok",
            Outcome::Note => "--",
            Outcome::Failed => "!!",
        };
        let time = self.microseconds.map_or_else(String::new, |time| format!(" ({time} µs)"));
        writeln!(f, "{sign} {:<9} {}{time}", self.step, self.text)?;
        self.fix.iter().try_for_each(|fix| writeln!(f, "{:13}-> {fix}", ""))
    }
}
