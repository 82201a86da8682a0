//! Flags, logging, exit code. Everything else is in the library.

use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::process::ExitCode;

use portolan_proxy::{Args, Command, Config};

fn main() -> ExitCode {
    let (args, settings): (Args, _) = daemon::program::parse_with_settings();
    let _log = daemon::log::init(args.program.log_format);
    if let Some(Command::Status { service, json }) = args.command {
        return status(args.metrics_bind_address, service.as_deref(), json);
    }
    let cleanup = args.cleanup;
    let check = args.program.check_config;
    let config = Config::from((args, settings));
    if check {
        let problems = discovery::check(&config.discovery);
        return daemon::program::report_check(problems.iter().map(|p| (p.is_error(), p.to_string())));
    }
    if cleanup {
        return daemon::program::run(|_drain| portolan_proxy::clean_up(config));
    }
    daemon::program::run(|drain| portolan_proxy::run(config, drain))
}

/// Prints a page of the running proxy.
fn status(mut address: SocketAddr, service: Option<&str>, json: bool) -> ExitCode {
    if address.ip().is_unspecified() {
        address.set_ip(if address.is_ipv4() {
            IpAddr::from(Ipv4Addr::LOCALHOST)
        } else {
            Ipv6Addr::LOCALHOST.into()
        });
    }
    let format = if json { "format=json" } else { "format=text" };
    let service = service.map(|service| format!("&service={service}")).unwrap_or_default();
    match daemon::page::get(address, &format!("/debug/services?{format}{service}")) {
        Ok(page) if page.is_ok() => {
            // A closed pipe is the reader's decision.
            let _ = std::io::stdout().write_all(page.body.as_bytes());
            ExitCode::SUCCESS
        }
        Ok(page) => {
            tracing::error!(status = page.status, "{}", page.body.trim());
            ExitCode::FAILURE
        }
        Err(error) => {
            tracing::error!(%error, "no proxy answers on {address}: does it run, and with this --metrics-bind-address?");
            ExitCode::FAILURE
        }
    }
}
