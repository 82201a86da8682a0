//! ADD: give the container an interface and an address.

use std::net::IpAddr;

use attachment::{Attachment, Pod as Identity};
use serde_json::Value;

use crate::alias::Alias;
use crate::args::Args;
use crate::command::del::Node;
use crate::error::{Code, Error, Result, kernel};
use crate::ipam;
use crate::netconf::{Bandwidth, NetConf, parse_mac};
use crate::netlink::{Batch, Netlink, Veth};
use crate::pod::Pod;
use crate::request::Request;
use crate::result::{self, Interface};
use crate::rollback::Rollback;
use crate::trace::{Span, span};
use crate::uplink::Uplink;
use crate::{bandwidth, routed, table, veth};

/// Retries when a pod of another network with the same ranges was assigned the same address at the same time.
const ATTEMPTS: usize = 20;

/// Attaches the container. On failure, restores the previous state.
pub(super) fn add(request: &Request) -> Result<Value> {
    let conf = request.conf()?;
    let mut pod = Pod::prepare(&request.args.netns, conf.bridge.is_some())?;
    let mut attempts = 0;
    loop {
        attempts += 1;
        let mut rollback = Rollback::default();
        let result = attach(request, &conf, &mut pod, &mut rollback);
        match rollback.finish(result) {
            Err(error) if error.code == Code::AddressTaken as u32 && attempts < ATTEMPTS => {}
            other => return other,
        }
    }
}

fn attach<'a>(
    request: &'a Request,
    conf: &'a NetConf,
    pod: &mut Pod,
    rollback: &mut Rollback<'a>,
) -> Result<Value> {
    let args = &request.args;
    let mut host = Netlink::open().map_err(kernel("open a netlink socket"))?;
    let mut uplink = Uplink::default();
    let mut in_use = |address| uplink.has_route_to(&mut host, address);
    let assignment = span(Span::Store, || ipam::assign(request, conf, &mut in_use, rollback))?;
    let addresses = assignment.addresses();
    let subnets = assignment.leases.iter().map(|lease| lease.address).collect::<Vec<_>>();
    let host_name = veth::host_interface(&conf.header.name, &args.container_id, &args.ifname);
    let ifb = veth::ifb_interface(&conf.header.name, &args.container_id, &args.ifname);
    undo_on_failure(args, conf, &addresses, [host_name.clone(), ifb.clone()], rollback);
    let pod_mac = pod_mac(args, conf)?;
    let veth = Veth {
        host: &host_name,
        host_mac: veth::random_mac()?,
        pod: &args.ifname,
        pod_mac,
        mtu: conf.mtu.unwrap_or_else(|| uplink.mtu(&mut host)),
        note: &note(args, conf, pod_mac, &addresses),
    };
    let mut attached = conf.mode().attach(&mut host, pod, &veth, conf, assignment)?;
    if conf.bandwidth != Bandwidth::default() {
        bandwidth::limit(&mut host, &host_name, &ifb, veth.note, &conf.bandwidth)?;
    }
    set_node(conf, &mut host, &host_name, &addresses)?;
    let attachment =
        Attachment { reserved_ports: pod.reserved_ports, ..record(args, conf, &veth, &addresses) };
    table::register(conf, &attachment, &subnets, &mut host)?;
    // Wait at the end: by then the kernel's workers have usually completed it.
    veth::await_ipv6(&mut pod.netlink, std::mem::take(&mut attached.awaited))?;
    attached.interfaces.extend(ends(args, &veth));
    Ok(result::result(conf, &attached))
}

/// If ADD fails from here on, remove the pod from the node's rules and delete its interfaces. The pod may be
/// in the rules before ADD adds it: as soon as its interface exists, a command that repairs missing records
/// writes one for it.
fn undo_on_failure<'a>(
    args: &Args,
    conf: &'a NetConf,
    addresses: &[IpAddr],
    interfaces: [String; 2],
    rollback: &mut Rollback<'a>,
) {
    let (header, key, given) = (&conf.header, args.owner().key(&conf.header.name), addresses.to_vec());
    rollback.push(move || {
        for interface in interfaces.iter().rev() {
            let _ = Netlink::open().and_then(|mut host| host.delete_link(interface));
        }
        let _ = Node::open()
            .map(|mut node| table::unregister(header, &key, &given, &mut node.netlink, &node.netfilter));
    });
}

/// The alias of the node's end.
fn note(args: &Args, conf: &NetConf, pod_mac: [u8; 6], addresses: &[IpAddr]) -> String {
    let (network, mac) = (conf.header.name.clone(), veth::format_mac(&pod_mac));
    Alias { network, owner: args.owner(), addresses: addresses.to_vec(), mac }.format()
}

/// Both ends of the veth pair, the pod's end last.
fn ends<'a>(args: &'a Args, veth: &Veth<'a>) -> [Interface<'a>; 2] {
    let end = |name, mac, netns| Interface { name, mac: veth::format_mac(mac), mtu: veth.mtu, netns };
    [end(veth.host, &veth.host_mac, ""), end(veth.pod, &veth.pod_mac, &args.netns)]
}

/// Configures the node: forwarding and what the pod's packets need.
fn set_node(conf: &NetConf, host: &mut Netlink, host_name: &str, addresses: &[IpAddr]) -> Result<()> {
    if conf.mode().forwards(conf.masquerade) {
        routed::ensure_forwarding(addresses)?;
    }
    if conf.port_mappings.is_empty() {
        return Ok(());
    }
    let mut batch = Batch::default();
    batch.route_localnet(conf.mode().uplink(host_name));
    batch.commit(host)?;
    Ok(())
}

fn record(args: &Args, conf: &NetConf, veth: &Veth<'_>, addresses: &[IpAddr]) -> Attachment {
    let extra = |key: &str| args.extra.get(key).filter(|value| !value.is_empty()).cloned();
    let key = args.owner().key(&conf.header.name);
    Attachment {
        network: key.network,
        container_id: key.container_id,
        ifname: key.ifname,
        netns: args.netns.clone(),
        ips: addresses.to_vec(),
        mac: veth::format_mac(&veth.pod_mac),
        host_interface: veth.host.to_owned(),
        bridge: conf.bridge.as_ref().map(|bridge| bridge.name.clone()),
        pod: extra("K8S_POD_NAME").map(|name| Identity {
            namespace: extra("K8S_POD_NAMESPACE").unwrap_or_else(|| "default".to_owned()),
            name,
            uid: extra("K8S_POD_UID"),
        }),
        labels: conf.labels.clone(),
        port_mappings: conf.port_mappings.clone(),
        reserved_ports: None,
    }
}

/// The MAC address that the runtime requests, else a random one.
fn pod_mac(args: &Args, conf: &NetConf) -> Result<[u8; 6]> {
    match (conf.mac, args.extra.get("MAC")) {
        (Some(mac), _) => Ok(mac),
        (None, Some(text)) => {
            parse_mac(text).map_err(|e| Error { code: Code::InvalidEnvironment as u32, ..e })
        }
        (None, None) => veth::random_mac(),
    }
}
