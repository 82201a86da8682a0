//! The API server, as an HTTP service that `kube::Client` sends its requests to. It does what the library
//! does not:
//!
//! - After a failure it connects anew, with the credentials that the files have then.
//! - Before a watch is resumed it requests the server's version. A watch from a version that a restored etcd
//!   has not reached yet would be silent until it is reached, without even bookmarks
//!   (`cacheWatcher.process`).
//! - It sees the bookmarks, which [`kube::runtime::watcher`] consumes, and so knows whether a watch is alive.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use futures_util::stream;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::{Bytes, Frame};
use hyper::{Request, Response, StatusCode, Uri};
use kube::client::Body;
use tower::BoxError;

use super::access::Access;

/// How long the server may take to begin an answer.
const ANSWER: Duration = Duration::from_secs(30);

/// A watch without a frame for so long is dead, though its connection may look alive: bookmarks come every
/// minute.
const SILENCE: Duration = Duration::from_secs(90);

/// Watches do not begin more often. The library begins the next one at once where the server has ended one.
const INTERVAL: Duration = Duration::from_secs(1);

type Answer = Response<UnsyncBoxBody<Bytes, BoxError>>;

/// The way to the server for one resource. Clones share their connections.
#[derive(Clone)]
pub(super) struct ApiServer {
    access: Access,
    state: Arc<Mutex<State>>,
}

struct State {
    connection: Option<kube::Client>,
    /// Whether something has come on the watch that is open, if one is.
    watch: Option<bool>,
    /// Whether something came on the last watch that has ended.
    was_useful: bool,
    /// When the last watch began.
    began: Option<Instant>,
    /// When something came on a watch last.
    heard: Instant,
}

impl ApiServer {
    pub(super) fn new(access: Access) -> Self {
        let heard = Instant::now();
        let state = State { connection: None, watch: None, was_useful: true, began: None, heard };
        Self { access, state: Arc::new(Mutex::new(state)) }
    }

    pub(super) fn client(&self) -> kube::Client {
        kube::Client::new(self.clone(), "default")
    }

    /// Whether a watch is open that can be relied on: something has come on it, or on the one before.
    pub(super) fn is_watched(&self) -> bool {
        let state = self.state();
        state.watch.is_some_and(|is_useful| is_useful || state.was_useful)
    }

    /// Whether something came on the last watch that has ended.
    pub(super) fn was_useful(&self) -> bool {
        self.state().was_useful
    }

    /// When something came on a watch last.
    pub(super) fn heard(&self) -> Instant {
        self.state().heard
    }

    /// The follower, or the server, has ended the watch.
    pub(super) fn end_watch(&self) {
        let mut state = self.state();
        state.was_useful = state.watch.take().unwrap_or(state.was_useful);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn answer(self, request: Request<Body>) -> Result<Answer, BoxError> {
        let is_watch = parameter(request.uri(), "watch").is_some();
        if is_watch {
            self.end_watch();
            let began = self.state().began;
            tokio::time::sleep(began.map_or(Duration::ZERO, |at| INTERVAL.saturating_sub(at.elapsed())))
                .await;
            if let Some(refusal) = self.check_version(request.uri()).await? {
                return Ok(refusal);
            }
        }
        let response = self.send(request).await?;
        let is_open = is_watch && response.status().is_success();
        if is_open {
            let mut state = self.state();
            (state.began, state.watch) = (Some(Instant::now()), Some(false));
        }
        Ok(response.map(|body| self.bounded(body, is_open)))
    }

    /// Returns the answer to a watch from a version that the server has not reached, or its refusal to name
    /// its own.
    async fn check_version(&self, watch: &Uri) -> Result<Option<Answer>, BoxError> {
        let known = parameter(watch, "resourceVersion").and_then(|version| version.parse::<u64>().ok());
        let Some(ours @ 1..) = known else { return Ok(None) };
        let selector = parameter(watch, "labelSelector").map(|text| format!("&labelSelector={text}"));
        let list = format!("{}?limit=1{}", watch.path(), selector.unwrap_or_default());
        let response = self.send(Request::get(list).body(Body::empty())?).await?;
        if !response.status().is_success() {
            return Ok(Some(response.map(|body| self.clone().bounded(body, false))));
        }
        let body = tokio::time::timeout(ANSWER, response.into_body().collect()).await??.to_bytes();
        let list: serde_json::Value = serde_json::from_slice(&body)?;
        let theirs = list["metadata"]["resourceVersion"].as_str().unwrap_or_default().parse::<u64>()?;
        let message = format!("the server is at version {theirs}, before {ours}: its data was restored");
        Ok((theirs < ours).then(|| expired(&message)))
    }

    /// The body of an answer, which fails when nothing comes for too long.
    fn bounded(self, body: Body, is_watch: bool) -> UnsyncBoxBody<Bytes, BoxError> {
        let frames = stream::unfold(Some((self, body)), move |open| async move {
            let (server, mut body) = open?;
            let frame = match tokio::time::timeout(SILENCE, body.frame()).await {
                Ok(frame) => frame.map(|frame| frame.map_err(BoxError::from)),
                Err(_elapsed) => {
                    Some(Err(format!("no word from the server for {} s", SILENCE.as_secs()).into()))
                }
            };
            let frame = if is_watch { server.note(frame) } else { frame }?;
            if frame.is_err() {
                server.state().connection = None;
                return Some((frame, None));
            }
            Some((frame, Some((server, body))))
        });
        StreamBody::new(frames).boxed_unsync()
    }

    /// Notes what comes on a watch. The server ends each from time to time, but not before something has
    /// come.
    fn note<F>(&self, frame: Option<Result<Frame<F>, BoxError>>) -> Option<Result<Frame<F>, BoxError>> {
        let mut state = self.state();
        if let (Some(Ok(_)), Some(is_useful)) = (&frame, &mut state.watch) {
            *is_useful = true;
            state.heard = Instant::now();
            return frame;
        }
        let is_useful = state.watch.unwrap_or(false);
        drop(state);
        self.end_watch();
        frame.or_else(|| (!is_useful).then(|| Err("the server has ended the watch without a word".into())))
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
