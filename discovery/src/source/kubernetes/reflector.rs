//! Lists and watches one resource.

use std::fmt;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::time::{Duration, Instant};

use backon::ExponentialBuilder;
use futures_util::{FutureExt as _, Stream, StreamExt as _};
use kube::api::{Api, ListParams};
use kube::core::Status;
use kube::runtime::utils::{Backoff as _, ResetTimerBackoff};
use kube::runtime::watcher::{self, ExponentialBackoff, watcher};
use tokio::sync::mpsc::{self, error::SendError};

use super::access::Access;
use super::api_server::ApiServer;
use super::decoded::Decoded;
use super::kind::Kind;
use super::replica::{Listing, Replica};
use crate::event::{Event, SourceFailure};
use crate::event_record::Recorder;
use crate::problem::{Location, Problem, Severity};

/// Interval of checks while a source has failed.
const TICK: Duration = Duration::from_secs(1);

/// Interval of retries for an optional resource that the server lacks or does not allow to read.
const OPTIONAL: Duration = Duration::from_secs(60);

pub(super) type Pause = ResetTimerBackoff<ExponentialBackoff>;
type Events<K> = Pin<Box<dyn Stream<Item = watcher::Result<watcher::Event<Decoded<K>>>> + Send>>;

/// Lists and watches one resource, and sends its changes to the index.
pub(super) struct Reflector<K> {
    server: ApiServer,
    /// Label selector; empty means all objects.
    labels: String,
    events: mpsc::Sender<Vec<Event>>,
    replica: Replica<K>,
    /// The list in progress.
    listing: Option<Listing>,
    /// Whether the server can stream a list.
    streams_lists: bool,
    /// Whether it was reported to the index that the source has failed.
    is_out: bool,
    /// Whether it was logged that an optional resource is missing.
    is_missing: bool,
}

/// Fails once the index no longer receives events.
type Sent<T = ()> = Result<T, SendError<Vec<Event>>>;

/// Why a request or a watch has failed.
#[derive(Debug)]
pub(super) struct Failure(pub(super) kube::Error);

impl<K: Kind> Reflector<K> {
    pub(super) fn new(
        access: Access,
        labels: String,
        recorder: Recorder,
        keeps_pods: bool,
        events: mpsc::Sender<Vec<Event>>,
    ) -> Self {
        Self {
            server: ApiServer::new(access),
            labels,
            events,
            replica: Replica::new(recorder, keeps_pods),
            listing: None,
            streams_lists: true,
            is_out: false,
            is_missing: false,
        }
    }

    /// Ends with the index.
    pub(super) async fn run(mut self) {
        let events = self.events.clone();
        let watching = async {
            let _ = self.list_and_watch().await;
        };
        reporting_panics(K::RESOURCE.source(), events, watching).await;
    }

    async fn list_and_watch(&mut self) -> Sent {
        let (mut stream, mut pause) = (self.watch(), pause());
        loop {
            let wait = if self.is_out { TICK } else { Duration::MAX };
            match tokio::time::timeout(wait, stream.next()).await {
                Ok(Some(Ok(event))) => self.take(event, &mut pause).await?,
                Ok(Some(Err(error))) => {
                    if self.fail(error, &mut pause).await? {
                        stream = self.watch();
                    }
                }
                Ok(None) => return Ok(()),
                Err(_elapsed) if self.server.is_watching() && self.listing.is_none() => {
                    self.report(None).await?
                }
                Err(_elapsed) => {}
            }
        }
    }

    /// Lists, then watches, and restarts the watch.
    fn watch(&mut self) -> Events<K> {
        self.listing = None;
        self.server.end_watch();
        let config = watcher::Config::default();
        let config = if self.streams_lists { config.streaming_lists() } else { config };
        let config = if self.labels.is_empty() { config } else { config.labels(&self.labels) };
        Box::pin(watcher(Api::all(self.server.client()), config))
    }

    /// A list begins. If the server ended the last list too early, the library begins another one without an
    /// error.
    async fn begin_list(&mut self, pause: &mut Pause) -> Sent {
        if let Some(before) = self.listing.take().filter(|listing| !listing.has_failed) {
            let line = before.unreadable.map(|error| format!(": {error}")).unwrap_or_default();
            let error = format!("the list ended before it was complete{line}");
            self.report(Some(&Failure(kube::Error::Service(error.into())))).await?;
            tokio::time::sleep(pause.next().unwrap_or(OPTIONAL)).await;
        }
        self.listing = Some(Listing::default());
        Ok(())
    }

    async fn take(&mut self, event: watcher::Event<Decoded<K>>, pause: &mut Pause) -> Sent {
        let change = match event {
            watcher::Event::Init => return self.begin_list(pause).await,
            watcher::Event::InitApply(object) => {
                if let Some(listing) = &mut self.listing {
                    self.replica.collect(listing, object);
                }
                return Ok(());
            }
            watcher::Event::InitDone => {
                let source = K::RESOURCE.source();
                let listing = self.listing.take().unwrap_or_default();
                if let Some(error) = &listing.unreadable {
                    tracing::error!(source, error, "lines of the list are left out");
                }
                let mut events = self.replica.replace(listing);
                tracing::info!(source, changes = events.len(), "listed");
                events.push(Event::Source { name: source, failure: None });
                events.push(Event::Synced(source));
                (self.is_out, self.is_missing) = (false, false);
                pause.reset();
                return self.send(events).await;
            }
            watcher::Event::Apply(object) => self.replica.update(object),
            watcher::Event::Delete(object) => self.replica.remove(&object),
        };
        pause.reset();
        if self.is_out {
            self.report(None).await?;
        }
        if let Some(change) = change {
            self.send(vec![change]).await?;
        }
        Ok(())
    }

    /// Reports a failure and waits. Returns whether everything has to be listed again.
    async fn fail(&mut self, error: watcher::Error, pause: &mut Pause) -> Sent<bool> {
        let source = K::RESOURCE.source();
        let is_start = matches!(error, watcher::Error::WatchStartFailed(_));
        let is_break = matches!(error, watcher::Error::WatchFailed(_));
        let is_in_stream = is_break || matches!(error, watcher::Error::WatchError(_));
        let failure = Failure::of(error);
        if !is_in_stream || failure.code() == Some(410) {
            // The list has ended.
            self.listing = None;
        }
        if let (true, Some(listing)) = (failure.is_unreadable(), &mut self.listing) {
            listing.unreadable.get_or_insert_with(|| failure.to_string());
            return Ok(false);
        }
        let mut wait = pause.next().unwrap_or(OPTIONAL).max(failure.retry_after());
        let mut lists_again = false;
        if failure.is_unreadable() {
            // The list contains what the line was about.
            self.report(Some(&failure)).await?;
            lists_again = true;
        } else if failure.code() == Some(410) {
            tracing::info!(source, why = %failure, "listing everything again");
            lists_again = is_start;
        } else if is_start && self.streams_lists && matches!(failure.code(), Some(400 | 422)) {
            tracing::info!(source, "the server does not stream lists: listing in pages");
            self.streams_lists = false;
            lists_again = true;
        } else if K::RESOURCE.is_optional() && matches!(failure.code(), Some(403 | 404)) {
            if !std::mem::replace(&mut self.is_missing, true) {
                tracing::warn!(source, error = %failure, "optional resource is not available; continuing without it");
            }
            wait = wait.max(OPTIONAL);
            self.is_out = false;
            self.send(vec![Event::Source { name: source, failure: None }, Event::Synced(source)]).await?;
        } else if is_break && self.listing.is_none() && self.server.last_watch_delivered() {
            tracing::info!(source, error = %failure, "the watch broke, watching again");
        } else {
            self.report(Some(&failure)).await?;
        }
        tokio::time::sleep(wait).await;
        Ok(lists_again)
    }

    /// Reports to the index that the source has failed, or works again.
    async fn report(&mut self, failure: Option<&Failure>) -> Sent {
        self.is_out = failure.is_some();
        if let Some(listing) = &mut self.listing {
            listing.has_failed |= self.is_out;
        }
        let (name, since) = (K::RESOURCE.source(), self.server.last_frame());
        let failure = failure.map(|failure| source_failure(name, since, &failure.to_string()));
        self.send(vec![Event::Source { name, failure }]).await
    }

    async fn send(&self, events: Vec<Event>) -> Sent {
        self.events.send(events).await
    }
}

fn source_failure(source: &str, since: Instant, why: &str) -> SourceFailure {
    let message = format!("cannot be watched: {why}; the last known state stays applied");
    let object = Some(source.to_owned());
    SourceFailure {
        problem: Problem { location: Location::Api, severity: Severity::Error, object, message },
        since,
    }
}

/// Runs a reflector. If it panics, reports to the index that its source is no longer watched.
async fn reporting_panics(
    name: &'static str,
    events: mpsc::Sender<Vec<Event>>,
    work: impl Future<Output = ()>,
) {
    if AssertUnwindSafe(work).catch_unwind().await.is_err() {
        let why = "a bug stopped its reflector; restart the program to resume";
        let failure = Some(source_failure(name, Instant::now(), why));
        // It fails only if the index has ended too.
        let _ = events.send(vec![Event::Source { name, failure }]).await;
    }
}

/// The back-off: doubles from 0.2 s to 10 s, half of it random, so that the nodes of a cluster do not all
/// retry at once.
pub(super) fn pause() -> Pause {
    let bounds = ExponentialBuilder::default()
        .with_min_delay(Duration::from_millis(100))
        .with_max_delay(Duration::from_secs(5))
        .with_factor(2.0)
        .with_jitter()
        .without_max_times();
    // A failure after this time is a new one.
    ResetTimerBackoff::new(bounds.into(), Duration::from_secs(30))
}

impl Failure {
    fn of(error: watcher::Error) -> Self {
        Self(match error {
            watcher::Error::InitialListFailed(error)
            | watcher::Error::WatchStartFailed(error)
            | watcher::Error::WatchFailed(error) => error,
            watcher::Error::WatchError(status) => kube::Error::Api(status),
            error @ watcher::Error::NoResourceVersion => kube::Error::Service(error.into()),
        })
    }

    fn status(&self) -> Option<&Status> {
        if let kube::Error::Api(status) = &self.0 { Some(status) } else { None }
    }

    /// The HTTP status of the server.
    fn code(&self) -> Option<u16> {
        self.status().map(|status| status.code)
    }

    /// A line is not an event. The library takes an object without any known field for a status.
    fn is_unreadable(&self) -> bool {
        matches!(self.0, kube::Error::SerdeError(_)) || self.code() == Some(0)
    }

    /// The same request with the current credentials will fail again.
    pub(super) fn is_final(&self) -> bool {
        self.code().is_some_and(|code| (400..500).contains(&code) && !matches!(code, 401 | 404 | 429))
    }

    /// The server's Retry-After, with jitter, so that not all clients come back at once.
    pub(super) fn retry_after(&self) -> Duration {
        let details = self.status().and_then(|status| status.details.as_ref());
        let seconds = details.map_or(0, |details| details.retry_after_seconds);
        Duration::from_secs(u64::from(seconds)).mul_f64(1.0 + fastrand::f64() / 2.0)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.status() {
            Some(status) => write!(f, "{} ({})", status.message, status.code),
            None => f.write_str(&explain(&self.0)),
        }
    }
}

/// Requests one object to check for permission.
///
/// # Errors
/// The problem, and whether a cluster may be in that state.
pub(super) async fn probe<K: Kind>(server: &ApiServer, labels: &str) -> Result<(), (String, bool)> {
    let params =
        ListParams { limit: Some(1), label_selector: Some(labels.to_owned()), ..ListParams::default() };
    let answer = Api::<Decoded<K>>::all(server.client()).list(&params).await.map_err(Failure);
    answer.map(|_found| ()).map_err(|failure| {
        let is_optional = K::RESOURCE.is_optional() && matches!(failure.code(), Some(403 | 404));
        (failure.to_string(), is_optional)
    })
}

/// An error with all its causes. Many do not show their causes, and some repeat them.
fn explain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source()).map(ToString::to_string);
    let joined =
        causes.reduce(|text, cause| if text.contains(&cause) { text } else { format!("{text}: {cause}") });
    joined.unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn reflector_that_panics_ends_with_a_failure() {
        let (events, mut queue) = mpsc::channel(8);
        reporting_panics("kubernetes/services", events, async { panic!("a bug") }).await;
        let received = queue.recv().await.unwrap();
        let [Event::Source { name: "kubernetes/services", failure: Some(failure) }] = &received[..] else {
            panic!("{received:?}")
        };
        assert!(failure.problem.message.contains("a bug stopped its reflector"), "{failure:?}");
        assert!(queue.recv().await.is_none());
    }
}
