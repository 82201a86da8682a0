//! Interception: which connections and datagrams the kernel hands to this proxy, and which it refuses.
//!
//! TPROXY hands them to the proxy's sockets unchanged. Ten thousand frontends need no socket of their own,
//! opening and closing one is an element of a map, and neither the proxy nor another process of the node
//! keeps a port from the other.
//!
//! ```text
//! table inet portolan-proxy {
//!     set proxy-<port> { type ipv4_addr }
//!     map frontends-v4 { type ipv4_addr . inet_proto . inet_service : verdict
//!                        elements = { 10.96.0.9 . tcp . 80 : goto tcp-v4, 10.96.0.9 . udp . 53 : goto udp-v4-5 } }
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
//!     chain udp-v4-0 { tproxy ip to 127.0.0.1:<port> accept }                          # one chain a lane
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
//! - The first rule is for connections that exist: see [`crate::kernel::divert`].
//! - The mark 0x40 is on what this proxy sends to endpoints, and comes back here only if an endpoint is an
//!   address of this node. Then it is for the server that has the address, if any, but not for this proxy
//!   again: an endpoint that is a virtual IP would make one connection thousands.
//! - An address of the service ranges is local to the node (AnyIP). What no frontend of it takes, the kernel
//!   refuses, because nothing listens; a process that listens on every address of the node would answer, so
//!   the chain `input` refuses that. A socket that is bound to a virtual IP itself, as that of portolan-dns
//!   is, is not concerned. The node's own addresses are not in the set, even where they are inside a range
//!   (kubernetes#117613).
//! - An external IP is not local. Only what is sent to a frontend's own port is marked, routed to the node by
//!   the mark and intercepted; all else takes the route that it took before. The chain `output` does so for
//!   the node's own clients. It is there only while there is an external IP.
//! - With `br_netfilter` the chain `prerouting` sees packets of a bridge's ports on the bridge. The kernel
//!   drops the socket that they were handed to, and does not run the chain again when they leave the bridge
//!   for the node (`ip_sabotage_in`). A chain `bridged` does, which is ahead of that hook: of two with the
//!   lowest priority the one registered last comes first. It is there as soon as there is a bridge, with
//!   which that hook comes.
//! - UDP has several lanes, each with sockets of its own: a flood of datagrams for one frontend fills the
//!   queue of its lane, not that of all.
//!
//! A proxy that is started beside another one writes the table anew with its own ports, in one transaction:
//! from then on new connections are its own. The empty set names the owner of the table, by the port of its
//! listener: a transaction that uses it fails once the next proxy has the table, so that no proxy changes the
//! rules of another one while that one listens.

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
use self::rules::{PREROUTING, Rules, Wanted};
pub(crate) use self::virtual_ips::VirtualIps;
use crate::frontend::FrontendKey;
use crate::kernel::{local_replies, socket_diag};

const TABLE: &str = "portolan-proxy";

/// What the name of the set begins with that names the owner of the table.
const OWNER: &str = "proxy-";

/// The sockets that the kernel hands connections and datagrams to.
#[derive(Clone, Debug, Default)]
pub(crate) struct Listeners {
    /// One a family.
    pub(crate) tcp: Vec<SocketAddr>,
    /// One a lane and family.
    pub(crate) udp: Vec<SocketAddr>,
}

/// The rules in the kernel, as far as they are known.
#[derive(Debug)]
pub(crate) struct Interception {
    listeners: Listeners,
    /// The set that names the owner of the table; no two live proxies have the same port.
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

    /// Whether anything is in the kernel, as far as it is known.
    pub(crate) fn is_installed(&self) -> bool {
        self.installed
    }

    /// What is done with each frontend.
    pub(crate) fn applied(&self) -> &HashMap<FrontendKey, Action> {
        &self.applied
    }

    /// Applies changed frontends and virtual IPs, all at once; `None` removes a frontend. A table that is not
    /// there is written whole. A table that the next proxy has by now is left alone.
    ///
    /// # Errors
    /// The kernel's; then nothing has changed.
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
        let wanted = Wanted { applied: &self.applied, changes: &changes, virtual_ips: &virtual_ips };
        if self.installed {
            self.change_own(&wanted)?
        } else {
            self.install(&wanted, false)?
        }
        for (key, action) in changes {
            match action {
                Some(action) => drop(self.applied.insert(key, action)),
                None => drop(self.applied.remove(&key)),
            }
        }
        (self.virtual_ips, self.installed) = (virtual_ips, true);
        Ok(())
    }

    /// Writes the table again if another program has deleted, flushed or replaced it. The table of another
    /// proxy is left alone.
    ///
    /// # Errors
    /// The kernel's; then [`Interception::change`] writes the table whole, whatever has changed.
    pub(crate) fn check(&mut self) -> io::Result<()> {
        if !self.installed || self.is_whole()? || self.is_anothers()? {
            return Ok(());
        }
        self.installed = false;
        self.install(&self.unchanged(), false)?;
        self.installed = true;
        Ok(())
    }

    /// Whether the rules are written for a node with bridges.
    pub(crate) fn is_bridged(&self) -> bool {
        self.bridged
    }

    /// There is a bridge now: writes the rules for what comes from it.
    ///
    /// # Errors
    /// The kernel's; then it is to be called again.
    pub(crate) fn add_bridged(&mut self) -> io::Result<()> {
        if self.bridged {
            return Ok(());
        }
        self.bridged = true;
        let written = if self.installed { self.rewrite(&self.unchanged()) } else { Ok(()) };
        self.bridged = written.is_ok();
        written
    }

    /// Refuses new connections. The rules that open ones need stay.
    ///
    /// # Errors
    /// The kernel's.
    pub(crate) fn refuse_all(&mut self) -> io::Result<()> {
        let refused = |(key, action): (&FrontendKey, &Action)| match action {
            Action::Intercept => (*key, None),
            // Its address is not local: the kernel would not refuse it by itself. The mark stays for open
            // connections.
            Action::InterceptExternal | Action::Drain => (*key, Some(Action::Drain)),
            Action::Refuse | Action::RefuseExternal => (*key, Some(*action)),
        };
        let changes: Vec<_> = self.applied.iter().map(refused).collect();
        self.change(changes, self.virtual_ips.clone())
    }

    /// Deletes the table unless it is another proxy's; false then.
    ///
    /// # Errors
    /// The kernel's.
    pub(crate) fn remove(&mut self) -> io::Result<bool> {
        let mut batch = Batch::new(TABLE);
        batch.expect_set(&self.owner);
        batch.delete_table();
        self.installed = false;
        let netfilter = Netfilter::open()?;
        match batch.commit(&netfilter) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let is_anothers = self.is_anothers()?;
                if !is_anothers {
                    Self::clean_up()?;
                }
                Ok(!is_anothers)
            }
            other => other.and_then(|()| local_replies::remove(&netfilter)).map(|()| true),
        }
    }

    /// Deletes the table, whichever proxy has it.
    ///
    /// # Errors
    /// The kernel's.
    pub(crate) fn clean_up() -> io::Result<()> {
        let mut batch = Batch::new(TABLE);
        // Adding before deleting makes deleting what is not there no error.
        batch.add_table();
        batch.delete_table();
        let netfilter = Netfilter::open()?;
        batch.commit(&netfilter)?;
        local_replies::remove(&netfilter)
    }

    /// Whether this proxy's table is there, with its rules.
    fn is_whole(&self) -> io::Result<bool> {
        let netfilter = Netfilter::open()?;
        Ok(netfilter.has_set(TABLE, &self.owner)?
            && netfilter.has_rules(nftables::Family::Inet, TABLE, PREROUTING)?
            && local_replies::is_installed(&netfilter)?)
    }

    /// Whether another proxy has the table and listens. One that died, or whose table was restored from a
    /// file, does not.
    fn is_anothers(&self) -> io::Result<bool> {
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

    /// Changes this proxy's table. The rules for external addresses are written when the first one comes.
    fn change_own(&self, wanted: &Wanted<'_>) -> io::Result<()> {
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

    /// Writes this proxy's table anew.
    fn rewrite(&self, wanted: &Wanted<'_>) -> io::Result<()> {
        self.or_install(self.install(wanted, true), wanted)
    }

    /// Writes the table whole where a change to this proxy's has found none: another program has deleted it.
    /// The table of another proxy is left alone.
    fn or_install(&self, changed: io::Result<()>, wanted: &Wanted<'_>) -> io::Result<()> {
        match changed {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                if self.is_anothers()? {
                    Ok(())
                } else {
                    self.install(wanted, false)
                }
            }
            other => other,
        }
    }

    /// Writes the table whole; fails with `NotFound` if it is `expected` to be this proxy's and is not.
    fn install(&self, wanted: &Wanted<'_>, expected: bool) -> io::Result<()> {
        let netfilter = Netfilter::open()?;
        // First, so that a kernel that refuses these rules leaves the table as it is.
        local_replies::install(&netfilter, self.udp_idle_timeout)?;
        let mut batch = Batch::new(TABLE);
        if expected {
            batch.expect_set(&self.owner);
        }
        // What another proxy, or an earlier run, has written is removed in the same instant.
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

    fn unchanged(&self) -> Wanted<'_> {
        Wanted { applied: &self.applied, changes: &[], virtual_ips: &self.virtual_ips }
    }

    /// `None` where the node does not have the family.
    fn element(&self, key: FrontendKey, action: Action) -> Option<Element> {
        let listeners = if key.protocol == Protocol::Udp { &self.listeners.udp } else { &self.listeners.tcp };
        let v4 = key.address.is_ipv4();
        let lanes = listeners.iter().filter(|listener| listener.is_ipv4() == v4).count();
        (lanes > 0).then(|| Element::new(key, action, lanes))
    }
}
