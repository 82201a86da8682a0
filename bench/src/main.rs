//! Command line, output and exit code. Everything else is in the library.

use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::Result;
use clap::{Parser, Subcommand};
use portolan_bench::{DNS_PARTS, DnsPart, Record, Shape, Size};

/// Measures what Portolan adds to a request, in private network namespaces on this machine. Needs root.
#[derive(Parser)]
#[command(
    name = "portolan-bench",
    version,
    after_help = "Example:\n  portolan-bench all --quick --out run\n  portolan-bench report --in run \
        --out report.html"
)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Latency that a Service adds to a request: closed and open loop, warm and cold, by size, connections
    /// and rate.
    Latency(Run),
    /// portolan-proxy compared with HAProxy, nginx and kube-proxy's nftables rules, on one node, to one
    /// server.
    Proxy(Run),
    /// portolan-cni compared with the reference plugins bridge, ptp and host-local: ADD, DEL, ports, 16 and
    /// 300 concurrent pods, memory.
    Cni {
        /// 6 rounds instead of 150, 500 addresses in use instead of 5,000, 100 concurrent pods instead of
        /// 300.
        #[arg(long)]
        quick: bool,
        /// Write every figure as JSON to this file.
        #[arg(long, value_name = "FILE")]
        json: Option<PathBuf>,
        /// Write JSON into this directory, as `all` does.
        #[arg(long, value_name = "DIR")]
        out: Option<PathBuf>,
    },
    /// portolan-dns compared with knotd, unbound, CoreDNS and plain hickory-server: 10,000 Services, server
    /// on one core.
    Dns {
        /// 3 rounds instead of 40.
        #[arg(long)]
        quick: bool,
        /// Number of rounds.
        #[arg(long, value_name = "N", conflicts_with = "quick")]
        #[arg(value_parser = clap::value_parser!(u16).range(1..))]
        rounds: Option<u16>,
        /// Parts to measure [default: all].
        #[arg(long, value_name = "PART", value_delimiter = ',')]
        only: Vec<DnsPart>,
        /// Write every figure as JSON to this file.
        #[arg(long, value_name = "FILE")]
        json: Option<PathBuf>,
        /// Write JSON and raw data into this directory, as `all` does.
        #[arg(long, value_name = "DIR")]
        out: Option<PathBuf>,
    },
    /// Runs a plain hickory-server: a peer of `dns`.
    #[command(hide = true)]
    Hickory { origin: String, zone: PathBuf, address: SocketAddr },
    /// The daemons and kube-proxy with a real API server, 10,000 Services and 150,000 endpoints: start,
    /// memory, changes.
    Scale {
        /// 500 Services and 3 changes.
        #[arg(long)]
        quick: bool,
        /// Number of Services to create.
        #[arg(long, value_name = "N", conflicts_with = "quick")]
        services: Option<usize>,
        /// Endpoints of each Service.
        #[arg(long, value_name = "N", default_value_t = 15)]
        #[arg(value_parser = clap::value_parser!(u16).range(1..=1000))]
        endpoints: u16,
        /// Write every figure as JSON to this file.
        #[arg(long, value_name = "FILE")]
        json: Option<PathBuf>,
        /// Write JSON into this directory, as `all` does.
        #[arg(long, value_name = "DIR")]
        out: Option<PathBuf>,
    },
    /// Runs all of the above; writes JSON and raw data into one directory.
    All {
        /// 3 rounds instead of 40: 5 minutes instead of 40.
        #[arg(long)]
        quick: bool,
        /// Number of rounds.
        #[arg(long, value_name = "N", conflicts_with = "quick")]
        #[arg(value_parser = clap::value_parser!(u16).range(1..))]
        rounds: Option<u16>,
        /// Directory for the results.
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
    },
    /// Writes one self-contained HTML file from the results of a run.
    Report {
        /// Directory of the results.
        #[arg(long = "in", value_name = "DIR")]
        from: PathBuf,
        /// The file to write.
        #[arg(long, value_name = "FILE.html")]
        out: PathBuf,
    },
    /// Compares two results, and says which differences are beyond the noise.
    Compare {
        /// The result before.
        before: PathBuf,
        /// The result after.
        after: PathBuf,
    },
    /// Writes the figures of a run into README.md and docs/benchmarks.md.
    Docs {
        /// Directory of the results.
        #[arg(long = "in", value_name = "DIR")]
        from: PathBuf,
        /// The repository.
        #[arg(long, value_name = "DIR", default_value = ".")]
        repository: PathBuf,
    },
    /// Shows three tiers of pods that find each other by name while replicas are replaced.
    Demo,
}

#[derive(clap::Args)]
struct Run {
    /// 3 rounds instead of 40.
    #[arg(long)]
    quick: bool,
    /// Number of rounds.
    #[arg(long, value_name = "N", conflicts_with = "quick")]
    #[arg(value_parser = clap::value_parser!(u16).range(1..))]
    rounds: Option<u16>,
    /// Shapes of load to measure [default: all of the command].
    #[arg(long, value_name = "SHAPE", value_delimiter = ',')]
    only: Vec<Shape>,
    /// Write every figure as JSON to this file.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write JSON and raw data into this directory, as `all` does.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

const LATENCY: [Shape; 5] = [Shape::Requests, Shape::Connections, Shape::Datagrams, Shape::Cold, Shape::Open];
const PROXY: [Shape; 5] = [Shape::Requests, Shape::Many, Shape::Connections, Shape::Stream, Shape::Datagrams];

impl Run {
    fn measure(self, what: fn(usize, &[Shape]) -> Record, shapes: &[Shape]) -> Result<()> {
        portolan_bench::check_privileges()?;
        let shapes = if self.only.is_empty() { shapes } else { &self.only };
        finish(&what(count(self.rounds, self.quick), shapes), self.out, self.json)
    }
}

fn finish(record: &Record, directory: Option<PathBuf>, file: Option<PathBuf>) -> Result<()> {
    // Write before printing: the terminal may be closed.
    if let Some(directory) = directory {
        record.write_into(&directory)?;
    }
    file.map_or(Ok(()), |file| record.write(&file))?;
    portolan_bench::print(record);
    match &record.interrupted {
        Some(why) => anyhow::bail!("ended early, {why}: the results are partial"),
        None => Ok(()),
    }
}

fn count(rounds: Option<u16>, quick: bool) -> usize {
    rounds.map_or(if quick { 3 } else { 40 }, usize::from)
}

fn size(quick: bool) -> Size {
    if quick { Size::QUICK } else { Size::FULL }
}

fn main() -> Result<()> {
    let args = Args::parse();
    portolan_bench::watch_signals()?;
    let ended = run(args.command);
    portolan_bench::wait_if_killed();
    ended
}

fn run(command: Command) -> Result<()> {
    match command {
        Command::Latency(run) => run.measure(portolan_bench::latency, &LATENCY),
        Command::Proxy(run) => run.measure(portolan_bench::proxy, &PROXY),
        Command::Cni { quick, json, out } => {
            portolan_bench::check_privileges()?;
            finish(&portolan_bench::cni(quick), out, json)
        }
        Command::Dns { quick, rounds, only, json, out } => {
            portolan_bench::check_privileges()?;
            let parts = if only.is_empty() { &DNS_PARTS[..] } else { &only };
            finish(&portolan_bench::dns(count(rounds, quick), parts), out, json)
        }
        Command::Hickory { origin, zone, address } => {
            portolan_bench::serve_with_hickory(&origin, &zone, address)
        }
        Command::Scale { quick, services, endpoints, json, out } => {
            portolan_bench::check_privileges()?;
            let size = size(quick);
            let services = services.unwrap_or(size.services);
            finish(&portolan_bench::scale(Size { services, endpoints: endpoints.into(), ..size }), out, json)
        }
        Command::All { quick, rounds, out } => {
            portolan_bench::check_privileges()?;
            let (quick, rounds) = (quick || rounds.is_some(), count(rounds, quick));
            portolan_bench::all(
                &out,
                &[
                    ("latency", &|| portolan_bench::latency(rounds, &LATENCY)),
                    ("proxy", &|| portolan_bench::proxy(rounds, &PROXY)),
                    ("dns", &|| portolan_bench::dns(rounds, &DNS_PARTS)),
                    ("cni", &|| portolan_bench::cni(quick)),
                    ("scale", &|| portolan_bench::scale(size(quick))),
                ],
            )
        }
        Command::Report { from, out } => portolan_bench::report(&from, &out),
        Command::Compare { before, after } => portolan_bench::compare(&before, &after),
        Command::Docs { from, repository } => portolan_bench::write_docs(&from, &repository),
        Command::Demo => portolan_bench::demo(),
    }
}
