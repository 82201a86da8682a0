//! portolan-dns on the node and the cluster's DNS Service at the same address: portolan-dns answers.

use super::*;
use crate::nft_rules::wait_for_check;
use crate::proxy_loops::manual;

const QUESTION: &str = "+short +time=2 +tries=1 @10.96.0.10 -p 53 web.default.svc.cluster.local";

/// Applies the Service of another DNS server. Returns its pod.
fn other_dns(cluster: &Cluster) -> Pod {
    let pod = cluster.add_pod("coredns").unwrap();
    let service = "apiVersion: v1\nkind: Service\nmetadata: {name: kube-dns, namespace: kube-system}\n\
        spec:\n  clusterIP: 10.96.0.10\n  ports: [{name: dns, port: 53, protocol: UDP}, {name: dns-tcp, \
        port: 53}]\n";
    let slice = format!(
        "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
         metadata: {{name: kube-dns-1, namespace: kube-system, labels: {{kubernetes.io/service-name: \
         kube-dns}}}}\naddressType: IPv4\nports: [{{name: dns, port: 53, protocol: UDP}}, {{name: dns-tcp, \
         port: 53}}]\nendpoints: [{{addresses: [{}]}}]\n",
        pod.ip
    );
    cluster.apply("kube-dns.yaml", &format!("{service}{slice}")).unwrap();
    pod
}

#[test]
fn portolan_dns_has_precedence_over_the_service_at_its_listen_address() {
    let (mut cluster, client) = cluster();
    cluster.apply("web.yaml", &service(&format!("  clusterIP: 10.96.7.8\n{PORT_80}"))).unwrap();
    assert_eq!(cluster.virtual_ip("web").unwrap(), "10.96.7.8");
    let pod = other_dns(&cluster);
    // A second portolan-dns stands for CoreDNS, in the pod, with another Service `web`.
    let manifests = cluster.directory().join("other");
    std::fs::create_dir(&manifests).unwrap();
    std::fs::write(manifests.join("web.yaml"), service(&format!("  clusterIP: 10.96.9.9\n{PORT_80}")))
        .unwrap();
    let listen = format!("{}:53", pod.ip);
    let dns = testbed::Binaries::find().unwrap().path("portolan-dns");
    let flags = ["--manifests", manifests.to_str().unwrap(), "--listen", &listen, "--upstream", "192.0.2.1"];
    let start = |log: &str, flags: &[&str]| {
        let arguments = [&["netns", "exec", "coredns", dns.to_str().unwrap()], flags].concat();
        let log = cluster.directory().join(log);
        Program::start(&cluster.node, std::path::Path::new("ip"), &arguments, &log).unwrap()
    };
    let _other = start("coredns.log", &flags);
    let answer = |transport: &str| -> Result<String> {
        Ok(client.shell(&cluster.node, &format!("dig {transport} {QUESTION}"))?.trim().to_owned())
    };
    let expect = |address: &str| {
        for transport in ["+notcp", "+tcp"] {
            wait_for(&format!("{address} by {transport}"), || {
                let found = answer(transport)?;
                ensure!(found == address, "{found}");
                Ok(())
            })
            .unwrap();
            // All queries, not only some.
            for _ in 0..20 {
                assert_eq!(answer(transport).unwrap(), address, "{transport}");
            }
        }
    };
    let condition = "10.96.0.10:53/udp of Service kube-system/kube-dns is left to portolan-dns on this node";
    let page = || cluster.node.shell("curl -fsS http://127.0.0.1:10256/readyz?verbose");
    wait_for("the reported owner", || {
        let page = page()?;
        ensure!(page.contains(condition), "{page}");
        Ok(())
    })
    .unwrap();
    expect("10.96.7.8");
    let status = cluster.node.shell("curl -fsS http://127.0.0.1:10249/debug/services").unwrap();
    assert!(status.contains("LEFT TO PORTOLAN-DNS kube-system/kube-dns: 10.96.0.10:53/udp"), "{status}");
    assert!(!status.contains("NO ENDPOINTS kube-system/kube-dns"), "{status}");
    assert_eq!(cluster.proxy_metric("portolan_proxy_frontend_failures").unwrap(), 0.0);
    cluster.dns.kill();
    expect("10.96.9.9");
    assert!(!page().unwrap().contains(condition));
}

/// Applies a Service with TCP ports 53 and 853, whose endpoint answers with its name.
fn named_dns(cluster: &Cluster) -> Replica {
    let ports =
        "  ports: [{name: dns, port: 53, targetPort: 8080}, {name: tls, port: 853, targetPort: 8080}]";
    let replica = replica(cluster, "web-1", "web");
    cluster.apply("web.yaml", &service(&format!("  clusterIP: 10.96.0.20\n{ports}"))).unwrap();
    replica
}

/// Binds the abstract socket by which portolan-dns announces a listen address.
fn hold(cluster: &Cluster, address: &str) -> std::os::unix::net::UnixListener {
    use std::os::linux::net::SocketAddrExt as _;
    use std::os::unix::net::{SocketAddr, UnixListener};
    let name = SocketAddr::from_abstract_name(format!("portolan-dns/{address}")).unwrap();
    cluster.node.run(|| UnixListener::bind_addr(&name)).unwrap()
}

/// An abstract socket needs no privilege, but listening on these ports does.
#[test]
fn abstract_socket_without_a_listener_does_not_affect_the_service() {
    let (cluster, client) = cluster();
    let _web = named_dns(&cluster);
    let names = ["10.96.0.20:53", "10.96.0.20:853"];
    for address in names {
        expect_answers(&client, address, &["web-1"]);
    }
    let _held = names.map(|address| hold(&cluster, address));
    // After two further changes the proxy has read the abstract sockets.
    for name in ["one", "two"] {
        wait_for_check(&cluster);
        cluster.apply("more.yaml", &manual(name, "ports: [{port: 80}]", "192.0.2.1", 80)).unwrap();
        for address in names {
            expect_answers(&client, address, &["web-1"]);
        }
    }
    let page = cluster.node.shell("curl -fsS http://127.0.0.1:10256/readyz?verbose").unwrap();
    assert!(!page.contains("left to portolan-dns"), "{page}");
}

#[test]
fn listeners_with_their_abstract_sockets_have_precedence() {
    use std::io::Write as _;
    let (cluster, client) = cluster();
    let _web = named_dns(&cluster);
    for address in ["10.96.0.20:53", "10.96.0.20:853"] {
        expect_answers(&client, address, &["web-1"]);
        let listener = cluster.node.run(|| std::net::TcpListener::bind(address)).unwrap();
        let held = hold(&cluster, address);
        let answering = listener.try_clone().unwrap();
        let server = std::thread::spawn(move || {
            // Until the listener is shut down.
            while let Ok((mut stream, _)) = answering.accept() {
                let _ = stream.write_all(b"on-the-node"); // The client may have closed the connection.
            }
        });
        expect_answers(&client, address, &["on-the-node"]);
        drop(held);
        expect_answers(&client, address, &["web-1"]);
        nix::sys::socket::shutdown(
            std::os::fd::AsRawFd::as_raw_fd(&listener),
            nix::sys::socket::Shutdown::Both,
        )
        .unwrap();
        server.join().unwrap();
    }
}

/// As in the Debian package (`DynamicUser=yes`).
#[test]
fn portolan_dns_of_another_user_has_its_address() {
    let (mut cluster, _client) = cluster();
    let _other = other_dns(&cluster);
    let node = cluster.node.clone();
    let is_left = |expected: bool| {
        wait_for("the owner of the address", || {
            let page = node.shell("curl -fsS http://127.0.0.1:10256/readyz?verbose")?;
            let condition = "10.96.0.10:53/udp of Service kube-system/kube-dns is left to portolan-dns";
            ensure!(page.contains(condition) == expected, "{page}");
            Ok(())
        })
        .unwrap();
    };
    is_left(true);
    cluster.dns.kill();
    is_left(false);
    let dns = testbed::Binaries::find().unwrap().path("portolan-dns");
    let (manifests, log) = (cluster.manifests(), cluster.directory().join("dns-again.log"));
    // The directory of manifests belongs to root.
    let capabilities = "+net_bind_service,+dac_override";
    let user =
        ["--reuid", "65534", "--clear-groups", "--inh-caps", capabilities, "--ambient-caps", capabilities];
    let flags =
        [dns.to_str().unwrap(), "--manifests", manifests.to_str().unwrap(), "--upstream", "192.0.2.1"];
    let setpriv = std::path::Path::new("setpriv");
    let _dns = Program::start(&cluster.node, setpriv, &[&user[..], &flags].concat(), &log).unwrap();
    is_left(true);
}
