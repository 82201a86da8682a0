//! Flags, output, exit code. Everything else is in the library.

use std::path::PathBuf;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// Measures what Portolan adds to a request, in private network namespaces of this machine. Needs root.
#[derive(Parser)]
#[command(name = "portolan-bench", version)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Requests (RR) and connections (CRR) to a pod, directly and through its Service's virtual IP.
    Latency {
        /// Fewer rounds: about ten seconds in place of a minute.
        #[arg(long)]
        quick: bool,
        /// Write every figure as JSON to this file.
        #[arg(long, value_name = "FILE")]
        json: Option<PathBuf>,
    },
    /// Three tiers of pods find each other by name, while replicas come and go.
    Demo,
}

fn main() -> Result<()> {
    match Args::parse().command {
        Command::Latency { quick, json } => {
            let options = portolan_bench::Options { rounds: if quick { 10 } else { 60 } };
            let results = portolan_bench::measure(&options)?;
            portolan_bench::print_table(&results);
            if let Some(file) = json {
                portolan_bench::print_json(&results, &file)?;
            }
            Ok(())
        }
        Command::Demo => portolan_bench::demo(),
    }
}
