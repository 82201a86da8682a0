//! Maps the name that the plugin was called by to its commands.

use serde_json::Value;

use crate::args::Command;
use crate::command::Interfaces;
use crate::error::Result;
use crate::host_local::HostLocal;
use crate::loopback::Loopback;
use crate::request::Request;
use crate::role::Role;

/// The commands of a plugin. All except ADD are idempotent.
pub(crate) trait Driver {
    /// Returns the result of ADD.
    fn add(&self, request: &Request) -> Result<Value>;
    fn check(&self, request: &Request) -> Result<()>;
    fn del(&self, request: &Request) -> Result<()>;
    fn gc(&self, request: &Request) -> Result<()>;
    fn status(&self, request: &Request) -> Result<()>;

    /// Undoes an ADD whose result the runtime did not receive.
    fn undo(&self, add: &Request) -> Result<()> {
        self.del(add)
    }
}

impl Role {
    /// The implementation of the commands.
    pub(crate) fn driver(self) -> &'static dyn Driver {
        match self {
            Self::Portolan | Self::Bridge | Self::Ptp => &Interfaces,
            Self::HostLocal => &HostLocal,
            Self::Loopback => &Loopback,
        }
    }
}

/// Runs one command. Only ADD returns a result.
pub(crate) fn run(request: &Request) -> Result<Option<Value>> {
    let driver = request.header.role.driver();
    match request.command {
        Command::Add => return driver.add(request).map(Some),
        Command::Check => driver.check(request),
        Command::Del => driver.del(request),
        Command::Gc => driver.gc(request),
        Command::Status => driver.status(request),
    }
    .map(|()| None)
}
