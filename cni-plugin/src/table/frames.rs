//! `macspoofchk`: a bridge port sends frames from its pod's MAC address only.
//!
//! ```text
//! table bridge portolan {
//!     set guarded { type ifname }                       # ports that are checked
//!     set senders { type ifname . ether_addr }          # their MAC addresses
//!     chain own-hardware-addresses { type filter hook prerouting priority -300
//!         iifname . ether saddr @senders return
//!         iifname @guarded drop
//!     }
//! }
//! ```

use attachment::{Attachment, Store};
use nftables::{Batch, Data, Element, Family, Key, Netfilter, Rule, Set, Type};

use super::TABLE;
use super::elements::Elements;
use super::network::{self, Network};
use crate::error::{Error, Result, kernel};
use crate::netconf::{Header, parse_mac};

const OWN_ADDRESSES: &str = "own-hardware-addresses";
const GUARDED: &str = "guarded";
const SENDERS: &str = "senders";

/// Whether the table has its rules, like [`super::rules::exist`].
fn exist(netfilter: &Netfilter) -> Result<bool> {
    let found = netfilter.has_rules(Family::Bridge, TABLE, OWN_ADDRESSES);
    found.map_err(kernel(format!("look for the rules of nft table bridge {TABLE}")))
}

/// Adds a pod to the check.
pub(super) fn add(netfilter: &Netfilter, header: &Header, pod: &Attachment) -> Result<()> {
    if !exist(netfilter)? {
        return write(netfilter, &header.attachments(), &network::all(&header.state_dir)?);
    }
    let mut batch = Batch::of(Family::Bridge, TABLE);
    let mut elements = Elements::default();
    add_pod(&mut elements, pod);
    elements.write(&mut batch);
    match batch.commit(netfilter) {
        // The first pod, or the ruleset was flushed.
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            write(netfilter, &header.attachments(), &network::all(&header.state_dir)?)
        }
        other => other.map_err(kernel(format!("add the pod to nft table bridge {TABLE}"))),
    }
}

/// Removes a pod. A missing one is fine.
pub(super) fn remove(netfilter: &Netfilter, pod: &Attachment) -> Option<Error> {
    let mut errors = Vec::new();
    let pair = sender(pod).map(|key| (SENDERS, key));
    for (set, key) in pair.into_iter().chain([(GUARDED, Key::default().interface(&pod.host_interface))]) {
        let mut batch = Batch::of(Family::Bridge, TABLE);
        batch.delete_element(set, key);
        let failed = batch.commit(netfilter).err().filter(|e| e.kind() != std::io::ErrorKind::NotFound);
        errors.extend(failed.map(kernel(format!("remove the pod from nft set {set}"))));
    }
    Error::combined(errors)
}

/// Removes the table, if it exists.
pub(super) fn remove_table(netfilter: &Netfilter) -> Result<()> {
    let mut batch = Batch::of(Family::Bridge, TABLE);
    // Add before delete: then deleting a missing table is no error.
    batch.add_table();
    batch.delete_table();
    batch.commit(netfilter).map_err(kernel(format!("delete nft table bridge {TABLE}")))
}

/// Rewrites the whole table for these networks, or removes it if none of them needs it.
pub(super) fn write(netfilter: &Netfilter, attachments: &Store, networks: &[Network]) -> Result<()> {
    let mut batch = Batch::of(Family::Bridge, TABLE);
    batch.add_table();
    batch.delete_table();
    let mut guarded = networks.iter().filter(|network| network.mac_spoof_check).peekable();
    if guarded.peek().is_some() {
        batch.add_table();
        batch.add_raw_prerouting_chain(OWN_ADDRESSES);
        let pair = [Type::InterfaceName, Type::HardwareAddress];
        batch.add_set(&Set { name: GUARDED, id: 1, key: &pair[..1], data: Data::None });
        batch.add_set(&Set { name: SENDERS, id: 2, key: &pair, data: Data::None });
        batch.add_rule(OWN_ADDRESSES, &Rule::default().from_mac_in(SENDERS).stop());
        batch.add_rule(OWN_ADDRESSES, &Rule::default().from_interface_in(GUARDED).drop());
        let mut elements = Elements::default();
        for network in guarded {
            attachments.list(&network.name).0.iter().for_each(|pod| add_pod(&mut elements, pod));
        }
        elements.write(&mut batch);
    }
    batch.commit(netfilter).map_err(kernel(format!("write nft table bridge {TABLE}")))
}

/// Whether a pod is checked.
pub(super) fn has(netfilter: &Netfilter, host_interface: &str, mac: [u8; 6]) -> Result<bool> {
    let key = Key::default().interface(host_interface);
    let look = |set, key| netfilter.contains(Family::Bridge, TABLE, set, &Element::Key(key));
    let found = look(GUARDED, key.clone()).and_then(|it| Ok(it && look(SENDERS, key.mac(mac))?));
    let found = found.map_err(kernel(format!("look {host_interface} up in nft table bridge {TABLE}")))?;
    Ok(found && exist(netfilter)?)
}

fn add_pod(elements: &mut Elements, pod: &Attachment) {
    // Without a known MAC address the pod is not checked: otherwise it could not send.
    let Some(sender) = sender(pod) else { return };
    // Add the address first, so that there is no moment in which the pod cannot send.
    elements.add(SENDERS, Element::Key(sender));
    elements.add(GUARDED, Element::Key(Key::default().interface(&pod.host_interface)));
}

fn sender(pod: &Attachment) -> Option<Key> {
    let mac = parse_mac(&pod.mac).ok()?;
    Some(Key::default().interface(&pod.host_interface).mac(mac))
}
