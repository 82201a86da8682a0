//! Follows one resource for ever.

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
use crate::event::{Event, Outage};
use crate::notice::Recorder;
use crate::problem::{Location, Problem, Severity};

/// How often a source that cannot be followed is looked at.
const TICK: Duration = Duration::from_secs(1);

/// A server without an optional resource, or without the right to it, is asked again after this.
const OPTIONAL: Duration = Duration::from_secs(60);

pub(super) type Pause = ResetTimerBackoff<ExponentialBackoff>;
type Events<K> = Pin<Box<dyn Stream<Item = watcher::Result<watcher::Event<Decoded<K>>>> + Send>>;

/// Follows one resource.
pub(super) struct Follower<K> {
    server: ApiServer,
    /// Label selector; empty means all objects.
    labels: String,
    events: mpsc::Sender<Vec<Event>>,
    replica: Replica<K>,
    /// A list under way.
    listing: Option<Listing>,
    /// Whether the server can stream a list.
    streams_lists: bool,
    /// Whether the index knows that the source cannot be followed.
    is_out: bool,
    /// Whether the log says that an optional resource is not there.
    is_missing: bool,
}

/// It fails once the index no longer receives events.
type Sent<T = ()> = Result<T, SendError<Vec<Event>>>;

/// Why a request has failed, or a watch.
#[derive(Debug)]
pub(super) struct Failure(pub(super) kube::Error);

impl<K: Kind> Follower<K> {
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
        let following = async {
            let _ = self.follow().await;
        };
        reporting_panics(K::RESOURCE.source(), events, following).await;
    }

    async fn follow(&mut self) -> Sent {
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
                Err(_elapsed) if self.server.is_watched() && self.listing.is_none() => {
                    self.tell(None).await?
                }
                Err(_elapsed) => {}
            }
        }
    }

    /// Lists, then watches, then watches again.
    fn watch(&mut self) -> Events<K> {
        self.listing = None;
        self.server.end_watch();
        let config = watcher::Config::default();
        let config = if self.streams_lists { config.streaming_lists() } else { config };
        let config = if self.labels.is_empty() { config } else { config.labels(&self.labels) };
        Box::pin(watcher(Api::all(self.server.client()), config))
    }

    /// A list begins. The library begins another one without an error where the server ended the last one too
    /// early.
    async fn begin_list(&mut self, pause: &mut Pause) -> Sent {
        if let Some(before) = self.listing.take().filter(|listing| !listing.has_failed) {
            let line = before.unreadable.map(|error| format!(": {error}")).unwrap_or_default();
            let error = format!("the list ended before it was complete{line}");
            self.tell(Some(&Failure(kube::Error::Service(error.into())))).await?;
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
                events.push(Event::Source { name: source, outage: None });
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
            self.tell(None).await?;
        }
        if let Some(change) = change {
            self.send(vec![change]).await?;
        }
        Ok(())
    }

    /// Says what is wrong and waits. Returns whether everything has to be listed again.
    async fn fail(&mut self, error: watcher::Error, pause: &mut Pause) -> Sent<bool> {
        let source = K::RESOURCE.source();
        let is_start = matches!(error, watcher::Error::WatchStartFailed(_));
        let is_break = matches!(error, watcher::Error::WatchFailed(_));
        let is_in_stream = is_break || matches!(error, watcher::Error::WatchError(_));
        let failure = Failure::of(error);
        if !is_in_stream || failure.code() == Some(410) {
            // The list is over.
            self.listing = None;
        }
        if let (true, Some(listing)) = (failure.is_unreadable(), &mut self.listing) {
            listing.unreadable.get_or_insert_with(|| failure.to_string());
            return Ok(false);
        }
        let mut wait = pause.next().unwrap_or(OPTIONAL).max(failure.asks_for());
        let mut lists_again = false;
        if failure.is_unreadable() {
            // What it was about is in the list.
            self.tell(Some(&failure)).await?;
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
                tracing::warn!(source, error = %failure, "not followed: going on without");
            }
            wait = wait.max(OPTIONAL);
            self.is_out = false;
            self.send(vec![Event::Source { name: source, outage: None }, Event::Synced(source)]).await?;
        } else if is_break && self.listing.is_none() && self.server.was_useful() {
            tracing::info!(source, error = %failure, "the watch broke, watching again");
        } else {
            self.tell(Some(&failure)).await?;
        }
        tokio::time::sleep(wait).await;
        Ok(lists_again)
    }

    /// The source cannot be followed, or can be again.
    async fn tell(&mut self, failure: Option<&Failure>) -> Sent {
        self.is_out = failure.is_some();
        if let Some(listing) = &mut self.listing {
            listing.has_failed |= self.is_out;
        }
        let (name, since) = (K::RESOURCE.source(), self.server.heard());
        let outage = failure.map(|failure| outage(name, since, &failure.to_string()));
        self.send(vec![Event::Source { name, outage }]).await
    }

    async fn send(&self, events: Vec<Event>) -> Sent {
        self.events.send(events).await
    }
}

fn outage(source: &str, since: Instant, why: &str) -> Outage {
    let message = format!("cannot be followed: {why}; the last known state stays in force");
    let object = Some(source.to_owned());
    Outage { problem: Problem { location: Location::Api, severity: Severity::Error, object, message }, since }
}

/// Does the work of a follower. If a bug ends it, its source is no longer followed, and the index has to know.
async fn reporting_panics(
    name: &'static str,
    events: mpsc::Sender<Vec<Event>>,
    work: impl Future<Output = ()>,
) {
    if AssertUnwindSafe(work).catch_unwind().await.is_err() {
        let why = "a bug ended its follower, restart the program to go on";
        let outage = Some(outage(name, Instant::now(), why));
        // It fails once the index has ended too.
        let _ = events.send(vec![Event::Source { name, outage }]).await;
    }
}

/// Doubles from 0.2 s to 10 s. Half of it is left to chance, so that the nodes of a cluster do not all ask at
/// once.
pub(super) fn pause() -> Pause {
    let bounds = ExponentialBuilder::default()
        .with_min_delay(Duration::from_millis(100))
        .with_max_delay(Duration::from_secs(5))
        .with_factor(2.0)
        .with_jitter()
        .without_max_times();
    // What fails again after so long is another failure.
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

    /// What the server has answered.
    fn code(&self) -> Option<u16> {
        self.status().map(|status| status.code)
    }

    /// A line is no event at all. The library takes an object without any known field for a status.
    fn is_unreadable(&self) -> bool {
        matches!(self.0, kube::Error::SerdeError(_)) || self.code() == Some(0)
    }

    /// The same request, with the credentials there are then, will fail again.
    pub(super) fn is_final(&self) -> bool {
        self.code().is_some_and(|code| (400..500).contains(&code) && !matches!(code, 401 | 404 | 429))
    }

    /// How long the server wants to be left alone; some is added, so that not all clients come back at once.
    pub(super) fn asks_for(&self) -> Duration {
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

/// Asks for one object, to see whether that is allowed.
///
/// # Errors
/// What is wrong, and whether a cluster may be like that.
pub(super) async fn probe<K: Kind>(server: &ApiServer, labels: &str) -> Result<(), (String, bool)> {
    let params =
        ListParams { limit: Some(1), label_selector: Some(labels.to_owned()), ..ListParams::default() };
    let answer = Api::<Decoded<K>>::all(server.client()).list(&params).await.map_err(Failure);
    answer.map(drop).map_err(|failure| {
        let is_optional = K::RESOURCE.is_optional() && matches!(failure.code(), Some(403 | 404));
        (failure.to_string(), is_optional)
    })
}

/// An error with all its causes; many name none themselves, and some repeat theirs.
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
    async fn a_follower_that_panics_ends_with_an_outage() {
        let (events, mut queue) = mpsc::channel(8);
        reporting_panics("kubernetes/services", events, async { panic!("a bug") }).await;
        let told = queue.recv().await.unwrap();
        let [Event::Source { name: "kubernetes/services", outage: Some(outage) }] = &told[..] else {
            panic!("{told:?}")
        };
        assert!(outage.problem.message.contains("a bug ended its follower"), "{outage:?}");
        assert!(queue.recv().await.is_none());
    }
}
