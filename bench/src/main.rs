//! Flags, output, exit code. Everything else is in the library.

use std::path::PathBuf;

use anyhow::Result;
use clap::{Parser, Subcommand};
use portolan_bench::{Record, Shape};

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
    Latency(Run),
    /// portolan-proxy against HAProxy, nginx and kube-proxy's nftables rules, on one node, to one server.
    Proxy(Run),
    /// portolan-cni against the reference plugins bridge, ptp and host-local: ADD, DEL, 300 pods at once, memory.
    Cni {
        /// A seventh of the rounds, and 1,000 addresses in use in place of 5,000.
        #[arg(long)]
        quick: bool,
        /// Write every figure as JSON to this file.
        #[arg(long, value_name = "FILE")]
        json: Option<PathBuf>,
    },
    /// Three tiers of pods find each other by name, while replicas come and go.
    Demo,
}

#[derive(clap::Args)]
struct Run {
    /// A sixth of the rounds.
    #[arg(long)]
    quick: bool,
    /// Shapes of load to measure [default: all that the command is about].
    #[arg(long, value_name = "SHAPE", value_delimiter = ',')]
    only: Vec<Shape>,
    /// Write every figure as JSON to this file.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

impl Run {
    fn measure(self, what: fn(usize, &[Shape]) -> Result<Record>, shapes: &[Shape]) -> Result<()> {
        let shapes = if self.only.is_empty() { shapes } else { &self.only };
        let record = what(if self.quick { 10 } else { 60 }, shapes)?;
        portolan_bench::print(&record);
        self.json.map_or(Ok(()), |file| record.write(&file))
    }
}

const LATENCY: [Shape; 5] = [Shape::Requests, Shape::Connections, Shape::Datagrams, Shape::Cold, Shape::Open];
const PROXY: [Shape; 5] = [Shape::Requests, Shape::Many, Shape::Connections, Shape::Stream, Shape::Datagrams];

fn main() -> Result<()> {
    portolan_bench::watch_signals()?;
    match Args::parse().command {
        Command::Latency(run) => run.measure(portolan_bench::latency, &LATENCY),
        Command::Proxy(run) => run.measure(portolan_bench::proxy, &PROXY),
        Command::Cni { quick, json } => {
            let record = portolan_bench::cni(quick)?;
            portolan_bench::print(&record);
            json.map_or(Ok(()), |file| record.write(&file))
        }
        Command::Demo => portolan_bench::demo(),
    }
}
