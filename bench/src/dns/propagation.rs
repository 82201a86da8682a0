//! Time from the rename of a manifest to the first answer with its content, under a steady load.

use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use hdrhistogram::Histogram;

use super::changing_service::{self, ChangingService, DEADLINE};
use super::flows::FLOWS;
use super::servers::Lab;
use super::workload::{self, Queries};
use crate::cores;
use crate::interrupt;
use crate::load;
use crate::progress::Progress;
use crate::record::{Estimate, Record, micros};

/// Queries a second during the changes.
const RATE: u32 = 5000;

/// Pause after a visible change.
const PAUSE: Duration = Duration::from_millis(10);

/// Measures `changes` changes of an endpoint, with 10,000 other Services.
pub(super) fn measure(record: &mut Record, changes: usize) -> Result<()> {
    let mut lab = Lab::empty()?;
    let services = Queries::services();
    let changing = ChangingService::start(&mut lab, &services)?;
    let server = lab.servers[0].address;
    let (seen, lost) = lab.node.run(|| {
        cores::pin(lab.cores.generator)?;
        measure_changes(server, &services, &changing, changes)
    })?;
    if seen.is_empty() {
        return Ok(());
    }
    if lost > 0 {
        record.warnings.push(format!("event to visible: {lost} queries were not answered"));
    }
    record.distribution("event to visible", "portolan-dns", &seen);
    let at = |quantile| micros(seen.value_at_quantile(quantile)) / 1000.0;
    record.measured("event-visible", Estimate::from(at(0.99)));
    record.remark("event-visible", format!("p50 {:.2} ms; {} changes", at(0.5), seen.len()));
    Ok(())
}

/// Applies the changes; every second query is for the changing name. Returns the times and the number of lost
/// queries.
fn measure_changes(
    server: SocketAddr,
    queries: &Queries,
    changing: &ChangingService,
    changes: usize,
) -> Result<(Histogram<u64>, u64)> {
    let mut client = Client::new(server, queries)?;
    let mut seen = load::histogram();
    let mut progress = Progress::new("event to visible", changes);
    for change in 1..=changes {
        progress.at(change);
        if interrupt::requested() {
            break;
        }
        changing.write(change)?;
        client.run_for(PAUSE)?;
        let (renamed, wanted) = (Instant::now(), changing_service::address(change).octets());
        changing.publish()?;
        while client.run_until_answer()? != Some(wanted) {
            ensure!(renamed.elapsed() < DEADLINE, "change {change} is not visible after {DEADLINE:?}");
        }
        seen.record(u64::try_from(renamed.elapsed().as_nanos())?)?;
    }
    Ok((seen, client.lost))
}

/// Sends queries at a fixed rate, one at a time.
struct Client<'q> {
    sockets: Vec<UdpSocket>,
    queries: &'q Queries,
    probe: Vec<u8>,
    next: Instant,
    number: usize,
    lost: u64,
}

impl<'q> Client<'q> {
    fn new(server: SocketAddr, queries: &'q Queries) -> Result<Self> {
        let socket = || -> Result<UdpSocket> {
            let socket = UdpSocket::bind("0.0.0.0:0")?;
            socket.connect(server)?;
            socket.set_read_timeout(Some(Duration::from_millis(500)))?;
            Ok(socket)
        };
        let sockets = (0..FLOWS).map(|_| socket()).collect::<Result<_>>()?;
        let (probe, next) = (workload::query(changing_service::NAME), Instant::now());
        Ok(Self { sockets, queries, probe, next, number: 0, lost: 0 })
    }

    fn run_for(&mut self, length: Duration) -> Result<()> {
        let end = Instant::now() + length;
        while Instant::now() < end {
            self.run_until_answer()?;
        }
        Ok(())
    }

    /// Sends one query when it is due. Returns the address of the answer if the query was for the changing
    /// name.
    fn run_until_answer(&mut self) -> Result<Option<[u8; 4]>> {
        while Instant::now() < self.next {
            std::hint::spin_loop();
        }
        self.next += Duration::from_secs(1) / RATE;
        let number = self.number;
        self.number += 1;
        let is_probe = number % 2 == 1;
        let query =
            if is_probe { &self.probe } else { &self.queries.messages[number % self.queries.messages.len()] };
        let socket = &self.sockets[number % FLOWS];
        socket.send(query)?;
        let mut answer = [0; 1232];
        match socket.recv(&mut answer) {
            Ok(length) if is_probe => Ok(answer[..length].last_chunk().copied()),
            Ok(_) => Ok(None),
            Err(_) => {
                self.lost += 1;
                Ok(None)
            }
        }
    }
}
