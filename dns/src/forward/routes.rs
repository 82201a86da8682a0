//! The upstream servers for a name.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use tokio_util::task::TaskTracker;

use super::address::{Stub, Transport, Upstream};
use super::group::{Group, Policy};
use super::metrics::Metrics;
use super::runtime::Runtime;
use super::tls;
use super::upstream::Server;
use crate::message::{Name, NameBuf};

/// An invalid upstream server.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error(
        "{flag} {upstream} is an address this server listens on: it would query itself in a loop; name other \
         servers"
    )]
    Ourselves { flag: &'static str, upstream: String },
    #[error(
        "{flag} {upstream} is a loopback address: what listens there usually forwards to this server, a \
         forwarding loop; name the servers behind it (for systemd-resolved they are in \
         /run/systemd/resolve/resolv.conf), or add --allow-loopback-upstreams if it certainly forwards elsewhere"
    )]
    Loopback { flag: &'static str, upstream: String },
    #[error(transparent)]
    Tls(#[from] tls::Error),
}

/// Addresses that an upstream server must not have.
#[derive(Clone, Debug)]
pub(super) struct Forbidden {
    pub(super) listen: Vec<SocketAddr>,
    pub(super) allow_loopback: bool,
}

/// The servers for all names, and those of stub domains.
pub(super) struct Routes {
    default: Group,
    stubs: Vec<(NameBuf, Group)>,
}

/// Creates servers.
pub(super) struct Builder {
    pub(super) ca: Option<PathBuf>,
    pub(super) policy: Policy,
    pub(super) random_case: bool,
    /// The limit of waiting queries per group.
    pub(super) limit: usize,
    pub(super) runtime: Runtime,
    pub(super) tasks: TaskTracker,
    pub(super) metrics: Arc<Metrics>,
}

impl Routes {
    pub(super) fn new(builder: &Builder, default: &[Upstream], stubs: &[Stub]) -> Result<Self, tls::Error> {
        let mut stubs = stubs
            .iter()
            .map(|stub| Ok((stub.domain.clone(), builder.group(&stub.upstreams)?)))
            .collect::<Result<Vec<_>, tls::Error>>()?;
        // The longest matching domain is the first match.
        stubs.sort_by_key(|(domain, _)| std::cmp::Reverse(domain.as_name().wire().len()));
        Ok(Self { default: builder.group(default)?, stubs })
    }

    /// Replaces the servers for names without a stub domain.
    pub(super) fn with_default(&self, default: Group) -> Self {
        Self { default, stubs: self.stubs.clone() }
    }

    /// The servers for a name.
    pub(super) fn group(&self, name: Name<'_>) -> &Group {
        let stub = self.stubs.iter().find(|(domain, _)| name.is_within(domain.as_name()));
        stub.map_or(&self.default, |(_, group)| group)
    }

    /// Every server.
    pub(super) fn all(&self) -> impl Iterator<Item = &Arc<Server>> {
        let stubs = self.stubs.iter().flat_map(|(_, group)| group.servers());
        self.default.servers().iter().chain(stubs)
    }
}

impl Builder {
    pub(super) fn group(&self, upstreams: &[Upstream]) -> Result<Group, tls::Error> {
        let servers =
            upstreams.iter().map(|upstream| self.server(upstream)).collect::<Result<Vec<_>, _>>()?;
        Ok(Group::new(servers, (self.policy, self.random_case, self.limit), self.runtime.clone()))
    }

    fn server(&self, upstream: &Upstream) -> Result<Arc<Server>, tls::Error> {
        let tls = match &upstream.transport {
            Transport::Tls(name) => Some(tls::to(tls::config(self.ca.as_deref())?, name)?),
            Transport::Plain | Transport::Tcp => None,
        };
        let durations = self.metrics.upstream(&upstream.to_string());
        Ok(Arc::new(Server::new(upstream.clone(), tls, self.runtime.clone(), durations)))
    }
}

impl Forbidden {
    /// Refuses a server that would forward to this one.
    pub(super) fn check(&self, flag: &'static str, upstream: &Upstream) -> Result<(), Error> {
        let named = || upstream.to_string();
        if self.is_ourselves(upstream.address) {
            return Err(Error::Ourselves { flag, upstream: named() });
        }
        if upstream.address.ip().is_loopback() && !self.allow_loopback {
            return Err(Error::Loopback { flag, upstream: named() });
        }
        Ok(())
    }

    fn is_ourselves(&self, address: SocketAddr) -> bool {
        let wildcard = |listen: &SocketAddr| listen.ip().is_unspecified() && address.ip().is_loopback();
        self.listen
            .iter()
            .any(|listen| *listen == address || (listen.port() == address.port() && wildcard(listen)))
    }
}
