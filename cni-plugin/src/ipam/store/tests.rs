//! What the store promises.

use super::*;

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
fn addresses_go_round_before_one_comes_back() {
    let (_directory, store, sets) = fixture(0);
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
    let (_directory, store, sets) = fixture(0);
    let wanted = "10.22.0.5".parse().unwrap();
    assert_eq!(store.reserve(&owner("a"), &sets, &[wanted]).unwrap(), [wanted]);
    assert!(store.reserve(&owner("b"), &sets, &[wanted]).unwrap_err().message.contains("10.22.0.5 is taken"));
    assert!(store.reserve(&owner("a"), &sets, &[]).unwrap_err().message.contains("already"));
    assert_eq!(store.addresses(&owner("a")).unwrap(), [wanted]);
}

#[test]
fn a_bit_that_a_killed_add_left_behind_is_found_again() {
    let (_directory, store, sets) = fixture(0);
    for position in 1..6 {
        fs::create_dir_all(&store.directory).unwrap();
        assert!(store.slots(&sets[0], &sets).unwrap().take(position).unwrap());
    }
    assert_eq!(store.reserve(&owner("a"), &sets, &[]).unwrap()[0].to_string(), "10.22.0.2");
}

#[test]
fn an_address_rests_before_it_is_given_out_again_unless_it_is_asked_for() {
    let (_directory, store, sets) = fixture(1000);
    for id in ["a", "b", "c", "d", "e"] {
        store.reserve(&owner(id), &sets, &[]).unwrap();
    }
    let address = store.addresses(&owner("b")).unwrap();
    store.release(&owner("b")).unwrap();
    let resting = store.reserve(&owner("f"), &sets, &[]).unwrap_err();
    assert_eq!(resting.code, Code::TryAgainLater as u32);
    assert!(resting.message.contains("the next is ready in 1000 s"), "{}", resting.message);
    assert_eq!(store.check_available(&sets).unwrap_err().code, Code::NotAvailable as u32);
    assert_eq!(store.reserve(&owner("b"), &sets, &address).unwrap(), address);
}

#[test]
fn when_ranges_change_nobody_gets_an_address_that_is_in_use() {
    let (_directory, store, sets) = fixture(0);
    store.reserve(&owner("a"), &sets, &[]).unwrap();
    let wire: Vec<crate::netconf::WireRange> =
        serde_json::from_str(r#"[{"subnet": "10.22.0.0/24", "gateway": "10.22.0.1"}]"#).unwrap();
    let wider = vec![RangeSet::parse("ipam.ranges[0]", &wire).unwrap()];
    assert_eq!(store.reserve(&owner("b"), &wider, &[]).unwrap()[0].to_string(), "10.22.0.3");
}

#[test]
fn when_ranges_change_back_nobody_gets_an_address_that_is_in_use() {
    let (_directory, store, narrow) = fixture(0);
    let wire: Vec<crate::netconf::WireRange> =
        serde_json::from_str(r#"[{"subnet": "10.22.0.0/24", "gateway": "10.22.0.1"}]"#).unwrap();
    let wide = vec![RangeSet::parse("ipam.ranges[0]", &wire).unwrap()];
    let take = |id: &str, sets: &[RangeSet]| store.reserve(&owner(id), sets, &[]).unwrap()[0].to_string();
    let taken = [take("a", &narrow), take("b", &wide), take("c", &narrow), take("d", &wide)];
    assert_eq!(taken, ["10.22.0.2", "10.22.0.3", "10.22.0.4", "10.22.0.5"]);
}

#[test]
fn what_an_earlier_boot_left_means_nothing() {
    let (_directory, store, sets) = fixture(1000);
    store.reserve(&owner("a"), &sets, &[]).unwrap();
    fs::write(store.directory.join("boot"), "another").unwrap();
    assert_eq!(store.reserve(&owner("a"), &sets, &[]).unwrap()[0].to_string(), "10.22.0.2");
}

#[test]
fn a_requested_address_beyond_the_slots_is_given_once() {
    let (_directory, store, _) = fixture(0);
    let wire: Vec<crate::netconf::WireRange> = serde_json::from_str(r#"[{"subnet": "fd00::/64"}]"#).unwrap();
    let sets = vec![RangeSet::parse("ipam.ranges[0]", &wire).unwrap()];
    let far = "fd00::1:2:3:4".parse().unwrap();
    assert_eq!(store.reserve(&owner("a"), &sets, &[far]).unwrap(), [far]);
    store.reserve(&owner("b"), &sets, &[far]).unwrap_err();
    store.recount(&sets).unwrap();
    store.reserve(&owner("b"), &sets, &[far]).unwrap_err();
    store.release(&owner("a")).unwrap();
    assert_eq!(store.reserve(&owner("b"), &sets, &[far]).unwrap(), [far]);
}
