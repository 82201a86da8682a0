//! Resolvers as people have them, in a pod: glibc, musl, busybox, dig, kdig, Go and Python ask `portolan-dns`, which asks
//! unbound for the names of others.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod ground;

use ground::Ground;

/// Addresses of a name, in either family, as one line each.
type Client = (&'static str, &'static str);

/// Every client prints the addresses of `$NAME`.
const CLIENTS: [Client; 7] = [
    ("glibc", "getent ahosts $NAME | cut -d' ' -f1 | sort -u"),
    ("musl", "$TOOLS/musl-lookup $NAME | sort -u"),
    ("busybox", "busybox nslookup $NAME | sed -n '/^Name/,$s/^Address[^:]*: *//p' | cut -d' ' -f1 | sort -u"),
    ("dig", "{ dig +search +short $NAME A; dig +search +short $NAME AAAA; } | grep -v '\\.$' | sort -u"),
    ("kdig", "{ kdig +short $NAME A; kdig +short $NAME AAAA; } | grep -v '\\.$' | sort -u"),
    ("Go", "$TOOLS/go-lookup $NAME | sort -u"),
    (
        "Python",
        "python3 -c 'import socket,sys; print(*{a[4][0] for a in socket.getaddrinfo(sys.argv[1], 80)}, sep=\"\\n\")' $NAME | sort -u",
    ),
];

#[test]
fn every_client_finds_services_and_names_of_others_with_and_without_autopath() {
    for flags in [&[][..], &["--autopath"]] {
        let ground = Ground::start(flags);
        for (client, script) in CLIENTS {
            for (name, expected) in [
                ("web", "10.96.0.9\n"),
                ("web.default", "10.96.0.9\n"),
                ("web.default.svc.cluster.local", "10.96.0.9\n"),
                ("www.test", "192.0.2.77\n2001:db8::77\n"),
                ("four.test", "192.0.2.78\n"),
            ] {
                // kdig and busybox do not go through search lists as the others do.
                let is_short = matches!(client, "kdig" | "busybox") && !name.ends_with("local");
                if is_short && name.starts_with("web") {
                    continue;
                }
                let found = ground.shell(&script.replace("$NAME", name));
                assert_eq!(found, expected, "{client} {name} {flags:?}\n{}", ground.log());
            }
        }
    }
}

/// Complaint 1: `ndots:5` makes ten queries of one lookup.
#[test]
fn complaint_1_an_external_lookup_takes_ten_queries_and_two_with_autopath() {
    for (flags, expected) in [(&[][..], 10), (&["--autopath"], 2)] {
        let ground = Ground::start(flags);
        for (client, script) in &CLIENTS[..2] {
            for name in ["www.test", "four.test"] {
                let before = ground.queries();
                let found = ground.shell(&script.replace("$NAME", name));
                assert!(found.starts_with("192.0.2.7"), "{client}: {found}");
                let queries = ground.queries() - before;
                assert_eq!(queries, expected, "{client} {name} {flags:?}");
            }
        }
    }
}

/// Complaint 2: A and AAAA asked at the same time from one port raced in connection tracking, and one of them was lost.
#[test]
fn complaint_2_pairs_of_queries_from_one_port_are_both_answered_and_no_tracking_fails() {
    let ground = Ground::start(&[]);
    let before = ground.failed_inserts();
    let script = "
import socket
labels = [b'web', b'default', b'svc', b'cluster', b'local', b'']
name = b''.join(bytes([len(label)]) + label for label in labels)
A, AAAA = (bytes([0, kind, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0]) + name + bytes([0, kind, 0, 1]) for kind in (1, 28))
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.connect(('10.96.0.10', 53))
s.settimeout(4)
for _ in range(10000):
    s.send(A)
    s.send(AAAA)
    assert {s.recv(512)[1], s.recv(512)[1]} == {1, 28}
print('answered')
";
    assert_eq!(ground.shell(&format!("python3 -c \"{script}\"")).trim(), "answered");
    assert_eq!(ground.failed_inserts(), before);
}

/// Complaint 1: what autopath cannot find it leaves to the client.
#[test]
fn complaint_1_with_autopath_a_name_that_is_nowhere_is_still_nowhere() {
    let ground = Ground::start(&["--autopath"]);
    // Nothing found is what a server that does not answer looks like to them, so what it says is looked at too.
    let said = ground.shell("dig +search none.test");
    assert!(said.contains("status: NXDOMAIN"), "{said}");
    for (client, script) in &CLIENTS[..2] {
        let before = ground.queries();
        let found = ground.shell(&format!("{} || true", script.replace("$NAME", "none.test")));
        assert_eq!(found, "", "{client}");
        assert!(ground.queries() > before, "{client} has asked");
        let found = ground.shell(&script.replace("$NAME", "www.test"));
        assert!(found.starts_with("192.0.2.77"), "{client} finds what is somewhere: {found}");
    }
}
