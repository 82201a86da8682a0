//! `macspoofchk`: a port of a bridge sends frames from its pod's hardware address only.
//!
//! ```text
//! table bridge portolan {
//!     set guarded { type ifname }                       # ports that are held to an address
//!     set senders { type ifname . ether_addr }          # and to which one
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

/// Whether the table has its rules, as [`super::rules::are_there`] has it.
fn are_there(netfilter: &Netfilter) -> Result<bool> {
    let found = netfilter.has_rules(Family::Bridge, TABLE, OWN_ADDRESSES);
    found.map_err(kernel(format!("look for the rules of nft table bridge {TABLE}")))
}

/// Holds a pod to its address.
pub(super) fn add(netfilter: &Netfilter, header: &Header, pod: &Attachment) -> Result<()> {
    if !are_there(netfilter)? {
        return write(netfilter, &header.attachments(), &network::all(&header.state_dir)?);
    }
    let mut batch = Batch::of(Family::Bridge, TABLE);
    let mut elements = Elements::default();
    add_pod(&mut elements, pod);
    elements.write(&mut batch);
    match batch.commit(netfilter) {
        // The first one, or the ruleset was flushed.
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            write(netfilter, &header.attachments(), &network::all(&header.state_dir)?)
        }
        other => other.map_err(kernel(format!("add the pod to nft table bridge {TABLE}"))),
    }
}

/// Removes a pod. One that is not there is fine.
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

/// Removes the table, if it is there.
pub(super) fn remove_table(netfilter: &Netfilter) -> Result<()> {
    let mut batch = Batch::of(Family::Bridge, TABLE);
    // Adding before deleting makes deleting what is not there no error.
    batch.add_table();
    batch.delete_table();
    batch.commit(netfilter).map_err(kernel(format!("delete nft table bridge {TABLE}")))
}

/// Writes the whole table anew for these networks, or removes it if none of them asks for it.
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
        batch.add_rule(OWN_ADDRESSES, &Rule::default().from_hardware_in(SENDERS).stop());
        batch.add_rule(OWN_ADDRESSES, &Rule::default().from_interface_in(GUARDED).drop());
        let mut elements = Elements::default();
        for network in guarded {
            attachments.list(&network.name).0.iter().for_each(|pod| add_pod(&mut elements, pod));
        }
        elements.write(&mut batch);
    }
    batch.commit(netfilter).map_err(kernel(format!("write nft table bridge {TABLE}")))
}

/// Whether a pod is held to its address.
pub(super) fn has(netfilter: &Netfilter, host_interface: &str, mac: [u8; 6]) -> Result<bool> {
    let key = Key::default().interface(host_interface);
    let look = |set, key| netfilter.contains(Family::Bridge, TABLE, set, &Element::Key(key));
    let found = look(GUARDED, key.clone()).and_then(|it| Ok(it && look(SENDERS, key.hardware_address(mac))?));
    let found = found.map_err(kernel(format!("look {host_interface} up in nft table bridge {TABLE}")))?;
    Ok(found && are_there(netfilter)?)
}

fn add_pod(elements: &mut Elements, pod: &Attachment) {
    // One whose address is not known is not held to it: it could send nothing.
    let Some(sender) = sender(pod) else { return };
    // The address first: there is no moment in which the pod could send nothing.
    elements.add(SENDERS, Element::Key(sender));
    elements.add(GUARDED, Element::Key(Key::default().interface(&pod.host_interface)));
}

fn sender(pod: &Attachment) -> Option<Key> {
    let mac = parse_mac(&pod.mac).ok()?;
    Some(Key::default().interface(&pod.host_interface).hardware_address(mac))
}
