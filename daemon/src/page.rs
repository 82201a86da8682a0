//! Requests a page of a daemon on this machine.

use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// Timeout: pages are rendered from memory, so a daemon that takes longer is not healthy.
const TIMEOUT: Duration = Duration::from_secs(3);

/// The response of a page, whatever its status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// HTTP status.
    pub status: u16,
    /// The body.
    pub body: String,
}

impl Page {
    /// Whether the status is 200.
    pub fn is_ok(&self) -> bool {
        self.status == 200
    }
}

/// Requests the page at `path`, which begins with a slash. Ignores HTTP proxies in the environment.
///
/// # Errors
/// If no process listens, if it does not answer within 3 seconds, or if it is not HTTP. The text names the
/// page.
pub fn get(address: SocketAddr, path: &str) -> io::Result<Page> {
    let read = || {
        let mut stream = TcpStream::connect_timeout(&address, TIMEOUT)?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        // With HTTP/1.0 the body ends with the connection.
        stream.write_all(format!("GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n").as_bytes())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        parse(&answer).ok_or_else(|| io::Error::other("not an answer of HTTP"))
    };
    read().map_err(|e| io::Error::new(e.kind(), format!("http://{address}{path}: {e}")))
}

fn parse(answer: &str) -> Option<Page> {
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let status = head.split(' ').nth(1)?.parse().ok()?;
    Some(Page { status, body: body.to_owned() })
}
