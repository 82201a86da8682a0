//! What is wrong with the input, described so that an operator can fix it.

use std::fmt;
use std::path::PathBuf;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Severity {
    /// Something asked for is not done: a field we do not honour, a kind we do not know.
    Warning,
    /// An object or a whole file is left out.
    Error,
}

/// Where in the input.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Location {
    /// A place in a file. Lines and documents count from 1.
    File {
        /// The file.
        file: PathBuf,
        /// The line, where known.
        line: Option<usize>,
        /// Which `---` document of the file, where it has several.
        document: Option<usize>,
    },
    /// The Kubernetes API, where an object is found by its name.
    Api,
}

/// One finding.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Problem {
    /// Where.
    pub location: Location,
    /// How bad.
    pub severity: Severity,
    /// The object concerned (`Service default/web`), where it got that far.
    pub object: Option<String>,
    /// Field, value, what is wrong with it, and the way out where we know one.
    pub message: String,
}

impl Problem {
    /// Whether something is left out because of it.
    pub fn is_error(&self) -> bool {
        self.severity == Severity::Error
    }
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Warning => "warning",
            Self::Error => "error",
        })
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self::File { file, line, document } = self else { return f.write_str("Kubernetes API") };
        write!(f, "{}", file.display())?;
        if let Some(line) = line {
            write!(f, ":{line}")?;
        }
        if let Some(document) = document {
            write!(f, " (document {document})")?;
        }
        Ok(())
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.location)?;
        if let Some(object) = &self.object {
            write!(f, "{object}: ")?;
        }
        f.write_str(&self.message)
    }
}
