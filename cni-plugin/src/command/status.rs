//! STATUS: can ADD succeed now?

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use crate::error::{Code, Error, Result};
use crate::ipam;
use crate::netlink::Netlink;
use crate::request::Request;
use crate::table;

/// Timeout of each step of the request to the proxy.
const TIMEOUT: Duration = Duration::from_secs(1);

/// Fails with code 50 if every ADD would fail, and with 51 if pods would have no Services.
pub(super) fn status(request: &Request) -> Result<()> {
    let conf = request.conf()?;
    let unavailable = |e| Error::new(Code::NotAvailable, format!("open a netlink socket: {e}"));
    let mut netlink = Netlink::open().map_err(unavailable)?;
    table::check_available().map_err(|e| Error { code: Code::NotAvailable as u32, ..e })?;
    match &conf.header.delegate {
        Some(kind) => ipam::delegate(kind, "STATUS", &request.args, &request.config.text).map(drop)?,
        None => {
            let mut in_use = |address| netlink.has_route_to(address);
            conf.header.reservations().check_available(&conf.ranges, &mut in_use)?;
        }
    }
    let Some(address) = conf.service_proxy else { return Ok(()) };
    let ready = is_ready(address).unwrap_or_else(|error| Err(error.to_string()));
    ready.map_err(|why| Error::new(Code::Limited, format!("portolan-proxy at {address}: {why}")))
}

/// Requests `/readyz` of the proxy. The inner error is the proxy's answer if it is not ready.
fn is_ready(address: SocketAddr) -> std::io::Result<std::result::Result<(), String>> {
    let mut stream = TcpStream::connect_timeout(&address, TIMEOUT)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    stream.write_all(b"GET /readyz HTTP/1.0\r\nHost: portolan-proxy\r\n\r\n")?;
    let mut answer = String::new();
    stream.take(4096).read_to_string(&mut answer)?;
    let status = answer.split(' ').nth(1).unwrap_or_default();
    Ok(if status == "200" { Ok(()) } else { Err(format!("not ready ({status})")) })
}
