//! Many changes and many queries at once.

use std::net::UdpSocket;
use std::time::Duration;

use crate::message::Query;
use crate::server::Server;

const WEB: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec: {clusterIP: 10.96.0.9, ports: [{port: 80}]}\n";

const FILES: usize = 20;
const SERVICES: usize = 50;
const ENDPOINTS: usize = 15;

/// A file of Services with endpoints; each generation has other addresses.
fn services(file: usize, generation: usize) -> String {
    let mut text = String::new();
    for service in 0..SERVICES {
        text += &format!(
            "---\napiVersion: v1\nkind: Service\nmetadata: {{name: s{file}-{service}}}\nspec: {{clusterIP: None, ports: [{{name: http, port: 80}}]}}\n---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: s{file}-{service}-1, labels: {{kubernetes.io/service-name: s{file}-{service}}}}}\naddressType: IPv4\nports: [{{name: http, port: 8080}}]\nendpoints:\n"
        );
        for endpoint in 0..ENDPOINTS {
            text += &format!("- {{addresses: [10.{file}.{service}.{}]}}\n", generation * 20 + endpoint + 1);
        }
    }
    text
}

/// Complaint 6: a relist took twice the memory, and the kernel killed the server. (The figure for 10,000 Services and
/// 150,000 endpoints is the benchmark's; this is a tenth of that, read seven times.)
#[test]
fn complaint_6_repeated_full_reads_take_bounded_memory() {
    let server = Server::start(&[("web.yaml", WEB)], &[]);
    let empty = server.memory("VmRSS");
    let change = |generation: usize| {
        for file in 0..FILES {
            server.apply(&format!("{file}.yaml"), &services(file, generation));
        }
        let expected = format!("10.{}.{}.{}", FILES - 1, SERVICES - 1, generation * 20 + 1);
        let name = format!("s{}-{}.default.svc.cluster.local A", FILES - 1, SERVICES - 1);
        testbed::wait_for("the last Service", || {
            anyhow::ensure!(server.dig(&format!("+short {name}")).contains(&expected));
            Ok(())
        })
        .unwrap();
        server.memory("VmHWM") - empty
    };
    let peaks: Vec<u64> = (0..7).map(change).collect();
    // After the first read, memory contains both the old and the new state.
    assert!(peaks[6] < peaks[2] * 5 / 4, "KiB: {peaks:?}");
    assert!(peaks[6] < 40 * 1024, "KiB for {} endpoints: {peaks:?}", FILES * SERVICES * ENDPOINTS);
}

/// Complaint 7: overload queued millions of queries.
#[test]
fn complaint_7_flood_is_bounded_and_the_cluster_zone_is_served() {
    let silent = UdpSocket::bind("127.0.0.1:0").unwrap();
    let upstream = format!("--upstream={}", silent.local_addr().unwrap());
    let server = Server::start(&[("web.yaml", WEB)], &[&upstream, "--max-concurrent=100"]);
    let (memory, threads) = (server.memory("VmRSS"), server.memory("Threads"));
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.connect(server.address).unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(1))).unwrap();
    let (mut refused, mut buffer) = (0, [0; 512]);
    for n in 0..20_000_u16 {
        socket.send(&Query::new(&format!("n{n}.example.org"), 1).wire(n)).unwrap();
        if n % 100 == 0 {
            let reply = Query::new("web.default.svc.cluster.local", 1).ask(server.address);
            assert_eq!((reply.code(), reply.counts[1]), (0, 1));
            while let Ok(length) = socket.recv(&mut buffer) {
                refused += u32::from(length >= 12 && buffer[3] & 15 == 2);
            }
        }
    }
    assert!(refused > 10_000, "only {refused} were turned away");
    let more = server.memory("VmHWM") - memory;
    assert!(more < 32 * 1024, "{more} KiB");
    assert!(server.memory("Threads") <= threads);
}
