//! The API server as an HTTP service for `kube::Client`. It adds what the library lacks:
//!
//! - After a failure it reconnects with the current credentials of the files.
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

/// Timeout for the start of a response.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(30);

/// A watch without a frame for this time is dead, even if its connection looks alive: bookmarks come every
/// minute.
const WATCH_TIMEOUT: Duration = Duration::from_secs(90);

/// Minimum interval between watches. The library starts the next watch at once if the server ended one.
const INTERVAL: Duration = Duration::from_secs(1);

type Answer = Response<UnsyncBoxBody<Bytes, BoxError>>;

/// The connection to the server for one resource. Clones share their connections.
#[derive(Clone)]
pub(super) struct ApiServer {
    access: Access,
    state: Arc<Mutex<State>>,
}

struct State {
    connection: Option<kube::Client>,
    /// Whether the open watch, if there is one, has delivered a frame.
    watch: Option<bool>,
    /// Whether the last closed watch delivered a frame.
    last_watch_delivered: bool,
    /// When the last watch began.
    began: Option<Instant>,
    /// When a watch last delivered a frame.
    last_frame: Instant,
}

impl ApiServer {
    pub(super) fn new(access: Access) -> Self {
        let last_frame = Instant::now();
        let state =
            State { connection: None, watch: None, last_watch_delivered: true, began: None, last_frame };
        Self { access, state: Arc::new(Mutex::new(state)) }
    }

    pub(super) fn client(&self) -> kube::Client {
        kube::Client::new(self.clone(), "default")
    }

    /// Whether an open watch is reliable: it or the previous one has delivered a frame.
    pub(super) fn is_watching(&self) -> bool {
        let state = self.state();
        state.watch.is_some_and(|has_delivered| has_delivered || state.last_watch_delivered)
    }

    /// Whether the last closed watch delivered a frame.
    pub(super) fn last_watch_delivered(&self) -> bool {
        self.state().last_watch_delivered
    }

    /// When a watch last delivered a frame.
    pub(super) fn last_frame(&self) -> Instant {
        self.state().last_frame
    }

    /// The reflector or the server has closed the watch.
    pub(super) fn end_watch(&self) {
        let mut state = self.state();
        state.last_watch_delivered = state.watch.take().unwrap_or(state.last_watch_delivered);
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

    /// Returns an error event for a watch from a version that the server has not reached, or the server's
    /// refusal to return its version.
    async fn check_version(&self, watch: &Uri) -> Result<Option<Answer>, BoxError> {
        let known = parameter(watch, "resourceVersion").and_then(|version| version.parse::<u64>().ok());
        let Some(ours @ 1..) = known else { return Ok(None) };
        let selector = parameter(watch, "labelSelector").map(|text| format!("&labelSelector={text}"));
        let list = format!("{}?limit=1{}", watch.path(), selector.unwrap_or_default());
        let response = self.send(Request::get(list).body(Body::empty())?).await?;
        if !response.status().is_success() {
            return Ok(Some(response.map(|body| self.clone().bounded(body, false))));
        }
        let body = tokio::time::timeout(RESPONSE_TIMEOUT, response.into_body().collect()).await??.to_bytes();
        let list: serde_json::Value = serde_json::from_slice(&body)?;
        let theirs = list["metadata"]["resourceVersion"].as_str().unwrap_or_default().parse::<u64>()?;
        let message = format!("the server is at version {theirs}, before {ours}: its data was restored");
        Ok((theirs < ours).then(|| expired(&message)))
    }

    /// The body of a response. It fails if no frame arrives for too long.
    fn bounded(self, body: Body, is_watch: bool) -> UnsyncBoxBody<Bytes, BoxError> {
        let frames = stream::unfold(Some((self, body)), move |open| async move {
            let (server, mut body) = open?;
            let frame = match tokio::time::timeout(WATCH_TIMEOUT, body.frame()).await {
                Ok(frame) => frame.map(|frame| frame.map_err(BoxError::from)),
                Err(_elapsed) => {
                    Some(Err(format!("the server has sent nothing for {} s", WATCH_TIMEOUT.as_secs()).into()))
                }
            };
            let frame = if is_watch { server.record_frame(frame) } else { frame }?;
            if frame.is_err() {
                server.state().connection = None;
                return Some((frame, None));
            }
            Some((frame, Some((server, body))))
        });
        StreamBody::new(frames).boxed_unsync()
    }

    /// Records the frames of a watch. The server closes each watch from time to time, but not before it has
    /// sent something.
    fn record_frame<F>(
        &self,
        frame: Option<Result<Frame<F>, BoxError>>,
    ) -> Option<Result<Frame<F>, BoxError>> {
        let mut state = self.state();
        if let (Some(Ok(_)), Some(has_delivered)) = (&frame, &mut state.watch) {
            *has_delivered = true;
            state.last_frame = Instant::now();
            return frame;
        }
        let has_delivered = state.watch.unwrap_or(false);
        drop(state);
        self.end_watch();
        frame.or_else(|| (!has_delivered).then(|| Err("the server closed the watch without an event".into())))
    }

    /// Sends a request, and connects if necessary. If it fails, the next request reconnects.
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
        let answer = match tokio::time::timeout(RESPONSE_TIMEOUT, connection.send(request)).await {
            Ok(answer) => answer.map_err(BoxError::from),
            Err(_elapsed) => {
                Err(format!("no response from the server for {} s", RESPONSE_TIMEOUT.as_secs()).into())
            }
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

/// A watch that begins with the error of an expired version: the library then lists again.
fn expired(message: &str) -> Answer {
    let event = serde_json::json!({ "type": "ERROR", "object": {
        "kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "Expired", "code": 410,
        "message": message,
    }});
    let body = Full::new(Bytes::from(format!("{event}\n")));
    Response::new(body.map_err(BoxError::from).boxed_unsync())
}

/// The value of a query parameter, not decoded.
fn parameter<'a>(uri: &'a Uri, name: &str) -> Option<&'a str> {
    uri.query()?
        .split('&')
        .find_map(|pair| pair.split_once('=').filter(|(key, _)| *key == name))
        .map(|(_, value)| value)
}
