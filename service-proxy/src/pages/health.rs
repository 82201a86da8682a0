//! `/healthz` and `/livez`, with kube-proxy's meaning: cloud load balancers query whether to use this node.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use daemon::admin::Response;
use hyper::StatusCode;
use jiff::Timestamp;
use serde_json::json;

use super::{Shown, Status};
use crate::metrics::Metrics;

/// How long a received state may take to be applied: like kube-proxy, twice its sync period.
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// Unhealthy if a state was not applied for a minute, or if the node is about to be removed, or if the proxy
/// drains.
pub(super) fn healthz(
    status: Status,
    metrics: Arc<Metrics>,
) -> impl Fn(&str) -> Response + Send + Sync + 'static {
    move |_| {
        let is_well = |shown: &Shown| is_healthy(shown) && !shown.leaving && !shown.draining;
        let (code, response) = status.with(|shown| answer(shown, is_well(shown)));
        metrics.kube_proxy.healthz.with_label_values(&[code.as_str()]).inc();
        response
    }
}

/// The same, independent of the node's removal and of a drain.
pub(super) fn livez(
    status: Status,
    metrics: Arc<Metrics>,
) -> impl Fn(&str) -> Response + Send + Sync + 'static {
    move |_| {
        let (code, response) = status.with(|shown| answer(shown, is_healthy(shown)));
        metrics.kube_proxy.livez.with_label_values(&[code.as_str()]).inc();
        response
    }
}

/// Also healthy before the first state.
pub(super) fn is_healthy(shown: &Shown) -> bool {
    shown.rejected_since.is_none_or(|since| since.elapsed() < LONGEST_WAIT)
}

fn answer(shown: &Shown, is_well: bool) -> (StatusCode, Response) {
    let code = if is_well { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let text = |time: SystemTime| Timestamp::try_from(time).map(|time| time.to_string()).unwrap_or_default();
    let body = json!({
        "lastUpdated": shown.updated.map(text),
        "currentTime": text(SystemTime::now()),
        "nodeEligible": !shown.leaving,
    });
    (code, Response::json(code, &body))
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn unapplied_rules_for_a_minute_or_a_node_about_to_be_removed_are_unhealthy() {
        let (status, metrics) =
            (Status::default(), Arc::new(Metrics::new(&crate::budget::Budget::new(100, 1))));
        let (healthz, livez) =
            (healthz(status.clone(), Arc::clone(&metrics)), livez(status.clone(), Arc::clone(&metrics)));
        let codes = || (healthz("").status.as_u16(), livez("").status.as_u16());
        assert_eq!(codes(), (200, 200), "while it starts");
        status.set(Shown { leaving: true, updated: Some(SystemTime::UNIX_EPOCH), ..Shown::default() });
        assert_eq!(codes(), (503, 200));
        let body = healthz("").body;
        assert!(body.contains(r#""lastUpdated":"1970-01-01T00:00:00Z""#), "{body}");
        assert!(body.contains(r#""nodeEligible":false"#), "{body}");
        let ago = |seconds: u64| Instant::now().checked_sub(Duration::from_secs(seconds));
        status.set(Shown { rejected_since: ago(30), ..Shown::default() });
        assert_eq!(codes(), (200, 200));
        status.set(Shown { rejected_since: ago(61), ..Shown::default() });
        assert_eq!(codes(), (503, 503));
        status.set(Shown::default());
        status.drain();
        assert_eq!(codes(), (503, 200), "while it drains");
        assert_eq!(metrics.kube_proxy.healthz.with_label_values(&["503"]).get(), 4);
    }
}
