//! The machine a figure comes from.

use serde::Serialize;

/// What is needed to judge a figure.
#[derive(Clone, Debug, Serialize)]
pub struct Environment {
    /// Model of the processor.
    pub(crate) cpu: String,
    /// How many of them the run may use.
    pub(crate) cores: usize,
    /// Release of the kernel.
    pub(crate) kernel: String,
    /// Version of Portolan.
    pub(crate) version: &'static str,
}

impl Environment {
    pub(crate) fn capture() -> Self {
        let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let model = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
        let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        Self {
            cpu: model.map_or_else(|| "unknown".to_owned(), |(_, model)| model.to_owned()),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            kernel: kernel.trim().to_owned(),
            version: env!("CARGO_PKG_VERSION"),
        }
    }
}
