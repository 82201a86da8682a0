//! Asks several servers without waiting for the slow ones: the one expected to be quickest first, another one when it
//! takes longer than it usually does, and whoever answers first wins.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::time::{Instant, sleep_until};

use super::entry::Entry;
use super::failure::Cause;
use super::server::{Exchange, Server};

/// All attempts together: less than the 5 s after which clients turn away, with time left to say why.
pub(super) const BUDGET: Duration = Duration::from_secs(4);

/// Attempts in all. More would only add to what makes servers slow.
const ATTEMPTS: usize = 5;

/// The first server gets its own p95, within these bounds, before another one is asked too.
const SHORTEST_HEDGE: Duration = Duration::from_millis(20);
const LONGEST_HEDGE: Duration = Duration::from_millis(400);
const UNKNOWN_HEDGE: Duration = Duration::from_millis(200);

/// The pause between later attempts at most.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// The first answer that is of use. `hedged` is called for every attempt that is not the first.
pub(super) async fn race(
    servers: &[Arc<Server>],
    exchange: Exchange<'_>,
    hedged: impl Fn(),
) -> Result<Entry, Cause> {
    let deadline = Instant::now() + BUDGET;
    let order = order(servers);
    let Some(first) = order.first() else {
        return Err(if servers.is_empty() { Cause::NoUpstream } else { Cause::Loop });
    };
    let hedge = first.p95().map_or(UNKNOWN_HEDGE, |p95| p95.clamp(SHORTEST_HEDGE, LONGEST_HEDGE));
    let attempt = |number: usize| {
        let server = Arc::clone(order[number]);
        async move { (number, server.ask(exchange).await) }
    };
    let mut failed = vec![false; order.len()];
    let mut attempts = FuturesUnordered::from_iter([attempt(0)]);
    // Now and then a slower one runs along, to see whether it still is.
    attempts.extend((1..order.len()).find(|number| order[*number].is_unmeasured()).map(attempt));
    let mut turns = (1..ATTEMPTS).map(|n| n % order.len());
    let (mut pause, mut next_at) = (hedge, Instant::now() + hedge);
    let mut cause = Cause::Timeout;
    let mut is_over = false;
    loop {
        let is_due = tokio::select! {
            Some((number, result)) = attempts.next() => {
                match result {
                    Ok(entry) => return Ok(entry),
                    Err(error) => cause = error,
                }
                failed[number] = true;
                true
            }
            () = sleep_until(next_at), if !is_over => true,
            () = sleep_until(deadline) => return Err(Cause::Timeout),
        };
        if is_due && !is_over {
            match turns.find(|number| !failed[*number]) {
                Some(number) => {
                    hedged();
                    attempts.push(attempt(number));
                }
                None => is_over = true,
            }
            pause = (pause * 2).min(LONGEST_PAUSE);
            next_at = Instant::now() + pause;
        }
        if is_over && attempts.is_empty() {
            return Err(cause);
        }
    }
}

/// The quickest first; those that lead back to us are left out.
fn order(servers: &[Arc<Server>]) -> Vec<&Arc<Server>> {
    let mut order: Vec<_> = servers.iter().filter(|server| !server.is_looping()).collect();
    order.sort_by_cached_key(|server| server.expected());
    order
}
