//! From a process's environment and input to its output: commands, versions, errors.

use std::ffi::{OsStr, OsString};
use std::io::{Read, Write};
use std::os::fd::AsFd;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::stat::{fstat, stat};
use serde_json::{Value, json};

use crate::args::{Args, Command};
use crate::command;
use crate::error::{Code, Error, Result};
use crate::netconf::{Header, NetConf};
use crate::role::Role;
use crate::trace::{self, Span};
use crate::{host_local, loopback};

/// Versions of the specification this plugin speaks.
pub(crate) const VERSIONS: [&str; 7] = ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

/// What a configuration without `cniVersion` means (CNI 0.2.0 and before had none).
const VERSION_IF_ABSENT: &str = "0.1.0";

/// More than any configuration has; an endless input must not use up the memory.
const MAX_INPUT: u64 = 16 * 1024 * 1024;

/// What the process prints and how it exits.
#[derive(Debug)]
pub struct Output {
    /// At most one JSON object.
    pub stdout: String,
    /// For people.
    pub stderr: String,
    /// Whether the exit code is 0.
    pub success: bool,
    /// What ADD has done, to be taken back should nobody get its result.
    pub(crate) added: Option<Added>,
}

/// An ADD that has succeeded.
#[derive(Debug)]
pub(crate) struct Added {
    args: Args,
    header: Header,
    raw: Value,
}

impl Output {
    /// For people, and no result.
    pub(crate) fn new(stdout: String, stderr: String, success: bool) -> Self {
        Self { stdout, stderr, success, added: None }
    }

    /// Writes it; true if the exit code is 0. A result nobody can read is a failure, since the runtime does not know what
    /// it has got: then ADD is undone.
    pub fn print(self, mut stdout: impl Write + AsFd, mut stderr: impl Write) -> bool {
        let written = stdout.write_all(self.stdout.as_bytes()).and_then(|()| stdout.flush());
        let is_lost = written.is_err() || (self.added.is_some() && was_closed(&stdout));
        let said = stderr.write_all(self.stderr.as_bytes());
        if let Some(Added { args, header, raw }) = self.added.filter(|_| is_lost) {
            drop(match header.role {
                Role::HostLocal => host_local::del(&args, &header),
                _ => command::del(&args, &header, &raw),
            });
        }
        self.success && !is_lost && said.is_ok()
    }
}

/// Where the standard output was closed, Rust's start-up code has opened `/dev/null`, for reading too. Whoever does not want
/// a result opens it for writing.
fn was_closed(stdout: impl AsFd) -> bool {
    let null = stat("/dev/null").map(|null| null.st_rdev);
    let flags = fcntl(&stdout, FcntlArg::F_GETFL).map(OFlag::from_bits_retain);
    fstat(&stdout).is_ok_and(|own| Ok(own.st_rdev) == null)
        && flags.is_ok_and(|flags| flags & OFlag::O_ACCMODE == OFlag::O_RDWR)
}

/// Runs one command of the CNI protocol, as the plugin that `program` is called.
pub fn run(
    program: &OsStr,
    environment: impl Iterator<Item = (OsString, OsString)>,
    input: impl Read,
) -> Output {
    let role = Role::of(program);
    let environment: Vec<_> = environment.collect();
    let variable = |name: &str| environment.iter().find(|(key, _)| key == name).map(|(_, value)| value);
    trace::start(variable("PORTOLAN_TRACE").map(OsString::as_os_str));
    let command = variable("CNI_COMMAND").map(|command| command.to_string_lossy());
    let Some(command) = command.filter(|command| !command.is_empty()) else {
        return about();
    };
    let mut version = VERSIONS[VERSIONS.len() - 1].to_owned();
    let answer = Command::parse(&command)
        .and_then(|command| dispatch(role, command, &environment, input, &mut version));
    let container = variable("CNI_CONTAINERID").map(|id| id.to_string_lossy()).unwrap_or_default();
    trace::finish(&command, &container);
    match answer {
        Ok((None, _)) => Output::new(String::new(), String::new(), true),
        Ok((Some(result), added)) => {
            Output { added, ..Output::new(format!("{result}\n"), String::new(), true) }
        }
        Err(error) => Output::new(format!("{}\n", error.to_json(&version)), String::new(), false),
    }
}

/// Started by hand, not by a runtime.
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

fn dispatch(
    role: Role,
    command: Command,
    environment: &[(OsString, OsString)],
    input: impl Read,
    version: &mut String,
) -> Result<(Option<Value>, Option<Added>)> {
    // VERSION does not read its input: a runtime may leave it open.
    if command == Command::Version {
        return Ok((Some(json!({ "cniVersion": version, "supportedVersions": VERSIONS })), None));
    }
    let args = Args::parse(command, environment.to_vec())?;
    let raw = trace::span(Span::Parse, || read_config(input))?;
    let header = Header::parse(role, &raw)?;
    let asked = header.cni_version.clone().unwrap_or_else(|| VERSION_IF_ABSENT.to_owned());
    if !VERSIONS.contains(&asked.as_str()) {
        let supported = VERSIONS.map(|v| format!("{v:?}")).join(" ");
        return Err(Error::new(Code::IncompatibleVersion, "incompatible CNI versions")
            .with_details(format!("config is {asked:?}, plugin supports [{supported}]")));
    }
    version.clone_from(&asked);
    check_command_version(command, &asked)?;
    let added = (command == Command::Add && role != Role::Loopback).then(|| Added {
        args: args.clone(),
        header: header.clone(),
        raw: raw.clone(),
    });
    let answer = match role {
        Role::HostLocal => host_local::run(command, &args, header, raw, &asked),
        Role::Loopback => loopback::run(command, &args, &raw, &asked),
        Role::Portolan | Role::Bridge | Role::Ptp => interface(command, &args, header, raw, &asked),
    };
    Ok((answer?, added))
}

/// The commands of a plugin that makes interfaces.
fn interface(
    command: Command,
    args: &Args,
    header: Header,
    raw: Value,
    version: &str,
) -> Result<Option<Value>> {
    let parse = |header, raw| trace::span(Span::Parse, || NetConf::parse(header, raw, version));
    match command {
        Command::Add => return command::add(args, &parse(header, raw)?).map(Some),
        Command::Check => command::check(args, &parse(header, raw)?),
        Command::Status => command::status(args, &parse(header, raw)?),
        Command::Del => command::del(args, &header, &raw),
        Command::Gc => command::gc(args, &header, &raw),
        Command::Version => unreachable!("answered above"),
    }
    .map(|()| None)
}

/// Commands came with versions: CHECK with 0.4.0, GC and STATUS with 1.1.0.
fn check_command_version(command: Command, version: &str) -> Result<()> {
    let (name, since) = match command {
        Command::Check => ("CHECK", "0.4.0"),
        Command::Gc => ("GC", "1.1.0"),
        Command::Status => ("STATUS", "1.1.0"),
        _ => return Ok(()),
    };
    // The supported versions are listed in order.
    let position = |wanted: &str| VERSIONS.iter().position(|v| *v == wanted);
    if position(version) >= position(since) {
        return Ok(());
    }
    let message = format!("config version {version} does not allow {name}, which came with {since}");
    Err(Error::new(Code::IncompatibleVersion, message))
}

fn read_config(input: impl Read) -> Result<Value> {
    let mut bytes = Vec::new();
    let read = input.take(MAX_INPUT + 1).read_to_end(&mut bytes);
    read.map_err(|e| Error::new(Code::Io, format!("read the network configuration: {e}")))?;
    if bytes.len() as u64 > MAX_INPUT {
        return Err(Error::new(
            Code::Decode,
            format!("the network configuration has more than {MAX_INPUT} bytes"),
        ));
    }
    let decode = |e: serde_json::Error| {
        Error::new(Code::Decode, format!("the network configuration is not JSON: {e}"))
    };
    let raw: Value = serde_json::from_slice(&bytes).map_err(decode)?;
    if raw.is_object() {
        return Ok(raw);
    }
    Err(Error::new(Code::Decode, "the network configuration is not a JSON object"))
}
