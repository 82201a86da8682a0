//! The Service of the cluster's DNS server and a portolan-dns of the node at one address: the latter answers.

use super::*;
use crate::loops::manual;
use crate::rules::wait_for_check;

const QUESTION: &str = "+short +time=2 +tries=1 @10.96.0.10 -p 53 web.default.svc.cluster.local";

/// A DNS server of its own kind in a pod, which answers everything with 192.0.2.99.
fn other_dns(cluster: &Cluster) -> Pod {
    let pod = cluster.add_pod("coredns").unwrap();
    let service = "apiVersion: v1\nkind: Service\nmetadata: {name: kube-dns, namespace: kube-system}\nspec:\n  clusterIP: 10.96.0.10\n  ports: [{name: dns, port: 53, protocol: UDP}, {name: dns-tcp, port: 53}]\n";
    let slice = format!(
        "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: kube-dns-1, namespace: kube-system, labels: {{kubernetes.io/service-name: kube-dns}}}}\naddressType: IPv4\nports: [{{name: dns, port: 53, protocol: UDP}}, {{name: dns-tcp, port: 53}}]\nendpoints: [{{addresses: [{}]}}]\n",
        pod.ip
    );
    cluster.apply("kube-dns.yaml", &format!("{service}{slice}")).unwrap();
    pod
}

#[test]
fn portolan_dns_has_the_address_at_which_it_listens_and_the_service_has_it_otherwise() {
    let (mut cluster, client) = cluster();
    cluster.apply("web.yaml", &service(&format!("  clusterIP: 10.96.7.8\n{PORT_80}"))).unwrap();
    assert_eq!(cluster.virtual_ip("web").unwrap(), "10.96.7.8");
    let pod = other_dns(&cluster);
    // What stands in for CoreDNS: portolan-dns again, in the pod, with a Service `web` of its own.
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
            // Every one, not some.
            for _ in 0..20 {
                assert_eq!(answer(transport).unwrap(), address, "{transport}");
            }
        }
    };
    let told = "10.96.0.10:53/udp of Service kube-system/kube-dns is left to portolan-dns on this node";
    let page = || cluster.node.shell("curl -fsS http://127.0.0.1:10256/readyz?verbose");
    wait_for("the owner to be told", || {
        let page = page()?;
        ensure!(page.contains(told), "{page}");
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
    assert!(!page().unwrap().contains(told));
}

/// A Service with TCP ports 53 and 853, whose endpoint answers with its name.
fn named_dns(cluster: &Cluster) -> Replica {
    let ports =
        "  ports: [{name: dns, port: 53, targetPort: 8080}, {name: tls, port: 853, targetPort: 8080}]";
    let replica = replica(cluster, "web-1", "web");
    cluster.apply("web.yaml", &service(&format!("  clusterIP: 10.96.0.20\n{ports}"))).unwrap();
    replica
}

/// Holds the name by which a portolan-dns says that it listens there.
fn hold(cluster: &Cluster, address: &str) -> std::os::unix::net::UnixListener {
    use std::os::linux::net::SocketAddrExt as _;
    use std::os::unix::net::{SocketAddr, UnixListener};
    let name = SocketAddr::from_abstract_name(format!("portolan-dns/{address}")).unwrap();
    cluster.node.run(|| UnixListener::bind_addr(&name)).unwrap()
}

/// It takes no privilege to hold a name, but one to listen on these ports.
#[test]
fn name_without_a_listener_takes_no_address_from_its_service() {
    let (cluster, client) = cluster();
    let _web = named_dns(&cluster);
    let names = ["10.96.0.20:53", "10.96.0.20:853"];
    for address in names {
        expect_answers(&client, address, &["web-1"]);
    }
    let _held = names.map(|address| hold(&cluster, address));
    // The proxy has looked at the names when it answers for the next Service but one.
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
fn listeners_on_both_ports_with_their_names_have_the_addresses() {
    use std::io::Write as _;
    let (cluster, client) = cluster();
    let _web = named_dns(&cluster);
    for address in ["10.96.0.20:53", "10.96.0.20:853"] {
        expect_answers(&client, address, &["web-1"]);
        let listener = cluster.node.run(|| std::net::TcpListener::bind(address)).unwrap();
        let held = hold(&cluster, address);
        let answering = listener.try_clone().unwrap();
        let server = std::thread::spawn(move || {
            // Until the end of the listener.
            while let Ok((mut stream, _)) = answering.accept() {
                drop(stream.write_all(b"on-the-node"));
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

/// As the Debian package runs it (`DynamicUser=yes`).
#[test]
fn portolan_dns_of_another_user_has_its_address() {
    let (mut cluster, _client) = cluster();
    let _other = other_dns(&cluster);
    let node = cluster.node.clone();
    let is_left = |expected: bool| {
        wait_for("the owner of the address", || {
            let page = node.shell("curl -fsS http://127.0.0.1:10256/readyz?verbose")?;
            let told = "10.96.0.10:53/udp of Service kube-system/kube-dns is left to portolan-dns";
            ensure!(page.contains(told) == expected, "{page}");
            Ok(())
        })
        .unwrap();
    };
    is_left(true);
    cluster.dns.kill();
    is_left(false);
    let dns = testbed::Binaries::find().unwrap().path("portolan-dns");
    let (manifests, log) = (cluster.manifests(), cluster.directory().join("dns-again.log"));
    // The directory of the manifests is root's.
    let capabilities = "+net_bind_service,+dac_override";
    let user =
        ["--reuid", "65534", "--clear-groups", "--inh-caps", capabilities, "--ambient-caps", capabilities];
    let flags =
        [dns.to_str().unwrap(), "--manifests", manifests.to_str().unwrap(), "--upstream", "192.0.2.1"];
    let setpriv = std::path::Path::new("setpriv");
    let _dns = Program::start(&cluster.node, setpriv, &[&user[..], &flags].concat(), &log).unwrap();
    is_left(true);
}
