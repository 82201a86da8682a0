//! What the plugin does by the name that it was called by, and the one place that chooses.

use serde_json::Value;

use crate::args::Command;
use crate::command::Interfaces;
use crate::error::Result;
use crate::host_local::HostLocal;
use crate::loopback::Loopback;
use crate::request::Request;
use crate::role::Role;

/// The commands of a plugin. Each succeeds if it is repeated, but for ADD.
pub(crate) trait Driver {
    /// Returns the result of ADD.
    fn add(&self, request: &Request) -> Result<Value>;
    fn check(&self, request: &Request) -> Result<()>;
    fn del(&self, request: &Request) -> Result<()>;
    fn gc(&self, request: &Request) -> Result<()>;
    fn status(&self, request: &Request) -> Result<()>;

    /// Takes back an ADD whose result the runtime did not get.
    fn undo(&self, add: &Request) -> Result<()> {
        self.del(add)
    }
}

impl Role {
    /// What answers the commands.
    pub(crate) fn driver(self) -> &'static dyn Driver {
        match self {
            Self::Portolan | Self::Bridge | Self::Ptp => &Interfaces,
            Self::HostLocal => &HostLocal,
            Self::Loopback => &Loopback,
        }
    }
}

/// Runs one command. Only ADD has a result.
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
