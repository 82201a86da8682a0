//! Runs one command, from the environment and input to the output.

use std::ffi::{OsStr, OsString};
use std::io::{Read, Write};
use std::os::fd::AsFd;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::stat::{fstat, stat};
use serde_json::json;

use crate::args::Command;
use crate::request::{Request, VERSIONS};
use crate::role::Role;
use crate::{driver, trace};

/// What the process prints, and its exit status.
#[derive(Debug)]
pub struct Output {
    /// At most one JSON object.
    pub stdout: String,
    /// Messages for the user.
    pub stderr: String,
    /// Whether the exit code is 0.
    pub success: bool,
    /// An ADD that succeeded.
    added: Option<Request>,
}

impl Output {
    /// Output for the user, without a result.
    pub(crate) fn new(stdout: String, stderr: String, success: bool) -> Self {
        Self { stdout, stderr, success, added: None }
    }

    /// Prints the output. Returns false if the runtime cannot have received a result.
    pub fn print(&self, mut stdout: impl Write + AsFd, mut stderr: impl Write) -> bool {
        let result = stdout.write_all(self.stdout.as_bytes()).and_then(|()| stdout.flush());
        let messages = stderr.write_all(self.stderr.as_bytes());
        result.is_ok() && messages.is_ok() && !(self.added.is_some() && was_closed(&stdout))
    }

    /// Undoes an ADD: a runtime without its result does not know what to delete.
    pub fn undo(&self) {
        if let Some(request) = &self.added {
            // Best effort: an error cannot be reported.
            let _ = request.header.role.driver().undo(request);
        }
    }
}

/// If standard output was closed, Rust's start-up code opened `/dev/null` for reading and writing. A runtime
/// that discards the result opens it for writing only.
fn was_closed(stdout: impl AsFd) -> bool {
    let null = stat("/dev/null").map(|null| null.st_rdev);
    let flags = fcntl(&stdout, FcntlArg::F_GETFL).map(OFlag::from_bits_retain);
    fstat(&stdout).is_ok_and(|own| Ok(own.st_rdev) == null)
        && flags.is_ok_and(|flags| flags & OFlag::O_ACCMODE == OFlag::O_RDWR)
}

/// Runs one command of the CNI protocol. `program` selects the role.
pub fn run(
    program: &OsStr,
    environment: impl Iterator<Item = (OsString, OsString)>,
    input: impl Read,
) -> Output {
    let environment: Vec<_> = environment.collect();
    let variable = |name: &str| environment.iter().find(|(key, _)| key == name).map(|(_, value)| value);
    trace::start(variable("PORTOLAN_TRACE").map(OsString::as_os_str));
    let command = variable("CNI_COMMAND").map(|command| command.to_string_lossy().into_owned());
    let container = variable("CNI_CONTAINERID").map(|id| id.to_string_lossy().into_owned());
    let mut version = VERSIONS[VERSIONS.len() - 1].to_owned();
    let command = match command.as_deref() {
        None | Some("") => return about(),
        // A runtime may leave the input of VERSION open, so it is not read.
        Some("VERSION") => {
            let result = json!({ "cniVersion": version, "supportedVersions": VERSIONS });
            return Output::new(format!("{result}\n"), String::new(), true);
        }
        Some(command) => command,
    };
    let request = Request::read(Role::of(program), command, environment, input, &mut version);
    let answer = request.and_then(|request| Ok((driver::run(&request)?, request)));
    trace::finish(command, &container.unwrap_or_default());
    match answer {
        Ok((result, request)) => {
            let stdout = result.map(|result| format!("{result}\n")).unwrap_or_default();
            let added = Some(request).filter(|request| request.command == Command::Add);
            Output { added, ..Output::new(stdout, String::new(), true) }
        }
        Err(error) => Output::new(format!("{}\n", error.to_json(&version)), String::new(), false),
    }
}

/// The output if a user starts the plugin without arguments.
fn about() -> Output {
    let stderr = format!(
        "portolan-cni {}: a CNI plugin that gives each pod its own address and port space.\n\
         CNI protocol versions supported: {}\n\
         It is run by a container runtime, with CNI_COMMAND and friends in the environment and the network\n\
         configuration on standard input; see docs/cni-plugin.md, or portolan-cni --help.\n",
        env!("CARGO_PKG_VERSION"),
        VERSIONS.join(", "),
    );
    Output::new(String::new(), stderr, true)
}
