//! Ten times as many queries as the server can answer.
//!
//! No generator asks ten times as fast as this server answers, on a machine of the same kind. So the server gets a tenth of
//! its core: it is as polite (`nice`) as it takes beside a thread that spins there.

use std::fs;
use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Result;

use super::flows::FLOWS;
use super::names::{self, Queries};
use super::servers::Lab;
use super::{Kind, Load};
use crate::cores;
use crate::record::{Record, Table};

/// The scheduler gives it 110 parts where the thread that spins gets 1024.
const NICE: &str = "10";

const LENGTH: Duration = Duration::from_secs(3);

const TIMES: f64 = 10.0;

pub(super) fn measure(record: &mut Record) -> Result<()> {
    let mut lab = Lab::empty()?;
    let manifests = lab.directory().join("manifests");
    fs::create_dir(&manifests)?;
    names::write_manifests(&manifests)?;
    let services = Queries::services();
    lab.start_portolan(&manifests, &[], &services)?;
    let server = &lab.servers[0];
    let threads = format!("/proc/{}/task", server.process.0);
    lab.node.shell(&format!("renice -n {NICE} -p $(ls {threads}) >&2"))?;
    let ends = AtomicBool::new(false);
    let found = std::thread::scope(|scope| {
        scope.spawn(|| spin(lab.cores.server, &ends));
        let found = overload(&lab, server.address, &services);
        ends.store(true, Ordering::Relaxed);
        found
    });
    let Found { capacity, asked, answered } = found?;
    let memory = server.process.memory();
    if capacity == 0.0 {
        record.not_measured.push("overload: a busy machine left nothing of the tenth of a core".to_owned());
        return Ok(());
    }
    record.measured("overload-rate", answered / capacity);
    let times = asked / capacity;
    record.remark("overload-rate", format!("{times:.1} times its capacity was asked of it"));
    let columns = ["a tenth of a core", "capacity", "asked", "answered", "peak memory, MiB"];
    let mut table = Table::new("Overload of portolan-dns", &columns, "Queries/s.");
    let cells = [capacity, asked, answered].map(|rate| format!("{rate:.0}"));
    table.row([format!("{TIMES} times")].into_iter().chain(cells).chain([format!("{:.1}", memory.peak)]));
    record.tables.push(table);
    Ok(())
}

/// Rates a second.
struct Found {
    capacity: f64,
    asked: f64,
    answered: f64,
}

fn spin(core: usize, ends: &AtomicBool) -> Result<()> {
    cores::give_up_precedence();
    cores::pin(core)?;
    while !ends.load(Ordering::Relaxed) {
        std::hint::spin_loop();
    }
    Ok(())
}

fn overload(lab: &Lab, server: SocketAddr, queries: &Queries) -> Result<Found> {
    let load = Load { lab, queries, kind: Kind::Datagrams };
    load.block(server, Duration::from_millis(500))?;
    let block = load.block(server, LENGTH)?;
    let capacity = block.units / block.took.as_secs_f64();
    lab.node.run(|| {
        cores::pin(lab.cores.generator)?;
        let (asked, answered) = flood(server, queries, capacity * TIMES)?;
        Ok(Found { capacity, asked, answered })
    })
}

/// Sends by the clock and counts what comes, whatever it answers to; both a second.
fn flood(server: SocketAddr, queries: &Queries, rate: f64) -> Result<(f64, f64)> {
    let sockets: Vec<UdpSocket> = (0..FLOWS)
        .map(|_| {
            let socket = UdpSocket::bind("0.0.0.0:0")?;
            socket.connect(server)?;
            socket.set_nonblocking(true)?;
            Ok(socket)
        })
        .collect::<Result<_>>()?;
    let (began, mut asked, mut answered) = (Instant::now(), 0_u64, 0_u64);
    let mut answer = [0; 1232];
    loop {
        let elapsed = began.elapsed();
        if elapsed >= LENGTH {
            let seconds = elapsed.as_secs_f64();
            return Ok((asked as f64 / seconds, answered as f64 / seconds));
        }
        if (asked as f64) < elapsed.as_secs_f64() * rate {
            let number = usize::try_from(asked)?;
            let query = &queries.messages[number % queries.messages.len()];
            // What finds no room is asked for all the same.
            drop(sockets[number % FLOWS].send(query));
            asked += 1;
        }
        let index = usize::try_from(asked)? % FLOWS;
        while let Ok(length) = sockets[index].recv(&mut answer) {
            answered += u64::from(length > 12 && answer[2] & 0x80 != 0 && answer[3] & 0xf == 0);
        }
    }
}
