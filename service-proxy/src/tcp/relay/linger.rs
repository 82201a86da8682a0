//! Delivers what a side has sent before it failed.
//!
//! A server that rejects a request responds before the end of the request and closes: its kernel resets the
//! connection, because data was unread. The response arrived before the reset and is in our receive queue.
//! Over a direct connection the client can read it, so it must here: it is read, sent, and acknowledged by
//! the other side's kernel before that side is reset, because a reset discards unsent data. Meanwhile the
//! other side may still be sending. Its data is read and discarded, or it might never start to read (nginx
//! does the same and calls it lingering close).

use std::future::poll_fn;
use std::task::{Context, Poll};
use std::time::Duration;

use super::{Direction, SHARED, poll_receive};
use crate::kernel::tcp_info;

/// The time limit, like nginx's `lingering_time`.
const LONGEST: Duration = Duration::from_secs(30);

/// The first and the last interval of checks for the acknowledgement.
const FIRST_LOOK: Duration = Duration::from_millis(1);
const LAST_LOOK: Duration = Duration::from_millis(50);

/// Delivers `rest`, which comes from the failed side, and discards what the other side sends. Returns when
/// the other side has acknowledged everything, has failed, or has exceeded the time limit.
pub(super) async fn deliver(rest: &mut Direction<'_>, discarded: &mut Direction<'_>) {
    let delivered = async {
        let mut open = true;
        let sent = poll_fn(|cx| {
            // There is no half-close to pass on, because a reset follows. It comes first, since a task may
            // read only so much at a time.
            let sent = rest.poll(cx, true);
            open = open && discarded.discard(cx);
            sent
        });
        if sent.await.is_err_and(|error| matches!(error, super::Error::Write(_))) {
            return;
        }
        let mut pause = FIRST_LOOK;
        while tcp_info::read(rest.to.as_ref()).is_ok_and(|info| info.has_unacknowledged()) {
            let discarding = poll_fn(|cx| {
                open = open && discarded.discard(cx);
                Poll::<()>::Pending
            });
            let _ = tokio::time::timeout(pause, discarding).await;
            pause = (pause * 2).min(LAST_LOOK);
        }
    };
    let _ = tokio::time::timeout(LONGEST, delivered).await;
}

impl Direction<'_> {
    /// Reads and discards what has arrived. Returns false at the end.
    fn discard(&mut self, cx: &mut Context<'_>) -> bool {
        SHARED.with_borrow_mut(|shared| {
            loop {
                match poll_receive(&self.from, cx, shared) {
                    Poll::Ready(Ok(1..)) => {}
                    Poll::Ready(_) => return false,
                    Poll::Pending => return true,
                }
            }
        })
    }
}
