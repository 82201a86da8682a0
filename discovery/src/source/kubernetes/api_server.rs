//! The API server, as an HTTP service that `kube::Client` sends its requests to. It does what the library does not:
//!
//! - After a failure it connects anew, with the credentials that the files have then.
//! - Before a watch is resumed it asks for the server's version. A watch from a version that a restored etcd has not reached yet would be
//!   silent until it is reached, without even bookmarks (`cacheWatcher.process`).
//! - It sees the bookmarks, which [`kube::runtime::watcher`] keeps to itself, and so knows whether a watch is alive.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use futures_util::stream;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::Bytes;
use hyper::{Request, Response, StatusCode, Uri};
use kube::client::Body;
use serde::Deserialize;
use tower::BoxError;

use super::access::Access;

/// How long the server may take to begin an answer.
const ANSWER: Duration = Duration::from_secs(30);

/// A watch without a word for so long is dead, though its connection may look alive: bookmarks come every minute.
const SILENCE: Duration = Duration::from_secs(90);

/// Watches do not begin more often. The library begins the next one at once where the server has ended one.
const INTERVAL: Duration = Duration::from_secs(1);

type Answer = Response<UnsyncBoxBody<Bytes, BoxError>>;
type Part = hyper::body::Frame<Bytes>;

/// The way to the server for one resource. Clones share their connections.
#[derive(Clone, Debug)]
pub(super) struct ApiServer {
    access: Access,
    state: Arc<Mutex<State>>,
}

struct State {
    connection: Option<kube::Client>,
    watch: Option<Watch>,
    /// When the last watch began.
    began: Option<Instant>,
    /// Whether the last watch that is over was of use: it has said something.
    was_useful: bool,
    /// When a watch has said something last.
    heard: Instant,
}

/// A watch that the server has accepted.
#[derive(Debug)]
struct Watch {
    has_spoken: bool,
}

impl ApiServer {
    pub(super) fn new(access: Access) -> Self {
        let state =
            State { connection: None, watch: None, began: None, was_useful: true, heard: Instant::now() };
        Self { access, state: Arc::new(Mutex::new(state)) }
    }

    pub(super) fn client(&self) -> kube::Client {
        kube::Client::new(self.clone(), "default")
    }

    /// Whether a watch is open that can be relied on: it has said something, or the one before had.
    pub(super) fn is_watched(&self) -> bool {
        let state = self.state();
        state.watch.as_ref().is_some_and(|watch| watch.has_spoken || state.was_useful)
    }

    /// Whether the last watch, which is over, has said something.
    pub(super) fn was_useful(&self) -> bool {
        self.state().was_useful
    }

    /// When a watch has said something last.
    pub(super) fn heard(&self) -> Instant {
        self.state().heard
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn answer(self, request: Request<Body>) -> Result<Answer, BoxError> {
        if parameter(request.uri(), "watch").is_none() {
            let response = self.send(request).await?;
            return Ok(response.map(|body| self.bounded(body, false)));
        }
        let began = self.state().began;
        if let Some(rest) = began.and_then(|began| INTERVAL.checked_sub(began.elapsed())) {
            tokio::time::sleep(rest).await;
        }
        self.end_watch();
        let known = parameter(request.uri(), "resourceVersion").and_then(|version| version.parse().ok());
        if let Some(ours @ 1..) = known {
            let response = self.send(first_object(request.uri())?).await?;
            if !response.status().is_success() {
                return Ok(response.map(|body| self.bounded(body, false)));
            }
            let theirs = version(response).await?;
            if theirs < ours {
                return Ok(expired(&format!(
                    "the server is at version {theirs}, before {ours}: its data was restored"
                )));
            }
        }
        let response = self.send(request).await?;
        let is_open = response.status().is_success();
        if is_open {
            let mut state = self.state();
            state.began = Some(Instant::now());
            state.watch = Some(Watch { has_spoken: false });
        }
        Ok(response.map(|body| self.bounded(body, is_open)))
    }

    /// The body of an answer, which fails when it is silent.
    fn bounded(self, body: Body, is_watch: bool) -> UnsyncBoxBody<Bytes, BoxError> {
        let frames = stream::unfold(Some((self, body)), move |open| async move {
            let (server, mut body) = open?;
            let frame = match tokio::time::timeout(SILENCE, body.frame()).await {
                Ok(frame) => frame.map(|frame| frame.map_err(BoxError::from)),
                Err(_elapsed) => {
                    Some(Err(format!("no word from the server for {} s", SILENCE.as_secs()).into()))
                }
            };
            let frame = if is_watch { server.note(frame) } else { frame };
            if frame.as_ref()?.is_err() {
                server.state().connection = None;
                return Some((frame?, None));
            }
            Some((frame?, Some((server, body))))
        });
        StreamBody::new(frames).boxed_unsync()
    }

    /// Notes how a watch goes on. The server ends each from time to time, but not before it has said something.
    fn note(&self, frame: Option<Result<Part, BoxError>>) -> Option<Result<Part, BoxError>> {
        let has_spoken = {
            let mut state = self.state();
            if let (Some(Ok(_)), Some(watch)) = (&frame, &mut state.watch) {
                watch.has_spoken = true;
                state.heard = Instant::now();
                return frame;
            }
            state.watch.as_ref().is_some_and(|watch| watch.has_spoken)
        };
        self.end_watch();
        frame.or_else(|| (!has_spoken).then(|| Err("the server has ended the watch without a word".into())))
    }

    /// The follower, or the server, has ended the watch.
    pub(super) fn end_watch(&self) {
        let mut state = self.state();
        if let Some(watch) = state.watch.take() {
            state.was_useful = watch.has_spoken;
        }
    }

    /// Connects if need be. The next request connects anew if this one has failed.
    async fn send(&self, request: Request<Body>) -> Result<Response<Body>, BoxError> {
        let known = self.state().connection.clone();
        let connection = match known {
            Some(connection) => connection,
            None => {
                let fresh = self.access.client().await?;
                self.state().connection = Some(fresh.clone());
                fresh
            }
        };
        let answer = match tokio::time::timeout(ANSWER, connection.send(request)).await {
            Ok(answer) => answer.map_err(BoxError::from),
            Err(_elapsed) => Err(format!("no answer from the server for {} s", ANSWER.as_secs()).into()),
        };
        if !answer.as_ref().is_ok_and(|response| response.status() != StatusCode::UNAUTHORIZED) {
            self.state().connection = None;
        }
        answer
    }
}

impl tower::Service<Request<Body>> for ApiServer {
    type Response = Answer;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<Answer, BoxError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        Box::pin(self.clone().answer(request))
    }
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("State").field("watch", &self.watch).finish_non_exhaustive()
    }
}

/// A list of the first object that a watch is about.
fn first_object(watch: &Uri) -> Result<Request<Body>, BoxError> {
    let selector = parameter(watch, "labelSelector").map(|text| format!("&labelSelector={text}"));
    let uri = format!("{}?limit=1{}", watch.path(), selector.unwrap_or_default());
    Ok(Request::get(uri).body(Body::empty())?)
}

/// The version of a list.
async fn version(list: Response<Body>) -> Result<u64, BoxError> {
    let body = tokio::time::timeout(ANSWER, list.into_body().collect()).await??.to_bytes();
    let list: List = serde_json::from_slice(&body)?;
    Ok(list.metadata.resource_version.parse()?)
}

/// What a list says of itself.
#[derive(Deserialize)]
struct List {
    metadata: ListMeta,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ListMeta {
    resource_version: String,
}

/// A watch that says what a server says of a version it has forgotten: the library lists again then.
fn expired(message: &str) -> Answer {
    let event = serde_json::json!({ "type": "ERROR", "object": {
        "kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "Expired", "code": 410, "message": message,
    }});
    let body = Full::new(Bytes::from(format!("{event}\n")));
    Response::new(body.map_err(BoxError::from).boxed_unsync())
}

/// The value of a parameter of a request, as it is written there.
fn parameter<'a>(uri: &'a Uri, name: &str) -> Option<&'a str> {
    uri.query()?
        .split('&')
        .find_map(|pair| pair.split_once('=').filter(|(key, _)| *key == name))
        .map(|(_, value)| value)
}
