//! One command of a runtime: its environment and its configuration, parsed once.

use std::ffi::OsString;
use std::io::Read;

use crate::args::{Args, Command};
use crate::error::{Code, Error, Result};
use crate::netconf::{Config, Header, NetConf};
use crate::role::Role;
use crate::trace::{Span, span};

/// Versions of the specification that the plugin supports.
pub(crate) const VERSIONS: [&str; 7] = ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

/// The version of a configuration without `cniVersion` (CNI 0.2.0 and earlier had none).
const VERSION_IF_ABSENT: &str = "0.1.0";

/// Larger than any configuration. Bounds the memory that an endless input takes.
const MAX_INPUT: u64 = 16 * 1024 * 1024;

/// A command with what every command needs. [`Request::conf`] parses the rest of the configuration.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) command: Command,
    pub(crate) args: Args,
    pub(crate) header: Header,
    /// The version of the answer.
    pub(crate) version: String,
    pub(crate) config: Config,
}

impl Request {
    /// Reads and checks a request. `answered` is set to the version for errors as soon as it is known.
    pub(crate) fn read(
        role: Role,
        command: &str,
        environment: Vec<(OsString, OsString)>,
        input: impl Read,
        answered: &mut String,
    ) -> Result<Self> {
        let command = Command::parse(command)?;
        let args = Args::parse(command, environment)?;
        let config = span(Span::Parse, || read_config(input))?;
        let header = Header::parse(role, &config.value)?;
        let version = header.cni_version.clone().unwrap_or_else(|| VERSION_IF_ABSENT.to_owned());
        if !VERSIONS.contains(&version.as_str()) {
            let supported = VERSIONS.map(|v| format!("{v:?}")).join(" ");
            return Err(Error::new(Code::IncompatibleVersion, "incompatible CNI versions")
                .with_details(format!("config is {version:?}, plugin supports [{supported}]")));
        }
        answered.clone_from(&version);
        check_command_version(command, &version)?;
        Ok(Self { command, args, header, version, config })
    }

    /// Parses the whole configuration, which must be valid.
    pub(crate) fn conf(&self) -> Result<NetConf> {
        span(Span::Parse, || NetConf::parse(&self.header, &self.config, &self.version))
    }
}

/// The versions that introduced commands: CHECK 0.4.0, GC and STATUS 1.1.0.
fn check_command_version(command: Command, version: &str) -> Result<()> {
    let (name, since) = match command {
        Command::Check => ("CHECK", "0.4.0"),
        Command::Gc => ("GC", "1.1.0"),
        Command::Status => ("STATUS", "1.1.0"),
        Command::Add | Command::Del => return Ok(()),
    };
    // The supported versions are listed in order.
    let position = |wanted: &str| VERSIONS.iter().position(|v| *v == wanted);
    if position(version) >= position(since) {
        return Ok(());
    }
    let message = format!("config version {version} does not allow {name}, which came with {since}");
    Err(Error::new(Code::IncompatibleVersion, message))
}

fn read_config(input: impl Read) -> Result<Config> {
    let mut bytes = Vec::new();
    let read = input.take(MAX_INPUT + 1).read_to_end(&mut bytes);
    read.map_err(|e| Error::new(Code::Io, format!("read the network configuration: {e}")))?;
    if bytes.len() as u64 > MAX_INPUT {
        return Err(Error::new(
            Code::Decode,
            format!("the network configuration has more than {MAX_INPUT} bytes"),
        ));
    }
    let text = String::from_utf8(bytes)
        .map_err(|e| Error::new(Code::Decode, format!("the network configuration is not JSON: {e}")))?;
    Config::parse(text)
}
