//! What a side has sent before it failed.
//!
//! A server that refuses a request answers before the end of the request and closes: its kernel resets the
//! connection, since data was left unread. The answer arrived before the reset and is in our receive queue.
//! Over a direct connection the client reads it, and so it has to here: it is read, sent, and acknowledged by
//! the other side's kernel before that side is reset, because a reset discards what was not sent yet.
//! Meanwhile the other side may still be sending. What it sends is read and discarded, or it might never get
//! to reading (nginx does the same and calls it lingering close).

use std::future::poll_fn;
use std::task::{Context, Poll};
use std::time::Duration;

use super::{Direction, SHARED, poll_receive};
use crate::kernel::tcp_info;

/// How long it may take at most; the same as nginx's `lingering_time`.
const LONGEST: Duration = Duration::from_secs(30);

/// How soon it is looked for the acknowledgement: at first, and at last.
const FIRST_LOOK: Duration = Duration::from_millis(1);
const LAST_LOOK: Duration = Duration::from_millis(50);

/// Delivers `rest`, which comes from the side that failed, while what comes from the other side is discarded.
/// Returns when the other side has it all, has failed too, or has taken too long.
pub(super) async fn deliver(rest: &mut Direction<'_>, discarded: &mut Direction<'_>) {
    let delivered = async {
        let mut open = true;
        let sent = poll_fn(|cx| {
            // There is no half-close to pass on: a reset follows. It comes first, since a task may read only
            // so much at a time.
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
    /// Reads what has arrived and forgets it. False at the end.
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
