//! Follows one resource for ever.

use std::fmt;
use std::time::{Duration, Instant};

use futures_util::{Stream, StreamExt as _};
use kube::api::{Api, ListParams, WatchEvent, WatchParams};
use kube::core::Status;
use tokio::sync::mpsc;

use super::access::{self, Access};
use super::kind::Kind;
use super::pause::Pause;
use super::replica::{Listing, Replica};
use crate::event::{Event, Outage};
use crate::problem::{Location, Problem, Severity};

/// How long the server may take to begin an answer.
const ANSWER: Duration = Duration::from_secs(30);

/// A watch without a word for so long is dead, though its connection may look alive: bookmarks come every minute.
const SILENCE: Duration = Duration::from_secs(90);

/// A watch that lasted so long was in order; others that end are not begun again at once.
const STEADY: Duration = Duration::from_secs(10);

/// Objects a page, where the list cannot be streamed.
const PAGE: u32 = 500;

/// Marks the bookmark that ends a streamed list.
const END_OF_LIST: &str = "k8s.io/initial-events-end";

/// Which objects are meant; empty means all.
#[derive(Clone, Debug, Default)]
pub(super) struct Selectors {
    pub(super) labels: String,
}

/// Follows one resource.
pub(super) struct Follower<K> {
    access: Access,
    selectors: Selectors,
    events: mpsc::Sender<Vec<Event>>,
    replica: Replica<K>,
    /// Where to go on; `None` means that everything has to be listed.
    version: Option<String>,
    /// Whether the server can stream a list.
    streams_lists: bool,
    /// When the server was heard last.
    heard: Instant,
}

/// Why a watch is over, or a request has failed.
#[derive(Debug)]
pub(super) enum Failure {
    /// Nothing can be said any more: the index has gone.
    Unheard,
    /// The version is no longer known, or was never one of this server's.
    Expired(String),
    Access(access::Error),
    Api(kube::Error),
    Silence(Duration),
}

impl<K: Kind> Follower<K> {
    pub(super) fn new(access: Access, selectors: Selectors, events: mpsc::Sender<Vec<Event>>) -> Self {
        Self {
            access,
            selectors,
            events,
            replica: Replica::new(),
            version: None,
            streams_lists: true,
            heard: Instant::now(),
        }
    }

    /// Keeps the names of endpoints' pods as well, or not.
    pub(super) fn keeping_pods(mut self, keeps: bool) -> Self {
        self.replica.keep_pods(keeps);
        self
    }

    /// Never ends before the index does.
    pub(super) async fn run(mut self) {
        let source = K::RESOURCE.source();
        let mut pause = Pause::default();
        let mut client = None;
        loop {
            let started = Instant::now();
            let outcome = self.session(&mut client).await;
            if started.elapsed() > STEADY {
                pause.reset();
            }
            let failure = match outcome {
                Ok(()) if started.elapsed() > STEADY => continue,
                Ok(()) => {
                    tokio::time::sleep(pause.next(Duration::ZERO)).await;
                    continue;
                }
                Err(Failure::Unheard) => return,
                Err(failure) => failure,
            };
            if let Failure::Expired(why) = &failure {
                tracing::info!(source, why, "listing everything again");
                self.version = None;
            } else if self.heard > started && self.version.is_some() {
                tracing::info!(source, error = %failure, "the watch broke, watching again");
            } else if self.tell(Some(&failure)).await.is_err() {
                return;
            }
            // The next one reads the certificates and tokens that are there then.
            client = None;
            tokio::time::sleep(pause.next(failure.asks_for())).await;
        }
    }

    /// Lists if need be, then watches until that ends.
    async fn session(&mut self, client: &mut Option<kube::Client>) -> Result<(), Failure> {
        let client = match client {
            Some(client) => client,
            None => client.insert(self.access.client().await.map_err(Failure::Access)?),
        };
        let api: Api<K> = Api::all(client.clone());
        if self.version.is_none() && !self.streams_lists {
            self.list_pages(&api).await?;
        }
        if self.version.is_some() {
            self.confirm(&api).await?;
        }
        let mut listing = self.version.is_none().then(Listing::default);
        let params = self.selectors.watch(listing.is_some());
        let version = self.version.clone().unwrap_or_default();
        let opened = answered(api.watch(&params, &version)).await;
        if listing.is_some() && opened.as_ref().is_err_and(Failure::is_about_the_request) {
            tracing::info!(
                source = K::RESOURCE.source(),
                "the server does not stream lists: listing in pages"
            );
            self.streams_lists = false;
            return Ok(());
        }
        let mut stream = std::pin::pin!(opened?);
        self.heard = Instant::now();
        if listing.is_none() {
            self.tell(None).await?;
        }
        while let Some(event) = next(&mut stream).await? {
            self.heard = Instant::now();
            let change = match event {
                WatchEvent::Added(object) | WatchEvent::Modified(object) => match &mut listing {
                    Some(listing) => {
                        self.replica.collect(listing, object);
                        continue;
                    }
                    None => {
                        self.reach(object.meta().resource_version.as_deref())?;
                        self.replica.update(object)
                    }
                },
                WatchEvent::Deleted(object) => {
                    self.reach(object.meta().resource_version.as_deref())?;
                    self.replica.remove(&object)
                }
                WatchEvent::Bookmark(bookmark) => {
                    if bookmark.metadata.annotations.get(END_OF_LIST).is_some_and(|end| end == "true")
                        && let Some(listing) = listing.take()
                    {
                        self.replace(listing, bookmark.metadata.resource_version).await?;
                    } else {
                        self.reach(Some(&bookmark.metadata.resource_version))?;
                    }
                    continue;
                }
                WatchEvent::Error(status) => return Err(Failure::of_status(status)),
            };
            if let Some(change) = change {
                self.send(vec![change]).await?;
            }
        }
        Ok(())
    }

    /// Whether the server has come as far as we have. A store that was restored from a backup has not, and a watch from a
    /// version in its future would say nothing until it has: not even bookmarks come (`cacheWatcher.process`).
    async fn confirm(&self, api: &Api<K>) -> Result<(), Failure> {
        let page = answered(api.list_metadata(&self.selectors.list().limit(1))).await?;
        self.compare(page.metadata.resource_version.as_deref().unwrap_or_default())
    }

    async fn list_pages(&mut self, api: &Api<K>) -> Result<(), Failure> {
        let mut listing = Listing::default();
        let mut params = self.selectors.list().limit(PAGE);
        loop {
            let page = answered(api.list(&params)).await?;
            self.heard = Instant::now();
            for object in page.items {
                self.replica.collect(&mut listing, object);
            }
            match page.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => params = params.continue_token(&token),
                None => {
                    return self.replace(listing, page.metadata.resource_version.unwrap_or_default()).await;
                }
            }
        }
    }

    /// A list is complete: all of it at once, and the source is in order.
    async fn replace(&mut self, listing: Listing, version: String) -> Result<(), Failure> {
        let source = K::RESOURCE.source();
        let mut events = self.replica.replace(listing);
        tracing::info!(source, changes = events.len(), version, "listed");
        events.push(Event::Source { name: source, outage: None });
        events.push(Event::Synced(source));
        self.version = Some(version);
        self.send(events).await
    }

    /// Notes how far the watch has come.
    fn reach(&mut self, version: Option<&str>) -> Result<(), Failure> {
        let Some(version) = version else { return Ok(()) };
        self.compare(version)?;
        self.version = Some(version.to_owned());
        Ok(())
    }

    /// A version before the one we have is another history: the server's data was restored from a backup, and what we know
    /// of it may never have been.
    fn compare(&self, version: &str) -> Result<(), Failure> {
        let number = |text: &str| text.parse::<u64>().ok();
        let before = self.version.as_deref().and_then(number);
        if number(version).zip(before).is_some_and(|(now, before)| now < before) {
            return Err(Failure::Expired(format!("version {version} comes after {:?}", self.version)));
        }
        Ok(())
    }

    /// The source cannot be followed, or can be again.
    async fn tell(&self, failure: Option<&Failure>) -> Result<(), Failure> {
        let outage = failure.map(|failure| {
            let message = format!("cannot be followed: {failure}; the last known state stays in force");
            let object = Some(K::RESOURCE.source().to_owned());
            let problem = Problem { location: Location::Api, severity: Severity::Error, object, message };
            Outage { problem, since: self.heard }
        });
        self.send(vec![Event::Source { name: K::RESOURCE.source(), outage }]).await
    }

    async fn send(&self, events: Vec<Event>) -> Result<(), Failure> {
        self.events.send(events).await.map_err(|_gone| Failure::Unheard)
    }
}

impl Selectors {
    fn list(&self) -> ListParams {
        ListParams { label_selector: self.text(), ..ListParams::default() }
    }

    /// The server ends each watch after five minutes at most, and so spreads them over its instances.
    fn watch(&self, lists_first: bool) -> WatchParams {
        WatchParams {
            label_selector: self.text(),
            field_selector: None,
            timeout: None,
            bookmarks: true,
            send_initial_events: lists_first,
        }
    }

    fn text(&self) -> Option<String> {
        Some(self.labels.clone()).filter(|text| !text.is_empty())
    }
}

/// An answer that begins in time.
pub(super) async fn answered<T>(answer: impl Future<Output = kube::Result<T>>) -> Result<T, Failure> {
    match tokio::time::timeout(ANSWER, answer).await {
        Ok(answer) => answer.map_err(Failure::of_error),
        Err(_elapsed) => Err(Failure::Silence(ANSWER)),
    }
}

/// The next event, in time; `None` if the server has closed the watch.
async fn next<K>(
    stream: &mut (impl Stream<Item = kube::Result<WatchEvent<K>>> + Unpin),
) -> Result<Option<WatchEvent<K>>, Failure> {
    match tokio::time::timeout(SILENCE, stream.next()).await {
        Ok(event) => event.transpose().map_err(Failure::of_error),
        Err(_elapsed) => Err(Failure::Silence(SILENCE)),
    }
}

impl Failure {
    fn of_error(error: kube::Error) -> Self {
        match error {
            kube::Error::Api(status) => Self::of_status(status),
            error => Self::Api(error),
        }
    }

    fn of_status(status: Box<Status>) -> Self {
        let is_expired = status.code == 410 || status.message.contains("Too large resource version");
        if is_expired { Self::Expired(status.message.clone()) } else { Self::Api(kube::Error::Api(status)) }
    }

    /// What the server has answered.
    pub(super) fn code(&self) -> Option<u16> {
        if let Self::Api(kube::Error::Api(status)) = self { Some(status.code) } else { None }
    }

    /// The server understood the request and will never do it.
    fn is_about_the_request(&self) -> bool {
        matches!(self.code(), Some(400 | 422))
    }

    /// Asking again, with the credentials there are then, will not help.
    pub(super) fn is_final(&self) -> bool {
        self.code().is_some_and(|code| (400..500).contains(&code) && !matches!(code, 401 | 429))
    }

    /// How long the server wants to be left alone.
    pub(super) fn asks_for(&self) -> Duration {
        let Self::Api(kube::Error::Api(status)) = self else { return Duration::ZERO };
        let seconds = status.details.as_ref().map_or(0, |details| details.retry_after_seconds);
        Duration::from_secs(u64::from(seconds))
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unheard => f.write_str("nobody listens"),
            Self::Expired(why) => f.write_str(why),
            Self::Silence(time) => write!(f, "no word from the server for {} s", time.as_secs()),
            Self::Api(kube::Error::Api(status)) => write!(f, "{} ({})", status.message, status.code),
            Self::Access(error) => f.write_str(&explain(error)),
            Self::Api(error) => f.write_str(&explain(error)),
        }
    }
}

/// Asks for one object, to see whether that is allowed; says what is wrong.
pub(super) async fn probe<K: Kind>(client: kube::Client, selectors: Selectors) -> Result<(), String> {
    let params = selectors.list().limit(1);
    let answer = answered(Api::<K>::all(client).list(&params)).await;
    answer.map(drop).map_err(|failure| failure.to_string())
}

/// An error with all its causes; many say nothing themselves.
pub(super) fn explain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        // Some repeat their cause.
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}
