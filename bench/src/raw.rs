//! Raw data of a run: a histogram log for each path, and a CSV line for each block.

use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};
use hdrhistogram::Histogram;
use hdrhistogram::serialization::V2DeflateSerializer;
use hdrhistogram::serialization::interval_log::IntervalLogWriterBuilder;

/// One block of one path.
#[derive(Clone, Debug)]
pub(crate) struct RawBlock {
    pub(crate) round: usize,
    /// Time since the start of the run.
    pub(crate) at: Duration,
    pub(crate) took: Duration,
    pub(crate) latencies: Histogram<u64>,
    pub(crate) errors: u64,
    pub(crate) units: f64,
    pub(crate) steal: f64,
    pub(crate) preempted: u64,
}

/// The blocks of one path under one load.
#[derive(Clone, Debug)]
pub(crate) struct RawPath {
    pub(crate) load: String,
    pub(crate) path: String,
    pub(crate) blocks: Vec<RawBlock>,
}

/// Writes `<section>-<load>-<path>.hlog` (nanoseconds) and `<section>-blocks.csv` (microseconds).
pub(crate) fn write(directory: &Path, section: &str, paths: &[RawPath]) -> Result<()> {
    let mut lines =
        "load,path,round,at_s,took_s,units,errors,p50_us,p99_us,p999_us,max_us,preempted,steal_s\n"
            .to_owned();
    for path in paths {
        for block in &path.blocks {
            let at = |quantile| block.latencies.value_at_quantile(quantile) as f64 / 1000.0;
            let RawBlock { round, errors, units, steal, preempted, .. } = block;
            let (began, took) = (block.at.as_secs_f64(), block.took.as_secs_f64());
            let max = block.latencies.max() as f64 / 1000.0;
            writeln!(
                lines,
                "\"{}\",\"{}\",{round},{began:.3},{took:.4},{units:.3},{errors},{},{},{},{max},{preempted},\
                 {steal}",
                path.load,
                path.path,
                at(0.5),
                at(0.99),
                at(0.999)
            )?;
        }
        if path.blocks.iter().any(|block| !block.latencies.is_empty()) {
            let name = file_name(&format!("{section}-{}-{}", path.load, path.path));
            let file = directory.join(format!("{name}.hlog"));
            std::fs::write(&file, log(path)?).with_context(|| format!("write {}", file.display()))?;
        }
    }
    let file = directory.join(format!("{section}-blocks.csv"));
    std::fs::write(&file, lines).with_context(|| format!("write {}", file.display()))
}

fn log(path: &RawPath) -> Result<Vec<u8>> {
    let (mut text, mut serializer) = (Vec::new(), V2DeflateSerializer::new());
    let mut log = IntervalLogWriterBuilder::new()
        .add_comment(&format!("portolan-bench: {} by {}, nanoseconds", path.load, path.path))
        .begin_log_with(&mut text, &mut serializer)?;
    for block in &path.blocks {
        log.write_histogram(&block.latencies, block.at, block.took, None)
            .map_err(|error| anyhow::anyhow!("write an interval log: {error:?}"))?;
    }
    Ok(text)
}

/// Returns lower-case letters and digits, separated by dashes.
fn file_name(words: &str) -> String {
    let dashed: String =
        words.chars().map(|c| if c.is_alphanumeric() { c.to_ascii_lowercase() } else { '-' }).collect();
    dashed.split('-').filter(|word| !word.is_empty()).collect::<Vec<_>>().join("-")
}
