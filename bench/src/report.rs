//! Results, for people and for programs.

use std::path::Path;

use anyhow::{Context, Result};

use crate::latency::Results;
use crate::load::MESSAGE;

/// The table.
#[expect(clippy::print_stdout, reason = "this is the program's output")]
pub fn print_table(results: &Results) {
    print!("{}", table(results));
}

/// Everything, as JSON.
///
/// # Errors
/// As writing a file.
pub fn print_json(results: &Results, file: &Path) -> Result<()> {
    let json = serde_json::to_string_pretty(results)?;
    std::fs::write(file, json).with_context(|| format!("write {}", file.display()))
}

fn table(results: &Results) -> String {
    let mut text = String::new();
    let environment = &results.environment;
    let mut line = |values: [String; 9]| {
        let [shape, path, rest @ ..] = values;
        let rest: String = rest.iter().map(|value| format!("{value:>10}")).collect();
        text += &format!("{shape:<5}{path:<14}{rest}\n");
    };
    line(["", "µs", "requests", "p50", "p90", "p99", "p99.9", "max", "errors"].map(str::to_owned));
    for path in &results.paths {
        let number = |value: f64| format!("{value:.1}");
        line([
            path.shape.to_owned(),
            path.path.to_owned(),
            path.requests.to_string(),
            number(path.p50),
            number(path.p90),
            number(path.p99),
            number(path.p999),
            number(path.max),
            path.errors.to_string(),
        ]);
    }
    for path in results.paths.iter().filter(|path| path.path != "direct") {
        let (low, high) = (path.added_low, path.added_high);
        let line = format!(
            "{} {} adds {:+.1} µs to the p50 of direct (95%: {low:+.1} to {high:+.1})",
            path.shape, path.path, path.added
        );
        text += &line;
        text.push('\n');
    }
    let (rounds, block) = (results.rounds, results.block_ms);
    text += &format!(
        "{MESSAGE} bytes each way, one client, {rounds} rounds of {block} ms blocks in random order; {} x {}, Linux {}\n",
        environment.cores, environment.cpu, environment.kernel
    );
    text
}
