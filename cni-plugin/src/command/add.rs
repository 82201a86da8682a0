//! ADD: give the container an interface and an address.

use std::net::IpAddr;

use attachment::{Attachment, Pod};
use ipnetwork::IpNetwork;
use netns::NetNs;
use serde_json::Value;

use crate::alias::Alias;
use crate::args::Args;
use crate::command::del::Node;
use crate::error::{Code, Error, Result, kernel};
use crate::ipam;
use crate::netconf::{Bandwidth, Mode, NetConf, parse_mac};
use crate::netlink::{Batch, Netlink, Veth};
use crate::result::{self, Attached, Interface};
use crate::rollback::Rollback;
use crate::trace::{Span, span};
use crate::{bandwidth, bridged, pod, routed, table, veth};

/// Attaches the container, or leaves everything as it was.
pub(crate) fn add(args: &Args, conf: &NetConf) -> Result<Value> {
    let (netns, mut pod) = pod::open(&args.netns)?;
    let mut rollback = Rollback::default();
    let result = attach(args, conf, &netns, &mut pod, &mut rollback);
    rollback.finish(result)
}

fn attach<'a>(
    args: &'a Args,
    conf: &'a NetConf,
    netns: &NetNs,
    pod: &mut Netlink,
    rollback: &mut Rollback<'a>,
) -> Result<Value> {
    let assignment = span(Span::Store, || ipam::assign(args, conf, rollback))?;
    let addresses = assignment.addresses();
    let mut host = Netlink::open().map_err(kernel("open a netlink socket"))?;
    let host_name = veth::host_interface(&conf.header.name, &args.container_id, &args.ifname);
    let pair = Veth {
        host: &host_name,
        host_mac: veth::random_mac()?,
        pod: &args.ifname,
        pod_mac: pod_mac(args, conf)?,
        mtu: conf.mtu.unwrap_or_else(|| veth::uplink_mtu(&mut host)),
    };
    let detour = veth::detour_interface(&conf.header.name, &args.container_id, &args.ifname);
    for leftover in [host_name.clone(), detour.clone()] {
        rollback.push(move || drop(Netlink::open().and_then(|mut host| host.delete_link(&leftover))));
    }
    let owner = args.owner();
    let mac = veth::format_mac(&pair.pod_mac);
    let alias =
        Alias { network: conf.header.name.clone(), owner, addresses: addresses.clone(), mac }.format();
    let mut ends = vec![
        Interface { name: &host_name, mac: veth::format_mac(&pair.host_mac), mtu: pair.mtu, netns: "" },
        Interface {
            name: &args.ifname,
            mac: veth::format_mac(&pair.pod_mac),
            mtu: pair.mtu,
            netns: &args.netns,
        },
    ];
    let subnets = assignment.leases.iter().map(|lease| lease.address).collect::<Vec<_>>();
    // Packets of the pod arrive on the node by its own interface, or by the bridge.
    let mut arriving = &*host_name;
    let attached = match &conf.mode {
        Mode::Routed => {
            routed::attach(&mut host, pod, netns, &pair, &alias, &addresses, &conf.routes)?;
            Attached {
                interfaces: ends,
                leases: routed::leases(&addresses),
                routes: with_gateways(routed::pod_routes(&conf.routes, &addresses)),
                dns: assignment.dns,
            }
        }
        Mode::Bridge(bridge) => {
            arriving = &bridge.name;
            let bridged = bridged::attach(&mut host, pod, netns, &pair, &alias, bridge, assignment)?;
            let mac = veth::format_mac(&bridged.mac);
            ends.insert(0, Interface { name: &bridge.name, mac, mtu: bridged.mtu, netns: "" });
            Attached {
                interfaces: ends,
                leases: bridged.assignment.leases,
                routes: bridged.assignment.routes.iter().map(|route| (route.dst, route.gw)).collect(),
                dns: bridged.assignment.dns,
            }
        }
    };
    if conf.bandwidth != Bandwidth::default() {
        bandwidth::limit(&mut host, &host_name, &detour, &alias, &conf.bandwidth)?;
    }
    if conf.forwards() {
        routed::ensure_forwarding(&addresses)?;
    }
    if !conf.port_mappings.is_empty() {
        let mut batch = Batch::default();
        batch.route_localnet(arriving);
        batch.commit(&mut host)?;
    }
    let attachment = record(args, conf, &host_name, &pair, &addresses);
    let key = attachment.key();
    let (header, given) = (&conf.header, addresses.clone());
    rollback.push(move || {
        drop(
            Node::open()
                .map(|mut node| table::leave(header, &key, &given, &mut node.netlink, &node.netfilter)),
        );
    });
    table::join(conf, &attachment, &subnets, &mut host)?;
    Ok(result::result(conf, &attached))
}

fn with_gateways(routes: Vec<(IpNetwork, IpAddr)>) -> Vec<(IpNetwork, Option<IpAddr>)> {
    routes.into_iter().map(|(destination, gateway)| (destination, Some(gateway))).collect()
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
