//! Connection limits and timeouts of Services.

use std::io::Write as _;

use super::*;

/// Opens a connection from the client.
fn open(client: &Pod, address: &str) -> TcpStream {
    let stream = client.netns.run(|| TcpStream::connect(address)).unwrap().unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    stream
}

/// Accepts connections in a pod and keeps them open without sending.
fn silent_server(cluster: &Cluster, name: &str) -> std::sync::mpsc::Receiver<TcpStream> {
    let pod = cluster.add_pod(name).unwrap();
    cluster.apply(&format!("pod-{name}.yaml"), &pod_manifest(name, "web", "")).unwrap();
    let listener = pod.netns.run(|| std::net::TcpListener::bind((pod.ip.as_str(), 8080))).unwrap().unwrap();
    let (accepted, connections) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        while let Ok((stream, _)) = listener.accept() {
            if accepted.send(stream).is_err() {
                return;
            }
        }
    });
    connections
}

#[test]
fn connection_limit_of_a_service_covers_all_its_addresses() {
    let (cluster, client) = cluster();
    let connections = silent_server(&cluster, "web-1");
    let limited = service(
        "  type: NodePort\n  externalIPs: [203.0.113.50]\n  ports: [{port: 80, targetPort: 8080, \
         nodePort: 30085}]",
    )
    .replace("{name: web}", "{name: web, annotations: {portolan.dev/max-connections: \"2\"}}");
    cluster.apply("web.yaml", &limited).unwrap();
    let vip = format!("{}:80", cluster.virtual_ip("web").unwrap());
    let first = wait_for("the service", || Ok(client.netns.run(|| TcpStream::connect(&vip))??)).unwrap();
    let second = open(&client, "203.0.113.50:80");
    for _ in 0..2 {
        connections.recv_timeout(Duration::from_secs(30)).unwrap();
    }
    for address in [&vip, "203.0.113.50:80", "192.0.2.2:30085"] {
        let error = open(&client, address).read(&mut [0]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{address}");
    }
    let shed = r#"portolan_proxy_service_connections_shed_total{namespace="default",port="",protocol="tcp",service="web"}"#;
    assert_eq!(cluster.proxy_metric(shed).unwrap(), 3.0);
    drop(second);
    wait_for("a free connection", || {
        let mut another = open(&client, &vip);
        another.set_read_timeout(Some(Duration::from_millis(200)))?;
        let error = another.read(&mut [0]).unwrap_err();
        ensure!(error.kind() == ErrorKind::WouldBlock, "{error}");
        Ok(())
    })
    .unwrap();
    drop(first);
    // Without the annotation there is no limit, for the same frontends.
    cluster.apply("web.yaml", &limited.replace("portolan.dev/max-connections", "other")).unwrap();
    wait_for("connections without a limit", || {
        let many: Vec<_> = (0..5).map(|_| open(&client, &vip)).collect();
        for mut stream in &many {
            stream.set_read_timeout(Some(Duration::from_millis(50)))?;
            let error = stream.read(&mut [0]).unwrap_err();
            ensure!(error.kind() == ErrorKind::WouldBlock, "{error}");
        }
        Ok(())
    })
    .unwrap();
}

#[test]
fn idle_half_closed_connection_expires_and_an_open_one_does_not() {
    let cluster = Cluster::start_with(&["--half-closed-timeout", "3"]).unwrap();
    let client = cluster.add_pod("client").unwrap();
    let connections = silent_server(&cluster, "web-1");
    cluster.apply("web.yaml", &service(PORT_80)).unwrap();
    let vip = format!("{}:80", cluster.virtual_ip("web").unwrap());
    let mut idle = wait_for("the service", || Ok(client.netns.run(|| TcpStream::connect(&vip))??)).unwrap();
    let mut at_idle = connections.recv_timeout(Duration::from_secs(30)).unwrap();
    let (mut half_closed, mut streaming) = (open(&client, &vip), open(&client, &vip));
    let mut at_half_closed = connections.recv_timeout(Duration::from_secs(30)).unwrap();
    let mut at_streaming = connections.recv_timeout(Duration::from_secs(30)).unwrap();
    for stream in [&half_closed, &streaming] {
        stream.shutdown(std::net::Shutdown::Write).unwrap();
    }
    // Also half closed, but the answer takes longer than the timeout.
    let mut answer = String::new();
    for _ in 0..50 {
        at_streaming.write_all(b"x").unwrap();
        std::thread::sleep(Duration::from_millis(100));
    }
    drop(at_streaming);
    streaming.read_to_string(&mut answer).unwrap();
    assert_eq!(answer.len(), 50);
    let error = half_closed.read(&mut [0]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    at_half_closed.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    let mut end = [0; 8];
    let written = at_half_closed.read(&mut end).and_then(|_| at_half_closed.write(b"late"));
    let written = written.and_then(|_| at_half_closed.write(b"later"));
    assert!(written.is_err(), "the endpoint's connection is reset too: {written:?}");
    assert_eq!(cluster.proxy_metric("portolan_proxy_quiet_connections_ended_total").unwrap(), 1.0);
    at_idle.write_all(b"still here").unwrap();
    let mut received = [0; 10];
    idle.read_exact(&mut received).unwrap();
    assert_eq!(&received, b"still here");
}
