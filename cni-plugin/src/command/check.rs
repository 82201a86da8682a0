//! CHECK: is the attachment as ADD left it?

use crate::args::Args;
use crate::error::{Code, Error, Result, kernel};
use crate::ipam::{self, Owner};
use crate::netconf::{NetConf, invalid, parse_requested};
use crate::netlink::Netlink;
use crate::pod;
use crate::routed;
use crate::table;

/// Says what is missing first. Additions of plugins behind us in the chain are fine.
pub(crate) fn check(args: &Args, conf: &NetConf) -> Result<()> {
    let Some(previous) = &conf.prev_result else {
        return Err(invalid("prevResult is missing: CHECK compares with the result of ADD"));
    };
    let netns = pod::open_netns(&args.netns)?;
    let mut pod = pod::open_netlink(&netns)?;
    let mut host = Netlink::open().map_err(kernel("open a netlink socket"))?;
    let host_name = routed::host_interface(&conf.header.name, &args.container_id, &args.ifname);
    let addresses = ours(previous, &host_name)?;
    routed::check(&mut host, &mut pod, &host_name, &args.ifname, &addresses)?;
    routed::check_routes(&mut pod, &conf.routes, &addresses)?;
    if let Some(kind) = &conf.header.delegate {
        ipam::delegate(kind, "CHECK", args, &conf.raw)?;
    } else {
        let owner = Owner { container_id: args.container_id.clone(), ifname: args.ifname.clone() };
        let reserved = conf.header.reservations().addresses(&owner)?;
        if let Some(lost) = addresses.iter().find(|address| !reserved.contains(address)) {
            return Err(Error::new(
                Code::Conflict,
                format!("address {lost} is no longer reserved for this container"),
            ));
        }
    }
    table::check(&addresses)
}

/// The addresses on our interface, which comes right behind its end on the node.
fn ours(previous: &serde_json::Value, host_name: &str) -> Result<Vec<std::net::IpAddr>> {
    let interfaces = previous["interfaces"].as_array().map_or(&[][..], Vec::as_slice);
    let Some(position) = interfaces.iter().position(|interface| interface["name"] == host_name) else {
        let message = format!("prevResult does not have interface {host_name}");
        return Err(Error::new(Code::Conflict, message));
    };
    let ips = previous["ips"].as_array().map_or(&[][..], Vec::as_slice);
    let ours = ips.iter().filter(|ip| ip["interface"].as_u64() == Some(position as u64 + 1));
    ours.map(|ip| parse_requested("prevResult.ips", ip["address"].as_str().unwrap_or_default())).collect()
}
