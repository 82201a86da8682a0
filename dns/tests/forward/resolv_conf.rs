//! The discovery of the upstream servers.

use crate::server::Server;
use crate::upstream::{Upstream, a, now, reply};

/// A node whose resolv.conf names only this server, or only systemd-resolved.
#[test]
fn servers_behind_systemd_resolved_are_used() {
    let node = testbed::Node::new().unwrap();
    node.shell("mount -t tmpfs none /run && mkdir -p /run/systemd/resolve").unwrap();
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("resolv.conf");
    std::fs::write(&file, "nameserver 127.0.0.1\n").unwrap();
    let flag = format!("--resolv-conf={}", file.display());
    node.run(|| {
        let _upstream = Upstream::start_at("127.0.0.9:53", |received| {
            now(reply(&received.query, 0, &[a(60, [192, 0, 2, 1])], &[]))
        });
        let server = Server::start_at("127.0.0.1:53".parse().unwrap(), &[&flag]);
        assert_eq!(server.status("www.test A"), "REFUSED");
        std::fs::write("/run/systemd/resolve/resolv.conf", "nameserver 127.0.0.9\n").unwrap();
        testbed::wait_for("the new server", || {
            anyhow::ensure!(server.short("+time=1 www.test A") == "192.0.2.1");
            Ok(())
        })
        .unwrap();
    });
}
