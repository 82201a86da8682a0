//! Reservations on disk.
//!
//! ```text
//! /run/portolan/ipam/<network>/lock            held while anything below changes
//!                              boot            the boot these reservations belong to
//!                              slots-<ranges>  four bytes an address: free, taken, or in cooldown since
//!                              far/<address>   a requested address beyond the first million
//!                              owners/<containerID>-<ifname>   one attachment (`Key::file_stem`)
//! ```
//! ADD searches the slots after the last assigned one and writes one slot. DEL writes one slot. The cost does
//! not depend on the number of assigned addresses. The owner files are authoritative and the slots are
//! derived: ADD takes the slot and then writes the owner; DEL removes the owner and then releases the slot. A
//! process that is killed in between leaves a slot without an owner: the address is lost, but never assigned
//! twice. Slot files appear atomically. Lost addresses are recovered by a recount, when a pool looks full and
//! at every GC. Reservations of an earlier boot are ignored: their pods do not exist.
//! earlier boot has left means nothing: its pods do not exist.

mod boot;
mod far;
mod reservations;

use std::fs;
use std::net::IpAddr;
use std::path::PathBuf;

use nix::time::{ClockId, clock_gettime};

use far::Far;
pub(crate) use reservations::{Delegated, Owner};
use reservations::{Reservation, Reservations, Reserved};

use super::RangeSet;
use super::slots::{self, Slots};
use crate::error::{Code, Error, Result, io, kernel};

/// The imported addresses, and the errors.
pub(crate) struct Imported {
    pub(crate) addresses: Vec<(IpAddr, Owner)>,
    pub(crate) refused: Vec<Error>,
}

/// Everything that one attachment has.
#[derive(Default)]
pub(crate) struct Allocation {
    pub(crate) addresses: Vec<IpAddr>,
    /// Assigned by another IPAM plugin.
    pub(crate) delegated: Option<Delegated>,
}

/// The reservations of one network.
pub(crate) struct Store {
    directory: PathBuf,
    reservations: Reservations,
    far: Far,
    /// Cooldown in seconds: meanwhile an address is assigned again only if no other is free.
    cooldown: u32,
}

/// Whether the node or a pod of another network uses an address that has no owner in this store.
pub(crate) type InUse<'a> = &'a mut dyn FnMut(IpAddr) -> std::io::Result<bool>;

impl Store {
    pub(crate) fn new(directory: PathBuf, cooldown: u32) -> Self {
        let (reservations, far) = (Reservations(directory.join("owners")), Far(directory.join("far")));
        Self { directory, reservations, far, cooldown }
    }

    /// Reserves one address of each set, the requested ones if any. Without sets, records only the owner, so
    /// that GC finds it.
    pub(crate) fn reserve(
        &self,
        owner: &Owner,
        sets: &[RangeSet],
        requested: &[IpAddr],
        in_use: InUse<'_>,
    ) -> Result<Vec<IpAddr>> {
        let _lock = self.open()?;
        if self.reservations.read(owner)?.is_some() {
            let message = format!(
                "container {} has addresses for {} already; DEL comes before another ADD",
                owner.container_id, owner.ifname
            );
            return Err(Error::new(Code::Conflict, message));
        }
        if let Some(stray) = requested.iter().find(|ip| !sets.iter().any(|set| set.contains(**ip))) {
            let message = format!("the requested address {stray} is in none of the network's ranges");
            return Err(Error::new(Code::InvalidConfig, message));
        }
        check_one_of_each_set(sets, requested)?;
        let mut reserved: Vec<Reserved> = Vec::new();
        let result = self.allocate(owner, sets, requested, in_use, &mut reserved).and_then(|()| {
            let delegated = None;
            let addresses = reserved.clone();
            self.reservations.write(&Reservation { owner: owner.clone(), addresses, delegated })
        });
        if let Err(error) = result {
            self.give_back(&reserved);
            return Err(error);
        }
        Ok(reserved.iter().map(|reserved| reserved.address).collect())
    }

    /// Imports the reservations of another plugin. The next assigned address is one after those of `last`. An
    /// address that another container has is an error; the others are still imported.
    pub(crate) fn import(
        &self,
        given: Vec<(Owner, Vec<IpAddr>)>,
        sets: &[RangeSet],
        last: &[IpAddr],
    ) -> Result<Imported> {
        let _lock = self.open()?;
        let (mut imported, mut errors) = (Vec::new(), Vec::new());
        let (known, _) = self.reservations.all()?;
        let holder = |address: &IpAddr| known.iter().find(|reservation| reservation.has(*address));
        for (owner, addresses) in given {
            let taken = addresses.iter().find_map(|ip| Some((ip, holder(ip).filter(|r| r.owner != owner)?)));
            if let Some((address, by)) = taken {
                let message =
                    format!("{address} of {} is {}'s here", owner.container_id, by.owner.container_id);
                errors.push(Error::new(Code::Conflict, message));
                continue;
            }
            let reserved: Vec<Reserved> = addresses.iter().map(|ip| reserved_in(sets, *ip)).collect();
            for far in reserved.iter().filter(|reserved| reserved.slot.is_none()) {
                self.far.note(far.address)?;
            }
            let delegated = None;
            self.reservations.write(&Reservation { owner: owner.clone(), addresses: reserved, delegated })?;
            imported.extend(addresses.into_iter().map(|address| (address, owner.clone())));
        }
        for set in sets {
            let slots = self.slots(set, sets)?;
            self.recount_set(&slots, set)?;
            if let Some(position) = last.iter().find_map(|ip| set.position(*ip)) {
                slots.set_next_after(position).map_err(io("write", &self.directory))?;
            }
        }
        imported.sort_by_key(|(address, _)| *address);
        Ok(Imported { addresses: imported, refused: errors })
    }

    /// Records what another IPAM plugin has assigned to `owner`, who is recorded already.
    pub(crate) fn record_delegated(&self, owner: &Owner, delegated: Delegated) -> Result<()> {
        let _lock = self.open()?;
        let reservation =
            Reservation { owner: owner.clone(), addresses: Vec::new(), delegated: Some(delegated) };
        self.reservations.write(&reservation)
    }

    /// Releases everything of `owner`. Nothing to release is fine. The addresses of an unreadable file are
    /// free after the next recount.
    pub(crate) fn release(&self, owner: &Owner) -> Result<()> {
        if !self.directory.exists() {
            return Ok(());
        }
        let _lock = self.open()?;
        self.remove_temporary();
        let reservation = self.reservations.read(owner)?;
        self.reservations.remove(owner)?;
        self.give_back(&reservation.map(|reservation| reservation.addresses).unwrap_or_default());
        Ok(())
    }

    /// The addresses of `owner`.
    pub(crate) fn addresses(&self, owner: &Owner) -> Result<Vec<IpAddr>> {
        let reservation = self.reservations.read(owner)?;
        Ok(reservation.into_iter().flat_map(|r| r.addresses).map(|reserved| reserved.address).collect())
    }

    /// Everything of `owner`. An unreadable part does not keep the rest from being released.
    pub(crate) fn allocation(&self, owner: &Owner) -> Allocation {
        let Ok(Some(reservation)) = self.reservations.read(owner) else { return Allocation::default() };
        let addresses = reservation.addresses.iter().map(|reserved| reserved.address).collect();
        Allocation { addresses, delegated: reservation.delegated }
    }

    /// Whether `owner` has a file here, readable or not.
    pub(crate) fn has_owner(&self, owner: &Owner) -> bool {
        self.reservations.has(owner)
    }

    /// All owners, and an error for each unreadable file.
    pub(crate) fn owners(&self) -> (Vec<Owner>, Vec<Error>) {
        let (reservations, errors) =
            self.reservations.all().unwrap_or_else(|error| (Vec::new(), vec![error]));
        (reservations.into_iter().map(|reservation| reservation.owner).collect(), errors)
    }

    /// Repairs unreadable files from the aliases of the living pods' interfaces. A file that stays unreadable
    /// has no pod and is removed. Returns the removed files.
    pub(crate) fn repair(&self) -> Result<Vec<PathBuf>> {
        if !self.directory.exists() || self.reservations.all()?.1.is_empty() {
            return Ok(Vec::new());
        }
        let _lock = self.open()?;
        self.restore()?;
        self.reservations.remove_illegible()
    }

    /// Recounts the owners, so that slots without an owner become free.
    pub(crate) fn recount(&self, sets: &[RangeSet]) -> Result<()> {
        let _lock = self.open()?;
        self.remove_temporary();
        let (reservations, _) = self.reservations.all()?;
        for set in sets {
            self.recount_set(&self.slots(set, sets)?, set)?;
        }
        let addresses = || reservations.iter().flat_map(|reservation| &reservation.addresses);
        self.far.retain(|name| addresses().any(|reserved| reserved.address.to_string() == name))
    }

    /// STATUS: whether the store can be written and every set has a free address.
    pub(crate) fn check_available(&self, sets: &[RangeSet], in_use: InUse<'_>) -> Result<()> {
        let unavailable = |error: Error| Error { code: Code::NotAvailable as u32, ..error };
        let _lock = self.open().map_err(unavailable)?;
        let search = |set| self.search(set, sets, in_use).map(|_found| ());
        sets.iter().try_for_each(search).map_err(unavailable)
    }

    fn allocate(
        &self,
        owner: &Owner,
        sets: &[RangeSet],
        requested: &[IpAddr],
        in_use: InUse<'_>,
        taken: &mut Vec<Reserved>,
    ) -> Result<()> {
        for set in sets {
            let failed = || io("write", &self.directory);
            if let Some(address) = requested.iter().copied().find(|ip| set.contains(*ip)) {
                if set.is_gateway(address) {
                    let message = format!("the requested address {address} is the gateway's");
                    return Err(Error::new(Code::Conflict, message));
                }
                if in_use(address).map_err(kernel(format!("look for {address} on the node")))? {
                    let by = "the node or a pod of another network; ip route get shows by which";
                    let message = format!("the requested address {address} is in use by {by}");
                    return Err(Error::new(Code::Conflict, message));
                }
                taken.push(self.allocate_requested(owner, set, sets, address)?);
                continue;
            }
            let (slots, position) = self.search(set, sets, in_use)?;
            slots.take(position).map_err(failed())?;
            slots.set_next_after(position).map_err(failed())?;
            let address = set.nth(position).expect("a set has an address for each of its slots");
            taken.push(Reserved { address, slot: Some((slots_name(set), position)) });
        }
        Ok(())
    }

    /// A request for a specific address ignores its cooldown.
    fn allocate_requested(
        &self,
        owner: &Owner,
        set: &RangeSet,
        sets: &[RangeSet],
        address: IpAddr,
    ) -> Result<Reserved> {
        let is_taken = || Error::new(Code::Conflict, format!("the requested address {address} is taken"));
        if let Some(position) = set.position(address) {
            let taken = self.slots(set, sets)?.take(position).map_err(io("write", &self.directory))?;
            return if taken {
                Ok(Reserved { address, slot: Some((slots_name(set), position)) })
            } else {
                Err(is_taken())
            };
        }
        // A killed ADD may have left the marker without an owner.
        if !self.far.note(address)? {
            let (reservations, _) = self.reservations.all()?;
            if reservations.iter().any(|r| r.owner != *owner && r.has(address)) {
                return Err(is_taken());
            }
        }
        Ok(Reserved { address, slot: None })
    }

    /// Returns a free position. Recounts once if there seems to be none.
    fn search(&self, set: &RangeSet, sets: &[RangeSet], in_use: InUse<'_>) -> Result<(Slots, u32)> {
        let slots = self.slots(set, sets)?;
        let mut search = |slots: &Slots| {
            let found = slots.search(now(), self.cooldown, |position| match set.nth(position) {
                Some(address) => Ok(!set.is_gateway(address) && !in_use(address)?),
                None => Ok(false),
            });
            found.map_err(io("search", &self.directory))
        };
        let mut found = search(&slots)?;
        if found.is_none() {
            self.recount_set(&slots, set)?;
            found = search(&slots)?;
        }
        found.map(|position| (slots, position)).ok_or_else(|| {
            let message = format!("all addresses of {set} are taken; widen ipam.ranges or remove pods");
            Error::new(Code::NotAvailable, message)
        })
    }

    fn recount_set(&self, slots: &Slots, set: &RangeSet) -> Result<()> {
        slots.rebuild(self.taken(set)?.into_iter()).map_err(io("write", &self.directory))
    }

    /// The positions that have an owner.
    fn taken(&self, set: &RangeSet) -> Result<Vec<u32>> {
        let (mut reservations, illegible) = self.reservations.all()?;
        if !illegible.is_empty() {
            self.restore()?;
            reservations = self.reservations.all()?.0;
        }
        let addresses = reservations.iter().flat_map(|reservation| &reservation.addresses);
        Ok(addresses.filter_map(|reserved| set.position(reserved.address)).collect())
    }

    /// Removes temporary files of killed writers. Usually there are none.
    fn remove_temporary(&self) {
        self.reservations.remove_temporary();
        let _ = fs::remove_file(self.directory.join(slots::TEMPORARY));
    }

    fn give_back(&self, reserved: &[Reserved]) {
        for Reserved { address, slot } in reserved {
            match slot {
                // If the slots were removed, there is nothing to release.
                Some((name, position)) => {
                    let slots = Slots::open_existing(&self.directory.join(name));
                    let _ = slots.and_then(|slots| slots.give_back(*position, now()));
                }
                None => self.far.forget(*address),
            }
        }
    }

    /// The slots of one of the network's sets. A new set means that the ranges were changed: existing pods
    /// keep their addresses, and the slot files of the former ranges are removed. If those ranges came back,
    /// their slots would not have the pods that were attached meanwhile.
    fn slots(&self, set: &RangeSet, sets: &[RangeSet]) -> Result<Slots> {
        let path = self.directory.join(slots_name(set));
        if let Some(slots) = Slots::open(&path, set).map_err(io("open", &path))? {
            return Ok(slots);
        }
        let current: Vec<String> = sets.iter().map(slots_name).collect();
        self.remove_slots(|name| !current.iter().any(|current| current == name))?;
        Slots::create(&path, set, self.taken(set)?.into_iter()).map_err(io("create", &path))
    }

    fn remove_slots(&self, is_former: impl Fn(&str) -> bool) -> Result<()> {
        let entries = fs::read_dir(&self.directory).map_err(io("list", &self.directory))?;
        for path in entries.flatten().map(|entry| entry.path()) {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if name.starts_with("slots-") && is_former(&name) {
                fs::remove_file(&path).map_err(io("remove", &path))?;
            }
        }
        Ok(())
    }
}

/// Each range set gives a pod one address: a second request of the same set cannot be served.
fn check_one_of_each_set(sets: &[RangeSet], requested: &[IpAddr]) -> Result<()> {
    for set in sets {
        let mut of_set = requested.iter().filter(|address| set.contains(**address));
        if let (Some(one), Some(other)) = (of_set.next(), of_set.next()) {
            let message = format!("{one} and {other} are requested, and {set} gives a pod one address");
            return Err(Error::new(Code::InvalidConfig, message));
        }
    }
    Ok(())
}

/// Seconds since boot.
fn now() -> u32 {
    let time = clock_gettime(ClockId::CLOCK_BOOTTIME).map(|time| time.tv_sec()).unwrap_or_default();
    u32::try_from(time).unwrap_or(u32::MAX)
}

/// The slot of the address, if one of the sets has it.
fn reserved_in(sets: &[RangeSet], address: IpAddr) -> Reserved {
    let slot = |set: &RangeSet| Some((slots_name(set), set.position(address)?));
    Reserved { address, slot: sets.iter().find_map(slot) }
}

fn slots_name(set: &RangeSet) -> String {
    format!("slots-{}", set.file_name())
}

#[cfg(test)]
mod tests;
