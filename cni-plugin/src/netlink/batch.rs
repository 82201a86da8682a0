//! Changes that go to the kernel together.

use std::net::IpAddr;
use std::os::fd::RawFd;

use ipnetwork::IpNetwork;
use netlink_packet_core::{NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::InfoBridgePort;

use super::request::{self, NewBridge, Route, Veth};
use super::traffic;
use super::{Link, Netlink, link_of};
use crate::error::{Code, Error, Result, kernel};
use crate::netconf::Limit;

/// `EEXIST`, `EACCES`
const EXISTS: i32 = 17;
const NOT_PERMITTED: i32 = 13;

/// Requests in their order, each with what it is for.
#[derive(Default)]
pub(crate) struct Batch {
    requests: Vec<(RouteNetlinkMessage, u16)>,
    purposes: Vec<Purpose>,
}

struct Purpose {
    action: String,
    /// Finding it made already is fine.
    may_exist: bool,
    is_route: bool,
}

/// What a batch has found out.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    /// The interfaces that were asked for, in their order.
    pub(crate) links: Vec<Link>,
    /// For each change, whether it was new.
    pub(crate) made: Vec<bool>,
    /// Whether a route of [`Batch::add_route`] was there.
    pub(crate) found_route: bool,
}

impl Batch {
    /// Creates both ends of a veth, each in its final namespace with its final name, address and MTU, the
    /// node's end as a port of the bridge `master` if there is one.
    pub(crate) fn add_veth(&mut self, veth: &Veth<'_>, peer_netns: RawFd, master: Option<u32>) {
        let action = format!("create interface {} with its end {}", veth.pod, veth.host);
        self.push(request::new_veth(veth, peer_netns, master), NLM_F_CREATE | NLM_F_EXCL, action);
    }

    /// Creates a bridge, unless another process was quicker.
    pub(crate) fn add_bridge(&mut self, bridge: &NewBridge<'_>) {
        let action = format!("create bridge {}", bridge.name);
        self.push(request::new_bridge(bridge), NLM_F_CREATE | NLM_F_EXCL, action);
        self.purposes.last_mut().expect("pushed above").may_exist = true;
    }

    /// Sets options of an interface that is a port of a bridge.
    pub(crate) fn set_port(&mut self, name: &str, options: Vec<InfoBridgePort>) {
        let action = format!("set {options:?} of bridge port {name}");
        self.push(request::set_port(name, options), 0, action);
    }

    /// Has an interface receive packets for every hardware address.
    pub(crate) fn set_promiscuous(&mut self, name: &str) {
        self.push(request::set_promiscuous(name), 0, format!("make {name} promiscuous"));
    }

    /// Asks for an interface, which must be there.
    pub(crate) fn get_link(&mut self, name: &str) {
        self.push(request::get_link(name), 0, format!("look for interface {name}"));
    }

    /// Sets an interface up.
    pub(crate) fn set_up(&mut self, name: &str) {
        self.push(request::set_up(name), 0, format!("set {name} up"));
    }

    /// Gives an interface a note for people and for recovery. While it is down that is all that happens; the
    /// kernel tells everybody of a change to one that is up.
    pub(crate) fn set_note(&mut self, name: &str, note: &str) {
        self.push(request::set_alias(name, note), 0, format!("note on {name} whose it is"));
    }

    /// Keeps an interface that is down from getting a link-local address when it comes up.
    pub(crate) fn without_link_local(&mut self, name: &str) {
        self.push(request::without_link_local(name), 0, format!("keep link-local addresses off {name}"));
    }

    /// Lets packets from and to 127.0.0.0/8 pass the interface: what a port of the node on localhost needs.
    pub(crate) fn route_localnet(&mut self, name: &str) {
        self.push(request::route_localnet(name), 0, format!("allow localhost on {name}"));
    }

    /// Has the node answer who asks there by ARP for an address that lies elsewhere.
    pub(crate) fn proxy_arp(&mut self, name: &str) {
        self.push(request::proxy_arp(name), 0, format!("answer ARP on {name}"));
    }

    /// Adds an address to the interface `name`, which may have it already. With `detect` the kernel first
    /// asks whether another interface has it (IPv6).
    pub(crate) fn ensure_address(&mut self, index: u32, address: IpNetwork, name: &str, detect: bool) {
        let action = format!("add address {address} to {name}");
        let request = request::new_address(index, address.ip(), address.prefix(), detect);
        self.push(request, NLM_F_CREATE | NLM_F_EXCL, action);
        self.purposes.last_mut().expect("pushed above").may_exist = true;
    }

    /// Fixes the hardware address of a neighbour, so that no request for it is sent.
    pub(crate) fn add_neighbour(&mut self, index: u32, address: IpAddr, mac: [u8; 6], name: &str) {
        let action = format!("add neighbour {address} to {name}");
        self.push(request::new_neighbour(index, address, mac), NLM_F_CREATE | NLM_F_REPLACE, action);
    }

    /// Broadcasts which hardware address belongs to `address`, one of the interface's own. No entry stays.
    pub(crate) fn announce(&mut self, index: u32, address: IpAddr, name: &str) {
        let action = format!("announce {address} on {name}");
        self.push(request::ask_neighbour(index, address), NLM_F_CREATE, action.clone());
        self.push(request::delete_neighbour(index, address), 0, action);
    }

    /// Adds a route, which must not be there.
    pub(crate) fn add_own_route(&mut self, route: &Route, wording: &str) {
        self.push(request::new_route(route), NLM_F_CREATE | NLM_F_EXCL, format!("add route {wording}"));
    }

    /// Adds a route, or replaces the one to the same destination.
    pub(crate) fn replace_route(&mut self, route: &Route, wording: &str) {
        self.push(request::new_route(route), NLM_F_CREATE | NLM_F_REPLACE, format!("add route {wording}"));
    }

    /// Adds a route unless there is one to that destination.
    pub(crate) fn add_route(&mut self, route: &Route, wording: &str) {
        self.push(request::new_route(route), NLM_F_CREATE | NLM_F_EXCL, format!("add route {wording}"));
        let purpose = self.purposes.last_mut().expect("pushed above");
        (purpose.may_exist, purpose.is_route) = (true, true);
    }

    /// Has packets from `source` look into `table` first.
    pub(crate) fn add_rule(&mut self, source: IpAddr, table: u32) {
        let action = format!("add rule from {source} lookup {table}");
        self.push(request::new_rule(source, table), NLM_F_CREATE | NLM_F_EXCL, action);
        self.purposes.last_mut().expect("pushed above").may_exist = true;
    }

    /// Lets packets leave an interface no faster than `limit`.
    pub(crate) fn limit(&mut self, index: u32, limit: Limit, name: &str) {
        let action = format!("limit {name} to {} bytes a second", limit.rate);
        self.push(traffic::limit(index, limit), NLM_F_CREATE | NLM_F_REPLACE, action);
    }

    /// Redirects what arrives at an interface to another one.
    pub(crate) fn redirect(&mut self, index: u32, to: u32, name: &str) {
        let action = format!("redirect what arrives at {name}");
        self.push(traffic::new_ingress(index), NLM_F_CREATE | NLM_F_EXCL, action.clone());
        self.push(traffic::redirect(index, to), NLM_F_CREATE | NLM_F_EXCL, action);
    }

    /// Sends everything. The first refusal is reported; what came after it may have been done.
    pub(crate) fn commit(self, netlink: &mut Netlink) -> Result<Outcome> {
        let mut outcome = Outcome::default();
        if self.requests.is_empty() {
            return Ok(outcome);
        }
        let results = netlink.exchange(self.requests).map_err(kernel("talk to the kernel"))?;
        for (result, purpose) in results.into_iter().zip(self.purposes) {
            match result {
                Ok(answers) => {
                    outcome.links.extend(answers.into_iter().filter_map(link_of));
                    outcome.made.push(true);
                }
                Err(e) if purpose.may_exist && e.raw_os_error() == Some(EXISTS) => {
                    outcome.made.push(false);
                    outcome.found_route |= purpose.is_route;
                }
                Err(e) if e.raw_os_error() == Some(EXISTS) => {
                    return Err(Error::new(Code::Conflict, format!("{}: {e}", purpose.action)));
                }
                Err(e) if e.raw_os_error() == Some(NOT_PERMITTED) => {
                    return Err(Error::new(Code::NotPermitted, format!("{}: {e}", purpose.action)));
                }
                Err(e) => return Err(kernel(purpose.action)(e)),
            }
        }
        Ok(outcome)
    }

    fn push(&mut self, message: RouteNetlinkMessage, flags: u16, action: String) {
        self.requests.push((message, flags | NLM_F_ACK));
        self.purposes.push(Purpose { action, may_exist: false, is_route: false });
    }
}
