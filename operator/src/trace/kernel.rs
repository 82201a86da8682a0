//! What the kernel says: where an address leads, and whether it accepts.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use crate::tool;

/// A neighbour on the same node accepts within a millisecond; one on another node may take longer.
const CONNECT_DEADLINE: Duration = Duration::from_secs(2);

/// How long a connection took to be accepted.
pub(super) fn connect(at: SocketAddr) -> io::Result<Duration> {
    let start = Instant::now();
    TcpStream::connect_timeout(&at, CONNECT_DEADLINE)?;
    Ok(start.elapsed())
}

/// Where packets to an address go.
pub(super) struct Route {
    /// The node takes the address for its own.
    pub(super) is_local: bool,
    /// The same in words.
    pub(super) said: String,
}

/// Asks the kernel for the way to an address.
pub(super) fn route(address: IpAddr) -> io::Result<Route> {
    let family = if address.is_ipv4() { "-4" } else { "-6" };
    let found = tool::json("ip", &[family, "-j", "route", "get", &address.to_string()])?;
    let text = |key: &str| found[0][key].as_str().unwrap_or_default().to_owned();
    let is_local = text("type") == "local" || text("dev") == "lo";
    let via = if text("gateway").is_empty() { String::new() } else { format!(" by {}", text("gateway")) };
    Ok(Route { is_local, said: format!("{address} is reached over {}{via}", text("dev")) })
}
