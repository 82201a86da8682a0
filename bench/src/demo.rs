//! The demonstration: a three-tier application on a private node, step by step, with the output of each step.

use std::collections::BTreeMap;

use anyhow::{Result, bail, ensure};
use testbed::{Cluster, HostnameServer, Pod, wait_for};

use crate::docs::latencies;
use crate::latency::latency;
use crate::load::Shape;
use crate::render::table;

/// Requests sent while one replica is killed and another one starts.
const REQUESTS: usize = 1000;

const BACKEND: &str = "
apiVersion: v1
kind: Service
metadata:
  name: backend
spec:
  selector: {app: backend}
  ports: [{port: 80, targetPort: 8080}]
";

const DATABASE: &str = "
apiVersion: v1
kind: Service
metadata:
  name: database
spec:
  clusterIP: None
  selector: {app: database}
  ports: [{name: sql, port: 5432}]
";

/// Runs the demonstration.
///
/// # Errors
/// When a step fails.
pub fn demo() -> Result<()> {
    step("A private node: portolan-proxy and portolan-dns read a directory of Kubernetes YAML");
    let cluster = Cluster::start()?;
    say(&cluster.node.shell("ip route show table local | grep 10.96")?);

    step("A frontend pod: portolan-cni ADD gives it an interface, an address and a resolv.conf");
    let frontend = cluster.add_pod("frontend")?;
    say(&serde_json::to_string_pretty(&frontend.result)?);
    say(&frontend.shell(&cluster.node, "ip -br -4 address show eth0; ip route; cat /etc/resolv.conf")?);

    step("A backend of three replicas behind a Service, in ordinary YAML");
    say(BACKEND);
    cluster.apply("backend.yaml", BACKEND)?;
    let mut backends = Vec::new();
    for number in 1..=3 {
        backends.push(start(&cluster, "backend", number, "")?);
    }
    let vip = cluster.virtual_ip("backend")?;
    let address = format!("{vip}:80");
    wait_for("all replicas", || {
        let seen = request_repeatedly(&frontend, &address, 20)?;
        ensure!(seen.len() == 3, "{seen:?}");
        Ok(())
    })?;

    step("A database whose pods have stable names: a headless Service");
    say(DATABASE);
    cluster.apply("database.yaml", DATABASE)?;
    let _databases = [start_database(&cluster, 0)?, start_database(&cluster, 1)?];
    let first = "database-0.database";
    wait_for(first, || frontend.shell(&cluster.node, &format!("getent hosts {first}")))?;

    step("The frontend resolves names");
    for command in [
        "getent hosts backend",
        "getent hosts database-0.database",
        "dig +short database.default.svc.cluster.local",
        "dig +short _sql._tcp.database.default.svc.cluster.local SRV",
    ] {
        say(&format!("$ {command}\n{}", frontend.shell(&cluster.node, command)?));
    }

    step("Twenty requests to http://backend/ spread over the replicas");
    let answers = frontend.shell(
        &cluster.node,
        "for i in $(seq 20); do curl -fsS --http0.9 -m 5 http://backend/; echo; done",
    )?;
    let mut spread: BTreeMap<&str, usize> = BTreeMap::new();
    for name in answers.lines() {
        *spread.entry(name).or_default() += 1;
    }
    say(&spread.iter().map(|(name, count)| format!("{name}: {count}")).collect::<Vec<_>>().join("\n"));

    step("A replica is killed and another one started, under load");
    let (lost, seen) = replace_one(&cluster, &frontend, &address, &mut backends)?;
    say(&format!("{REQUESTS} requests, {lost} lost; answered by {seen:?}"));
    ensure!(lost <= 1, "more requests were lost than the one in flight on the killed replica");

    step("What the Service costs: a request and a connection, directly and through the virtual IP");
    drop(cluster);
    let record = latency(8, &[Shape::Requests, Shape::Connections]);
    say(&table(&latencies(&record)));
    say("`portolan-bench all` measures thoroughly, with the programs of `make build`.");
    if let Some(why) = record.interrupted {
        bail!("the measurement ended early, {why}");
    }

    step("Done. The namespaces it ran in are deleted");
    Ok(())
}

fn start(cluster: &Cluster, app: &str, number: usize, spec: &str) -> Result<(Pod, HostnameServer)> {
    let name = format!("{app}-{number}");
    let pod = cluster.add_pod(&name)?;
    let server = HostnameServer::start(&pod, 8080)?;
    let manifest = format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, labels: {{app: {app}}}}}\n\
         spec: {{containers: [], {spec}}}\n"
    );
    cluster.apply(&format!("{name}.yaml"), &manifest)?;
    say(&format!("{name} has {}", pod.ip));
    Ok((pod, server))
}

fn start_database(cluster: &Cluster, number: usize) -> Result<(Pod, HostnameServer)> {
    start(cluster, "database", number, &format!("hostname: database-{number}, subdomain: database"))
}

fn request_repeatedly(client: &Pod, address: &str, count: usize) -> Result<BTreeMap<String, usize>> {
    let mut seen = BTreeMap::new();
    for _ in 0..count {
        *seen.entry(client.ask(address)?).or_default() += 1;
    }
    Ok(seen)
}

fn replace_one(
    cluster: &Cluster,
    client: &Pod,
    address: &str,
    replicas: &mut Vec<(Pod, HostnameServer)>,
) -> Result<(usize, BTreeMap<String, usize>)> {
    std::thread::scope(|scope| {
        let requests = scope.spawn(|| {
            let (mut lost, mut seen) = (0, BTreeMap::new());
            for _ in 0..REQUESTS {
                match client.ask(address).ok().filter(|name| !name.is_empty()) {
                    Some(name) => *seen.entry(name).or_default() += 1,
                    None => lost += 1,
                }
            }
            (lost, seen)
        });
        let (killed, server) = replicas.remove(0);
        cluster.network.remove(&killed)?;
        drop(server);
        cluster.delete(&format!("{}.yaml", killed.name))?;
        say(&format!("{} is killed", killed.name));
        replicas.push(start(cluster, "backend", 4, "")?);
        requests.join().map_err(|_panic| anyhow::anyhow!("the client panicked"))
    })
}

#[expect(clippy::print_stdout, reason = "this is the program's output")]
fn step(title: &str) {
    println!("\n== {title}");
}

#[expect(clippy::print_stdout, reason = "this is the program's output")]
fn say(text: &str) {
    for line in text.trim_end().lines() {
        println!("   {line}");
    }
}
