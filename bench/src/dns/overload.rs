//! Overload: ten times as many queries as the server can answer.
//!
//! A generator on the same machine cannot send ten times as fast as this server answers. So the server gets a
//! tenth of its core: it has a higher nice value than a thread that spins there.

use std::fs;
use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Result;

use super::flows::FLOWS;
use super::servers::Lab;
use super::workload::{self, Queries};
use super::{Kind, Load};
use crate::cores;
use crate::record::{Record, Table};

/// Scheduler weight 110; the spinning thread has 1024.
const NICE: &str = "10";

const LENGTH: Duration = Duration::from_secs(3);

const TIMES: f64 = 10.0;

pub(super) fn measure(record: &mut Record) -> Result<()> {
    let mut lab = Lab::empty()?;
    let manifests = lab.directory().join("manifests");
    fs::create_dir(&manifests)?;
    workload::write_manifests(&manifests)?;
    let services = Queries::services();
    lab.start_portolan(&manifests, &[], &services)?;
    let server = &lab.servers[0];
    let threads = format!("/proc/{}/task", server.process.0);
    lab.node.shell(&format!("renice -n {NICE} -p $(ls {threads}) >&2"))?;
    let is_done = AtomicBool::new(false);
    let rates = std::thread::scope(|scope| {
        scope.spawn(|| spin(lab.cores.server, &is_done));
        let rates = overload(&lab, server.address, &services);
        is_done.store(true, Ordering::Relaxed);
        rates
    });
    let Rates { capacity, sent, answered } = rates?;
    let memory = server.process.memory();
    if capacity == 0.0 {
        record.not_measured.push("overload: the busy machine left the server no CPU time".to_owned());
        return Ok(());
    }
    record.measured("overload-rate", answered / capacity);
    let times = sent / capacity;
    record.remark("overload-rate", format!("{times:.1} times its capacity was sent"));
    let columns = ["a tenth of a core", "capacity", "sent", "answered", "peak memory, MiB"];
    let mut table = Table::new("Overload of portolan-dns", &columns, "Queries/s.");
    let cells = [capacity, sent, answered].map(|rate| format!("{rate:.0}"));
    table.row([format!("{TIMES} times")].into_iter().chain(cells).chain([format!("{:.1}", memory.peak)]));
    record.tables.push(table);
    Ok(())
}

/// Rates a second.
struct Rates {
    capacity: f64,
    sent: f64,
    answered: f64,
}

fn spin(core: usize, is_done: &AtomicBool) -> Result<()> {
    cores::reset_priority();
    cores::pin(core)?;
    while !is_done.load(Ordering::Relaxed) {
        std::hint::spin_loop();
    }
    Ok(())
}

fn overload(lab: &Lab, server: SocketAddr, queries: &Queries) -> Result<Rates> {
    let load = Load { lab, queries, kind: Kind::Udp };
    load.block(server, Duration::from_millis(500))?;
    let block = load.block(server, LENGTH)?;
    let capacity = block.units / block.took.as_secs_f64();
    lab.node.run(|| {
        cores::pin(lab.cores.generator)?;
        let (sent, answered) = flood(server, queries, capacity * TIMES)?;
        Ok(Rates { capacity, sent, answered })
    })
}

/// Sends at a fixed rate and counts all answers. Returns both rates, a second.
fn flood(server: SocketAddr, queries: &Queries, rate: f64) -> Result<(f64, f64)> {
    let sockets: Vec<UdpSocket> = (0..FLOWS)
        .map(|_| {
            let socket = UdpSocket::bind("0.0.0.0:0")?;
            socket.connect(server)?;
            socket.set_nonblocking(true)?;
            Ok(socket)
        })
        .collect::<Result<_>>()?;
    let (began, mut sent, mut answered) = (Instant::now(), 0_u64, 0_u64);
    let mut answer = [0; 1232];
    loop {
        let elapsed = began.elapsed();
        if elapsed >= LENGTH {
            let seconds = elapsed.as_secs_f64();
            return Ok((sent as f64 / seconds, answered as f64 / seconds));
        }
        if (sent as f64) < elapsed.as_secs_f64() * rate {
            let number = usize::try_from(sent)?;
            let query = &queries.messages[number % queries.messages.len()];
            // A query that does not fit into the socket buffer counts as sent.
            let _ = sockets[number % FLOWS].send(query);
            sent += 1;
        }
        let index = usize::try_from(sent)? % FLOWS;
        while let Ok(length) = sockets[index].recv(&mut answer) {
            answered += u64::from(length > 12 && answer[2] & 0x80 != 0 && answer[3] & 0xf == 0);
        }
    }
}
