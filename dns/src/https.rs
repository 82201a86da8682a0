//! Queries over HTTPS (RFC 8484), by hyper's HTTP/2 server.
//!
//! Not hickory-server's `register_https_listener`: it bounds neither connections nor the bytes of a
//! request's head, spawns its streams without an owner, and does not answer GET, which RFC 8484 §4.1
//! requires.

use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;

use daemon::drain::Drain;
use data_encoding::BASE64URL_NOPAD;
use hickory_server::proto::op::Message;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http2;
use hyper::{Method, Request, Response, StatusCode, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::bytes::Bytes;
use tokio_util::task::TaskTracker;

use crate::metrics::Protocol;
use crate::responder::{IDLE, Responder};

/// What clients that negotiate call it (RFC 9113 §3.2).
pub(crate) const PROTOCOL: &[u8] = b"h2";

/// Where clients send their queries (RFC 8484 §6 has the same in its examples).
const PATH: &str = "/dns-query";

const TYPE: HeaderValue = HeaderValue::from_static("application/dns-message");

/// Queries of one connection at a time.
const MAX_STREAMS: u32 = 32;

/// Bytes of a query: any that is not padded beyond reason.
pub(crate) const MAX_QUERY: usize = 4 * 1024;

/// Bytes of a request's header fields: a query in the path has four thirds of its length.
const MAX_HEADERS: u32 = 8 * 1024;

/// Bytes of replies that wait for one client.
const MAX_UNSENT: usize = 128 * 1024;

/// The streams of a connection run in its own tasks.
#[derive(Clone)]
struct Streams(TaskTracker);

impl<F> hyper::rt::Executor<F> for Streams
where
    F: Future<Output: Send + 'static> + Send + 'static,
{
    fn execute(&self, stream: F) {
        self.0.spawn(stream);
    }
}

/// Answers the queries of a connection until it is idle.
pub(crate) async fn converse(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    client: SocketAddr,
    responder: &Arc<Responder>,
    drain: &Drain,
) {
    let heard = Arc::new(Notify::new());
    let service = service_fn(|request| {
        heard.notify_one();
        answer(request, client, Arc::clone(responder))
    });
    let connection = http2::Builder::new(Streams(TaskTracker::new()))
        .timer(TokioTimer::new())
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(MAX_HEADERS)
        .initial_stream_window_size(u32::try_from(MAX_QUERY).unwrap_or(u32::MAX))
        .max_send_buf_size(MAX_UNSENT)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    // A query is answered within less.
    let mut deadline = Instant::now() + IDLE;
    let mut is_ending = false;
    loop {
        tokio::select! {
            // What a client does to its connection concerns no other.
            ended = &mut connection => return drop(ended),
            () = heard.notified(), if !is_ending => {
                deadline = Instant::now() + IDLE;
                continue;
            }
            () = drain.started(), if !is_ending => {}
            () = sleep_until(deadline) => {}
        }
        if is_ending {
            return;
        }
        is_ending = true;
        deadline = Instant::now() + IDLE;
        connection.as_mut().graceful_shutdown();
    }
}

async fn answer(
    request: Request<Incoming>,
    client: SocketAddr,
    responder: Arc<Responder>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let reply = match query(request).await {
        // A response, or a scrap.
        Ok(query) => responder.answer(query, (Protocol::Https, client)).await.ok_or(StatusCode::BAD_REQUEST),
        Err(status) => Err(status),
    };
    let mut response = Response::new(Full::default());
    match reply {
        Ok(reply) => {
            // No longer than the first record lives (RFC 8484 §5.1).
            let message = Message::from_vec(&reply).unwrap_or_else(|_malformed| Message::query());
            let records = message.answers.iter().chain(&message.authorities);
            let age = format!("max-age={}", records.map(|record| record.ttl).min().unwrap_or(0));
            response.headers_mut().insert(CONTENT_TYPE, TYPE);
            response.headers_mut().extend(HeaderValue::try_from(age).ok().map(|age| (CACHE_CONTROL, age)));
            *response.body_mut() = Full::from(reply);
        }
        Err(status) => *response.status_mut() = status,
    }
    Ok(response)
}

/// The query of a request. Its body is read to the end in any case: some clients lose an answer that comes
/// before.
async fn query(request: Request<Incoming>) -> Result<Vec<u8>, StatusCode> {
    let (head, body) = request.into_parts();
    let body = timeout(IDLE, read(body)).await.map_err(|_late| StatusCode::REQUEST_TIMEOUT)?;
    if head.uri.path() != PATH {
        return Err(StatusCode::NOT_FOUND);
    }
    match head.method {
        Method::GET => {
            let mut parameters = head.uri.query().unwrap_or_default().split('&');
            let query = parameters.find_map(|parameter| parameter.strip_prefix("dns="));
            let query = query.ok_or(StatusCode::BAD_REQUEST)?;
            let query =
                BASE64URL_NOPAD.decode(query.as_bytes()).map_err(|_malformed| StatusCode::BAD_REQUEST)?;
            if query.len() > MAX_QUERY { Err(StatusCode::PAYLOAD_TOO_LARGE) } else { Ok(query) }
        }
        Method::POST if head.headers.get(CONTENT_TYPE) == Some(&TYPE) => body,
        Method::POST => Err(StatusCode::UNSUPPORTED_MEDIA_TYPE),
        _ => Err(StatusCode::METHOD_NOT_ALLOWED),
    }
}

async fn read(mut body: Incoming) -> Result<Vec<u8>, StatusCode> {
    let (mut query, mut length) = (Vec::new(), 0);
    while let Some(frame) = body.frame().await {
        let data = frame.map_err(|_reset| StatusCode::BAD_REQUEST)?.into_data().unwrap_or_default();
        length += data.len();
        if length <= MAX_QUERY {
            query.extend_from_slice(&data);
        }
    }
    if length > MAX_QUERY { Err(StatusCode::PAYLOAD_TOO_LARGE) } else { Ok(query) }
}
