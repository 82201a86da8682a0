//! The upstream servers of the node, from resolv.conf.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use ::resolv_conf::{Config, ScopedIp};
use nix::net::if_::if_nametoindex;

use super::address::Upstream;
use super::routes::Forbidden;
use crate::message::NameBuf;
use crate::watched_file::read_if_there;

/// glibc uses at most three.
const MAX_SERVERS: usize = 3;

/// systemd-resolved writes its own upstream servers here.
pub(super) const BEHIND_RESOLVED: &str = "/run/systemd/resolve/resolv.conf";

/// The content of a resolv.conf.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct ResolvConf {
    pub(super) upstreams: Vec<Upstream>,
    /// The search domains of the node.
    pub(super) search: Vec<NameBuf>,
}

impl ResolvConf {
    /// Reads the file. Servers that would forward to this one are skipped with a warning. If none is left and
    /// systemd-resolved is in between, its upstream servers are used. Empty if the file is missing.
    ///
    /// # Errors
    /// If a file exists and cannot be read.
    pub(super) fn read(file: &Path, forbidden: &Forbidden) -> io::Result<Self> {
        let mut conf = Self::parse(&read_if_there(file)?);
        let named = conf.upstreams.len();
        conf.keep_allowed(forbidden);
        if conf.upstreams.is_empty() && named > 0 {
            let behind = Self::parse(&read_if_there(Path::new(BEHIND_RESOLVED))?);
            conf.upstreams = behind.upstreams;
            conf.keep_allowed(forbidden);
        }
        Ok(conf)
    }

    fn keep_allowed(&mut self, forbidden: &Forbidden) {
        self.upstreams.retain(|upstream| {
            let allowed = forbidden.check("resolv.conf: nameserver", upstream);
            if let Err(error) = &allowed {
                tracing::warn!("{error}; skipped");
            }
            allowed.is_ok()
        });
    }

    /// Invalid lines are skipped, as the C library does.
    fn parse(text: &[u8]) -> Self {
        let (conf, _errors) = Config::parse_with_errors(text);
        let search = conf.get_last_search_or_domain();
        Self {
            upstreams: conf.nameservers.iter().take(MAX_SERVERS).filter_map(upstream).collect(),
            search: search.filter_map(|domain| NameBuf::from_text(domain).ok()).collect(),
        }
    }
}

/// An IPv6 address may have a zone, by name or by number: `fe80::1%eth0`.
fn upstream(server: &ScopedIp) -> Option<Upstream> {
    let mut upstream = Upstream::plain(IpAddr::from(server.clone()));
    if let (ScopedIp::V6(_, Some(link)), SocketAddr::V6(address)) = (server, &mut upstream.address) {
        let index = link.parse().ok().or_else(|| if_nametoindex(link.as_str()).ok());
        address.set_scope_id(index?);
    }
    Some(upstream)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn complete_nameserver_lines_count_and_three_of_them() {
        let text = b"# nameserver 9.9.9.9 \xff\nsearch a b\n\
            nameserver 192.0.2.1\n nameserver\t2001:db8::1 \nnameserver x\nnameserver fe80::1%lo # y\nnameserver 192.0.2.3\n";
        let found = ResolvConf::parse(text);
        let servers: Vec<String> = found.upstreams.iter().map(ToString::to_string).collect();
        assert_eq!(servers, ["192.0.2.1:53", "[2001:db8::1]:53", "[fe80::1%1]:53"]);
        let search: Vec<String> = found.search.iter().map(ToString::to_string).collect();
        assert_eq!(search, ["a.", "b."]);
    }

    #[test]
    fn servers_that_forward_to_this_one_are_skipped() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("resolv.conf");
        std::fs::write(&file, "nameserver 127.0.0.53\nnameserver 10.96.0.10\nnameserver 192.0.2.1\n")
            .unwrap();
        let listen = vec!["10.96.0.10:53".parse().unwrap()];
        let forbidden = Forbidden { listen, allow_loopback: false };
        let found = ResolvConf::read(&file, &forbidden).unwrap();
        assert_eq!(found.upstreams, ["192.0.2.1".parse().unwrap()]);
        let missing = ResolvConf::read(&directory.path().join("none"), &forbidden).unwrap();
        assert_eq!(missing, ResolvConf::default());
    }
}
