//! Batches of any size, against the kernel, in a new network namespace.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr};

use netns::NetNs;
use nftables::{Batch, Netfilter};

const TABLE: &str = "sizes";
const SET: &str = "frontends";

fn addresses(count: u32) -> Vec<SocketAddr> {
    (0..count).map(|number| (Ipv4Addr::from_bits(0x0a60_0000 + number), 80).into()).collect()
}

/// Runs `work` in a namespace with a table and an empty set.
fn with_a_set(work: impl FnOnce() + Send) {
    let network = NetNs::create_unnamed().unwrap();
    let prepared = || {
        let mut batch = Batch::new(TABLE);
        batch.add_table();
        batch.add_socket_address_set(SET, 1, true);
        batch.commit(&Netfilter::open().unwrap()).unwrap();
        work();
    };
    network.run(prepared).unwrap();
}

#[test]
fn batch_with_more_elements_than_the_socket_buffer_holds_succeeds() {
    with_a_set(|| {
        let many = addresses(40_000);
        let mut batch = Batch::new(TABLE);
        batch.add_socket_addresses(SET, &many);
        batch.commit(&Netfilter::open().unwrap()).unwrap();
        // It would fail if one of them were missing.
        let mut batch = Batch::new(TABLE);
        batch.delete_socket_addresses(SET, &many);
        batch.commit(&Netfilter::open().unwrap()).unwrap();
    });
}

#[test]
fn batch_of_many_messages_succeeds_or_fails_with_the_first_error() {
    with_a_set(|| {
        let many = addresses(400);
        let one_by_one = |change: &dyn Fn(&mut Batch<'_>, &[SocketAddr])| {
            let mut batch = Batch::new(TABLE);
            many.chunks(1).for_each(|one| change(&mut batch, one));
            batch.commit(&Netfilter::open().unwrap())
        };
        one_by_one(&|batch, one| batch.add_socket_addresses(SET, one)).unwrap();
        one_by_one(&|batch, one| batch.delete_socket_addresses(SET, one)).unwrap();
        let missing = one_by_one(&|batch, one| batch.delete_socket_addresses(SET, one));
        assert_eq!(missing.unwrap_err().kind(), ErrorKind::NotFound, "four hundred errors");
    });
}
