//! Errors in the format of the CNI specification (CNI 1.1 §5).

use serde_json::{Value, json};

/// Error codes of the specification.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Code {
    IncompatibleVersion = 1,
    UnknownContainer = 3,
    InvalidEnvironment = 4,
    Io = 5,
    Decode = 6,
    InvalidConfig = 7,
    TryAgainLater = 11,
    NotAvailable = 50,
    /// Code 51: ADD is not available, and existing pods may lack something.
    Limited = 51,
    /// Codes of the plugin start at 100. The kernel returned an error.
    Kernel = 100,
    /// An object exists that must not, or is missing.
    Conflict = 101,
    /// The kernel does not permit it in the current state.
    NotPermitted = 102,
    /// Another pod was assigned the address at the same time.
    AddressTaken = 103,
}

/// A failure, as it is printed for the runtime.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Error {
    pub(crate) code: u32,
    pub(crate) message: String,
    pub(crate) details: String,
}

pub(crate) type Result<T> = std::result::Result<T, Error>;

impl Error {
    pub(crate) fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code: code as u32, message: message.into(), details: String::new() }
    }

    pub(crate) fn with_details(self, details: impl Into<String>) -> Self {
        Self { details: details.into(), ..self }
    }

    /// Joins several errors into one. `None` if there are none.
    pub(crate) fn combined(errors: Vec<Self>) -> Option<Self> {
        let code = errors.first()?.code;
        let messages: Vec<String> = errors.into_iter().map(|error| error.message).collect();
        Some(Self { code, message: messages.join("; "), details: String::new() })
    }

    pub(crate) fn to_json(&self, version: &str) -> Value {
        let mut json = json!({ "cniVersion": version, "code": self.code, "msg": self.message });
        if !self.details.is_empty() {
            json["details"] = self.details.clone().into();
        }
        json
    }
}

impl From<attachment::Error> for Error {
    fn from(error: attachment::Error) -> Self {
        Self::new(Code::Io, error.to_string())
    }
}

/// For `map_err`: an I/O error with the action and the file.
pub(crate) fn io(action: &str, path: &std::path::Path) -> impl FnOnce(std::io::Error) -> Error {
    let message = format!("{action} {}", path.display());
    move |e| Error::new(Code::Io, format!("{message}: {e}"))
}

/// For `map_err`: an error of the kernel with the action.
pub(crate) fn kernel(action: impl Into<String>) -> impl FnOnce(std::io::Error) -> Error {
    let action = action.into();
    move |e| Error::new(Code::Kernel, format!("{action}: {e}"))
}
