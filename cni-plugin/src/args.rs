//! The environment variables that the runtime sets (CNI 1.1 §2).

use std::collections::HashMap;
use std::ffi::OsString;
use std::path::PathBuf;

use crate::error::{Code, Error, Result};
use crate::ipam::Owner;

/// Longest name of a network interface, without the closing NUL (`IFNAMSIZ`).
const MAX_IFNAME: usize = 15;

/// The commands that concern one container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Command {
    Add,
    Del,
    Check,
    Status,
    Gc,
}

/// The environment, validated for one command.
#[derive(Clone, Debug, Default)]
pub(crate) struct Args {
    pub(crate) container_id: String,
    /// Empty if DEL is called after the namespace was deleted.
    pub(crate) netns: String,
    pub(crate) ifname: String,
    /// Directories that are searched for a delegated plugin.
    pub(crate) path: Vec<PathBuf>,
    /// `CNI_ARGS`, as pairs. A key without a value counts as absent, as in the reference plugins.
    pub(crate) extra: HashMap<String, String>,
    /// The whole environment, for a delegated plugin.
    pub(crate) environment: Vec<(OsString, OsString)>,
}

/// Keys of `CNI_ARGS` that the plugin reads. Any other key needs `IgnoreUnknown`.
const KNOWN_EXTRA: [&str; 8] = [
    "IgnoreUnknown",
    "IP",
    "MAC",
    "K8S_POD_NAMESPACE",
    "K8S_POD_NAME",
    "K8S_POD_UID",
    "K8S_POD_INFRA_CONTAINER_ID",
    "K8S_POD_RUNTIME_HANDLER",
];

impl Command {
    /// Parses `CNI_COMMAND`. The specification allows upper case only.
    pub(crate) fn parse(text: &str) -> Result<Self> {
        Ok(match text {
            "ADD" => Self::Add,
            "DEL" => Self::Del,
            "CHECK" => Self::Check,
            "STATUS" => Self::Status,
            "GC" => Self::Gc,
            other => {
                let known = "ADD, DEL, CHECK, STATUS, GC or VERSION";
                let message = format!("CNI_COMMAND {other:?} is not {known}");
                return Err(Error::new(Code::InvalidEnvironment, message));
            }
        })
    }

    fn required(self) -> &'static [&'static str] {
        match self {
            Self::Add | Self::Check => &["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"],
            Self::Del => &["CNI_CONTAINERID", "CNI_IFNAME"],
            Self::Gc => &["CNI_PATH"],
            Self::Status => &[],
        }
    }
}

impl Args {
    /// The owner of the addresses.
    pub(crate) fn owner(&self) -> Owner {
        Owner { container_id: self.container_id.clone(), ifname: self.ifname.clone() }
    }

    /// Reads what `command` needs. The error names every missing variable.
    pub(crate) fn parse(command: Command, environment: Vec<(OsString, OsString)>) -> Result<Self> {
        let variable = |name: &str| {
            let found = environment.iter().find(|(key, _)| key == name);
            found.map(|(_, value)| value.to_string_lossy().into_owned()).unwrap_or_default()
        };
        let missing: Vec<&str> =
            command.required().iter().filter(|name| variable(name).is_empty()).copied().collect();
        if !missing.is_empty() {
            let message = format!("required environment variables [{}] are missing", missing.join(","));
            return Err(Error::new(Code::InvalidEnvironment, message));
        }
        // A lossy conversion would give the interface another name than the requested one.
        let names = ["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_ARGS"];
        let is_text = |(key, value): &&(OsString, OsString)| {
            !names.iter().any(|name| key == name) || value.to_str().is_some()
        };
        if let Some((key, value)) = environment.iter().find(|variable| !is_text(variable)) {
            let message = format!("{} {value:?} is not UTF-8", key.to_string_lossy());
            return Err(Error::new(Code::InvalidEnvironment, message));
        }
        let args = Self {
            container_id: variable("CNI_CONTAINERID"),
            netns: variable("CNI_NETNS"),
            ifname: variable("CNI_IFNAME"),
            path: std::env::split_paths(&variable("CNI_PATH"))
                .filter(|p| !p.as_os_str().is_empty())
                .collect(),
            extra: parse_extra(&variable("CNI_ARGS"))?,
            environment,
        };
        if matches!(command, Command::Add | Command::Del | Command::Check) {
            check_container_id(&args.container_id)?;
            check_ifname(&args.ifname)?;
        }
        Ok(args)
    }
}

/// Container IDs and network names: a letter or digit, then letters, digits, `_`, `.` and `-`.
pub(crate) fn is_valid_id(text: &str) -> bool {
    let mut bytes = text.bytes();
    bytes.next().is_some_and(|first| first.is_ascii_alphanumeric())
        && bytes.all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte))
}

fn check_container_id(id: &str) -> Result<()> {
    if is_valid_id(id) {
        return Ok(());
    }
    let rule = "must begin with a letter or digit and go on with letters, digits, _, . or -";
    Err(Error::new(Code::InvalidEnvironment, format!("CNI_CONTAINERID {id:?} {rule}")))
}

/// Whether the kernel accepts the name for an interface.
pub(crate) fn is_valid_ifname(name: &str) -> bool {
    let forbidden = |c: char| c == '/' || c == ':' || c.is_whitespace();
    (1..=MAX_IFNAME).contains(&name.len()) && name != "." && name != ".." && !name.contains(forbidden)
}

fn check_ifname(name: &str) -> Result<()> {
    if is_valid_ifname(name) {
        return Ok(());
    }
    let rule = "must have 1 to 15 bytes without /, : or white space, and not be . or ..";
    Err(Error::new(Code::InvalidEnvironment, format!("CNI_IFNAME {name:?} {rule}")))
}

fn parse_extra(text: &str) -> Result<HashMap<String, String>> {
    let invalid = |message: String| Error::new(Code::InvalidEnvironment, message);
    let mut extra = HashMap::new();
    for pair in text.split(';').filter(|pair| !pair.is_empty()) {
        match pair.split_once('=') {
            Some((key, value)) if !value.contains('=') => extra.insert(key.to_owned(), value.to_owned()),
            _ => return Err(invalid(format!("CNI_ARGS: {pair:?} is not KEY=VALUE"))),
        };
    }
    let ignore_unknown = match extra.get("IgnoreUnknown").map(|value| value.to_ascii_lowercase()).as_deref() {
        Some("1" | "true") => true,
        Some("0" | "false") | None => false,
        Some(other) => return Err(invalid(format!("CNI_ARGS: IgnoreUnknown={other} is not true or false"))),
    };
    let unknown = extra.keys().find(|key| !KNOWN_EXTRA.contains(&key.as_str()));
    match unknown {
        Some(key) if !ignore_unknown => {
            Err(invalid(format!("CNI_ARGS: unknown key {key:?}; IgnoreUnknown=1 ignores it")))
        }
        _ => {
            extra.retain(|_, value| !value.is_empty());
            Ok(extra)
        }
    }
}
