//! Common resolvers in a pod, glibc, musl, busybox, dig, kdig, Go and Python, query `portolan-dns`, which
//! forwards external names to unbound.

#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

mod fixture;

use fixture::Fixture;

/// Name and script of a client.
type Client = (&'static str, &'static str);

/// Each script prints the addresses of `$NAME`, of both families, one a line.
const CLIENTS: [Client; 7] = [
    ("glibc", "getent ahosts $NAME | cut -d' ' -f1 | sort -u"),
    ("musl", "$TOOLS/musl-lookup $NAME | sort -u"),
    ("busybox", "busybox nslookup $NAME | sed -n '/^Name/,$s/^Address[^:]*: *//p' | cut -d' ' -f1 | sort -u"),
    ("dig", "{ dig +search +short $NAME A; dig +search +short $NAME AAAA; } | grep -v '\\.$' | sort -u"),
    ("kdig", "{ kdig +short $NAME A; kdig +short $NAME AAAA; } | grep -v '\\.$' | sort -u"),
    ("Go", "$TOOLS/go-lookup $NAME | sort -u"),
    (
        "Python",
        "python3 -c 'import socket,sys; print(*{a[4][0] for a in socket.getaddrinfo(sys.argv[1], 80)}, \
         sep=\"\\n\")' $NAME | sort -u",
    ),
];

#[test]
fn every_client_resolves_services_and_external_names_with_and_without_autopath() {
    for flags in [&[][..], &["--autopath"]] {
        let fixture = Fixture::start(flags);
        for (client, script) in CLIENTS {
            for (name, expected) in [
                ("web", "10.96.0.9\n"),
                ("web.default", "10.96.0.9\n"),
                ("web.default.svc.cluster.local", "10.96.0.9\n"),
                ("www.test", "192.0.2.77\n2001:db8::77\n"),
                ("four.test", "192.0.2.78\n"),
            ] {
                // kdig and busybox do not apply search lists like the other clients.
                let is_short = matches!(client, "kdig" | "busybox") && !name.ends_with("local");
                if is_short && name.starts_with("web") {
                    continue;
                }
                let found = fixture.shell(&script.replace("$NAME", name));
                assert_eq!(found, expected, "{client} {name} {flags:?}\n{}", fixture.log());
            }
        }
    }
}

/// Complaint 1: with `ndots:5` one lookup takes ten queries.
#[test]
fn complaint_1_an_external_lookup_takes_ten_queries_and_two_with_autopath() {
    for (flags, expected) in [(&[][..], 10), (&["--autopath"], 2)] {
        let fixture = Fixture::start(flags);
        for (client, script) in &CLIENTS[..2] {
            for name in ["www.test", "four.test"] {
                let before = fixture.queries();
                let found = fixture.shell(&script.replace("$NAME", name));
                assert!(found.starts_with("192.0.2.7"), "{client}: {found}");
                let queries = fixture.queries() - before;
                assert_eq!(queries, expected, "{client} {name} {flags:?}");
            }
        }
    }
}

/// Complaint 2: concurrent A and AAAA queries from one port raced in conntrack, and one of them was lost.
#[test]
fn complaint_2_a_and_aaaa_from_one_port_are_both_answered_without_conntrack_failures() {
    let fixture = Fixture::start(&[]);
    let before = fixture.failed_inserts();
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
    assert_eq!(fixture.shell(&format!("python3 -c \"{script}\"")).trim(), "answered");
    assert_eq!(fixture.failed_inserts(), before);
}

/// Complaint 1: autopath leaves missing names to the client's search list.
#[test]
fn complaint_1_with_autopath_a_missing_name_is_nxdomain() {
    let fixture = Fixture::start(&["--autopath"]);
    // An empty result could also mean that the server does not answer, so the status is checked first.
    let answer = fixture.shell("dig +search none.test");
    assert!(answer.contains("status: NXDOMAIN"), "{answer}");
    for (client, script) in &CLIENTS[..2] {
        let before = fixture.queries();
        let found = fixture.shell(&format!("{} || true", script.replace("$NAME", "none.test")));
        assert_eq!(found, "", "{client}");
        assert!(fixture.queries() > before, "{client} has sent queries");
        let found = fixture.shell(&script.replace("$NAME", "www.test"));
        assert!(found.starts_with("192.0.2.77"), "{client} resolves an existing name: {found}");
    }
}
