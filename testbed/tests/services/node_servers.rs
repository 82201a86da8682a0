//! Servers on the node as endpoints of a Service: limits of connections with preserved source addresses.

use super::*;
use crate::agnhost::{Agnhost, Location, Protocol};
use crate::proxy_loops::{NODE, manual, wait_until_served};

const TABLE: &str = "inet portolan-proxy-replies";

/// Required rate of new connections, a second.
const RATE: usize = 3_000;

/// Returns the set, the key and the timeout in seconds of the first recorded flow, from `nft`.
fn recorded_flow(cluster: &Cluster) -> Result<(String, Vec<serde_json::Value>, usize)> {
    let table = cluster.node.shell(&format!("nft -j list table {TABLE}"))?;
    let table: serde_json::Value = serde_json::from_str(&table)?;
    let sets = table["nftables"].as_array().context("objects")?.iter().filter_map(|object| object.get("set"));
    let mut recorded = sets.filter_map(|set| Some((set, &set["elem"].as_array()?.first()?["elem"])));
    let (set, flow) = recorded.next().with_context(|| format!("no flow in {table}"))?;
    let key = flow["val"]["concat"].as_array().context("a key")?.clone();
    let left = flow["expires"].as_u64().context("a timeout")?;
    Ok((set["name"].as_str().context("a name")?.to_owned(), key, usize::try_from(left)? + 1))
}

#[test]
fn server_of_the_node_sees_its_clients_at_three_thousand_connections_a_second() {
    let (cluster, client) = cluster();
    let spec = "clusterIP: 10.96.0.66, ports: [{port: 80}]";
    let _server = Agnhost::start(Location::Node(&cluster.node), NODE, "on-the-node");
    cluster.apply("host.yaml", &manual("host", spec, NODE, 8080)).unwrap();
    wait_until_served(&cluster, "10.96.0.66:80");
    let ask = || Location::Pod(&client).ask(Protocol::Http, "10.96.0.66:80", "clientip");
    assert_eq!(ask().unwrap(), client.ip);
    // Add the flows that connections at this rate leave until their timeout.
    let (set, key, seconds) = recorded_flow(&cluster).unwrap();
    let word = |part: &serde_json::Value| part.as_str().map_or_else(|| part.to_string(), str::to_owned);
    let flow = |number: usize| {
        let address = std::net::Ipv4Addr::from_bits(0x0a80_0000 + u32::try_from(number).unwrap());
        let mut words: Vec<String> = key.iter().map(word).collect();
        words[2] = address.to_string();
        format!("{} timeout {seconds}s", words.join(" . "))
    };
    let flows: Vec<String> = (0..RATE * seconds).map(flow).collect();
    let lines: String = flows
        .chunks(1000)
        .map(|some| format!("add element {TABLE} {set} {{ {} }}\n", some.join(", ")))
        .collect();
    let file = cluster.directory().join("flows.nft");
    std::fs::write(&file, lines).unwrap();
    cluster.node.shell(&format!("nft -f {}", file.display())).unwrap();
    for _ in 0..100 {
        assert_eq!(ask().unwrap(), client.ip);
    }
    assert_eq!(cluster.proxy_metric("portolan_proxy_source_fallbacks_total").unwrap(), 0.0);
}

/// The kernel keeps a flow for a minute after each packet.
#[test]
fn idle_connection_to_a_server_of_the_node_keeps_its_flow() {
    let (cluster, client) = cluster();
    let spec = "clusterIP: 10.96.0.66, ports: [{port: 80}]";
    let _server = Agnhost::start(Location::Node(&cluster.node), NODE, "on-the-node");
    cluster.apply("host.yaml", &manual("host", spec, NODE, 8080)).unwrap();
    wait_until_served(&cluster, "10.96.0.66:80");
    let connect = || TcpStream::connect("10.96.0.66:80");
    let _idle = client.netns.run(connect).unwrap().unwrap();
    wait_for("keepalive probes within a third of the timeout", || {
        let sockets = cluster.node.shell(&format!("ss -Htno src {} dst {NODE}:8080", client.ip))?;
        let timer = sockets.split_once("timer:(keepalive,").context(sockets.clone())?.1;
        let seconds = timer.split_once("sec").context(sockets.clone())?.0;
        ensure!(seconds.parse::<f64>()? <= 20.0, "{sockets}");
        Ok(())
    })
    .unwrap();
}
