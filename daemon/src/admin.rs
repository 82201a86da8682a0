//! Health, readiness and metrics over HTTP.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::Method;
pub use hyper::StatusCode;
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus::{Encoder, Registry, TextEncoder};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::log::RateLimit;
use crate::readiness::Readiness;

/// Concurrent connections. Further ones wait in the backlog.
const MAX_CONNECTIONS: usize = 64;

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 128;

/// Timeout for the request of a client.
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);

/// Interval of retries while the address is in use.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// The response of a page.
#[derive(Clone, Debug)]
pub struct Response {
    /// HTTP status.
    pub status: StatusCode,
    /// `Content-Type`.
    pub content_type: &'static str,
    /// Further headers.
    pub headers: Vec<(&'static str, HeaderValue)>,
    /// The body.
    pub body: String,
}

struct Page {
    handler: Box<dyn Fn(&str) -> Response + Send + Sync>,
    /// Only for clients on this machine.
    is_local: bool,
}

/// A small HTTP server. Its pages are rendered from memory and never wait.
pub struct Server {
    listener: TcpListener,
    pages: BTreeMap<&'static str, Page>,
}

/// The path of the fallback page.
const ANY: &str = "*";

impl Response {
    /// A response with plain text.
    pub fn text(status: StatusCode, body: impl Into<String>) -> Self {
        Self::new(status, "text/plain; charset=utf-8", body)
    }

    /// A response with JSON.
    pub fn json(status: StatusCode, body: &impl std::fmt::Display) -> Self {
        Self::new(status, "application/json", format!("{body}\n"))
    }

    /// Adds a header.
    #[must_use]
    pub fn with_header(mut self, name: &'static str, value: impl Into<HeaderValue>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    fn new(status: StatusCode, content_type: &'static str, body: impl Into<String>) -> Self {
        Self { status, content_type, headers: Vec::new(), body: body.into() }
    }
}

impl Server {
    /// Binds the address. The error names the address.
    ///
    /// # Errors
    /// As `bind(2)`.
    pub async fn bind(address: SocketAddr) -> io::Result<Self> {
        let listener = listen(address);
        let listener = listener.map_err(|e| io::Error::new(e.kind(), format!("listen on {address}: {e}")))?;
        Ok(Self { listener, pages: BTreeMap::new() })
    }

    /// Like [`Server::bind`], for pages that the daemon can do without: retries while the address is in use.
    /// The pages are added once it is bound; `flag` is the setting that the address comes from.
    pub async fn serve(address: SocketAddr, flag: &'static str, pages: impl FnOnce(Self) -> Self) {
        let mut was_logged = false;
        let server = loop {
            match Self::bind(address).await {
                Ok(server) => break server,
                Err(error) if was_logged => tracing::debug!(flag, %error, "cannot serve a page yet"),
                Err(error) => {
                    tracing::warn!(flag, %error, "cannot serve a page; retrying every second");
                    was_logged = true;
                }
            }
            tokio::time::sleep(RETRY_INTERVAL).await;
        };
        if was_logged {
            tracing::info!(flag, %address, "the page is served");
        }
        pages(server).run().await;
    }

    /// The bound address.
    ///
    /// # Errors
    /// As `getsockname(2)`.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Adds a page. The handler gets the query string.
    #[must_use]
    pub fn route(
        mut self,
        path: &'static str,
        handler: impl Fn(&str) -> Response + Send + Sync + 'static,
    ) -> Self {
        self.pages.insert(path, Page { handler: Box::new(handler), is_local: false });
        self
    }

    /// Adds a page with sensitive data, which only clients on this machine may read.
    #[must_use]
    pub fn local_route(
        mut self,
        path: &'static str,
        handler: impl Fn(&str) -> Response + Send + Sync + 'static,
    ) -> Self {
        self.pages.insert(path, Page { handler: Box::new(handler), is_local: true });
        self
    }

    /// Adds the fallback page for every other path.
    #[must_use]
    pub fn any(self, handler: impl Fn(&str) -> Response + Send + Sync + 'static) -> Self {
        self.route(ANY, handler)
    }

    /// Serves until dropped. Continues while draining, when health checks matter most.
    pub async fn run(self) {
        let pages = Arc::new(self.pages);
        let room = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        let mut connections = JoinSet::new();
        let warnings = RateLimit::default();
        loop {
            let Ok(permit) = Arc::clone(&room).acquire_owned().await else { return };
            while connections.try_join_next().is_some() {}
            let (stream, peer) = match self.listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    if let Some(suppressed) = warnings.admit() {
                        tracing::warn!(%error, suppressed, "cannot accept an HTTP connection");
                    }
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let pages = Arc::clone(&pages);
            connections.spawn(async move {
                let service = service_fn(|request| {
                    let response = answer(&pages, peer.ip(), &request);
                    async { Ok::<_, Infallible>(response) }
                });
                let mut http = hyper::server::conn::http1::Builder::new();
                http.timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT);
                // A client may close the connection at any time.
                let _ = http.serve_connection(TokioIo::new(stream), service).await;
                drop(permit);
            });
        }
    }
}

/// `/readyz`: 200 if everything is ready. Shows the reasons with `?verbose` and whenever it is not.
pub fn readyz(readiness: Readiness) -> impl Fn(&str) -> Response + Send + Sync + 'static {
    move |query| {
        let report = readiness.report();
        match (report.is_ready(), query.split('&').any(|key| key.split('=').next() == Some("verbose"))) {
            (true, false) => Response::text(StatusCode::OK, "ok\n"),
            (true, true) => Response::text(StatusCode::OK, report.to_string()),
            (false, _) => Response::text(StatusCode::SERVICE_UNAVAILABLE, report.to_string()),
        }
    }
}

/// `/metrics`, in the Prometheus text format.
pub fn metrics(registry: Registry) -> impl Fn(&str) -> Response + Send + Sync + 'static {
    move |_| {
        let mut body = Vec::new();
        match TextEncoder::new().encode(&registry.gather(), &mut body) {
            Ok(()) => Response::new(
                StatusCode::OK,
                "text/plain; version=0.0.4; charset=utf-8",
                String::from_utf8_lossy(&body),
            ),
            Err(e) => Response::text(StatusCode::INTERNAL_SERVER_ERROR, format!("encode metrics: {e}\n")),
        }
    }
}

/// Binds with SO_REUSEPORT, so that a new process can start while the old one drains.
fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = crate::socket::bind(address, socket2::Type::STREAM, true)?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

fn answer(
    pages: &BTreeMap<&'static str, Page>,
    peer: IpAddr,
    request: &hyper::Request<Incoming>,
) -> hyper::Response<Full<Bytes>> {
    let response = match pages.get(request.uri().path()).or_else(|| pages.get(ANY)) {
        _ if request.method() != Method::GET && request.method() != Method::HEAD => {
            Response::text(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD\n")
        }
        Some(page) if page.is_local && !peer.to_canonical().is_loopback() => {
            Response::text(StatusCode::FORBIDDEN, "only from this machine's loopback address\n")
        }
        Some(page) => (page.handler)(request.uri().query().unwrap_or_default()),
        None => {
            let known: Vec<&str> = pages.keys().copied().collect();
            Response::text(StatusCode::NOT_FOUND, format!("no such page; there are: {}\n", known.join(" ")))
        }
    };
    let mut reply = hyper::Response::new(Full::from(response.body));
    *reply.status_mut() = response.status;
    reply.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(response.content_type));
    for (name, value) in response.headers {
        reply.headers_mut().insert(name, value);
    }
    reply
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    use super::*;
    use crate::readiness::Condition;

    #[tokio::test]
    async fn a_page_is_read_whole_and_its_error_reported() {
        let server = Server::bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let address = server.local_addr().unwrap();
        let number = |_: &str| Response::json(StatusCode::OK, &7).with_header("x-weight", 7);
        let server = server.route("/number", number);
        let reading = tokio::task::spawn_blocking(move || {
            let page = crate::page::get(address, "/number").unwrap();
            assert_eq!((page.is_ok(), page.body.as_str()), (true, "7\n"));
            let unknown = crate::page::get(address, "/nothing").unwrap();
            assert!(unknown.status == 404 && unknown.body.starts_with("no such page"), "{unknown:?}");
        });
        tokio::select! {
            () = server.run() => unreachable!(),
            read = reading => read.unwrap(),
        }
    }

    async fn get(address: SocketAddr, request: &str) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request = format!("{request} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn pages_answer_and_errors_are_explained() {
        let readiness = Readiness::default();
        readiness.add("x", || Condition { ready: false, detail: "not yet".into() });
        let server = Server::bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let address = server.local_addr().unwrap();
        let server = server
            .route("/livez", |_: &str| Response::text(StatusCode::OK, "ok\n"))
            .route("/readyz", readyz(readiness));
        let client = async {
            assert!(get(address, "GET /livez").await.starts_with("HTTP/1.1 200 OK"));
            let ready = get(address, "GET /readyz").await;
            assert!(ready.starts_with("HTTP/1.1 503") && ready.contains("[-]x failed: not yet"), "{ready}");
            let unknown = get(address, "GET /nothing").await;
            assert!(unknown.starts_with("HTTP/1.1 404") && unknown.contains("/livez /readyz"), "{unknown}");
            assert!(get(address, "POST /livez").await.starts_with("HTTP/1.1 405"));
        };
        tokio::select! {
            () = server.run() => unreachable!(),
            () = client => {}
        }
    }
}
