//! CHECK: is the attachment as ADD left it?

use crate::error::{Code, Error, Result, kernel};
use crate::ipam::{self, Assignment};
use crate::netconf::invalid;
use crate::netlink::Netlink;
use crate::request::Request;
use crate::{bandwidth, pod, table, veth};

/// Returns the first difference as an error. Additions of later plugins in the chain are fine.
pub(super) fn check(request: &Request) -> Result<()> {
    let (args, conf) = (&request.args, request.conf()?);
    let Some(previous) = &conf.prev_result else {
        return Err(invalid("prevResult is missing: CHECK compares with the result of ADD"));
    };
    let (_netns, mut pod) = pod::open(&args.netns)?;
    let mut host = Netlink::open().map_err(kernel("open a netlink socket"))?;
    let host_name = veth::host_interface(&conf.header.name, &args.container_id, &args.ifname);
    let ours = ours(previous, &host_name)?;
    let addresses = ours.addresses();
    conf.mode().check(&mut host, &mut pod, [&host_name, &args.ifname], &conf, &ours)?;
    let ifb = veth::ifb_interface(&conf.header.name, &args.container_id, &args.ifname);
    bandwidth::check(&mut host, &host_name, &ifb, &conf.bandwidth)?;
    let owner = args.owner();
    if let Some(kind) = &conf.header.delegate {
        let given = conf.header.reservations().allocation(&owner).delegated;
        ipam::delegate_check(kind, given.as_ref(), args, &request.config)?;
    } else {
        let reserved = conf.header.reservations().addresses(&owner)?;
        if let Some(lost) = addresses.iter().find(|address| !reserved.contains(address)) {
            return Err(Error::new(
                Code::Conflict,
                format!("address {lost} is no longer reserved for this container"),
            ));
        }
    }
    table::check(&conf, &owner.key(&conf.header.name))
}

/// Parses the result of ADD for the plugin's interface, which follows the node's end in the list.
fn ours(previous: &serde_json::Value, host_name: &str) -> Result<Assignment> {
    let interfaces = previous["interfaces"].as_array().map_or(&[][..], Vec::as_slice);
    let Some(position) = interfaces.iter().position(|interface| interface["name"] == host_name) else {
        let message = format!("prevResult does not have interface {host_name}");
        return Err(Error::new(Code::Conflict, message));
    };
    let mut result = previous.clone();
    if let Some(ips) = result["ips"].as_array_mut() {
        ips.retain(|ip| ip["interface"].as_u64() == Some(position as u64 + 1));
    }
    Assignment::parse("prevResult", &result)
}
