//! The guarantees of the store.

use super::*;

/// Nothing on the node uses an address.
fn none(_address: IpAddr) -> std::io::Result<bool> {
    Ok(false)
}

fn owner(id: &str) -> Owner {
    Owner { container_id: id.into(), ifname: "eth0".into() }
}

fn fixture(cooldown: u32) -> (tempfile::TempDir, Store, Vec<RangeSet>) {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::new(directory.path().join("pods"), cooldown);
    let wire: Vec<crate::netconf::WireRange> =
        serde_json::from_str(r#"[{"subnet": "10.22.0.0/29", "gateway": "10.22.0.1"}]"#).unwrap();
    let sets = vec![RangeSet::parse("ipam.ranges[0]", &wire).unwrap()];
    (directory, store, sets)
}

#[test]
fn addresses_are_assigned_in_turn_before_one_is_reused() {
    let (_directory, store, sets) = fixture(0);
    let take = |id: &str| store.reserve(&owner(id), &sets, &[], &mut none).unwrap()[0].to_string();
    assert_eq!([take("a"), take("b")], ["10.22.0.2", "10.22.0.3"]);
    store.release(&owner("a")).unwrap();
    assert_eq!(
        [take("c"), take("d"), take("e"), take("f")],
        ["10.22.0.4", "10.22.0.5", "10.22.0.6", "10.22.0.2"]
    );
    let full = store.reserve(&owner("g"), &sets, &[], &mut none).unwrap_err();
    assert_eq!(full.code, Code::NotAvailable as u32);
    assert_eq!(store.check_available(&sets, &mut none).unwrap_err().code, Code::NotAvailable as u32);
    store.release(&owner("c")).unwrap();
    store.release(&owner("c")).unwrap();
    store.check_available(&sets, &mut none).unwrap();
    assert_eq!(take("g"), "10.22.0.4");
}

#[test]
fn requested_address_is_assigned_once_and_second_add_is_refused() {
    let (_directory, store, sets) = fixture(0);
    let wanted = "10.22.0.5".parse().unwrap();
    assert_eq!(store.reserve(&owner("a"), &sets, &[wanted], &mut none).unwrap(), [wanted]);
    assert!(
        store
            .reserve(&owner("b"), &sets, &[wanted], &mut none)
            .unwrap_err()
            .message
            .contains("10.22.0.5 is taken")
    );
    assert!(store.reserve(&owner("a"), &sets, &[], &mut none).unwrap_err().message.contains("already"));
    assert_eq!(store.addresses(&owner("a")).unwrap(), [wanted]);
}

#[test]
fn slot_left_by_a_killed_add_is_recovered() {
    let (_directory, store, sets) = fixture(0);
    for position in 1..6 {
        fs::create_dir_all(&store.directory).unwrap();
        assert!(store.slots(&sets[0], &sets).unwrap().take(position).unwrap());
    }
    assert_eq!(store.reserve(&owner("a"), &sets, &[], &mut none).unwrap()[0].to_string(), "10.22.0.2");
}

#[test]
fn address_with_an_unreadable_reservation_is_not_assigned_again() {
    let (_directory, store, sets) = fixture(0);
    for id in ["a", "b", "c", "d", "e"] {
        store.reserve(&owner(id), &sets, &[], &mut none).unwrap();
    }
    let refused = || store.reserve(&owner("f"), &sets, &[], &mut none).unwrap_err().code;
    let (owners, moved) = (store.directory.join("owners"), store.directory.join("moved"));
    // A symbolic link to itself: reading the file, or listing the directory, fails.
    for (path, name) in [(owners.join("a-eth0"), "a-eth0"), (owners, "owners")] {
        fs::rename(&path, &moved).unwrap();
        std::os::unix::fs::symlink(name, &path).unwrap();
        assert_eq!(refused(), Code::Io as u32);
        fs::remove_file(&path).unwrap();
        fs::rename(&moved, &path).unwrap();
        assert_eq!(refused(), Code::NotAvailable as u32);
    }
}

#[test]
fn address_in_cooldown_is_assigned_only_on_request_or_if_no_other_is_free() {
    // More seconds than any node has been up.
    let (_directory, store, sets) = fixture(1_000_000_000);
    let take = |id: &str| store.reserve(&owner(id), &sets, &[], &mut none).unwrap()[0].to_string();
    assert_eq!(
        [take("a"), take("b"), take("c"), take("d")],
        ["10.22.0.2", "10.22.0.3", "10.22.0.4", "10.22.0.5"]
    );
    store.release(&owner("c")).unwrap();
    store.release(&owner("a")).unwrap();
    // The last one that was never assigned.
    assert_eq!(take("e"), "10.22.0.6");
    // c was released long before a.
    let slots = store.slots(&sets[0], &sets).unwrap();
    slots.give_back(sets[0].position("10.22.0.4".parse().unwrap()).unwrap(), 1).unwrap();
    slots.give_back(sets[0].position("10.22.0.2".parse().unwrap()).unwrap(), 2).unwrap();
    store.check_available(&sets, &mut none).unwrap();
    assert_eq!([take("f"), take("g")], ["10.22.0.4", "10.22.0.2"]);
    let full = store.reserve(&owner("h"), &sets, &[], &mut none).unwrap_err();
    assert_eq!(full.code, Code::NotAvailable as u32);
    let address = store.addresses(&owner("b")).unwrap();
    store.release(&owner("b")).unwrap();
    assert_eq!(store.reserve(&owner("h"), &sets, &address, &mut none).unwrap(), address);
}

#[test]
fn address_in_use_on_the_node_is_skipped_and_refused_on_request() {
    let (_directory, store, sets) = fixture(0);
    let mut in_use = |address: IpAddr| Ok(["10.22.0.2", "10.22.0.4"].contains(&&*address.to_string()));
    let mut take = |id: &str, requested: &[IpAddr]| {
        let taken = store.reserve(&owner(id), &sets, requested, &mut in_use);
        taken.map(|addresses| addresses[0].to_string()).map_err(|e| e.message)
    };
    assert_eq!(take("a", &[]).unwrap(), "10.22.0.3");
    for (requested, expected) in [
        (&["10.22.0.4"][..], "10.22.0.4 is in use by the node or a pod"),
        (&["10.22.0.1"], "10.22.0.1 is the gateway's"),
        (&["10.22.0.5", "10.22.0.6"], "10.22.0.5 and 10.22.0.6 are requested"),
    ] {
        let requested: Vec<IpAddr> = requested.iter().map(|address| address.parse().unwrap()).collect();
        let error = take("b", &requested).unwrap_err();
        assert!(error.contains(expected), "{error}");
    }
    assert_eq!(take("b", &[]).unwrap(), "10.22.0.5");
    assert_eq!(take("c", &[]).unwrap(), "10.22.0.6");
    take("d", &[]).unwrap_err();
}

#[test]
fn unreadable_file_blocks_neither_release_nor_repair() {
    let (_directory, store, sets) = fixture(0);
    for bytes in ["", "{", "null"] {
        store.reserve(&owner("a"), &sets, &[], &mut none).unwrap();
        let path = store.directory.join("owners/a-eth0");
        fs::write(&path, bytes).unwrap();
        assert_eq!(store.owners().1.len(), 1);
        store.release(&owner("a")).unwrap();
        assert!(!path.exists());
        fs::write(&path, bytes).unwrap();
        assert_eq!(store.repair().unwrap(), [path]);
        assert_eq!(store.owners().1, []);
        store.recount(&sets).unwrap();
    }
}

#[test]
fn file_names_of_legal_ids_do_not_collide() {
    let (_directory, store, sets) = fixture(0);
    let owner = |id: &str, ifname: &str| Owner { container_id: id.into(), ifname: ifname.into() };
    let owners =
        [owner("a", "b-c"), owner("a-b", "c"), owner("x", "eth0.tmp"), owner(&"l".repeat(300), "eth0")];
    for owner in &owners {
        store.reserve(owner, &sets, &[], &mut none).unwrap();
    }
    store.recount(&sets).unwrap();
    assert_eq!(store.owners().0.len(), owners.len());
    let mut given: Vec<IpAddr> = owners.iter().flat_map(|owner| store.addresses(owner).unwrap()).collect();
    given.sort();
    given.dedup();
    assert_eq!(given.len(), owners.len());
    for owner in &owners {
        store.release(owner).unwrap();
        assert_eq!(store.addresses(owner).unwrap(), Vec::<IpAddr>::new());
    }
    assert_eq!(store.owners().0, Vec::new());
}

#[test]
fn empty_boot_file_does_not_remove_reservations() {
    let (_directory, store, sets) = fixture(0);
    store.reserve(&owner("a"), &sets, &[], &mut none).unwrap();
    fs::write(store.directory.join("boot"), "").unwrap();
    assert_eq!(store.reserve(&owner("b"), &sets, &[], &mut none).unwrap()[0].to_string(), "10.22.0.3");
}

#[test]
fn changed_ranges_assign_no_address_in_use() {
    let (_directory, store, sets) = fixture(0);
    store.reserve(&owner("a"), &sets, &[], &mut none).unwrap();
    let wire: Vec<crate::netconf::WireRange> =
        serde_json::from_str(r#"[{"subnet": "10.22.0.0/24", "gateway": "10.22.0.1"}]"#).unwrap();
    let wider = vec![RangeSet::parse("ipam.ranges[0]", &wire).unwrap()];
    assert_eq!(store.reserve(&owner("b"), &wider, &[], &mut none).unwrap()[0].to_string(), "10.22.0.3");
}

#[test]
fn ranges_changed_back_assign_no_address_in_use() {
    let (_directory, store, narrow) = fixture(0);
    let wire: Vec<crate::netconf::WireRange> =
        serde_json::from_str(r#"[{"subnet": "10.22.0.0/24", "gateway": "10.22.0.1"}]"#).unwrap();
    let wide = vec![RangeSet::parse("ipam.ranges[0]", &wire).unwrap()];
    let take =
        |id: &str, sets: &[RangeSet]| store.reserve(&owner(id), sets, &[], &mut none).unwrap()[0].to_string();
    let taken = [take("a", &narrow), take("b", &wide), take("c", &narrow), take("d", &wide)];
    assert_eq!(taken, ["10.22.0.2", "10.22.0.3", "10.22.0.4", "10.22.0.5"]);
}

#[test]
fn reservations_of_an_earlier_boot_are_ignored() {
    let (_directory, store, sets) = fixture(1000);
    store.reserve(&owner("a"), &sets, &[], &mut none).unwrap();
    fs::write(store.directory.join("boot"), "another").unwrap();
    assert_eq!(store.reserve(&owner("a"), &sets, &[], &mut none).unwrap()[0].to_string(), "10.22.0.2");
}

#[test]
fn requested_address_without_a_slot_is_assigned_once() {
    let (_directory, store, _) = fixture(0);
    let wire: Vec<crate::netconf::WireRange> = serde_json::from_str(r#"[{"subnet": "fd00::/64"}]"#).unwrap();
    let sets = vec![RangeSet::parse("ipam.ranges[0]", &wire).unwrap()];
    let far = "fd00::1:2:3:4".parse().unwrap();
    assert_eq!(store.reserve(&owner("a"), &sets, &[far], &mut none).unwrap(), [far]);
    store.reserve(&owner("b"), &sets, &[far], &mut none).unwrap_err();
    store.recount(&sets).unwrap();
    store.reserve(&owner("b"), &sets, &[far], &mut none).unwrap_err();
    store.release(&owner("a")).unwrap();
    assert_eq!(store.reserve(&owner("b"), &sets, &[far], &mut none).unwrap(), [far]);
}
