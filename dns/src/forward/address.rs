//! The addresses and transports of upstream servers.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use crate::message::NameBuf;

/// Ports (RFC 1035 §4.2, RFC 7858 §3.1).
const PORT: u16 = 53;
const TLS_PORT: u16 = 853;

/// An upstream server: `10.0.0.53`, `10.0.0.53:5353`, `tcp://10.0.0.53`, `tls://10.0.0.53#dns.example`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Upstream {
    /// Address and port.
    pub(super) address: SocketAddr,
    pub(super) transport: Transport,
}

/// The transport of a server.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Transport {
    /// UDP, and TCP for truncated replies.
    Plain,
    Tcp,
    /// DNS over TLS. The certificate must be for this name or address (RFC 8310 §8.1).
    Tls(String),
}

/// The servers of one domain: `example.internal=10.0.0.53,10.0.1.53`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stub {
    pub(super) domain: NameBuf,
    pub(super) upstreams: Vec<Upstream>,
}

impl Upstream {
    /// Plain DNS on port 53.
    pub(super) fn plain(ip: IpAddr) -> Self {
        Self { address: SocketAddr::new(ip, PORT), transport: Transport::Plain }
    }
}

impl fmt::Display for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.transport {
            Transport::Plain => write!(f, "{}", self.address),
            Transport::Tcp => write!(f, "tcp://{}", self.address),
            Transport::Tls(name) => write!(f, "tls://{}#{name}", self.address),
        }
    }
}

impl FromStr for Upstream {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (scheme, rest) = text.split_once("://").unwrap_or(("udp", text));
        let (address, name) = rest.split_once('#').map_or((rest, None), |(a, name)| (a, Some(name)));
        let port = if scheme == "tls" { TLS_PORT } else { PORT };
        let bare = || address.trim_matches(['[', ']']).parse().map(|ip: IpAddr| SocketAddr::new(ip, port));
        let address: SocketAddr = address.parse().or_else(|_no_port| bare()).map_err(|_no_address| {
            format!("{text:?}: {address:?} is not an IP address, with or without a port")
        })?;
        let transport = match (scheme, name) {
            ("udp", None) => Transport::Plain,
            ("tcp", None) => Transport::Tcp,
            ("tls", Some(name)) if !name.is_empty() => Transport::Tls(name.to_owned()),
            // A certificate may be for the address itself.
            ("tls", _) => Transport::Tls(address.ip().to_string()),
            ("udp" | "tcp", Some(_)) => {
                return Err(format!("{text:?}: only tls:// has a name to verify after the #"));
            }
            _ => return Err(format!("{text:?}: {scheme:?} is none of udp, tcp and tls")),
        };
        Ok(Self { address, transport })
    }
}

impl FromStr for Stub {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let form = || format!("{text:?} is not DOMAIN=ADDR[,ADDR...], such as example.internal=10.0.0.53");
        let (domain, upstreams) = text.split_once('=').ok_or_else(form)?;
        let mut domain = NameBuf::from_text(domain).map_err(|_malformed| form())?;
        domain.make_lower();
        let upstreams = upstreams.split(',').map(str::parse).collect::<Result<Vec<_>, _>>()?;
        Ok(Self { domain, upstreams })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_are_parsed_in_every_notation() {
        for (text, meant) in [
            ("10.0.0.53", "10.0.0.53:53"),
            ("10.0.0.53:5353", "10.0.0.53:5353"),
            ("2001:db8::1", "[2001:db8::1]:53"),
            ("[2001:db8::1]:54", "[2001:db8::1]:54"),
            ("tcp://10.0.0.53", "tcp://10.0.0.53:53"),
            ("tls://10.0.0.53#dns.example", "tls://10.0.0.53:853#dns.example"),
            ("tls://[2001:db8::1]", "tls://[2001:db8::1]:853#2001:db8::1"),
        ] {
            assert_eq!(text.parse::<Upstream>().unwrap().to_string(), meant);
        }
        for (text, hint) in [
            ("dns.example", "is not an IP address"),
            ("10.0.0.53#dns.example", "only tls:// has a name"),
            ("https://10.0.0.53", "none of udp, tcp and tls"),
        ] {
            assert!(text.parse::<Upstream>().unwrap_err().contains(hint), "{text}");
        }
        let stub: Stub = "Example.Internal=10.0.0.53,tls://10.0.1.53#x".parse().unwrap();
        assert_eq!((stub.domain.to_string(), stub.upstreams.len()), ("example.internal.".to_owned(), 2));
        assert!("10.0.0.53".parse::<Stub>().unwrap_err().contains("example.internal=10.0.0.53"));
    }
}
