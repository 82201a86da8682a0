//! STATUS: could ADD be served now?

use crate::args::Args;
use crate::error::{Code, Error, Result};
use crate::ipam;
use crate::netconf::NetConf;
use crate::netlink::Netlink;

/// Fails with code 50 when ADD would fail for everybody.
pub(crate) fn status(args: &Args, conf: &NetConf) -> Result<()> {
    let netlink = Netlink::open().map(drop);
    netlink.map_err(|e| Error::new(Code::NotAvailable, format!("open a netlink socket: {e}")))?;
    match &conf.header.delegate {
        Some(kind) => ipam::delegate(kind, "STATUS", args, &conf.raw).map(drop),
        None => conf.header.reservations().check_available(&conf.ranges),
    }
}
