//! The command line.

use std::path::PathBuf;

use clap::{Parser, Subcommand};
use clap_complete::Shell;

use crate::{doctor, install, status, trace};

/// Looks after Portolan on this node: what runs, what is wrong, where a request goes, what is installed.
///
/// Every command only looks, but for `install` and `uninstall`.
#[derive(Debug, Parser)]
#[command(
    name = "portolan",
    version,
    after_help = "Examples:\n  portolan status\n  portolan doctor\n  portolan trace web:80 --from default/client\n  \
                  portolan install --runtime podman\n\n\
                  Exit code: 0 all is well, 1 something is not, 2 the command line is wrong."
)]
pub struct Args {
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: Command,

    /// Write JSON, for programs.
    #[arg(long, global = true)]
    pub(crate) json: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// What runs here, what it reads, and every Service with its endpoints and traffic.
    Status(status::Args),
    /// Looks for what keeps Portolan from working on this node, and says how to mend it.
    Doctor(doctor::Args),
    /// Walks a request to a Service, step by step, and says what each step answered.
    Trace(trace::Args),
    /// Gives the CNI plugin to a container runtime. Repeating it brings the plugin up to date.
    Install(install::InstallArgs),
    /// Takes away what `install` has written, and nothing else.
    Uninstall(install::UninstallArgs),
    /// Prints the completion script of a shell.
    Completion {
        /// Which one.
        shell: Shell,
    },
    /// Does nothing until it is told to end: in a pod, whose containers may not end by themselves.
    #[command(hide = true)]
    Stay,
    /// Writes the manual pages into a directory.
    Man {
        /// Where to; it is created.
        directory: PathBuf,
    },
}
