//! Upstream failures, and how long they are cached (RFC 9520).

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use super::answer::InvalidReply;
use super::upstream_query::Key;
use crate::message::{Ede, rcode};

/// Duration of the first failure in milliseconds; it doubles with each further one. RFC 9520 §3.2 requires 1
/// s to 5 min. It is short, because failures are often short.
const FIRST_PAUSE: u64 = 1000;
const LONGEST_PAUSE: u64 = 8000;

/// Maximum number of cached failures. Beyond it expired ones are removed, then all.
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
    /// No server is configured.
    NoUpstream,
    /// Every server forwards to this one.
    Loop,
    /// The limit of queries that wait for these servers is reached.
    Overload,
    /// The limit of waiting queries of this client is reached.
    ClientOverload,
    /// No server answered in time.
    Timeout,
    /// No server could be reached.
    Network,
    /// The reply was invalid.
    Invalid(InvalidReply),
}

impl From<Cause> for Failure {
    fn from(cause: Cause) -> Self {
        Self { cause, is_remembered: false }
    }
}

impl Failure {
    /// The response code for the client: the server's, if it has replied. Without upstream servers the name
    /// is refused.
    pub(crate) fn rcode(&self) -> u16 {
        match self.cause {
            Cause::NoUpstream => rcode::REFUSED,
            // Extended codes are between that server and this one.
            Cause::Invalid(InvalidReply::Code(code, _)) if code <= 0xf => code,
            _ => rcode::SERVFAIL,
        }
    }

    /// The code and text of the Extended DNS Error (RFC 8914 §4); that of the upstream server, if it sent
    /// one.
    pub(crate) fn explain(&self) -> (u16, &'static str) {
        if self.is_remembered {
            return (Ede::CachedError as u16, "failed a moment ago, not upstream_query again yet");
        }
        match self.cause {
            Cause::NoUpstream => (Ede::NotSupported as u16, "no upstream server is configured"),
            Cause::Loop => (Ede::Other as u16, "the upstream servers forward to this one: a forwarding loop"),
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

    /// Whether it is about the question or the servers, and not about the load of this server.
    fn is_for_keeping(&self) -> bool {
        !matches!(self.cause, Cause::Overload | Cause::ClientOverload | Cause::NoUpstream)
    }
}

/// Recent failures. Only a query without a cached answer looks here.
#[derive(Debug, Default)]
pub(super) struct Failures(Mutex<HashMap<Key, Kept>>);

#[derive(Debug)]
struct Kept {
    failure: Failure,
    until: u64,
    pause: u64,
}

impl Failures {
    /// The failure, if it is still cached.
    pub(super) fn get(&self, key: &Key, now: u64) -> Option<Failure> {
        let failures = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = failures.get(key).filter(|kept| now < kept.until)?;
        Some(Failure { is_remembered: true, ..kept.failure })
    }

    /// Caches a failure, for twice as long as the previous one.
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

    /// Removes the failure after a success.
    pub(super) fn remove(&self, key: &Key) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::forward::upstream_query::UpstreamQuery;
    use crate::message::NameBuf;

    #[test]
    fn failure_is_cached_for_a_second_then_twice_as_long_and_never_for_minutes() {
        let name = NameBuf::from_text("broken.example").unwrap();
        let upstream_query =
            UpstreamQuery { name: name.as_name(), kind: 1, dnssec_ok: false, checking_disabled: false };
        let failures = Failures::default();
        let mut now = 0;
        for pause in [1000, 2000, 4000, 8000, 8000] {
            failures.put(upstream_query.key(), Cause::Timeout.into(), now);
            let found = failures.get(&upstream_query.key(), now + pause - 1).unwrap();
            assert_eq!((found.rcode(), found.explain().0), (2, 13), "EDE 13 Cached Error");
            assert_eq!(failures.get(&upstream_query.key(), now + pause), None);
            now += pause;
        }
        failures.remove(&upstream_query.key());
        failures.put(upstream_query.key(), Cause::Overload.into(), now);
        assert_eq!(failures.get(&upstream_query.key(), now), None, "overload of this server is not cached");
    }
}
