//! The main function of every daemon, from the command line to the exit code.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{ArgMatches, Command, CommandFactory, Id, Parser};
use tokio::signal::unix::{SignalKind, signal};

use crate::config_file;
use crate::drain::Drain;

/// Exit code for a wrong command line or configuration (`EX_USAGE` of sysexits).
const USAGE: u8 = 64;

/// Exit code after the second signal: what a shell reports for SIGTERM.
const ABORTED: i32 = 143;

/// The flags of every daemon.
#[derive(Clone, Debug, clap::Args)]
#[group(skip)]
pub struct Args {
    /// Check flags and manifests, print errors and warnings, and exit
    #[arg(long)]
    pub check_config: bool,

    /// Log format; logs go to standard error
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    pub log_format: crate::log::Format,

    /// Config file whose keys are these flags [default: /etc/portolan/config.yaml, if it exists]
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
}

/// The effective flags, by name, from the command line and the config file.
#[derive(Clone, Debug, Default)]
pub struct Settings(BTreeMap<String, Vec<String>>);

/// Parses the command line merged with the config file. On an error prints it and exits, as clap does.
pub fn parse<A: Parser + CommandFactory>() -> A {
    parse_with_settings().0
}

/// Like [`parse`], with the effective settings.
pub fn parse_with_settings<A: Parser + CommandFactory>() -> (A, Settings) {
    let command = A::command();
    let merged = config_file::arguments(&command, std::env::args_os().collect());
    let arguments: Vec<OsString> = match merged {
        Ok(arguments) => arguments,
        Err(e) => command.clone().error(clap::error::ErrorKind::ValueValidation, e).exit(),
    };
    let matches = command.clone().get_matches_from(&arguments);
    let args = A::from_arg_matches(&matches).unwrap_or_else(|e| e.exit());
    (args, Settings::of(&command, &matches))
}

impl Settings {
    fn of(command: &Command, matches: &ArgMatches) -> Self {
        let flags = command.get_arguments().filter_map(|flag| Some((flag.get_id(), flag.get_long()?)));
        let values = |id: &Id| {
            let raw = matches.get_raw(id.as_str()).into_iter().flatten();
            raw.map(|value| value.to_string_lossy().into_owned()).collect::<Vec<_>>()
        };
        let set = flags.map(|(id, name)| (name.to_owned(), values(id)));
        Self(set.filter(|(_, values)| !values.is_empty()).collect())
    }

    /// As JSON, under the program's name: a string per flag, a list if it was given several times.
    pub fn json(&self, program: &str) -> serde_json::Value {
        let value = |values: &Vec<String>| match &values[..] {
            [one] => serde_json::json!(one),
            several => serde_json::json!(several),
        };
        let flags = self.0.iter().map(|(name, values)| (name.clone(), value(values)));
        serde_json::json!({ program: flags.collect::<serde_json::Map<_, _>>() })
    }
}

/// Prints the findings of `--check-config` and returns the exit code: warnings pass, errors do not.
pub fn report_check(findings: impl Iterator<Item = (bool, String)>) -> ExitCode {
    let (mut errors, mut warnings) = (0, 0);
    let mut out = std::io::stdout().lock();
    for (is_error, text) in findings {
        *if is_error { &mut errors } else { &mut warnings } += 1;
        // A closed pipe is the reader's decision.
        let _ = writeln!(out, "{}: {text}", if is_error { "error" } else { "warning" });
    }
    let _ = writeln!(out, "{errors} errors, {warnings} warnings");
    if errors == 0 { ExitCode::SUCCESS } else { ExitCode::from(USAGE) }
}

/// Runs `main` on a single-threaded runtime. Signals start its drain.
pub fn run<F>(main: impl FnOnce(Drain) -> F) -> ExitCode
where
    F: Future<Output = anyhow::Result<()>>,
{
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::error!(%error, "cannot start the event loop");
            return ExitCode::FAILURE;
        }
    };
    let result = runtime.block_on(async {
        let drain = Drain::default();
        let signals = watch_signals(drain.clone());
        tokio::select! {
            result = main(drain) => result,
            error = signals => Err(error.into()),
        }
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

/// SIGTERM or SIGINT starts the drain; a second one ends the process. Returns only if signals cannot be
/// received.
async fn watch_signals(drain: Drain) -> std::io::Error {
    let wait = async {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        loop {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            if drain.is_started() {
                tracing::warn!("second signal, stopping at once");
                crate::log::flush();
                abort();
            }
            drain.start();
        }
    };
    let result: Result<std::convert::Infallible, std::io::Error> = wait.await;
    match result {
        Err(error) => error,
    }
}

#[expect(clippy::exit, reason = "a second signal must end the process at once")]
fn abort() -> ! {
    std::process::exit(ABORTED)
}
