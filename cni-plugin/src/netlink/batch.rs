//! Requests that are sent to the kernel together.

use std::net::IpAddr;
use std::os::fd::RawFd;

use ipnetwork::IpNetwork;
use netlink_packet_core::{NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::InfoBridgePort;
use nix::errno::Errno;

use super::request::{self, NewBridge, Route, Veth};
use super::traffic;
use super::{Link, Netlink, has_errno, link_of};
use crate::error::{Code, Error, Result, kernel};
use crate::netconf::Limit;

/// Requests in order, each with its purpose.
#[derive(Default)]
pub(crate) struct Batch {
    requests: Vec<(RouteNetlinkMessage, u16)>,
    purposes: Vec<Purpose>,
}

struct Purpose {
    action: String,
    /// An object that exists already is fine.
    may_exist: bool,
    is_route: bool,
}

/// The results of a batch.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    /// The interfaces that were requested, in order.
    pub(crate) links: Vec<Link>,
    /// For each request, whether it created the object.
    pub(crate) made: Vec<bool>,
    /// Whether a route of [`Batch::add_route`] existed.
    pub(crate) found_route: bool,
}

impl Batch {
    /// Creates both ends of a veth, each in its final namespace with its final name, address and MTU. The
    /// node's end becomes a port of the bridge `master`, if there is one.
    pub(crate) fn add_veth(&mut self, veth: &Veth<'_>, peer_netns: RawFd, master: Option<u32>) {
        let action = format!("create interface {} with its end {}", veth.pod, veth.host);
        self.push(request::new_veth(veth, peer_netns, master), NLM_F_CREATE | NLM_F_EXCL, action);
    }

    /// Creates a bridge, unless it exists.
    pub(crate) fn add_bridge(&mut self, bridge: &NewBridge<'_>) {
        let action = format!("create bridge {}", bridge.name);
        self.push(request::new_bridge(bridge), NLM_F_CREATE | NLM_F_EXCL, action);
        self.purposes.last_mut().expect("pushed above").may_exist = true;
    }

    /// Sets options of a bridge port.
    pub(crate) fn set_port(&mut self, name: &str, options: Vec<InfoBridgePort>) {
        let action = format!("set {options:?} of bridge port {name}");
        self.push(request::set_port(name, options), 0, action);
    }

    /// Sets an interface promiscuous.
    pub(crate) fn set_promiscuous(&mut self, name: &str) {
        self.push(request::set_promiscuous(name), 0, format!("make {name} promiscuous"));
    }

    /// Requests an interface, which must exist.
    pub(crate) fn get_link(&mut self, name: &str) {
        self.push(request::get_link(name), 0, format!("look for interface {name}"));
    }

    /// Sets an interface up.
    pub(crate) fn set_up(&mut self, name: &str) {
        self.push(request::set_up(name), 0, format!("set {name} up"));
    }

    /// Sets the alias of an interface. Do it while the interface is down: for one that is up the kernel
    /// notifies all listeners.
    pub(crate) fn set_alias(&mut self, name: &str, note: &str) {
        self.push(request::set_alias(name, note), 0, format!("set the alias of {name}"));
    }

    /// Disables the link-local address of an interface that is still down.
    pub(crate) fn disable_link_local(&mut self, name: &str) {
        self.push(request::disable_link_local(name), 0, format!("keep link-local addresses off {name}"));
    }

    /// Lets packets from and to 127.0.0.0/8 pass the interface, as a host port on localhost needs.
    pub(crate) fn route_localnet(&mut self, name: &str) {
        self.push(request::route_localnet(name), 0, format!("allow localhost on {name}"));
    }

    /// Enables proxy ARP on the interface.
    pub(crate) fn proxy_arp(&mut self, name: &str) {
        self.push(request::proxy_arp(name), 0, format!("answer ARP on {name}"));
    }

    /// Adds an address to the interface `name`, which may have it already. With `detect` the kernel runs
    /// duplicate address detection (IPv6).
    pub(crate) fn ensure_address(&mut self, index: u32, address: IpNetwork, name: &str, detect: bool) {
        let action = format!("add address {address} to {name}");
        let request = request::new_address(index, address.ip(), address.prefix(), detect);
        self.push(request, NLM_F_CREATE | NLM_F_EXCL, action);
        self.purposes.last_mut().expect("pushed above").may_exist = true;
    }

    /// Adds a permanent neighbour entry.
    pub(crate) fn add_neighbour(&mut self, index: u32, address: IpAddr, mac: [u8; 6], name: &str) {
        let action = format!("add neighbour {address} to {name}");
        self.push(request::new_neighbour(index, address, mac), NLM_F_CREATE | NLM_F_REPLACE, action);
    }

    /// Broadcasts an ARP announcement of `address`, one of the interface's own. Leaves no neighbour entry.
    pub(crate) fn announce(&mut self, index: u32, address: IpAddr, name: &str) {
        let action = format!("announce {address} on {name}");
        self.push(request::solicit_neighbour(index, address), NLM_F_CREATE, action.clone());
        self.push(request::delete_neighbour(index, address), 0, action);
    }

    /// Adds a route, which must not exist.
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

    /// Adds a rule: packets from `source` use `table` first.
    pub(crate) fn add_rule(&mut self, source: IpAddr, table: u32) {
        let action = format!("add rule from {source} lookup {table}");
        self.push(request::new_rule(source, table), NLM_F_CREATE | NLM_F_EXCL, action);
        self.purposes.last_mut().expect("pushed above").may_exist = true;
    }

    /// Limits the rate at which packets leave an interface.
    pub(crate) fn limit(&mut self, index: u32, limit: Limit, name: &str) {
        let action = format!("limit {name} to {} bytes a second", limit.rate);
        self.push(traffic::limit(index, limit), NLM_F_CREATE | NLM_F_REPLACE, action);
    }

    /// Redirects packets that arrive at an interface to another one.
    pub(crate) fn redirect(&mut self, index: u32, to: u32, name: &str) {
        let action = format!("redirect what arrives at {name}");
        self.push(traffic::new_ingress(index), NLM_F_CREATE | NLM_F_EXCL, action.clone());
        self.push(traffic::redirect(index, to), NLM_F_CREATE | NLM_F_EXCL, action);
    }

    /// Sends all requests. Returns the first error; later requests may have succeeded.
    pub(crate) fn commit(self, netlink: &mut Netlink) -> Result<Outcome> {
        let mut outcome = Outcome::default();
        if self.requests.is_empty() {
            return Ok(outcome);
        }
        let results = netlink.exchange(self.requests).map_err(kernel("send netlink requests"))?;
        for (result, purpose) in results.into_iter().zip(self.purposes) {
            match result {
                Ok(answers) => {
                    outcome.links.extend(answers.into_iter().filter_map(link_of));
                    outcome.made.push(true);
                }
                Err(e) if purpose.may_exist && has_errno(&e, &[Errno::EEXIST]) => {
                    outcome.made.push(false);
                    outcome.found_route |= purpose.is_route;
                }
                Err(e) if has_errno(&e, &[Errno::EEXIST]) => {
                    return Err(Error::new(Code::Conflict, format!("{}: {e}", purpose.action)));
                }
                Err(e) if has_errno(&e, &[Errno::EACCES]) => {
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
