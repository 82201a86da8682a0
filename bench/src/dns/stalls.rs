//! What the machine itself takes from a server at half load.
//!
//! Two threads do nothing but look at the clock, one on each core. Where they miss some time, somebody else had the core: a
//! thread of the kernel, or another machine on the same host. From that follows what a server that never loses a moment of
//! its own would show.

use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};
use hdrhistogram::Histogram;

use crate::cores::{self, Cores};
use crate::interrupt;
use crate::load;
use crate::record::{Record, Table};
use crate::statistics::{Estimate, bootstrap};

/// Shorter ones are interrupts, which are part of every measurement.
const SHORTEST: Duration = Duration::from_micros(20);

/// When a core was away: from and to, nanoseconds since the beginning.
type Span = (u64, u64);

/// Adds a table: p99 of a server without a fault at this rate, which is half of what it can do, in blocks of that length.
pub(super) fn measure(
    record: &mut Record,
    cores: Cores,
    rate: u32,
    blocks: usize,
    length: Duration,
) -> Result<()> {
    let (mut p99, mut longest, mut away) = (Vec::new(), 0.0_f64, 0.0);
    for _ in 0..blocks {
        interrupt::check()?;
        let spans = watch(cores, length)?;
        let took = spans.iter().map(|(from, to)| (to - from) as f64 / 1e6);
        longest = took.clone().fold(longest, f64::max);
        away += took.sum::<f64>();
        p99.push(faultless(&spans, rate, length)?.value_at_quantile(0.99) as f64 / 1e6);
    }
    let Estimate { value, low, high } = bootstrap(&p99);
    let note = format!(
        "Two threads that look at the clock, one on each core, {blocks} times {} ms; what they missed, put before a queue that is \
         served at twice the rate at which it fills ({rate}/s).",
        length.as_millis()
    );
    let columns = ["", "p99 at half load, ms (95%)", "time without a core", "longest, ms"];
    let mut table = Table::new("A server without a fault on this machine", &columns, &note);
    let share = away / (blocks as f64 * length.as_secs_f64() * 1000.0) * 100.0;
    let cells =
        [format!("{value:.2} ({low:.2} to {high:.2})"), format!("{share:.2}%"), format!("{longest:.1}")];
    table.row(["nobody".to_owned()].into_iter().chain(cells));
    record.tables.push(table);
    Ok(())
}

/// When at least one of the cores was away, in order.
fn watch(cores: Cores, length: Duration) -> Result<Vec<Span>> {
    let began = Instant::now();
    let spans = std::thread::scope(|scope| {
        let threads =
            [cores.generator, cores.server].map(|core| scope.spawn(move || spin(core, began, length)));
        let mut all = Vec::new();
        for thread in threads {
            all.extend(thread.join().map_err(|_panic| anyhow!("a thread that spins has panicked"))??);
        }
        Ok::<_, anyhow::Error>(all)
    })?;
    Ok(merged(spans))
}

/// In order, those that overlap as one.
fn merged(mut spans: Vec<Span>) -> Vec<Span> {
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
        if now - last > SHORTEST {
            let since = |at: Instant| u64::try_from((at - began).as_nanos());
            spans.push((since(last)?, since(now)?));
        }
        last = now;
    }
    Ok(spans)
}

/// Latencies of a queue that is asked by the clock, and served in half of the interval but for those spans.
fn faultless(spans: &[Span], rate: u32, length: Duration) -> Result<Histogram<u64>> {
    let interval = 1_000_000_000 / u64::from(rate);
    let (service, mut free_at, mut latencies) = (interval / 2, 0, load::histogram());
    let mut spans = spans.iter().copied().peekable();
    for asked_at in (0..u64::try_from(length.as_nanos())?).step_by(usize::try_from(interval)?) {
        let started = asked_at.max(free_at);
        let mut done = started + service;
        while let Some((from, to)) = spans.next_if(|(from, _)| *from < done) {
            done += to.saturating_sub(from.max(started));
        }
        free_at = done;
        latencies.record(done - asked_at)?;
    }
    Ok(latencies)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn without_a_stall_there_is_only_the_service_and_a_stall_delays_twice_as_many_as_fall_into_it() {
        let calm = faultless(&[], 10_000, SECOND).unwrap();
        assert!((49_900..50_100).contains(&calm.max()), "{}", calm.max());
        // Ten milliseconds of a second: another ten until the queue is empty again.
        let stalled = faultless(&[(500_000_000, 510_000_000)], 10_000, SECOND).unwrap();
        let late = stalled.len() - stalled.count_between(0, 100_000);
        assert!((195..=205).contains(&late), "{late}");
        assert!((9_900_000..10_200_000).contains(&stalled.max()), "{}", stalled.max());
    }

    #[test]
    fn stalls_of_both_cores_at_a_time_count_once() {
        let spans = vec![(600, 601), (500, 510), (509, 512), (501, 505)];
        assert_eq!(merged(spans), [(500, 512), (600, 601)]);
    }
}
