//! The optional config file. Its keys are the flags of the command line.
//!
//! ```yaml
//! service-cidr: [10.96.0.0/12]     # for every program that has the flag
//! portolan-dns:                    # for one program; takes precedence
//!   ttl: 30
//! ```
//! The command line takes precedence over the file.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};

use clap::Command;
use saphyr::{LoadableYamlNode, Scalar, Yaml};

/// The default file, read if it exists and `--config` names no other.
const DEFAULT_FILE: &str = "/etc/portolan/config.yaml";

/// The programs that may have a section.
const PROGRAMS: [&str; 2] = ["portolan-proxy", "portolan-dns"];

/// An error in the file.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It cannot be read.
    #[error("read config file {0}: {1}")]
    Read(PathBuf, #[source] io::Error),
    /// It is not YAML.
    #[error("config file {0} is not YAML: {1}")]
    Syntax(PathBuf, #[source] saphyr::ScanError),
    /// It is YAML with a wrong structure.
    #[error("config file {file}: {key}: {message}")]
    Key {
        /// The file.
        file: PathBuf,
        /// Path of the key.
        key: String,
        /// The problem and the expected value.
        message: String,
    },
}

/// Puts the settings of the file in front of the command line's arguments, so that those of the command line
/// win.
///
/// # Errors
/// If a file that was named cannot be read, or if a file has keys or values that are not flags of this
/// program.
pub fn arguments(command: &Command, typed: Vec<OsString>) -> Result<Vec<OsString>, Error> {
    let named = named_file(&typed);
    let file = named.clone().unwrap_or_else(|| PathBuf::from(DEFAULT_FILE));
    let contents = match std::fs::read_to_string(&file) {
        Ok(contents) => contents,
        Err(e) if e.kind() == io::ErrorKind::NotFound && named.is_none() => return Ok(typed),
        Err(e) => return Err(Error::Read(file, e)),
    };
    let typed_flags: Vec<String> = typed.iter().filter_map(flag_of).collect();
    let mut merged = typed.clone();
    let mut settings = settings(&file, &contents, command)?;
    settings.retain(|(flag, _)| !typed_flags.contains(flag));
    let from_file = settings.into_iter().flat_map(|(flag, values)| {
        values.into_iter().map(move |value| OsString::from(format!("--{flag}{value}")))
    });
    let program = merged.len().min(1);
    merged.splice(program..program, from_file);
    Ok(merged)
}

/// The value of a flag for a program with this command line: from the command line, else from the config
/// file, else `None`. Errors in the file are ignored here: the program itself reports them. `read` opens a
/// file as the program would.
pub fn value(
    program: &str,
    flag: &str,
    typed: &[OsString],
    read: impl FnOnce(&Path) -> io::Result<String>,
) -> Option<String> {
    if let Some(value) = typed_value(typed, flag) {
        return Some(value);
    }
    let file = named_file(typed).unwrap_or_else(|| PathBuf::from(DEFAULT_FILE));
    let contents = read(&file).ok()?;
    let documents = Yaml::load_from_str(&contents).ok()?;
    let all = entries(&file, "the document", documents.first()).ok()?;
    let own = entries(&file, program, entry(&all, program)).ok()?;
    entry(&own, flag).or_else(|| entry(&all, flag))?.as_str().map(str::to_owned)
}

fn entry<'a>(section: &[(String, &'a Yaml<'a>)], key: &str) -> Option<&'a Yaml<'a>> {
    section.iter().find(|(name, _)| name == key).map(|(_, value)| *value)
}

fn named_file(typed: &[OsString]) -> Option<PathBuf> {
    typed_value(typed, "config").map(PathBuf::from)
}

fn typed_value(typed: &[OsString], flag: &str) -> Option<String> {
    let position = typed.iter().position(|a| flag_of(a).as_deref() == Some(flag))?;
    let argument = typed[position].to_string_lossy();
    match argument.split_once('=') {
        Some((_, value)) => Some(value.to_owned()),
        None => typed.get(position + 1).map(|value| value.to_string_lossy().into_owned()),
    }
}

fn flag_of(argument: &OsString) -> Option<String> {
    let argument = argument.to_str()?.strip_prefix("--")?;
    Some(argument.split('=').next().unwrap_or(argument).to_owned())
}

/// Each flag with its values in the form that follows the flag's name: `=5`, or nothing for a switch.
fn settings(file: &Path, contents: &str, command: &Command) -> Result<Vec<(String, Vec<String>)>, Error> {
    let documents = Yaml::load_from_str(contents).map_err(|e| Error::Syntax(file.to_owned(), e))?;
    let mut found: Vec<(String, Vec<String>)> = Vec::new();
    let mut own = Vec::new();
    for (key, value) in entries(file, "the document", documents.first())? {
        if !PROGRAMS.contains(&key.as_str()) {
            found.push(setting(file, command, &key, value)?);
        } else if key == command.get_name() {
            own = entries(file, &key, Some(value))?;
        }
    }
    for (key, value) in own {
        let setting = setting(file, command, &key, value)?;
        found.retain(|(flag, _)| *flag != setting.0);
        found.push(setting);
    }
    Ok(found)
}

fn entries<'a>(
    file: &Path,
    key: &str,
    value: Option<&'a Yaml<'a>>,
) -> Result<Vec<(String, &'a Yaml<'a>)>, Error> {
    let wrong = |message: &str| Error::Key {
        file: file.to_owned(),
        key: key.to_owned(),
        message: message.to_owned(),
    };
    match value {
        None | Some(Yaml::Value(Scalar::Null)) => Ok(Vec::new()),
        Some(Yaml::Mapping(map)) => map
            .iter()
            .map(|(key, value)| match key.as_str() {
                Some(key) => Ok((key.to_owned(), value)),
                None => Err(wrong("a key is not a string")),
            })
            .collect(),
        Some(_) => Err(wrong("must be a mapping of flags to values")),
    }
}

fn setting(
    file: &Path,
    command: &Command,
    key: &str,
    value: &Yaml<'_>,
) -> Result<(String, Vec<String>), Error> {
    let wrong = |message: String| Error::Key { file: file.to_owned(), key: key.to_owned(), message };
    let flags = || command.get_arguments().filter_map(|a| a.get_long());
    if key == "config" || !flags().any(|flag| flag == key) {
        let known: Vec<&str> = flags().filter(|flag| *flag != "config").collect();
        return Err(wrong(format!(
            "is not a setting of {}; there are: {}",
            command.get_name(),
            known.join(", ")
        )));
    }
    let scalar = |value: &Yaml<'_>| match value {
        Yaml::Value(Scalar::Boolean(true)) => Ok(vec![String::new()]),
        Yaml::Value(Scalar::Boolean(false)) => Ok(vec![]),
        Yaml::Value(Scalar::Integer(number)) => Ok(vec![format!("={number}")]),
        Yaml::Value(Scalar::String(text)) => Ok(vec![format!("={text}")]),
        _ => Err(wrong("must be a string, a number, true, false or a list of them".to_owned())),
    };
    let values = match value {
        Yaml::Sequence(items) => items.iter().map(scalar).collect::<Result<Vec<_>, _>>()?.concat(),
        value => scalar(value)?,
    };
    Ok((key.to_owned(), values))
}

#[cfg(test)]
mod tests {
    use clap::Arg;

    use super::*;

    fn command() -> Command {
        let flags = ["config", "ttl", "listen", "check"].map(|name| Arg::new(name).long(name));
        Command::new("portolan-dns").args(flags)
    }

    fn merged(contents: &str, typed: &str) -> Result<Vec<String>, String> {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("c.yaml");
        std::fs::write(&file, contents).unwrap();
        let typed = format!("portolan-dns --config={} {typed}", file.display());
        let result = arguments(&command(), typed.split_whitespace().map(OsString::from).collect());
        let strip = |text: String| text.replace(&file.display().to_string(), "c.yaml");
        result
            .map(|a| a.into_iter().map(|a| strip(a.into_string().unwrap())).collect())
            .map_err(|e| strip(e.to_string()))
    }

    #[test]
    fn command_line_overrides_the_section_of_the_program_which_overrides_the_top_level() {
        let file =
            "ttl: 5\nlisten: [a, b]\nportolan-dns: {ttl: 7, check: true}\nportolan-proxy: {any: thing}\n";
        assert_eq!(
            merged(file, "").unwrap(),
            ["portolan-dns", "--listen=a", "--listen=b", "--ttl=7", "--check", "--config=c.yaml"]
        );
        assert_eq!(
            merged(file, "--ttl 9").unwrap(),
            ["portolan-dns", "--listen=a", "--listen=b", "--check", "--config=c.yaml", "--ttl", "9"]
        );
    }

    #[test]
    fn value_comes_from_the_command_line_or_else_from_the_file() {
        let file = "metrics: 'any:1'\nportolan-dns: {ready: 'dns:2'}\nportolan-proxy: {metrics: 'proxy:3'}\n";
        let taken = |program, flag, typed: &str, file_at| {
            let typed: Vec<OsString> = typed.split_whitespace().map(OsString::from).collect();
            let read = |path: &Path| {
                assert_eq!(path, Path::new(file_at));
                Ok(file.to_owned())
            };
            value(program, flag, &typed, read)
        };
        assert_eq!(taken("portolan-proxy", "metrics", "p", DEFAULT_FILE).unwrap(), "proxy:3");
        assert_eq!(taken("portolan-dns", "metrics", "p --config=/c", "/c").unwrap(), "any:1");
        assert_eq!(taken("portolan-dns", "ready", "p --config c.yaml", "c.yaml").unwrap(), "dns:2");
        assert_eq!(taken("portolan-dns", "ready", "p --ready typed:4", "").unwrap(), "typed:4");
        assert_eq!(taken("portolan-proxy", "ready", "p --metrics=typed:4", DEFAULT_FILE), None);
        let unreadable = |_: &Path| Err(io::Error::from(io::ErrorKind::NotFound));
        assert_eq!(value("portolan-dns", "ready", &[], unreadable), None);
    }

    #[test]
    fn errors_name_the_file_and_the_key() {
        assert_eq!(
            merged("tll: 5\n", "").unwrap_err(),
            "config file c.yaml: tll: is not a setting of portolan-dns; there are: ttl, listen, check"
        );
        assert!(merged("ttl: {a: b}\n", "").unwrap_err().contains("c.yaml: ttl: must be a string"));
        assert!(merged("- ttl\n", "").unwrap_err().contains("must be a mapping"));
        assert!(merged("ttl: [\n", "").unwrap_err().contains("is not YAML"));
        let missing = arguments(&command(), vec!["p".into(), "--config".into(), "/nowhere/c.yaml".into()]);
        assert!(missing.unwrap_err().to_string().contains("read config file /nowhere/c.yaml"));
    }
}
