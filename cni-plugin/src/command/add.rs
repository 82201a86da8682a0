//! ADD: give the container an interface and an address.

use std::net::IpAddr;

use attachment::{Attachment, Key, Pod};
use netns::NetNs;
use serde_json::Value;

use crate::alias::Alias;
use crate::args::Args;
use crate::error::{Code, Error, Result, kernel};
use crate::ipam::{self, Owner};
use crate::netconf::{NetConf, parse_mac, parse_requested};
use crate::netlink::{Batch, Netlink, Veth};
use crate::pod;
use crate::result::{self, Attached};
use crate::rollback::Rollback;
use crate::routed;
use crate::table;
use crate::trace::{Span, span};

/// Attaches the container, or leaves everything as it was.
pub(crate) fn add(args: &Args, conf: &NetConf) -> Result<Value> {
    let netns = pod::open_netns(&args.netns)?;
    let mut rollback = Rollback::default();
    let result = attach(args, conf, &netns, &mut rollback);
    rollback.finish(result)
}

fn attach<'a>(
    args: &'a Args,
    conf: &'a NetConf,
    netns: &NetNs,
    rollback: &mut Rollback<'a>,
) -> Result<Value> {
    let mut pod = pod::open_netlink(netns)?;
    let addresses = span(Span::Store, || reserve(args, conf, rollback))?;
    let mut host = Netlink::open().map_err(kernel("open a netlink socket"))?;
    let host_name = routed::host_interface(&conf.header.name, &args.container_id, &args.ifname);
    let veth = Veth {
        host: &host_name,
        host_mac: random_mac()?,
        pod: &args.ifname,
        pod_mac: pod_mac(args, conf)?,
        mtu: conf.mtu.unwrap_or_else(|| routed::uplink_mtu(&mut host)),
    };
    let leftover = host_name.clone();
    rollback.push(move || {
        drop(Netlink::open().and_then(|mut host| host.delete_link(&leftover)));
    });
    let owner = Owner { container_id: args.container_id.clone(), ifname: args.ifname.clone() };
    let alias = Alias { network: conf.header.name.clone(), owner, addresses: addresses.clone() }.format();
    routed::attach(&mut host, &mut pod, netns, &veth, &alias, &addresses, &conf.routes)?;
    routed::ensure_forwarding(&addresses)?;
    if !conf.port_mappings.is_empty() {
        let mut batch = Batch::default();
        batch.route_localnet(&host_name);
        batch.commit(&mut host)?;
    }
    let attachment = record(args, conf, &host_name, &veth, &addresses);
    let key = attachment.key();
    let (header, given) = (&conf.header, addresses.clone());
    rollback.push(move || drop(table::leave(header, &key, &given)));
    table::join(conf, &attachment, &mut host)?;
    Ok(result::result(
        conf,
        &Attached {
            host_interface: &host_name,
            host_mac: &format_mac(veth.host_mac),
            ifname: &args.ifname,
            mac: &attachment.mac,
            netns: &args.netns,
            mtu: veth.mtu,
            addresses: &addresses,
        },
    ))
}

fn reserve<'a>(args: &'a Args, conf: &'a NetConf, rollback: &mut Rollback<'a>) -> Result<Vec<IpAddr>> {
    let owner = Owner { container_id: args.container_id.clone(), ifname: args.ifname.clone() };
    let reservations = conf.header.reservations();
    if let Some(kind) = &conf.header.delegate {
        // Without addresses of ours: GC finds what a killed ADD has left by it.
        reservations.reserve(&owner, &[], &[])?;
        rollback.push(move || drop(conf.header.reservations().release(&owner)));
        // Even a failed delegate may have reserved something (CNI 1.1 §4).
        rollback.push(move || drop(ipam::delegate(kind, "DEL", args, &conf.raw)));
        let result = ipam::delegate(kind, "ADD", args, &conf.raw)?.unwrap_or_default();
        return delegated_addresses(kind, &result);
    }
    let mut requested = conf.requested.clone();
    if let Some(ip) = args.extra.get("IP").filter(|_| requested.is_empty()) {
        requested.push(parse_requested("CNI_ARGS IP", ip)?);
    }
    let addresses = reservations.reserve(&owner, &conf.ranges, &requested)?;
    rollback.push(move || drop(conf.header.reservations().release(&owner)));
    Ok(addresses)
}

fn delegated_addresses(kind: &str, result: &Value) -> Result<Vec<IpAddr>> {
    let mut addresses = Vec::new();
    for ip in result["ips"].as_array().into_iter().flatten() {
        let text = ip["address"].as_str().unwrap_or_default();
        addresses.push(parse_requested(&format!("result of IPAM plugin {kind}"), text)?);
    }
    if addresses.is_empty() {
        return Err(Error::new(Code::InvalidConfig, format!("IPAM plugin {kind} gave no address")));
    }
    Ok(addresses)
}

fn record(args: &Args, conf: &NetConf, host_name: &str, veth: &Veth<'_>, addresses: &[IpAddr]) -> Attachment {
    let extra = |key: &str| args.extra.get(key).filter(|value| !value.is_empty()).cloned();
    let key = Key {
        network: conf.header.name.clone(),
        container_id: args.container_id.clone(),
        ifname: args.ifname.clone(),
    };
    Attachment {
        network: key.network,
        container_id: key.container_id,
        ifname: key.ifname,
        netns: args.netns.clone(),
        ips: addresses.to_vec(),
        mac: format_mac(veth.pod_mac),
        host_interface: host_name.to_owned(),
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
        (None, None) => random_mac(),
    }
}

/// Unicast and locally administered.
fn random_mac() -> Result<[u8; 6]> {
    use std::io::Read as _;
    let path = std::path::Path::new("/dev/urandom");
    let mut mac = [0; 6];
    let read = std::fs::File::open(path).and_then(|mut random| random.read_exact(&mut mac));
    read.map_err(crate::error::io("read", path))?;
    mac[0] = mac[0] & 0xfe | 0x02;
    Ok(mac)
}

fn format_mac(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}
