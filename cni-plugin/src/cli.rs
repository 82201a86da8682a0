//! The commands that users run, beside the CNI protocol.

use std::path::Path;

use crate::command;
use crate::import::import;
use crate::netconf::DEFAULT_STATE_DIR;
use crate::skel::Output;

const HELP: &str = "\
portolan-cni: a CNI plugin that gives each pod its own address and port space.

A container runtime runs it, with CNI_COMMAND and friends in the environment and the network
configuration on standard input; see docs/cni-plugin.md. By hand:

  portolan-cni cleanup [--state-dir DIR]
      removes what stays on the node when the last pod was deleted: the nft tables, bridges of ours
      without ports, routes of free addresses, and DIR's records and reservations (default:
      /run/portolan). Refuses while a pod is attached or has an address reserved, and names it.
  portolan-cni import CONFLIST [--from DIR] [--json]
      imports the addresses that the plugin host-local has assigned in the network of CONFLIST, so
      that portolan-cni assigns none of them again. DIR is where host-local keeps them (default:
      CONFLIST's ipam.dataDir, else /var/lib/cni/networks); its files stay as they are.
  portolan-cni --version
  portolan-cni --help
";

/// Runs one command line, without the program's name.
pub fn run_cli(arguments: &[String]) -> Output {
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["--help" | "-h" | "help"] => succeeded(HELP.to_owned()),
        ["--version" | "-V"] => succeeded(format!("portolan-cni {}\n", env!("CARGO_PKG_VERSION"))),
        ["cleanup"] => cleanup(DEFAULT_STATE_DIR.as_ref()),
        ["cleanup", "--state-dir", directory] => cleanup(directory.as_ref()),
        ["import", conflist] => run_import(conflist, None, false),
        ["import", conflist, "--json"] => run_import(conflist, None, true),
        ["import", conflist, "--from", directory] => run_import(conflist, Some(directory), false),
        ["import", conflist, "--from", directory, "--json"] => run_import(conflist, Some(directory), true),
        _ => failed(format!("portolan-cni: no such command: {}\n\n{HELP}", arguments.join(" "))),
    }
}

fn cleanup(state_dir: &Path) -> Output {
    match command::cleanup(state_dir) {
        Ok(()) => succeeded(String::new()),
        Err(error) => failed(format!("portolan-cni: {}\n", error.message)),
    }
}

fn run_import(conflist: &str, from: Option<&str>, as_json: bool) -> Output {
    match import(conflist.as_ref(), from.map(Path::new)) {
        Ok(imported) => {
            let stdout = if as_json { format!("{}\n", imported.to_json()) } else { imported.to_string() };
            let complaints = imported.errors.iter().map(|error| format!("portolan-cni: {}\n", error.message));
            Output::new(stdout, complaints.collect(), imported.errors.is_empty())
        }
        Err(error) => failed(format!("portolan-cni: {}\n", error.message)),
    }
}

fn succeeded(stdout: String) -> Output {
    Output::new(stdout, String::new(), true)
}

fn failed(stderr: String) -> Output {
    Output::new(String::new(), stderr, false)
}
