//! Flags, logging, exit code. Everything else is in the library.

use std::process::ExitCode;

use portolan_proxy::{Args, Config};

fn main() -> ExitCode {
    let args: Args = daemon::program::parse();
    daemon::log::init(args.program.log_format);
    let cleanup = args.cleanup;
    let check = args.program.check_config;
    let config = Config::from(args);
    if check {
        let problems = discovery::check(&config.discovery);
        return daemon::program::report_check(problems.iter().map(|p| (p.is_error(), p.to_string())));
    }
    if cleanup {
        return daemon::program::run(|_drain| portolan_proxy::clean_up(config));
    }
    daemon::program::run(|drain| portolan_proxy::run(config, drain))
}
