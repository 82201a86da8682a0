//! Catching the connections to virtual IPs.
//!
//! One rule hands them to this proxy's listeners, unchanged (TPROXY), so that ten thousand Services need no socket of
//! their own, opening and closing one is an element of a set, and a port that some other process has on every address
//! is no obstacle. Whatever is not in the sets is none of our business: the kernel refuses it, because virtual IPs are
//! local and nobody listens.
//!
//! ```text
//! table inet portolan-proxy {
//!     set proxy-<port> { type ipv4_addr . inet_service }
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
//! writes the table anew with its own ports, in one transaction: from then on new connections are its own. The empty set says
//! whose table it is: a transaction that names it fails once a successor has the table, so that nobody changes another one's.

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
    /// The set that says whose the table is; no two live proxies have the same ports.
    mark: String,
    installed: bool,
}

impl Catcher {
    /// Nothing is in the kernel before the first [`Catcher::change`].
    pub(crate) fn new(listeners: Vec<SocketAddr>) -> Self {
        let mark = format!("proxy-{}", listeners.first().map_or(0, SocketAddr::port));
        Self { listeners, mark, installed: false }
    }

    /// Whether anything is in the kernel, as far as it is known.
    pub(crate) fn is_installed(&self) -> bool {
        self.installed
    }

    /// Catches connections to what was opened and no more to what was closed, all at once. A table that is not there is
    /// written with `all`; one that a successor has by now is left alone.
    ///
    /// # Errors
    /// What the kernel says; then nothing has changed.
    pub(crate) fn change(
        &mut self,
        opened: &[SocketAddr],
        closed: &[SocketAddr],
        all: &dyn Fn() -> Vec<SocketAddr>,
    ) -> io::Result<()> {
        if !self.installed {
            return self.install(&all());
        }
        let mut batch = Batch::new(TABLE);
        batch.expect_set(&self.mark);
        for (set, v4) in [(V4, true), (V6, false)] {
            batch.delete_socket_addresses(set, &of_family(closed, v4));
            batch.add_socket_addresses(set, &of_family(opened, v4));
        }
        match batch.commit(&Netfilter::open()?) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                // Somebody has flushed the ruleset, unless a successor has the table.
                if self.is_anothers()? { Ok(()) } else { self.install(&all()) }
            }
            other => other,
        }
    }

    fn is_anothers(&self) -> io::Result<bool> {
        let netfilter = Netfilter::open()?;
        Ok(netfilter.has_table(TABLE)? && !netfilter.has_set(TABLE, &self.mark)?)
    }

    /// Writes the table again, with `all`, if somebody has deleted it.
    ///
    /// # Errors
    /// What the kernel says.
    pub(crate) fn check(&mut self, all: &dyn Fn() -> Vec<SocketAddr>) -> io::Result<()> {
        if self.installed && !Netfilter::open()?.has_table(TABLE)? {
            return self.install(&all());
        }
        Ok(())
    }

    /// Takes the table away if it is this proxy's; false if another one has it.
    ///
    /// # Errors
    /// What the kernel says.
    pub(crate) fn remove(&mut self) -> io::Result<bool> {
        let mut batch = Batch::new(TABLE);
        batch.expect_set(&self.mark);
        batch.delete_table();
        self.installed = false;
        match batch.commit(&Netfilter::open()?) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(!self.is_anothers()?),
            other => other.map(|()| true),
        }
    }

    /// Takes the table away, whosever it is.
    ///
    /// # Errors
    /// What the kernel says.
    pub(crate) fn clean_up() -> io::Result<()> {
        let mut batch = Batch::new(TABLE);
        // Adding before deleting makes deleting what is not there no error.
        batch.add_table();
        batch.delete_table();
        batch.commit(&Netfilter::open()?)
    }

    fn install(&mut self, all: &[SocketAddr]) -> io::Result<()> {
        let mut batch = Batch::new(TABLE);
        // What another proxy, or an earlier run, has put there goes in the same instant.
        batch.add_table();
        batch.delete_table();
        batch.add_table();
        batch.add_socket_address_set(&self.mark, 3, true);
        batch.add_prerouting_chain(CHAIN);
        batch.add_rule(CHAIN, &Rule::default().for_transparent_socket().set_mark_bit(MARK).accept());
        for (id, set, v4) in [(1, V4, true), (2, V6, false)] {
            batch.add_socket_address_set(set, id, v4);
            batch.add_socket_addresses(set, &of_family(all, v4));
        }
        for listener in &self.listeners {
            let v4 = listener.is_ipv4();
            let rule = Rule::default().tcp_to(if v4 { V4 } else { V6 }, v4);
            batch.add_rule(CHAIN, &rule.tproxy(*listener).accept());
        }
        batch.commit(&Netfilter::open()?)?;
        self.installed = true;
        Ok(())
    }
}

fn of_family(addresses: &[SocketAddr], v4: bool) -> Vec<SocketAddr> {
    addresses.iter().copied().filter(|address| address.is_ipv4() == v4).collect()
}
