//! Isolation: a client, an unread log or a lack of descriptors does not affect other clients.

#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

use std::fs::File;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::ensure;
use socket2::{Domain, Socket, Type};
use testbed::{Binaries, Cluster, HostnameServer, Pod, Program, wait_for};

/// Less than the 30 s period of the full check.
const SOON: Duration = Duration::from_secs(20);

fn service(name: &str, protocol: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\n\
         spec: {{selector: {{app: {name}}}, ports: [{{port: 80, targetPort: 8080, protocol: \
         {protocol}}}]}}\n---\napiVersion: v1\nkind: Pod\n\
         metadata: {{name: {name}, labels: {{app: {name}}}}}\nspec: {{containers: []}}\n"
    )
}

/// Starts a pod that answers with its name, behind a Service of its name. Returns its address too.
fn serve(cluster: &Cluster, name: &str) -> (Pod, HostnameServer, String) {
    let pod = cluster.add_pod(name).unwrap();
    let server = HostnameServer::start(&pod, 8080).unwrap();
    cluster.apply(&format!("{name}.yaml"), &service(name, "TCP")).unwrap();
    let address = format!("{}:80", cluster.virtual_ip(name).unwrap());
    (pod, server, address)
}

fn expect_answer(client: &Pod, address: &str, name: &str) {
    wait_for(name, || {
        let answer = client.ask(address)?;
        ensure!(answer == name, "{answer:?}");
        Ok(())
    })
    .unwrap();
}

/// Starts a daemon on the node through a wrapper command.
fn restart(cluster: &Cluster, wrapper: &[&str], daemon: &str, flags: &[&str], log: &Path) -> Program {
    let manifests = cluster.manifests();
    let daemon = Binaries::find().unwrap().path(daemon);
    let arguments = [&["--manifests", manifests.to_str().unwrap()], flags].concat();
    let arguments = match wrapper {
        [] => return Program::start(&cluster.node, &daemon, &arguments, log).unwrap(),
        [_, rest @ ..] => [rest, &[daemon.to_str().unwrap()], &arguments].concat(),
    };
    Program::start(&cluster.node, Path::new(wrapper[0]), &arguments, log).unwrap()
}

fn wait_for_page(cluster: &Cluster, page: &str) -> String {
    wait_for(page, || cluster.node.shell(&format!("curl -fsS -m 2 http://127.0.0.1:{page}"))).unwrap()
}

fn metric(cluster: &Cluster, port: u16, name: &str) -> f64 {
    let page = wait_for_page(cluster, &format!("{port}/metrics"));
    let line = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("no metric {name}")).parse().unwrap()
}

/// Creates a full pipe without a reader. Returns its path for the writer.
fn full_pipe(cluster: &Cluster, name: &str) -> (PathBuf, File) {
    let path = cluster.directory().join(name);
    cluster.node.shell(&format!("mkfifo {}", path.display())).unwrap();
    let nonblocking = nix::libc::O_NONBLOCK;
    let mut pipe = File::options().read(true).write(true).custom_flags(nonblocking).open(&path).unwrap();
    let full = std::iter::repeat_with(|| pipe.write(&[b'.'; 4096])).find_map(Result::err).unwrap();
    assert_eq!(full.kind(), ErrorKind::WouldBlock);
    (path, pipe)
}

/// Makes the daemons report 2,000 invalid Services at a time until the daemon has dropped log lines.
fn drop_lines(cluster: &Cluster, port: u16, name: &str) {
    let mut round = 0;
    wait_for("dropped lines", || {
        let value = format!("{round}{}", "x".repeat(250));
        let wrong = |n| {
            format!(
                "---\napiVersion: v1\nkind: Service\nmetadata: {{name: wrong-{n}}}\n\
                 spec: {{type: {value}, ports: [{{port: 80}}]}}\n"
            )
        };
        cluster.apply("wrong.yaml", &(0..2000).map(wrong).collect::<String>())?;
        round += 1;
        let dropped = metric(cluster, port, name);
        ensure!(dropped > 0.0, "{dropped} after {round} rounds");
        Ok(())
    })
    .unwrap();
}

/// Reads the pipe until it has the notice about dropped lines.
fn expect_notice_of_dropped_lines(mut pipe: &File) {
    let (mut log, mut buffer) = (Vec::new(), vec![0; 1 << 16]);
    wait_for("the notice", || {
        while let Ok(count @ 1..) = pipe.read(&mut buffer) {
            log.extend_from_slice(&buffer[..count]);
        }
        let tail = String::from_utf8_lossy(&log[log.len().saturating_sub(1 << 20)..]).into_owned();
        ensure!(tail.contains("log lines were dropped"), "{:.2000}", tail);
        Ok(())
    })
    .unwrap();
}

#[test]
fn unread_log_does_not_block_connections() {
    const DROPPED: &str = "portolan_proxy_log_dropped_lines_total";
    let mut cluster = Cluster::start().unwrap();
    let client = cluster.add_pod("client").unwrap();
    let (_web, _server, web) = serve(&cluster, "web");
    // Nothing listens in this pod, so each connection logs a warning.
    let _failing = cluster.add_pod("failing").unwrap();
    cluster.apply("failing.yaml", &service("failing", "TCP")).unwrap();
    let failing = format!("{}:80", cluster.virtual_ip("failing").unwrap());
    cluster.proxy.kill();
    let (path, pipe) = full_pipe(&cluster, "proxy.pipe");
    cluster.proxy = restart(&cluster, &[], "portolan-proxy", &[], &path);
    wait_for_page(&cluster, "10256/readyz");
    for _ in 0..500 {
        assert!(client.ask(&failing).is_err());
    }
    expect_answer(&client, &web, "web");
    drop_lines(&cluster, 10249, DROPPED);
    for _ in 0..100 {
        assert_eq!(client.ask(&web).unwrap(), "web");
    }
    let livez = wait_for_page(&cluster, "10256/livez");
    assert!(!livez.is_empty());
    // A reader gets the number of dropped lines. Without a reader, the shutdown is not blocked either.
    expect_notice_of_dropped_lines(&pipe);
    drop_lines(&cluster, 10249, DROPPED);
    assert!(cluster.proxy.terminate().unwrap().success());
}

#[test]
fn unread_log_does_not_block_queries() {
    const DROPPED: &str = "portolan_dns_log_dropped_lines_total";
    let mut cluster = Cluster::start().unwrap();
    let client = cluster.add_pod("client").unwrap();
    cluster.apply("web.yaml", &service("web", "TCP")).unwrap();
    let expected = cluster.virtual_ip("web").unwrap();
    cluster.dns.kill();
    let (path, pipe) = full_pipe(&cluster, "dns.pipe");
    let upstream = cluster.node.outside_address().to_owned();
    cluster.dns = restart(&cluster, &[], "portolan-dns", &["--upstream", &upstream], &path);
    wait_for_page(&cluster, "10264/ready");
    drop_lines(&cluster, 10262, DROPPED);
    for transport in ["+notcp", "+tcp"] {
        let question =
            format!("dig +short +time=2 +tries=1 {transport} @10.96.0.10 web.default.svc.cluster.local");
        assert_eq!(client.shell(&cluster.node, &question).unwrap().trim(), expected, "{transport}");
    }
    expect_notice_of_dropped_lines(&pipe);
    assert!(cluster.dns.terminate().unwrap().success());
}

/// Sets the limit of open files of a process. Open files remain open.
fn limit_files(cluster: &Cluster, process: u32, files: usize) {
    cluster.node.shell(&format!("prlimit --pid {process} --nofile={files}:")).unwrap();
}

#[test]
fn files_unreadable_for_lack_of_descriptors_are_read_later() {
    let mut cluster = Cluster::start().unwrap();
    let client = cluster.add_pod("client").unwrap();
    let web = cluster.add_pod("web").unwrap();
    let _server = HostnameServer::start(&web, 8080).unwrap();
    let (hosts, log) = (cluster.directory().join("hosts"), cluster.directory().join("dns.log"));
    std::fs::write(&hosts, "192.0.2.7 old.test\n").unwrap();
    cluster.dns.kill();
    let flags = ["--upstream", cluster.node.outside_address(), "--hosts", hosts.to_str().unwrap()];
    cluster.dns = restart(&cluster, &[], "portolan-dns", &flags, &log);
    wait_for_page(&cluster, "10264/ready");
    let daemons = [cluster.proxy.id(), cluster.dns.id()];
    for daemon in daemons {
        limit_files(&cluster, daemon, 0);
    }
    cluster.apply("web.yaml", &service("web", "TCP")).unwrap();
    std::fs::write(&hosts, "192.0.2.8 new.test\n").unwrap();
    let failures = ["web.yaml: cannot be read: Too many open files", "hosts cannot be read"];
    wait_for("the failures", || {
        let logs = cluster.logs();
        ensure!(logs.matches(failures[0]).count() == 2 && logs.contains(failures[1]), "{logs}");
        Ok(())
    })
    .unwrap();
    for daemon in daemons {
        limit_files(&cluster, daemon, 1024);
    }
    let since = Instant::now();
    let address = format!("{}:80", cluster.virtual_ip("web").unwrap());
    expect_answer(&client, &address, "web");
    wait_for("new.test", || {
        let found = client.shell(&cluster.node, "dig +short +time=1 +tries=1 @10.96.0.10 new.test")?;
        ensure!(found.trim() == "192.0.2.8", "{found:?}");
        Ok(())
    })
    .unwrap();
    assert!(since.elapsed() < SOON, "{:?}", since.elapsed());
    // Retried each second, logged once.
    let logs = cluster.logs();
    let reported = logs.lines().filter(|line| line.contains("ERROR") && line.contains(failures[0]));
    assert_eq!(reported.count(), 2, "{logs}");
}

#[test]
fn greedy_client_leaves_descriptors_to_other_clients_and_to_the_control_plane() {
    let mut cluster = Cluster::start().unwrap();
    let (greedy, client) = (cluster.add_pod("greedy").unwrap(), cluster.add_pod("client").unwrap());
    let (_web, _server, web) = serve(&cluster, "web");
    let silent = cluster.add_pod("silent").unwrap();
    let _silent = silent.netns.run(|| UdpSocket::bind((silent.ip.as_str(), 8080))).unwrap().unwrap();
    cluster.apply("silent.yaml", &service("silent", "UDP")).unwrap();
    let datagrams = format!("{}:80", cluster.virtual_ip("silent").unwrap());
    cluster.proxy.kill();
    let log = cluster.directory().join("proxy.log");
    cluster.proxy = restart(&cluster, &["prlimit", "--nofile=2000:2000"], "portolan-proxy", &[], &log);
    wait_for_page(&cluster, "10256/readyz");
    expect_answer(&greedy, &web, "web");

    // Each source port is another flow.
    let send = |port: u16| -> std::io::Result<usize> {
        let socket = UdpSocket::bind(("0.0.0.0", port))?;
        socket.send_to(b"x", &datagrams)
    };
    let limits = "portolan_proxy_client_limits_total";
    wait_for("the client's limit", || {
        greedy.netns.run(|| (20_000..22_500).map(send).collect::<Result<Vec<_>, _>>())??;
        let reached = cluster.proxy_metric(limits)?;
        ensure!(reached > 0.0, "{reached}");
        Ok(())
    })
    .unwrap();
    let (used, all) = ("portolan_proxy_descriptors", "portolan_proxy_descriptors_limit");
    let (used, all) = (cluster.proxy_metric(used).unwrap(), cluster.proxy_metric(all).unwrap());
    assert!(all == 1500.0 && used <= all / 2.0 + 10.0, "{used} of {all}");
    // The client is at its limit for connections too, and its own new connections are reset.
    let mut refused = greedy.netns.run(|| TcpStream::connect(&web)).unwrap().unwrap();
    assert_eq!(refused.read(&mut [0; 8]).unwrap_err().kind(), ErrorKind::ConnectionReset);

    // Other clients are served.
    for _ in 0..20 {
        assert_eq!(client.ask(&web).unwrap(), "web");
    }
    let (_more, _server, more) = serve(&cluster, "more");
    expect_answer(&client, &more, "more");
    wait_for_page(&cluster, "10256/readyz?verbose");
}

/// The endpoint may be another proxy, towards which a connection ends when the client's hops are used up.
#[test]
fn a_client_with_a_low_hop_limit_ejects_no_endpoint() {
    let cluster = Cluster::start().unwrap();
    let client = cluster.add_pod("client").unwrap();
    let pod = cluster.add_pod("web").unwrap();
    let _server = HostnameServer::start(&pod, 8080).unwrap();
    let manifest = format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: web}}\nspec: {{ports: [{{port: 80, targetPort: 8080}}]}}\n---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: web, labels: {{kubernetes.io/service-name: web}}}}\naddressType: IPv4\nports: [{{port: 8080}}]\nendpoints: [{{addresses: [{}]}}, {{addresses: [{}]}}]\n",
        pod.ip,
        cluster.node.outside_address()
    );
    cluster.apply("web.yaml", &manifest).unwrap();
    let ejected = || -> anyhow::Result<Vec<bool>> {
        let page = wait_for_page(&cluster, "10249/debug/services?format=json");
        let page: serde_json::Value = serde_json::from_str(&page)?;
        let endpoints = page["frontends"][0]["endpoints"].as_array().cloned().unwrap_or_default();
        ensure!(endpoints.len() == 2, "{page}");
        Ok(endpoints.iter().map(|endpoint| endpoint["ejected"] == true).collect())
    };
    wait_for("the service", ejected).unwrap();
    let address: SocketAddr = format!("{}:80", cluster.virtual_ip("web").unwrap()).parse().unwrap();
    for _ in 0..30 {
        let connect = || {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
            socket.set_ttl_v4(1)?;
            socket.connect(&address.into())?;
            std::io::Result::Ok(TcpStream::from(socket))
        };
        let mut name = String::new();
        client.netns.run(connect).unwrap().unwrap().read_to_string(&mut name).unwrap();
        assert_eq!(name, "web");
    }
    assert_eq!(ejected().unwrap(), [false, false]);
}
