//! A group of equivalent servers: hickory-resolver's pool, and its limit of waiting queries.

use std::sync::Arc;
use std::time::Duration;

use hickory_resolver::config::{ResolverOpts, ServerOrderingStrategy};
use hickory_resolver::net::xfer::FirstAnswer as _;
use hickory_resolver::net::{DnsHandle as _, NetError};
use hickory_resolver::proto::op::{DnsRequest, DnsRequestOptions, DnsResponse, Query};
use hickory_resolver::proto::rr::{Name, RecordType};
use hickory_resolver::proto::serialize::binary::BinDecodable as _;
use hickory_resolver::{NameServerPool, PoolContext, TlsConfig};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::answer::InvalidReply;
use super::failure::Cause;
use super::runtime::{MAX_PAYLOAD, Runtime};
use super::upstream::{ATTEMPTS, Attempts, BUDGET, Provider, Server};
use super::upstream_query::UpstreamQuery;

/// Minimum time for the first server before the next one is queried.
const MIN_TIMEOUT: Duration = Duration::from_secs(1);

/// Which server of a group is queried first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Policy {
    /// The two fastest of late, in parallel
    #[default]
    Fastest,
    /// The first, and the next one if it does not answer
    Sequential,
    /// Each in turn
    RoundRobin,
}

/// The servers.
#[derive(Clone)]
pub(super) struct Group(Arc<Inner>);

struct Inner {
    servers: Arc<[Arc<Server>]>,
    pool: NameServerPool<Provider>,
    limit: Arc<Semaphore>,
    random_case: bool,
}

impl Group {
    pub(super) fn new(
        servers: Vec<Arc<Server>>,
        (policy, random_case, limit): (Policy, bool, usize),
        runtime: Runtime,
    ) -> Self {
        let servers: Arc<[Arc<Server>]> = servers.into();
        let mut options = ResolverOpts::default();
        let (order, concurrent) = match policy {
            Policy::Fastest => (ServerOrderingStrategy::QueryStatistics, 2),
            Policy::Sequential => (ServerOrderingStrategy::UserProvidedOrder, 1),
            Policy::RoundRobin => (ServerOrderingStrategy::RoundRobin, 1),
        };
        options.server_ordering_strategy = order;
        options.num_concurrent_reqs = concurrent;
        options.timeout = BUDGET;
        options.try_tcp_on_error = true;
        options.case_randomization = random_case;
        let rounds = u32::try_from(servers.len().div_ceil(concurrent)).unwrap_or(u32::MAX).max(1);
        let patience = (BUDGET / rounds).max(MIN_TIMEOUT);
        let configs: Vec<_> = servers.iter().map(|server| server.config()).collect();
        // The pool opens no connection of its own: ours are in `Server`.
        let tls = TlsConfig::new().expect("ring offers what the default versions need");
        let provider = Provider { servers: Arc::clone(&servers), patience, runtime };
        let pool = NameServerPool::from_config(configs, Arc::new(PoolContext::new(options, tls)), provider);
        Self(Arc::new(Inner { servers, pool, limit: Arc::new(Semaphore::new(limit)), random_case }))
    }

    pub(super) fn servers(&self) -> &[Arc<Server>] {
        &self.0.servers
    }

    /// The permits for further waiting queries.
    pub(super) fn limit(&self) -> &Arc<Semaphore> {
        &self.0.limit
    }

    /// The first valid reply, and the number of servers that were queried.
    pub(super) async fn ask(&self, upstream_query: &UpstreamQuery<'_>) -> (Result<DnsResponse, Cause>, u64) {
        let Inner { servers, pool, random_case, .. } = &*self.0;
        if servers.is_empty() {
            return (Err(Cause::NoUpstream), 0);
        }
        if servers.iter().all(|server| server.is_looping()) {
            return (Err(Cause::Loop), 0);
        }
        let Some(request) = request(upstream_query, *random_case) else {
            return (Err(Cause::Invalid(InvalidReply::Malformed)), 0);
        };
        let asking = async {
            let answered = timeout(BUDGET, pool.send(request).first_answer()).await;
            let (count, invalid) = ATTEMPTS.with(|attempts| (attempts.count.get(), attempts.invalid.get()));
            let result = match answered {
                Ok(Ok(response)) => Ok(response),
                // An invalid reply explains more than a timeout of another server.
                failed => Err(invalid.map_or_else(|| cause(failed), Cause::Invalid)),
            };
            (result, count)
        };
        ATTEMPTS.scope(Attempts::default(), asking).await
    }
}

fn cause<T>(failed: Result<Result<T, NetError>, tokio::time::error::Elapsed>) -> Cause {
    match failed {
        Err(_elapsed) => Cause::Timeout,
        Ok(Err(NetError::Timeout)) => Cause::Timeout,
        Ok(Err(NetError::Truncated)) => Cause::Invalid(InvalidReply::Truncated),
        Ok(Err(NetError::Proto(_) | NetError::QueryCaseMismatch | NetError::ForeignClassRecord { .. })) => {
            Cause::Invalid(InvalidReply::Malformed)
        }
        Ok(_) => Cause::Network,
    }
}

/// The upstream query: of the client's query only the question and its two bits are forwarded.
pub(super) fn request(upstream_query: &UpstreamQuery<'_>, random_case: bool) -> Option<DnsRequest> {
    let name = Name::from_bytes(&upstream_query.name.wire().to_ascii_lowercase()).ok()?;
    let mut options = DnsRequestOptions::default();
    options.edns_payload_len = MAX_PAYLOAD;
    options.edns_set_dnssec_ok = upstream_query.dnssec_ok;
    options.case_randomization = random_case;
    let mut request =
        DnsRequest::from_query(Query::query(name, RecordType::from(upstream_query.kind)), options);
    request.metadata.checking_disabled = upstream_query.checking_disabled;
    // RFC 6840 §5.7: AD in a query requests AD in the answer, without signatures.
    request.metadata.authentic_data = !upstream_query.checking_disabled;
    Some(request)
}
