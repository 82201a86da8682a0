//! Results, for people and for programs.

use std::path::Path;

use anyhow::{Context, Result};
use serde::Serialize;

use crate::environment::Environment;
use crate::interleave::PathResult;
use crate::load::{MESSAGE, Shape};

/// A whole run.
#[derive(Debug, Serialize)]
pub struct Results {
    pub(crate) environment: Environment,
    pub(crate) rounds: usize,
    pub(crate) block_ms: u128,
    pub(crate) paths: Vec<PathResult>,
}

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
    let environment = &results.environment;
    let mut text = String::new();
    let mut shape = "";
    for path in &results.paths {
        if path.shape != shape {
            shape = path.shape;
            let unit = if is_stream(path) { "MiB/s" } else { "req/s" };
            let header = [unit, "CPU µs", "p50", "p90", "p99", "p99.9", "max", "errors"];
            text += &line(&format!("{shape}, µs"), header.map(str::to_owned), "p50 added (95%)", "rate x");
        }
        let number = |value: f64| if is_stream(path) { "-".to_owned() } else { format!("{value:.1}") };
        let [added, low, high] = path.added;
        let [relative, ..] = path.relative_rate;
        let added =
            if is_stream(path) { "-".to_owned() } else { format!("{added:+.1} ({low:+.1} to {high:+.1})") };
        let values = [
            format!("{:.0}", path.rate),
            path.processor.map_or_else(|| "-".to_owned(), |time| format!("{time:.1}")),
            number(path.p50),
            number(path.p90),
            number(path.p99),
            number(path.p999),
            number(path.max),
            path.errors.to_string(),
        ];
        text += &line(path.path, values, &added, &format!("{relative:.2}"));
    }
    let (rounds, block) = (results.rounds, results.block_ms);
    text += &format!(
        "{MESSAGE} bytes each way, {rounds} rounds of {block} ms blocks in random order; CPU: of the program between client and \
         server, a request or MiB; {} x {}, Linux {}\n",
        environment.cores, environment.cpu, environment.kernel
    );
    text
}

fn line(name: &str, values: [String; 8], added: &str, relative: &str) -> String {
    let values: String = values.iter().map(|value| format!("{value:>9}")).collect();
    format!("{name:<17}{values}  {added:<24}{relative:>6}\n")
}

fn is_stream(path: &PathResult) -> bool {
    path.shape == Shape::Stream.name()
}
