//! The key of a Service's traffic.

use std::fmt;
use std::sync::Arc;

use discovery::model::{NamespacedName, Protocol};

/// A port of a Service, as in kube-proxy.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct ServicePort {
    pub(crate) service: NamespacedName,
    /// Empty for a single port.
    pub(crate) name: Arc<str>,
    pub(crate) protocol: Protocol,
}

impl fmt::Display for ServicePort {
    /// The Service, with the name of its port if it has one.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &*self.name {
            "" => self.service.fmt(f),
            name => write!(f, "{}:{name}", self.service),
        }
    }
}
