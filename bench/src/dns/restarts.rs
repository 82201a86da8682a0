//! Queries lost during hot restarts and reloads, at a fixed rate of queries.

use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, ensure};

use super::changing_service::{self, ChangingService, DEADLINE};
use super::open_loop::OpenLoop;
use super::servers::Lab;
use super::workload::{self, Queries};
use crate::cores;
use crate::interrupt;
use crate::load::Block;
use crate::progress::Progress;
use crate::record::{Record, Table, micros};

/// Queries a second.
const RATE: u32 = 5000;

/// Pause before each reload: a reload takes milliseconds, and the queries after it count too.
const PAUSE: Duration = Duration::from_millis(20);

/// Measures `times` restarts and reloads with 10,000 Services.
pub(super) fn measure(record: &mut Record, times: usize) -> Result<()> {
    let mut lab = Lab::empty()?;
    let changing = ChangingService::start(&mut lab, &Queries::services())?;
    let note = format!(
        "{RATE} queries/s. Restart: a hot restart into a second process. Reload: a changed manifest of \
         another name. ms."
    );
    let columns = ["", "times", "queries", "lost", "p50", "p99", "max"];
    let mut table = Table::new("Restarts and reloads of portolan-dns", &columns, &note);
    let restart = |lab: &mut Lab, _| lab.hot_restart(0);
    let reload = |lab: &mut Lab, n| {
        std::thread::sleep(PAUSE);
        changing.write(n)?;
        changing.publish()?;
        wait_for(lab, n)
    };
    type Change<'a> = &'a dyn Fn(&mut Lab, usize) -> Result<()>;
    for (what, id, change) in
        [("restart", "restart-lost", &restart as Change<'_>), ("reload", "reload-lost", &reload)]
    {
        let (block, done) = query_during_changes(&mut lab, what, times, change)?;
        if done == 0 {
            continue;
        }
        let at = |quantile| format!("{:.2}", micros(block.latencies.value_at_quantile(quantile)) / 1000.0);
        let (sent, lost) = (block.units + block.errors as f64, block.errors);
        let counts = [done.to_string(), format!("{sent:.0}"), lost.to_string()];
        table.row([what.to_owned()].into_iter().chain(counts).chain([0.5, 0.99, 1.0].map(at)));
        record.measured(id, lost as f64);
        record.remark(id, format!("of {sent:.0}, over {done} {what}s"));
    }
    record.tables.push(table);
    Ok(())
}

/// Applies the changes in turn under a query load. Returns the result of the queries and the number of
/// changes.
fn query_during_changes(
    lab: &mut Lab,
    what: &str,
    times: usize,
    change: impl Fn(&mut Lab, usize) -> Result<()>,
) -> Result<(Block, usize)> {
    let (node, core, server) = (lab.node.clone(), lab.cores.generator, lab.servers[0].address);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let generator = scope.spawn(|| {
            node.run(|| {
                cores::pin(core)?;
                let (mut block, queries) = (Block::new(), Queries::services());
                let is_running = |_| !done.load(Ordering::Relaxed);
                OpenLoop::open(server, &queries, 0)?.load_while(&mut block, RATE, is_running)?;
                Ok(block)
            })
        });
        let mut progress = Progress::new(&format!("{what}s"), times);
        let mut made = 0;
        let changed = (1..=times).take_while(|_| !interrupt::requested()).try_for_each(|n| {
            progress.at(n);
            made = n;
            change(lab, n)
        });
        done.store(true, Ordering::Relaxed);
        let block: Result<Block> =
            generator.join().map_err(|_panic| anyhow!("the generator has panicked"))?;
        changed?;
        Ok((block?, made))
    })
}

/// Waits until an answer has the address of that change.
fn wait_for(lab: &Lab, n: usize) -> Result<()> {
    let server: SocketAddr = lab.servers[0].address;
    lab.node.run(|| {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.connect(server)?;
        socket.set_read_timeout(Some(DEADLINE))?;
        let began = Instant::now();
        loop {
            socket.send(&workload::query(changing_service::NAME))?;
            let mut answer = [0; 512];
            let length = socket.recv(&mut answer)?;
            if answer[..length].ends_with(&changing_service::address(n).octets()) {
                return Ok(());
            }
            ensure!(began.elapsed() < DEADLINE, "reload {n} is not visible after {DEADLINE:?}");
            std::thread::sleep(Duration::from_millis(1));
        }
    })
}
