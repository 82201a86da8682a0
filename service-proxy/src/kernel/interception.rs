//! Interception: the nftables rules that deliver connections and datagrams to the proxy, or refuse them.
//!
//! TPROXY delivers them unchanged to the proxy's sockets. Ten thousand frontends need no sockets of their
//! own; opening or closing one changes a map element; and the proxy and other processes of the node do not
//! compete for ports.
//!
//! ```text
//! table inet portolan-proxy {
//!     set proxy-<port> { type ipv4_addr }
//!     map frontends-v4 { type ipv4_addr . inet_proto . inet_service : verdict
//!                        elements = { 10.96.0.9 . tcp . 80 : goto tcp-v4,
//!                                     10.96.0.9 . udp . 53 : goto udp-v4-5 } }
//!     set virtual-v4   { type ipv4_addr; flags interval }                              # the service ranges
//!     chain prerouting { type filter hook prerouting priority mangle
//!         jump intercept
//!     }
//!     chain intercept {
//!         socket transparent 1 socket wildcard 0 meta mark set meta mark | 0x1000 accept
//!         meta mark & 0x40 == 0x40 accept
//!         ip daddr . meta l4proto . th dport @external-v4 meta mark set meta mark | 0x1000
//!         ip daddr . meta l4proto . th dport vmap @frontends-v4
//!     }
//!     chain tcp-v4   { tproxy ip to 127.0.0.1:<port> accept }
//!     chain udp-v4-0 { tproxy ip to 127.0.0.1:<port> accept }                          # one chain per lane
//!     chain refuse   { meta l4proto tcp reject with tcp reset; reject }
//!     chain input { type filter hook input priority filter
//!         ip daddr @virtual-v4 meta l4proto tcp socket wildcard 1 reject with tcp reset
//!         ip daddr @virtual-v4 meta l4proto udp socket wildcard 1 reject
//!         ip daddr @virtual-v4 meta l4proto != { tcp, udp, icmp, ipv6-icmp } reject
//!     }
//!     chain output { type route hook output priority mangle
//!         meta mark & 0x40 == 0x40 accept
//!         ip daddr . meta l4proto . th dport @external-v4 meta mark set meta mark | 0x1000
//!         ip daddr . meta l4proto . th dport @refused-v4 reject
//!     }
//! }
//! ```
//! and the same for IPv6.
//!
//! - The first rule is for existing connections: see [`crate::kernel::policy_routing`].
//! - The mark 0x40 is on what this proxy sends to endpoints. It arrives here only if an endpoint is an
//!   address of this node. Then it is for the server with that address, if any, but not for this proxy again:
//!   an endpoint that is a virtual IP would turn one connection into thousands.
//! - An address of the service ranges is local to the node (AnyIP). If no frontend matches, the kernel
//!   refuses, because no socket listens. A process that listens on every address of the node would answer, so
//!   the chain `input` refuses that. A socket bound to a virtual IP, like that of portolan-dns, is not
//!   affected. The node's own addresses are not in the set, even if they are inside a range
//!   (kubernetes#117613).
//! - An external IP is not local. Only packets to a frontend's port are marked, routed to the node by the
//!   mark and intercepted; all others take their normal route. The chain `output` does so for clients on the
//!   node. It exists only while there is an external IP.
//! - With `br_netfilter` the chain `prerouting` sees packets of a bridge's ports on the bridge. The kernel
//!   drops the socket that they were assigned, and does not run the chain again when they leave the bridge
//!   for the node (`ip_sabotage_in`). A chain `bridged` does, because it precedes that hook: of two with the
//!   lowest priority the one registered last comes first. It is added as soon as there is a bridge, which is
//!   when that hook appears.
//! - UDP has several lanes, each with its own sockets: a flood of datagrams for one frontend fills the queue
//!   of its lane, not of all.
//!
//! During a hot restart the next proxy replaces the table with its own ports in one transaction: from then on
//! it gets new connections. The empty set identifies the owner of the table by the port of its listener. A
//! transaction that uses it fails once the next proxy has the table, so no proxy changes the rules of another
//! one that is listening.

mod elements;
mod rules;
mod virtual_ips;

use std::collections::HashMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use discovery::model::Protocol;
use nftables::{Batch, Netfilter};

pub(crate) use self::elements::Action;
use self::elements::{Element, FAMILIES};
use self::rules::{DesiredRules, PREROUTING, Rules};
pub(crate) use self::virtual_ips::VirtualIps;
use crate::frontend::FrontendKey;
use crate::kernel::{local_replies, socket_diag};

const TABLE: &str = "portolan-proxy";

/// Prefix of the name of the set that identifies the owner of the table.
const OWNER: &str = "proxy-";

/// The sockets to which the kernel delivers connections and datagrams.
#[derive(Clone, Debug, Default)]
pub(crate) struct Listeners {
    /// One per family.
    pub(crate) tcp: Vec<SocketAddr>,
    /// One per lane and family.
    pub(crate) udp: Vec<SocketAddr>,
}

/// The rules in the kernel, as far as known.
#[derive(Debug)]
pub(crate) struct Interception {
    listeners: Listeners,
    /// The set that identifies the owner of the table. No two running proxies have the same port.
    owner: String,
    udp_idle_timeout: Duration,
    installed: bool,
    /// Whether there is a bridge.
    bridged: bool,
    applied: HashMap<FrontendKey, Action>,
    virtual_ips: VirtualIps,
}

impl Interception {
    /// Nothing is in the kernel before the first [`Interception::change`].
    pub(crate) fn new(listeners: Listeners, udp_idle_timeout: Duration) -> Self {
        let owner = format!("{OWNER}{}", listeners.tcp.first().map_or(0, SocketAddr::port));
        let (applied, virtual_ips) = (HashMap::new(), VirtualIps::default());
        Self { listeners, owner, udp_idle_timeout, installed: false, bridged: false, applied, virtual_ips }
    }

    /// Whether the rules are in the kernel, as far as known.
    pub(crate) fn is_installed(&self) -> bool {
        self.installed
    }

    /// The action of each frontend.
    pub(crate) fn applied(&self) -> &HashMap<FrontendKey, Action> {
        &self.applied
    }

    /// Applies changed frontends and virtual IPs in one transaction; `None` removes a frontend. A missing
    /// table is written completely. A table that the next proxy owns is not changed.
    ///
    /// # Errors
    /// An error of the kernel; nothing has changed.
    pub(crate) fn change(
        &mut self,
        changes: impl IntoIterator<Item = (FrontendKey, Option<Action>)>,
        virtual_ips: VirtualIps,
    ) -> io::Result<()> {
        let is_changed =
            |(key, action): &(FrontendKey, Option<Action>)| self.applied.get(key) != action.as_ref();
        let changes: Vec<_> = changes.into_iter().filter(is_changed).collect();
        if self.installed && changes.is_empty() && virtual_ips == self.virtual_ips {
            return Ok(());
        }
        let wanted = DesiredRules { applied: &self.applied, changes: &changes, virtual_ips: &virtual_ips };
        if self.installed {
            self.change_own(&wanted)?
        } else {
            self.install(&wanted, false)?
        }
        for (key, action) in changes {
            let _former = match action {
                Some(action) => self.applied.insert(key, action),
                None => self.applied.remove(&key),
            };
        }
        (self.virtual_ips, self.installed) = (virtual_ips, true);
        Ok(())
    }

    /// Rewrites the table if another program has deleted, flushed or replaced it. The table of another proxy
    /// is not changed.
    ///
    /// # Errors
    /// An error of the kernel; then [`Interception::change`] rewrites the table completely.
    pub(crate) fn check(&mut self) -> io::Result<()> {
        if !self.installed || self.is_complete()? || self.belongs_to_another_proxy()? {
            return Ok(());
        }
        self.installed = false;
        self.install(&self.unchanged(), false)?;
        self.installed = true;
        Ok(())
    }

    /// Whether the rules are for a node with bridges.
    pub(crate) fn is_bridged(&self) -> bool {
        self.bridged
    }

    /// Adds the rules for packets from a bridge.
    ///
    /// # Errors
    /// An error of the kernel; the caller retries.
    pub(crate) fn add_bridged(&mut self) -> io::Result<()> {
        if self.bridged {
            return Ok(());
        }
        self.bridged = true;
        let written = if self.installed { self.rewrite(&self.unchanged()) } else { Ok(()) };
        self.bridged = written.is_ok();
        written
    }

    /// Refuses new connections. The rules of open connections stay.
    ///
    /// # Errors
    /// An error of the kernel.
    pub(crate) fn refuse_all(&mut self) -> io::Result<()> {
        let refused = |(key, action): (&FrontendKey, &Action)| match action {
            Action::Intercept => (*key, None),
            // The address is not local: the kernel would not refuse by itself. The mark stays for open
            // connections.
            Action::InterceptExternal | Action::Drain => (*key, Some(Action::Drain)),
            Action::Refuse | Action::RefuseExternal => (*key, Some(*action)),
        };
        let changes: Vec<_> = self.applied.iter().map(refused).collect();
        self.change(changes, self.virtual_ips.clone())
    }

    /// Deletes the table. Returns false if it belongs to another proxy.
    ///
    /// # Errors
    /// An error of the kernel.
    pub(crate) fn remove(&mut self) -> io::Result<bool> {
        let mut batch = Batch::new(TABLE);
        batch.expect_set(&self.owner);
        batch.delete_table();
        self.installed = false;
        let netfilter = Netfilter::open()?;
        match batch.commit(&netfilter) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let belongs_to_another_proxy = self.belongs_to_another_proxy()?;
                if !belongs_to_another_proxy {
                    Self::clean_up()?;
                }
                Ok(!belongs_to_another_proxy)
            }
            other => other.and_then(|()| local_replies::remove(&netfilter)).map(|()| true),
        }
    }

    /// Deletes the table, whichever proxy owns it.
    ///
    /// # Errors
    /// An error of the kernel.
    pub(crate) fn clean_up() -> io::Result<()> {
        let mut batch = Batch::new(TABLE);
        // Add before delete: then deleting a missing table is no error.
        batch.add_table();
        batch.delete_table();
        let netfilter = Netfilter::open()?;
        batch.commit(&netfilter)?;
        local_replies::remove(&netfilter)
    }

    /// Whether the table of this proxy exists, with its rules.
    fn is_complete(&self) -> io::Result<bool> {
        let netfilter = Netfilter::open()?;
        Ok(netfilter.has_set(TABLE, &self.owner)?
            && netfilter.has_rules(nftables::Family::Inet, TABLE, PREROUTING)?
            && local_replies::is_installed(&netfilter)?)
    }

    /// Whether the table belongs to another proxy that is listening. One that was killed, or whose table was
    /// restored from a file, is not.
    fn belongs_to_another_proxy(&self) -> io::Result<bool> {
        let sets = Netfilter::open()?.sets(TABLE)?;
        if sets.contains(&self.owner) {
            return Ok(false);
        }
        for port in sets.iter().filter_map(|set| set.strip_prefix(OWNER)?.parse().ok()) {
            if socket_diag::listener((Ipv4Addr::LOCALHOST, port).into())?.is_some() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Changes the table of this proxy. The rules for external addresses are added with the first one.
    fn change_own(&self, wanted: &DesiredRules<'_>) -> io::Result<()> {
        if !rules::has_external(self.applied.values()) && wanted.adds_external() {
            return self.rewrite(wanted);
        }
        let mut batch = Batch::new(TABLE);
        batch.expect_set(&self.owner);
        let removed = |(key, _): &(FrontendKey, _)| Some(self.element(*key, *self.applied.get(key)?));
        let removed: Vec<_> = wanted.changes.iter().filter_map(removed).collect();
        let added = |(key, action): &(FrontendKey, Option<Action>)| Some(self.element(*key, (*action)?));
        let added: Vec<_> = wanted.changes.iter().filter_map(added).collect();
        for family in FAMILIES {
            elements::delete(&mut batch, family, removed.iter().flatten());
            elements::add(&mut batch, family, added.iter().flatten());
            if *wanted.virtual_ips != self.virtual_ips {
                batch.flush_set(family.virtual_ips);
                batch.add_elements(family.virtual_ips, &wanted.virtual_ips.elements(family.v4));
            }
        }
        self.or_install(batch.commit(&Netfilter::open()?), wanted)
    }

    /// Rewrites the table of this proxy.
    fn rewrite(&self, wanted: &DesiredRules<'_>) -> io::Result<()> {
        self.or_install(self.install(wanted, true), wanted)
    }

    /// Writes the complete table if a change has found none, because another program has deleted it. The
    /// table of another proxy is not changed.
    fn or_install(&self, changed: io::Result<()>, wanted: &DesiredRules<'_>) -> io::Result<()> {
        match changed {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                if self.belongs_to_another_proxy()? {
                    Ok(())
                } else {
                    self.install(wanted, false)
                }
            }
            other => other,
        }
    }

    /// Writes the complete table. Fails with `NotFound` if it is `expected` to belong to this proxy and does
    /// not.
    fn install(&self, wanted: &DesiredRules<'_>, expected: bool) -> io::Result<()> {
        let netfilter = Netfilter::open()?;
        // First, so that a kernel that does not support these rules leaves the table unchanged.
        local_replies::install(&netfilter, self.udp_idle_timeout)?;
        let mut batch = Batch::new(TABLE);
        if expected {
            batch.expect_set(&self.owner);
        }
        // Replaces the table of another proxy or an earlier process in the same transaction.
        batch.add_table();
        batch.delete_table();
        batch.add_table();
        let frontends = wanted.frontends();
        let rules = Rules {
            owner: &self.owner,
            listeners: &self.listeners,
            bridged: self.bridged,
            has_external: rules::has_external(frontends.values()),
            elements: frontends.iter().filter_map(|(key, action)| self.element(*key, *action)).collect(),
            virtual_ips: wanted.virtual_ips,
        };
        rules.write(&mut batch);
        batch.commit(&netfilter)
    }

    fn unchanged(&self) -> DesiredRules<'_> {
        DesiredRules { applied: &self.applied, changes: &[], virtual_ips: &self.virtual_ips }
    }

    /// `None` if the node does not have the family.
    fn element(&self, key: FrontendKey, action: Action) -> Option<Element> {
        let listeners = if key.protocol == Protocol::Udp { &self.listeners.udp } else { &self.listeners.tcp };
        let v4 = key.address.is_ipv4();
        let lanes = listeners.iter().filter(|listener| listener.is_ipv4() == v4).count();
        (lanes > 0).then(|| Element::new(key, action, lanes))
    }
}
