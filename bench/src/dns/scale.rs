//! Memory with a large cluster, including a full reload.

use std::fmt::Write as _;
use std::fs;
use std::net::UdpSocket;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::servers::Lab;
use super::workload::{self, Queries};
use crate::interrupt;
use crate::progress::Progress;
use crate::record::{Record, Table};

const SERVICES: usize = 10_000;
const ENDPOINTS: usize = 15;

/// Services in each file.
const PER_FILE: usize = 100;

/// Deadline for reading all files.
const DEADLINE: Duration = Duration::from_secs(120);

pub(super) fn measure(record: &mut Record) -> Result<()> {
    let mut lab = Lab::empty()?;
    let manifests = lab.directory().join("manifests");
    fs::create_dir(&manifests)?;
    let mut progress = Progress::new("150,000 endpoints", 3);
    write(&lab, &manifests, 0)?;
    let began = Instant::now();
    lab.start_portolan(&manifests, &[], &Queries::one(&probe(SERVICES - 1)))?;
    let start = began.elapsed();
    let memory = || lab.servers[0].process.memory();
    let started = memory();
    progress.at(1);
    let began = Instant::now();
    write(&lab, &manifests, 1)?;
    wait_for_all(&lab, 1)?;
    let relist = began.elapsed();
    progress.at(2);
    let relisted = memory();
    let note =
        "Every file is replaced by one with another endpoint in each slice. MiB; peak: since the start.";
    let columns = ["10,000 Services, 150,000 endpoints", "took", "resident", "peak"];
    let mut table = Table::new("Memory of portolan-dns with a large cluster", &columns, note);
    for (what, took, memory) in [("started", start, started), ("all files reloaded", relist, relisted)] {
        let one = |value: f64| format!("{value:.1}");
        table.row([
            what.to_owned(),
            format!("{:.1} s", took.as_secs_f64()),
            one(memory.now),
            one(memory.peak),
        ]);
    }
    record.tables.push(table);
    record.measured("scale-memory", relisted.peak);
    record.remark("scale-memory", "from manifests; peak");
    Ok(())
}

fn probe(service: usize) -> String {
    format!("endpoint-0.service-{service}.default.svc.cluster.local")
}

/// Writes all files, each by an atomic rename.
fn write(lab: &Lab, directory: &Path, version: usize) -> Result<()> {
    let new = lab.directory().join("new");
    for file in 0..SERVICES / PER_FILE {
        let mut text = String::new();
        for service in file * PER_FILE..(file + 1) * PER_FILE {
            writeln!(
                text,
                "---\napiVersion: v1\nkind: Service\nmetadata: {{name: service-{service}}}\n\
                 spec: {{clusterIP: None, ports: [{{name: http, port: 80}}]}}\n---\n\
                 apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
                 metadata: {{name: service-{service}-1, labels: {{kubernetes.io/service-name: \
                 service-{service}}}}}\n\
                 addressType: IPv4\nports: [{{name: http, port: 80}}]\nendpoints:"
            )?;
            for endpoint in 0..ENDPOINTS {
                let number = service * ENDPOINTS + endpoint;
                let [_, b, c, d] = u32::try_from(number)?.to_be_bytes();
                // The first endpoint encodes the version.
                let a = if endpoint == 0 { 100 + version } else { 10 };
                writeln!(text, "- {{addresses: [{a}.{b}.{c}.{d}], hostname: endpoint-{endpoint}}}")?;
            }
        }
        fs::write(&new, text)?;
        fs::rename(&new, directory.join(format!("services-{file}.yaml")))?;
    }
    Ok(())
}

/// Waits until DNS serves this version of the last Service of every file.
fn wait_for_all(lab: &Lab, version: usize) -> Result<()> {
    let server = lab.servers[0].address;
    lab.node.run(|| {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.connect(server)?;
        socket.set_read_timeout(Some(Duration::from_secs(1)))?;
        let began = Instant::now();
        for file in 1..=SERVICES / PER_FILE {
            let query = workload::query(&probe(file * PER_FILE - 1));
            loop {
                socket.send(&query)?;
                let mut answer = [0; 512];
                let length = socket.recv(&mut answer).unwrap_or(0);
                let address: Option<&[u8; 4]> = answer[..length].last_chunk();
                if address.is_some_and(|address| usize::from(address[0]) == 100 + version) {
                    break;
                }
                interrupt::check()?;
                ensure!(began.elapsed() < DEADLINE, "not all files are read after {DEADLINE:?}");
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        Ok(())
    })
}
