//! The complete table.

use std::collections::HashMap;

use discovery::model::Protocol;
use nftables::{Batch, Data, Rule, Set, Type};

use super::elements::{self, Action, Element, FAMILIES, Family};
use super::{Listeners, VirtualIps};
use crate::frontend::FrontendKey;
use crate::kernel::policy_routing::{MARK, PROXIED};

pub(super) const PREROUTING: &str = "prerouting";
pub(super) const REFUSE: &str = "refuse";
const BRIDGED: &str = "bridged";
const INTERCEPT: &str = "intercept";
const INPUT: &str = "input";
const OUTPUT: &str = "output";

/// The content of the table.
pub(super) struct Rules<'a> {
    pub(super) owner: &'a str,
    pub(super) listeners: &'a Listeners,
    /// Whether there is a bridge.
    pub(super) bridged: bool,
    /// Whether the chain `output` is needed.
    pub(super) has_external: bool,
    pub(super) elements: Vec<Element>,
    pub(super) virtual_ips: &'a VirtualIps,
}

impl Rules<'_> {
    /// Fills the empty table of the batch.
    pub(super) fn write(&self, batch: &mut Batch<'_>) {
        let owner = Set { name: self.owner, id: 1, key: &[address(true)], data: Data::None };
        batch.add_set(&owner);
        self.add_chains(batch);
        self.add_listeners(batch);
        for (family, id) in FAMILIES.into_iter().zip([10, 20]) {
            self.add_family(batch, family, id);
        }
    }

    fn add_chains(&self, batch: &mut Batch<'_>) {
        batch.add_prerouting_chain(PREROUTING);
        batch.add_input_chain(INPUT);
        batch.add_chain(INTERCEPT);
        batch.add_rule(PREROUTING, &Rule::default().jump(INTERCEPT));
        if self.bridged {
            batch.add_first_prerouting_chain(BRIDGED);
            batch.add_rule(BRIDGED, &Rule::default().from_bridge().jump(INTERCEPT));
        }
        batch.add_rule(INTERCEPT, &Rule::default().for_transparent_socket().set_mark_bit(MARK).accept());
        let proxied = || Rule::default().with_mark_bit(PROXIED).accept();
        batch.add_rule(INTERCEPT, &proxied());
        batch.add_chain(REFUSE);
        batch.add_rule(REFUSE, &Rule::default().tcp().reset());
        batch.add_rule(REFUSE, &Rule::default().reject());
        if self.has_external {
            batch.add_output_route_chain(OUTPUT);
            batch.add_rule(OUTPUT, &proxied());
        }
    }

    fn add_listeners(&self, batch: &mut Batch<'_>) {
        for (protocol, listeners) in
            [(Protocol::Tcp, &self.listeners.tcp), (Protocol::Udp, &self.listeners.udp)]
        {
            for family in FAMILIES {
                let of_family = listeners.iter().filter(|listener| listener.is_ipv4() == family.v4);
                for (lane, listener) in of_family.enumerate() {
                    let chain = elements::chain(protocol, family.v4, lane);
                    batch.add_chain(&chain);
                    batch.add_rule(&chain, &Rule::default().tproxy(*listener).accept());
                }
            }
        }
    }

    fn add_family(&self, batch: &mut Batch<'_>, family: Family, id: u32) {
        let port = [address(family.v4), Type::Protocol, Type::Service];
        let set = |name, id, data| Set { name, id, key: &port, data };
        batch.add_set(&set(family.frontends, id, Data::Verdict));
        batch.add_set(&set(family.external, id + 1, Data::None));
        batch.add_set(&set(family.refused, id + 2, Data::None));
        let address = [address(family.v4)];
        batch.add_set(&Set { name: family.virtual_ips, id: id + 3, key: &address, data: Data::Interval });
        elements::add(batch, family, self.elements.iter());
        batch.add_elements(family.virtual_ips, &self.virtual_ips.elements(family.v4));
        if self.has_external {
            add_external_rules(batch, family);
        }
        let rule = Rule::default().verdict_by_destination_port(family.frontends, family.v4);
        batch.add_rule(INTERCEPT, &rule);
        add_input_rules(batch, family);
    }
}

/// A desired state of the rules: the applied one, with changes.
pub(super) struct DesiredRules<'a> {
    pub(super) applied: &'a HashMap<FrontendKey, Action>,
    pub(super) changes: &'a [(FrontendKey, Option<Action>)],
    pub(super) virtual_ips: &'a VirtualIps,
}

impl DesiredRules<'_> {
    pub(super) fn adds_external(&self) -> bool {
        has_external(self.changes.iter().filter_map(|(_, action)| action.as_ref()))
    }

    pub(super) fn frontends(&self) -> HashMap<FrontendKey, Action> {
        let mut frontends = self.applied.clone();
        for (key, action) in self.changes {
            let _former = match action {
                Some(action) => frontends.insert(*key, *action),
                None => frontends.remove(key),
            };
        }
        frontends
    }
}

/// Whether the chain `output` is needed.
pub(super) fn has_external<'a>(mut actions: impl Iterator<Item = &'a Action>) -> bool {
    actions.any(|action| !matches!(action, Action::Intercept | Action::Refuse))
}

fn address(v4: bool) -> Type {
    if v4 { Type::Ipv4Address } else { Type::Ipv6Address }
}

fn add_external_rules(batch: &mut Batch<'_>, family: Family) {
    for chain in [INTERCEPT, OUTPUT] {
        let rule = Rule::default().destination_port_in_set(family.external, family.v4);
        batch.add_rule(chain, &rule.set_mark_bit(MARK));
    }
    // Not in prerouting: at that point the node has no address from which a reply to its own packets could
    // come.
    let refused = || Rule::default().destination_port_in_set(family.refused, family.v4);
    batch.add_rule(OUTPUT, &refused().tcp().reset());
    batch.add_rule(OUTPUT, &refused().reject());
}

fn add_input_rules(batch: &mut Batch<'_>, family: Family) {
    let virtual_ip = || Rule::default().destination_in_set(family.virtual_ips, family.v4);
    batch.add_rule(INPUT, &virtual_ip().tcp().for_wildcard_socket().reset());
    batch.add_rule(INPUT, &virtual_ip().udp().for_wildcard_socket().reject());
    batch.add_rule(INPUT, &virtual_ip().other_protocol().reject());
}
