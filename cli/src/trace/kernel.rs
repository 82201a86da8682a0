//! Routes and connections of the kernel.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use crate::command;

/// Deadline of a connection. Endpoints on the same node accept within a millisecond.
const CONNECT_DEADLINE: Duration = Duration::from_secs(2);

/// Connects and returns how long the handshake took.
pub(super) fn connect(at: SocketAddr) -> io::Result<Duration> {
    let start = Instant::now();
    TcpStream::connect_timeout(&at, CONNECT_DEADLINE)?;
    Ok(start.elapsed())
}

/// The route of an address.
pub(super) struct Route {
    /// Whether the address is local to the node.
    pub(super) is_local: bool,
    /// A description of the route.
    pub(super) description: String,
}

/// Looks up the route of an address.
pub(super) fn route(address: IpAddr) -> io::Result<Route> {
    let family = if address.is_ipv4() { "-4" } else { "-6" };
    let found = command::json("ip", &[family, "-j", "route", "get", &address.to_string()])?;
    let text = |key: &str| found[0][key].as_str().unwrap_or_default().to_owned();
    let is_local = text("type") == "local" || text("dev") == "lo";
    let via = if text("gateway").is_empty() { String::new() } else { format!(" by {}", text("gateway")) };
    Ok(Route { is_local, description: format!("{address} is reached over {}{via}", text("dev")) })
}
