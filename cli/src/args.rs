//! The command line.

use std::path::PathBuf;

use clap::{Parser, Subcommand};
use clap_complete::Shell;

use crate::{doctor, install, status, trace};

/// Inspects and installs Portolan on this node: status, problems, the path of a request, the CNI plugin.
///
/// All commands except `install` and `uninstall` are read-only.
#[derive(Debug, Parser)]
#[command(
    name = "portolan",
    version,
    after_help = "Examples:\n  portolan status\n  portolan doctor\n  portolan trace web:80 --from \
        default/client\n  \
                  portolan install --runtime podman\n\n\
                  Exit code: 0 success, 1 a problem was found, 2 the command line is invalid."
)]
pub struct Args {
    /// The command.
    #[command(subcommand)]
    pub(crate) command: Command,

    /// Print JSON.
    #[arg(long, global = true)]
    pub(crate) json: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Shows the daemons, their sources, and all Services with endpoints and traffic.
    Status(status::Args),
    /// Finds what prevents Portolan from working on this node, and says how to fix it.
    Doctor(doctor::Args),
    /// Traces a request to a Service and prints the result of each step.
    Trace(trace::Args),
    /// Installs the CNI plugin for a container runtime. Repeat it to update the plugin.
    Install(install::InstallArgs),
    /// Removes the files that `install` wrote, and nothing else.
    Uninstall(install::UninstallArgs),
    /// Prints the completion script of a shell.
    Completion {
        /// The shell.
        shell: Shell,
    },
    /// Sleeps until it is killed: the last container of a DaemonSet pod, which must not exit.
    #[command(hide = true)]
    Stay,
    /// Writes the manual pages into a directory.
    Man {
        /// The directory; it is created if missing.
        directory: PathBuf,
    },
}
