//! ADD: give the container an interface and an address.

use std::net::IpAddr;

use attachment::{Attachment, Pod};
use netns::NetNs;
use serde_json::Value;

use crate::alias::Alias;
use crate::announce::Advertiser;
use crate::args::Args;
use crate::bridged::{self, Bridged};
use crate::command::del::Node;
use crate::error::{Code, Error, Result, kernel};
use crate::ipam;
use crate::netconf::{Bandwidth, Bridge, Mode, NetConf, Route, parse_mac};
use crate::netlink::{Batch, Netlink, Veth};
use crate::result::{self, Attached, Interface};
use crate::rollback::Rollback;
use crate::trace::{Span, span};
use crate::{bandwidth, pod, routed, table, veth};

/// So often another pod may be given the same address at the same time, by another network of the same ranges.
const ATTEMPTS: usize = 20;

/// Attaches the container, or leaves everything as it was.
pub(crate) fn add(args: &Args, conf: &NetConf) -> Result<Value> {
    let is_bridged = matches!(conf.mode, Mode::Bridge(_));
    // Without IPv6 on this node there is nothing to advertise.
    let advertiser = || Ok(if is_bridged { Advertiser::open().ok() } else { None });
    let (netns, mut pod, advertiser) = pod::open_with(&args.netns, advertiser)?;
    for attempt in 1.. {
        let mut rollback = Rollback::default();
        let result = attach(args, conf, &netns, &mut pod, advertiser.as_ref(), &mut rollback);
        match rollback.finish(result) {
            Err(error) if error.code == Code::AddressTaken as u32 && attempt < ATTEMPTS => {}
            other => return other,
        }
    }
    unreachable!("the last attempt returns")
}

fn attach<'a>(
    args: &'a Args,
    conf: &'a NetConf,
    netns: &NetNs,
    pod: &mut Netlink,
    advertiser: Option<&Advertiser>,
    rollback: &mut Rollback<'a>,
) -> Result<Value> {
    let mut host = Netlink::open().map_err(kernel("open a netlink socket"))?;
    let mut in_use = |address| host.has_route_to(address);
    let assignment = span(Span::Store, || ipam::assign(args, conf, &mut in_use, rollback))?;
    let addresses = assignment.addresses();
    let subnets = assignment.leases.iter().map(|lease| lease.address).collect::<Vec<_>>();
    let host_name = veth::host_interface(&conf.header.name, &args.container_id, &args.ifname);
    let pair = Veth {
        host: &host_name,
        host_mac: veth::random_mac()?,
        pod: &args.ifname,
        pod_mac: pod_mac(args, conf)?,
        mtu: conf.mtu.unwrap_or_else(|| veth::uplink_mtu(&mut host)),
    };
    leave_on_failure(args, conf, &addresses, rollback);
    let detour = veth::detour_interface(&conf.header.name, &args.container_id, &args.ifname);
    for leftover in [host_name.clone(), detour.clone()] {
        rollback.push(move || drop(Netlink::open().and_then(|mut host| host.delete_link(&leftover))));
    }
    let alias = alias(args, conf, &pair, &addresses);
    let attached = match &conf.mode {
        Mode::Routed => {
            let routes = routed::by_own_gateways(conf, &assignment);
            routed::attach(&mut host, pod, netns, &pair, &alias, &addresses, &routes)?;
            by_routes(&routes, ends(args, &pair), &addresses, assignment.dns)
        }
        Mode::Bridge(bridge) => {
            let bridged = bridged::attach(&mut host, pod, netns, &pair, &alias, bridge, assignment)?;
            bridged::announce(pod, advertiser, &pair, &bridged);
            by_bridge(bridge, ends(args, &pair), bridged)
        }
    };
    if conf.bandwidth != Bandwidth::default() {
        bandwidth::limit(&mut host, &host_name, &detour, &alias, &conf.bandwidth)?;
    }
    set_node(conf, &mut host, &host_name, &addresses)?;
    let attachment = Attachment {
        reserved_ports: pod::reserve_ports(netns),
        ..record(args, conf, &host_name, &pair, &addresses)
    };
    table::join(conf, &attachment, &subnets, &mut host)?;
    Ok(result::result(conf, &attached))
}

/// The note on the node's end.
fn alias(args: &Args, conf: &NetConf, pair: &Veth<'_>, addresses: &[IpAddr]) -> String {
    let (network, mac) = (conf.header.name.clone(), veth::format_mac(&pair.pod_mac));
    Alias { network, owner: args.owner(), addresses: addresses.to_vec(), mac }.format()
}

/// Both ends of the pair, the pod's last.
fn ends<'a>(args: &'a Args, pair: &Veth<'a>) -> Vec<Interface<'a>> {
    let end = |name, mac, netns| Interface { name, mac: veth::format_mac(mac), mtu: pair.mtu, netns };
    vec![end(pair.host, &pair.host_mac, ""), end(pair.pod, &pair.pod_mac, &args.netns)]
}

/// What a pod behind routes has.
fn by_routes<'a>(
    routes: &[Route],
    interfaces: Vec<Interface<'a>>,
    addresses: &[IpAddr],
    dns: Value,
) -> Attached<'a> {
    let routes = routed::pod_routes(routes, addresses);
    Attached { interfaces, leases: routed::leases(addresses), routes, dns }
}

/// What a pod on a bridge has, with the bridge before its ends.
fn by_bridge<'a>(bridge: &'a Bridge, mut interfaces: Vec<Interface<'a>>, bridged: Bridged) -> Attached<'a> {
    let Bridged { mac, mtu, assignment, .. } = bridged;
    interfaces.insert(0, Interface { name: &bridge.name, mac: veth::format_mac(&mac), mtu, netns: "" });
    Attached { interfaces, leases: assignment.leases, routes: assignment.routes, dns: assignment.dns }
}

/// What the node itself has to be set to, that the pod's packets pass.
fn set_node(conf: &NetConf, host: &mut Netlink, host_name: &str, addresses: &[IpAddr]) -> Result<()> {
    if conf.forwards() {
        routed::ensure_forwarding(addresses)?;
    }
    if !conf.port_mappings.is_empty() {
        // Packets of the pod arrive on the node by its own interface, or by the bridge.
        let arriving = match &conf.mode {
            Mode::Routed => host_name,
            Mode::Bridge(bridge) => &bridge.name,
        };
        let mut batch = Batch::default();
        batch.route_localnet(arriving);
        batch.commit(host)?;
    }
    Ok(())
}

/// Should ADD fail from here on, the node's rules forget the pod. It may be in them before ADD gets there: as soon as its
/// interface is there, another command that finds records lost writes one for it.
fn leave_on_failure<'a>(args: &Args, conf: &'a NetConf, addresses: &[IpAddr], rollback: &mut Rollback<'a>) {
    let (header, key, given) = (&conf.header, args.owner().key(&conf.header.name), addresses.to_vec());
    rollback.push(move || {
        drop(
            Node::open()
                .map(|mut node| table::leave(header, &key, &given, &mut node.netlink, &node.netfilter)),
        );
    });
}

fn record(args: &Args, conf: &NetConf, host_name: &str, pair: &Veth<'_>, addresses: &[IpAddr]) -> Attachment {
    let extra = |key: &str| args.extra.get(key).filter(|value| !value.is_empty()).cloned();
    let key = args.owner().key(&conf.header.name);
    Attachment {
        network: key.network,
        container_id: key.container_id,
        ifname: key.ifname,
        netns: args.netns.clone(),
        ips: addresses.to_vec(),
        mac: veth::format_mac(&pair.pod_mac),
        host_interface: host_name.to_owned(),
        bridge: match &conf.mode {
            Mode::Bridge(bridge) => Some(bridge.name.clone()),
            Mode::Routed => None,
        },
        pod: extra("K8S_POD_NAME").map(|name| Pod {
            namespace: extra("K8S_POD_NAMESPACE").unwrap_or_else(|| "default".to_owned()),
            name,
            uid: extra("K8S_POD_UID"),
        }),
        labels: conf.labels.clone(),
        port_mappings: conf.port_mappings.clone(),
        reserved_ports: None,
    }
}

/// What the runtime asks for, else a random one.
fn pod_mac(args: &Args, conf: &NetConf) -> Result<[u8; 6]> {
    match (conf.mac, args.extra.get("MAC")) {
        (Some(mac), _) => Ok(mac),
        (None, Some(text)) => {
            parse_mac(text).map_err(|e| Error { code: Code::InvalidEnvironment as u32, ..e })
        }
        (None, None) => veth::random_mac(),
    }
}
