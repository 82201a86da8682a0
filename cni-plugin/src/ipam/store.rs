//! Reservations on disk.
//!
//! ```text
//! /run/portolan/ipam/<network>/lock            held while anything below changes
//!                              pool-<ranges>   one bit an address, and where to search next
//!                              owners/<containerID>-<ifname>   the addresses of one attachment
//! ```
//! A pool has one bit an address, so ADD and DEL cost the same however many addresses are out. The owners are the
//! truth and the bits follow: ADD sets the bit first and then writes the owner, DEL removes the owner first and then
//! clears the bit. Killed in between, a process leaves a bit without an owner: an address lost, never one given out
//! twice. Lost bits come back when a pool looks full and with every GC, by counting the owners again.

use std::fs;
use std::net::Ipv4Addr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::RangeSet;
use super::pool::Pool;
use crate::error::{Code, Error, Result, io};
use crate::lock::Lock;

/// One attachment.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Owner {
    #[serde(rename = "containerID")]
    pub(crate) container_id: String,
    pub(crate) ifname: String,
}

#[derive(Serialize, Deserialize)]
struct Reservation {
    #[serde(flatten)]
    owner: Owner,
    addresses: Vec<Reserved>,
}

#[derive(Clone, Serialize, Deserialize)]
struct Reserved {
    address: Ipv4Addr,
    /// Name of the pool file, so that a later change of the ranges does not matter.
    pool: String,
    position: u32,
}

/// The reservations of one network.
pub(crate) struct Store {
    directory: PathBuf,
}

impl Store {
    pub(crate) fn new(directory: PathBuf) -> Self {
        Self { directory }
    }

    /// Reserves one address of each set, the requested ones where given.
    pub(crate) fn reserve(
        &self,
        owner: &Owner,
        sets: &[RangeSet],
        requested: &[Ipv4Addr],
    ) -> Result<Vec<Ipv4Addr>> {
        let _lock = Lock::acquire(&self.directory)?;
        if self.read(owner)?.is_some() {
            let message = format!(
                "container {} has addresses for {} already; DEL comes before another ADD",
                owner.container_id, owner.ifname
            );
            return Err(Error::new(Code::Conflict, message));
        }
        if let Some(stray) = requested.iter().find(|ip| sets.iter().all(|set| set.position(**ip).is_none())) {
            let message = format!("the requested address {stray} is in none of the network's ranges");
            return Err(Error::new(Code::InvalidConfig, message));
        }
        let mut reserved: Vec<Reserved> = Vec::new();
        let result = self
            .take_all(sets, requested, &mut reserved)
            .and_then(|()| self.write(&Reservation { owner: owner.clone(), addresses: reserved.clone() }));
        if let Err(error) = result {
            self.give_back(&reserved);
            return Err(error);
        }
        Ok(reserved.iter().map(|reserved| reserved.address).collect())
    }

    /// Gives back what `owner` has. Nothing to give back is fine.
    pub(crate) fn release(&self, owner: &Owner) -> Result<Vec<Ipv4Addr>> {
        if !self.directory.exists() {
            return Ok(Vec::new());
        }
        let _lock = Lock::acquire(&self.directory)?;
        let Some(reservation) = self.read(owner)? else { return Ok(Vec::new()) };
        let path = self.path(owner);
        fs::remove_file(&path).map_err(io("remove", &path))?;
        self.give_back(&reservation.addresses);
        Ok(reservation.addresses.iter().map(|reserved| reserved.address).collect())
    }

    /// What `owner` has.
    pub(crate) fn addresses(&self, owner: &Owner) -> Result<Vec<Ipv4Addr>> {
        let reservation = self.read(owner)?;
        Ok(reservation.into_iter().flat_map(|r| r.addresses).map(|reserved| reserved.address).collect())
    }

    /// Everybody who has an address, and the files that do not say so legibly.
    pub(crate) fn owners(&self) -> (Vec<Owner>, Vec<Error>) {
        let (reservations, errors) = self.reservations();
        (reservations.into_iter().map(|reservation| reservation.owner).collect(), errors)
    }

    /// Counts the owners again, so that bits without an owner are free.
    pub(crate) fn recount(&self, sets: &[RangeSet]) -> Result<()> {
        let _lock = Lock::acquire(&self.directory)?;
        for set in sets {
            self.recount_pool(set)?;
        }
        Ok(())
    }

    /// Whether the store can be written and every set has a free address: STATUS.
    pub(crate) fn check_available(&self, sets: &[RangeSet]) -> Result<()> {
        let unavailable = |error: Error| Error { code: Code::NotAvailable as u32, ..error };
        let _lock = Lock::acquire(&self.directory).map_err(unavailable)?;
        for set in sets {
            let is_gateway = |position| set.nth(position).is_some_and(|ip| set.is_gateway(ip));
            if self.pool(set)?.is_full(is_gateway) {
                self.recount_pool(set)?;
                if self.pool(set)?.is_full(is_gateway) {
                    return Err(exhausted(set));
                }
            }
        }
        Ok(())
    }

    fn take_all(&self, sets: &[RangeSet], requested: &[Ipv4Addr], taken: &mut Vec<Reserved>) -> Result<()> {
        for set in sets {
            let wanted = requested.iter().find_map(|ip| Some((*ip, set.position(*ip)?)));
            let position = match wanted {
                Some((address, position)) => {
                    let mut pool = self.pool(set)?;
                    if !pool.take(position).map_err(io("write", &self.directory))? {
                        let message = format!("the requested address {address} is taken");
                        return Err(Error::new(Code::Conflict, message));
                    }
                    position
                }
                None => self.take_next(set)?,
            };
            let address = set.nth(position).expect("a pool is as large as its set");
            taken.push(Reserved { address, pool: pool_name(set), position });
        }
        Ok(())
    }

    fn take_next(&self, set: &RangeSet) -> Result<u32> {
        let is_gateway = |position| set.nth(position).is_some_and(|ip| set.is_gateway(ip));
        let failed = || io("write", &self.directory);
        if let Some(position) = self.pool(set)?.take_next(is_gateway).map_err(failed())? {
            return Ok(position);
        }
        self.recount_pool(set)?;
        self.pool(set)?.take_next(is_gateway).map_err(failed())?.ok_or_else(|| exhausted(set))
    }

    fn recount_pool(&self, set: &RangeSet) -> Result<()> {
        let (reservations, _) = self.reservations();
        let addresses = reservations.iter().flat_map(|reservation| &reservation.addresses);
        let taken = addresses.filter_map(|reserved| set.position(reserved.address));
        self.pool(set)?.rebuild(taken).map_err(io("write", &self.directory))
    }

    fn give_back(&self, reserved: &[Reserved]) {
        for Reserved { pool, position, .. } in reserved {
            let path = self.directory.join(pool);
            // The size only bounds the bitmap; a pool that is gone has nothing to give back.
            if path.exists()
                && let Ok(mut pool) = Pool::open_existing(&path)
            {
                drop(pool.give_back(*position));
            }
        }
    }

    fn pool(&self, set: &RangeSet) -> Result<Pool> {
        let path = self.directory.join(pool_name(set));
        Pool::open(&path, set).map_err(io("open", &path))
    }

    fn reservations(&self) -> (Vec<Reservation>, Vec<Error>) {
        let (mut found, mut errors) = (Vec::new(), Vec::new());
        let entries = fs::read_dir(self.directory.join("owners")).into_iter().flatten().flatten();
        for path in
            entries.map(|entry| entry.path()).filter(|path| path.extension().is_none_or(|e| e != "tmp"))
        {
            match fs::read(&path).map_err(io("read", &path)).and_then(|bytes| parse(&path, &bytes)) {
                Ok(reservation) => found.push(reservation),
                Err(error) => errors.push(error),
            }
        }
        (found, errors)
    }

    fn read(&self, owner: &Owner) -> Result<Option<Reservation>> {
        let path = self.path(owner);
        match fs::read(&path) {
            Ok(bytes) => parse(&path, &bytes).map(Some),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(io("read", &path)(e)),
        }
    }

    fn write(&self, reservation: &Reservation) -> Result<()> {
        let path = self.path(&reservation.owner);
        let directory = self.directory.join("owners");
        fs::create_dir_all(&directory).map_err(io("create", &directory))?;
        // Under the lock there is one writer, so one temporary name is enough.
        let temporary = directory.join(".new.tmp");
        let json = serde_json::to_vec(reservation).expect("a reservation has string keys only");
        fs::write(&temporary, json).map_err(io("write", &temporary))?;
        fs::rename(&temporary, &path).map_err(io("write", &path))
    }

    fn path(&self, owner: &Owner) -> PathBuf {
        self.directory.join("owners").join(format!("{}-{}", owner.container_id, owner.ifname))
    }
}

fn parse(path: &std::path::Path, bytes: &[u8]) -> Result<Reservation> {
    serde_json::from_slice(bytes)
        .map_err(|e| Error::new(Code::Io, format!("{} is not a reservation: {e}", path.display())))
}

fn pool_name(set: &RangeSet) -> String {
    format!("pool-{set}")
}

fn exhausted(set: &RangeSet) -> Error {
    let message = format!("all addresses of {set} are taken; widen ipam.ranges or remove pods");
    Error::new(Code::NotAvailable, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owner(id: &str) -> Owner {
        Owner { container_id: id.into(), ifname: "eth0".into() }
    }

    fn fixture() -> (tempfile::TempDir, Store, Vec<RangeSet>) {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::new(directory.path().join("pods"));
        let wire: Vec<crate::netconf::WireRange> =
            serde_json::from_str(r#"[{"subnet": "10.22.0.0/29", "gateway": "10.22.0.1"}]"#).unwrap();
        let sets = vec![RangeSet::parse("ipam.ranges[0]", &wire).unwrap()];
        (directory, store, sets)
    }

    #[test]
    fn addresses_go_round_before_one_comes_back() {
        let (_directory, store, sets) = fixture();
        let take = |id: &str| store.reserve(&owner(id), &sets, &[]).unwrap()[0].to_string();
        assert_eq!([take("a"), take("b")], ["10.22.0.2", "10.22.0.3"]);
        store.release(&owner("a")).unwrap();
        assert_eq!(
            [take("c"), take("d"), take("e"), take("f")],
            ["10.22.0.4", "10.22.0.5", "10.22.0.6", "10.22.0.2"]
        );
        let full = store.reserve(&owner("g"), &sets, &[]).unwrap_err();
        assert_eq!(full.code, Code::NotAvailable as u32);
        assert_eq!(store.check_available(&sets).unwrap_err().code, Code::NotAvailable as u32);
        store.release(&owner("c")).unwrap();
        store.release(&owner("c")).unwrap();
        store.check_available(&sets).unwrap();
        assert_eq!(take("g"), "10.22.0.4");
    }

    #[test]
    fn a_requested_address_is_given_once_and_a_second_add_is_refused() {
        let (_directory, store, sets) = fixture();
        let wanted = "10.22.0.5".parse().unwrap();
        assert_eq!(store.reserve(&owner("a"), &sets, &[wanted]).unwrap(), [wanted]);
        assert!(
            store.reserve(&owner("b"), &sets, &[wanted]).unwrap_err().message.contains("10.22.0.5 is taken")
        );
        assert!(store.reserve(&owner("a"), &sets, &[]).unwrap_err().message.contains("already"));
        assert_eq!(store.addresses(&owner("a")).unwrap(), [wanted]);
    }

    #[test]
    fn a_bit_that_a_killed_add_left_behind_is_found_again() {
        let (_directory, store, sets) = fixture();
        for position in 1..6 {
            fs::create_dir_all(&store.directory).unwrap();
            assert!(store.pool(&sets[0]).unwrap().take(position).unwrap());
        }
        assert_eq!(store.reserve(&owner("a"), &sets, &[]).unwrap()[0].to_string(), "10.22.0.2");
    }
}
