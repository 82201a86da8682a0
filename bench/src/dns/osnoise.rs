//! Noise of the machine, as `osnoise` of the kernel measures it, and its effect on a server at half load.
//!
//! Two threads read the clock in a loop, one on each core. A gap means that the core was taken: by a kernel
//! thread, or by another virtual machine on the host. A simulated queue with these gaps gives the p99 of an
//! ideal server.

use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};
use hdrhistogram::Histogram;

use crate::cores::{self, Cores};
use crate::interrupt;
use crate::load;
use crate::record::{Record, Table};
use crate::statistics::{Estimate, bootstrap};

/// Shorter gaps are interrupts, which are part of every measurement.
const THRESHOLD: Duration = Duration::from_micros(20);

/// A gap of a core: start and end, nanoseconds since the beginning.
type Span = (u64, u64);

/// Adds a table with the p99 of an ideal server at this rate, which is half of its capacity, in blocks of
/// that length.
pub(super) fn measure(
    record: &mut Record,
    cores: Cores,
    rate: u32,
    blocks: usize,
    length: Duration,
) -> Result<()> {
    let (mut p99, mut longest, mut lost) = (Vec::new(), 0.0_f64, 0.0);
    for _ in 0..blocks {
        interrupt::check()?;
        let spans = detect_gaps(cores, length)?;
        let took = spans.iter().map(|(from, to)| (to - from) as f64 / 1e6);
        longest = took.clone().fold(longest, f64::max);
        lost += took.sum::<f64>();
        p99.push(simulate_queue(&spans, rate, length)?.value_at_quantile(0.99) as f64 / 1e6);
    }
    let Estimate { value, low, high } = bootstrap(&p99);
    let note = format!(
        "Two threads read the clock, one on each core, {blocks} times {} ms. Their gaps are applied to a \
         simulated queue that is served at twice its arrival rate ({rate}/s).",
        length.as_millis()
    );
    let columns = ["", "p99 at half load, ms (95%)", "time without a core", "longest, ms"];
    let mut table = Table::new("An ideal server on this machine", &columns, &note);
    let share = lost / (blocks as f64 * length.as_secs_f64() * 1000.0) * 100.0;
    let cells =
        [format!("{value:.2} ({low:.2} to {high:.2})"), format!("{share:.2}%"), format!("{longest:.1}")];
    table.row(["ideal".to_owned()].into_iter().chain(cells));
    record.tables.push(table);
    Ok(())
}

/// Returns the gaps of both cores, in order.
fn detect_gaps(cores: Cores, length: Duration) -> Result<Vec<Span>> {
    let began = Instant::now();
    let spans = std::thread::scope(|scope| {
        let threads =
            [cores.generator, cores.server].map(|core| scope.spawn(move || spin(core, began, length)));
        let mut all = Vec::new();
        for thread in threads {
            all.extend(thread.join().map_err(|_panic| anyhow!("a spinning thread has panicked"))??);
        }
        Ok::<_, anyhow::Error>(all)
    })?;
    Ok(merge_overlapping(spans))
}

/// Sorts the gaps and merges overlapping ones.
fn merge_overlapping(mut spans: Vec<Span>) -> Vec<Span> {
    spans.sort_unstable();
    spans.dedup_by(|next, before| {
        let overlap = next.0 <= before.1;
        if overlap {
            before.1 = before.1.max(next.1);
        }
        overlap
    });
    spans
}

fn spin(core: usize, began: Instant, length: Duration) -> Result<Vec<Span>> {
    cores::pin(core)?;
    let (mut spans, mut last) = (Vec::new(), Instant::now());
    while last - began < length {
        let now = Instant::now();
        if now - last > THRESHOLD {
            let since = |at: Instant| u64::try_from((at - began).as_nanos());
            spans.push((since(last)?, since(now)?));
        }
        last = now;
    }
    Ok(spans)
}

/// Returns the latencies of a queue with arrivals at fixed intervals and a service time of half the interval,
/// except in gaps.
fn simulate_queue(spans: &[Span], rate: u32, length: Duration) -> Result<Histogram<u64>> {
    let interval = 1_000_000_000 / u64::from(rate);
    let (service, mut free_at, mut latencies) = (interval / 2, 0, load::histogram());
    let mut spans = spans.iter().copied().peekable();
    for arrived_at in (0..u64::try_from(length.as_nanos())?).step_by(usize::try_from(interval)?) {
        let started = arrived_at.max(free_at);
        let mut done = started + service;
        while let Some((from, to)) = spans.next_if(|(from, _)| *from < done) {
            done += to.saturating_sub(from.max(started));
        }
        free_at = done;
        latencies.record(done - arrived_at)?;
    }
    Ok(latencies)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn latency_is_the_service_time_without_gaps_and_a_gap_delays_twice_its_arrivals() {
        let calm = simulate_queue(&[], 10_000, SECOND).unwrap();
        assert!((49_900..50_100).contains(&calm.max()), "{}", calm.max());
        // A gap of 10 ms; the queue needs another 10 ms to drain.
        let stalled = simulate_queue(&[(500_000_000, 510_000_000)], 10_000, SECOND).unwrap();
        let late = stalled.len() - stalled.count_between(0, 100_000);
        assert!((195..=205).contains(&late), "{late}");
        assert!((9_900_000..10_200_000).contains(&stalled.max()), "{}", stalled.max());
    }

    #[test]
    fn overlapping_gaps_of_both_cores_count_once() {
        let spans = vec![(600, 601), (500, 510), (509, 512), (501, 505)];
        assert_eq!(merge_overlapping(spans), [(500, 512), (600, 601)]);
    }
}
