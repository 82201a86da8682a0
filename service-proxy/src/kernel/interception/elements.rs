//! The elements of the sets and maps, one or two per frontend.

use std::net::{IpAddr, SocketAddr};

use discovery::model::Protocol;
use nftables::{Batch, Key};

use super::rules::REFUSE;
use crate::frontend::FrontendKey;

/// `IPPROTO_TCP`, `IPPROTO_UDP`.
const TCP: u8 = 6;
const UDP: u8 = 17;

/// The kernel's action for packets to a frontend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Deliver to the proxy. The address is local to the node.
    Intercept,
    /// Deliver to the proxy. The address is not local, so packets are routed to the node first.
    InterceptExternal,
    /// Deliver packets of open connections to an external address, and refuse all others.
    Drain,
    /// Refuse: the Service has no endpoints, and a process of the node would answer.
    Refuse,
    /// Refuse. The address is not local: without a rule a packet would be routed as without a Service.
    RefuseExternal,
}

/// The sets of one family.
#[derive(Clone, Copy, Debug)]
pub(super) struct Family {
    pub(super) v4: bool,
    pub(super) frontends: &'static str,
    pub(super) external: &'static str,
    pub(super) refused: &'static str,
    pub(super) virtual_ips: &'static str,
}

pub(super) const FAMILIES: [Family; 2] = [
    Family {
        v4: true,
        frontends: "frontends-v4",
        external: "external-v4",
        refused: "refused-v4",
        virtual_ips: "virtual-v4",
    },
    Family {
        v4: false,
        frontends: "frontends-v6",
        external: "external-v6",
        refused: "refused-v6",
        virtual_ips: "virtual-v6",
    },
];

/// A frontend's element.
#[derive(Clone, Debug)]
pub(super) struct Element {
    key: FrontendKey,
    action: Action,
    lane: usize,
}

impl Element {
    pub(super) fn new(key: FrontendKey, action: Action, lanes: usize) -> Self {
        Self { key, action, lane: lane(key.address, lanes) }
    }

    fn key(&self) -> Key {
        let protocol = if self.key.protocol == Protocol::Udp { UDP } else { TCP };
        Key::default().address(self.key.address.ip()).protocol(protocol).port(self.key.address.port())
    }

    fn chain(&self) -> String {
        match self.action {
            Action::Intercept | Action::InterceptExternal => {
                chain(self.key.protocol, self.key.address.is_ipv4(), self.lane)
            }
            Action::Drain | Action::Refuse | Action::RefuseExternal => REFUSE.to_owned(),
        }
    }

    fn is_in(&self, family: Family) -> bool {
        self.key.address.is_ipv4() == family.v4
    }

    fn is_external(&self) -> bool {
        matches!(self.action, Action::InterceptExternal | Action::Drain)
    }

    fn is_refused(&self) -> bool {
        self.action == Action::RefuseExternal
    }
}

/// Adds the elements of this family.
pub(super) fn add<'e>(batch: &mut Batch<'_>, family: Family, elements: impl Iterator<Item = &'e Element>) {
    let elements: Vec<_> = elements.filter(|element| element.is_in(family)).collect();
    let verdicts = elements.iter().map(|element| nftables::Element::Goto(element.key(), element.chain()));
    batch.add_elements(family.frontends, &verdicts.collect::<Vec<_>>());
    let keys = |belongs: fn(&Element) -> bool| {
        let keys = elements.iter().filter(move |element| belongs(element));
        keys.map(|element| nftables::Element::Key(element.key())).collect::<Vec<_>>()
    };
    batch.add_elements(family.external, &keys(Element::is_external));
    batch.add_elements(family.refused, &keys(Element::is_refused));
}

/// Removes the elements of this family.
pub(super) fn delete<'e>(batch: &mut Batch<'_>, family: Family, elements: impl Iterator<Item = &'e Element>) {
    let elements: Vec<_> = elements.filter(|element| element.is_in(family)).collect();
    let keys = |belongs: fn(&Element) -> bool| {
        elements.iter().filter(move |element| belongs(element)).map(|element| element.key())
    };
    batch.delete_keys(family.frontends, keys(|_| true));
    batch.delete_keys(family.external, keys(Element::is_external));
    batch.delete_keys(family.refused, keys(Element::is_refused));
}

/// The chain that delivers packets to a listener.
pub(super) fn chain(protocol: Protocol, v4: bool, lane: usize) -> String {
    let family = if v4 { "v4" } else { "v6" };
    match protocol {
        Protocol::Udp => format!("udp-{family}-{lane}"),
        _ => format!("tcp-{family}"),
    }
}

/// TCP has one lane.
fn lane(address: SocketAddr, lanes: usize) -> usize {
    let low = match address.ip() {
        IpAddr::V4(ip) => usize::from(ip.octets()[3]),
        IpAddr::V6(ip) => usize::from(ip.octets()[15]),
    };
    (low + usize::from(address.port())) % lanes
}
