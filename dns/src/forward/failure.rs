//! Why there is no answer, and for how long the question is not sent again (RFC 9520).

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use super::answer::InvalidReply;
use super::asked::Key;
use crate::message::{Ede, rcode};

/// The first pause after a failure, in milliseconds; it doubles with each that follows. RFC 9520 §3.2 asks
/// for 1 s at least and 5 min at most. Short, because what fails is often back soon.
const FIRST_PAUSE: u64 = 1000;
const LONGEST_PAUSE: u64 = 8000;

/// Failures that are remembered; when there are more, those that are over go first, then all.
const MAX_FAILURES: usize = 8192;

/// Why a query for a name outside the cluster has no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    pub(super) cause: Cause,
    /// No server was queried: it failed a moment ago.
    is_remembered: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cause {
    /// There is no server to ask.
    NoUpstream,
    /// Every server asks us in turn.
    Loop,
    /// As many queries wait for these servers as may.
    Overload,
    /// As many queries of this client wait as may.
    ClientOverload,
    /// None has answered in time.
    Timeout,
    /// None could be reached.
    Network,
    /// One has answered, but of no use.
    Invalid(InvalidReply),
}

impl From<Cause> for Failure {
    fn from(cause: Cause) -> Self {
        Self { cause, is_remembered: false }
    }
}

impl Failure {
    /// The response code for the client: the server's where one has answered. Without any upstream server the
    /// name is none of our business.
    pub(crate) fn rcode(&self) -> u16 {
        match self.cause {
            Cause::NoUpstream => rcode::REFUSED,
            // What EDNS adds to codes means something between that server and us.
            Cause::Invalid(InvalidReply::Code(code, _)) if code <= 0xf => code,
            _ => rcode::SERVFAIL,
        }
    }

    /// The code and text of the Extended DNS Error (RFC 8914 §4); that of the upstream server where it has
    /// sent one.
    pub(crate) fn explain(&self) -> (u16, &'static str) {
        if self.is_remembered {
            return (Ede::CachedError as u16, "failed a moment ago, not asked again yet");
        }
        match self.cause {
            Cause::NoUpstream => (Ede::NotSupported as u16, "no upstream server is configured"),
            Cause::Loop => (Ede::Other as u16, "the upstream servers ask this one: a forwarding loop"),
            Cause::Overload => (Ede::Other as u16, "too many queries are waiting for upstream servers"),
            Cause::ClientOverload => {
                (Ede::Other as u16, "too many queries of this client are waiting for upstream servers")
            }
            Cause::Timeout => (Ede::NoReachableAuthority as u16, "no upstream server has answered in time"),
            Cause::Network => (Ede::NetworkError as u16, "no upstream server can be reached"),
            Cause::Invalid(InvalidReply::Code(_, Some(reason))) => {
                (reason, "reported by the upstream server")
            }
            Cause::Invalid(InvalidReply::Code(..)) => {
                (Ede::NoReachableAuthority as u16, "the upstream servers failed or refused")
            }
            Cause::Invalid(InvalidReply::Referral) => {
                (Ede::NoReachableAuthority as u16, "the upstream server is no resolver")
            }
            Cause::Invalid(_) => (Ede::InvalidData as u16, "the upstream server's answer is malformed"),
        }
    }

    /// Whether it says something about the question or the servers, and not about us right now.
    fn is_for_keeping(&self) -> bool {
        !matches!(self.cause, Cause::Overload | Cause::ClientOverload | Cause::NoUpstream)
    }
}

/// What has failed lately. Only a query without an answer in the cache looks here.
#[derive(Debug, Default)]
pub(super) struct Failures(Mutex<HashMap<Key, Kept>>);

#[derive(Debug)]
struct Kept {
    failure: Failure,
    until: u64,
    pause: u64,
}

impl Failures {
    /// The failure that still stands.
    pub(super) fn get(&self, key: &Key, now: u64) -> Option<Failure> {
        let failures = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = failures.get(key).filter(|kept| now < kept.until)?;
        Some(Failure { is_remembered: true, ..kept.failure })
    }

    /// Remembers a failure, twice as long as the one before.
    pub(super) fn put(&self, key: Key, failure: Failure, now: u64) {
        if !failure.is_for_keeping() {
            return;
        }
        let mut failures = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if failures.len() >= MAX_FAILURES {
            failures.retain(|_, kept| now < kept.until);
        }
        if failures.len() >= MAX_FAILURES {
            failures.clear();
        }
        let pause = failures.get(&key).map_or(FIRST_PAUSE, |kept| (kept.pause * 2).min(LONGEST_PAUSE));
        failures.insert(key, Kept { failure, until: now + pause, pause });
    }

    /// It works again.
    pub(super) fn remove(&self, key: &Key) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::forward::asked::Asked;
    use crate::message::NameBuf;

    #[test]
    fn a_failure_stands_for_a_second_then_twice_as_long_and_never_for_minutes() {
        let name = NameBuf::from_text("broken.example").unwrap();
        let asked = Asked { name: name.as_name(), kind: 1, dnssec_ok: false, checking_disabled: false };
        let failures = Failures::default();
        let mut now = 0;
        for pause in [1000, 2000, 4000, 8000, 8000] {
            failures.put(asked.key(), Cause::Timeout.into(), now);
            let found = failures.get(&asked.key(), now + pause - 1).unwrap();
            assert_eq!((found.rcode(), found.explain().0), (2, 13), "EDE 13 Cached Error");
            assert_eq!(failures.get(&asked.key(), now + pause), None);
            now += pause;
        }
        failures.remove(&asked.key());
        failures.put(asked.key(), Cause::Overload.into(), now);
        assert_eq!(failures.get(&asked.key(), now), None, "overload is ours, not the name's");
    }
}
