//! Flags, logging, exit code. Everything else is in the library.

use std::process::ExitCode;

use portolan_proxy::{Args, Config};

fn main() -> ExitCode {
    let args: Args = daemon::main::parse();
    daemon::log::init(args.log_format);
    let check = args.check_config;
    let config = Config::from(args);
    daemon::main::run(&config.discovery.clone(), check, |drain| portolan_proxy::run(config, drain))
}
