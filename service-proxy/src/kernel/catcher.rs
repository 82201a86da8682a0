//! Catching the connections to virtual IPs.
//!
//! One rule hands them to this proxy's listeners, unchanged (TPROXY), so that ten thousand Services need no socket of
//! their own, opening and closing one is an element of a set, and a port that some other process has on every address
//! is no obstacle. Whatever is not in the sets is none of our business: the kernel refuses it, because virtual IPs are
//! local and nobody listens.
//!
//! ```text
//! table inet portolan-proxy {
//!     set frontends-v4 { type ipv4_addr . inet_service }
//!     set frontends-v6 { type ipv6_addr . inet_service }
//!     chain divert { type filter hook prerouting priority mangle
//!         socket transparent 1 socket wildcard 0 meta mark set meta mark | 0x1000 accept
//!         ip daddr . tcp dport @frontends-v4 tproxy ip to 127.0.0.1:<port> accept
//!         ip6 daddr . tcp dport @frontends-v6 tproxy ip6 to [::1]:<port> accept
//!     }
//! }
//! ```
//! The first rule is for connections that exist: see [`crate::kernel::divert`]. A proxy that is started beside another one
//! writes the table anew with its own ports, in one transaction: from then on new connections are its own.

use std::collections::BTreeSet;
use std::io;
use std::net::SocketAddr;

use nftables::{Batch, Netfilter, Rule};

use crate::kernel::divert::MARK;

const TABLE: &str = "portolan-proxy";
const CHAIN: &str = "divert";
const V4: &str = "frontends-v4";
const V6: &str = "frontends-v6";

/// The table in the kernel, as far as it is known.
#[derive(Debug)]
pub(crate) struct Catcher {
    /// Where to hand connections: one listener a family.
    listeners: Vec<SocketAddr>,
    caught: BTreeSet<SocketAddr>,
    installed: bool,
}

impl Catcher {
    /// Nothing is in the kernel before the first [`Catcher::set`].
    pub(crate) fn new(listeners: Vec<SocketAddr>) -> Self {
        Self { listeners, caught: BTreeSet::new(), installed: false }
    }

    /// Catches connections to exactly these from now on, all at once.
    ///
    /// # Errors
    /// What the kernel says; then nothing has changed.
    pub(crate) fn set(&mut self, wanted: BTreeSet<SocketAddr>) -> io::Result<()> {
        if !self.installed {
            return self.install(wanted);
        }
        let (added, removed) = (difference(&wanted, &self.caught), difference(&self.caught, &wanted));
        if added.is_empty() && removed.is_empty() {
            return Ok(());
        }
        let mut batch = Batch::new(TABLE);
        for (set, v4) in [(V4, true), (V6, false)] {
            batch.delete_socket_addresses(set, &of_family(&removed, v4));
            batch.add_socket_addresses(set, &of_family(&added, v4));
        }
        match batch.commit(&Netfilter::open()?) {
            // Somebody has flushed the ruleset.
            Err(error) if error.kind() == io::ErrorKind::NotFound => self.install(wanted),
            other => other.map(|()| self.caught = wanted),
        }
    }

    /// Writes the table again if somebody has deleted it.
    ///
    /// # Errors
    /// What the kernel says.
    pub(crate) fn check(&mut self) -> io::Result<()> {
        if self.installed && !Netfilter::open()?.has_table(TABLE)? {
            return self.install(self.caught.clone());
        }
        Ok(())
    }

    /// Lets go of everything.
    ///
    /// # Errors
    /// What the kernel says.
    pub(crate) fn remove(&mut self) -> io::Result<()> {
        let mut batch = Batch::new(TABLE);
        // Adding before deleting makes deleting what is not there no error.
        batch.add_table();
        batch.delete_table();
        self.installed = false;
        batch.commit(&Netfilter::open()?)
    }

    fn install(&mut self, wanted: BTreeSet<SocketAddr>) -> io::Result<()> {
        let mut batch = Batch::new(TABLE);
        // What another proxy, or an earlier run, has put there goes in the same instant.
        batch.add_table();
        batch.delete_table();
        batch.add_table();
        batch.add_prerouting_chain(CHAIN);
        batch.add_rule(CHAIN, &Rule::default().for_transparent_socket().set_mark_bit(MARK).accept());
        let all: Vec<SocketAddr> = wanted.iter().copied().collect();
        for (id, set, v4) in [(1, V4, true), (2, V6, false)] {
            batch.add_socket_address_set(set, id, v4);
            batch.add_socket_addresses(set, &of_family(&all, v4));
        }
        for listener in &self.listeners {
            let v4 = listener.is_ipv4();
            let rule = Rule::default().tcp_to(if v4 { V4 } else { V6 }, v4);
            batch.add_rule(CHAIN, &rule.tproxy(*listener).accept());
        }
        batch.commit(&Netfilter::open()?)?;
        (self.caught, self.installed) = (wanted, true);
        Ok(())
    }
}

fn difference(from: &BTreeSet<SocketAddr>, without: &BTreeSet<SocketAddr>) -> Vec<SocketAddr> {
    from.difference(without).copied().collect()
}

fn of_family(addresses: &[SocketAddr], v4: bool) -> Vec<SocketAddr> {
    addresses.iter().copied().filter(|address| address.is_ipv4() == v4).collect()
}
