//! Problems of the input, described so that an operator can fix them.

use std::fmt;
use std::path::PathBuf;

/// The severity of a problem.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Severity {
    /// A field or kind has no effect here.
    Warning,
    /// An object or a whole file is not used.
    Error,
}

/// The place of a problem.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Location {
    /// A place in a file. Lines and documents count from 1.
    File {
        /// The file.
        file: PathBuf,
        /// The line, if known.
        line: Option<usize>,
        /// The number of the `---` document, if the file has several.
        document: Option<usize>,
    },
    /// The Kubernetes API, in which an object is found by its name.
    Api,
}

/// One problem.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Problem {
    /// The place.
    pub location: Location,
    /// The severity.
    pub severity: Severity,
    /// The object (`Service default/web`), if it is known.
    pub object: Option<String>,
    /// Field, value, error, and a suggestion if there is one.
    pub message: String,
}

impl Problem {
    /// Whether something is not used because of it.
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
