//! ADD: give the container an interface and an address.

use std::net::{IpAddr, Ipv4Addr};

use attachment::{Attachment, Key, Pod};
use netns::NetNs;
use serde_json::Value;

use crate::args::Args;
use crate::error::{Code, Error, Result, kernel};
use crate::ipam::{self, Owner, Store};
use crate::masquerade;
use crate::netconf::{NetConf, parse_mac, parse_requested};
use crate::netlink::{Netlink, Veth};
use crate::pod;
use crate::result::{self, Attached};
use crate::rollback::Rollback;
use crate::routed;
use crate::trace::{Span, span};

/// What a successful command has to say.
#[derive(Debug)]
pub(crate) struct Answer {
    /// For the runtime.
    pub(crate) result: Value,
    /// Lines for the runtime's log.
    pub(crate) notes: Vec<String>,
}

/// Attaches the container, or leaves everything as it was.
pub(crate) fn add(args: &Args, conf: &NetConf) -> Result<Answer> {
    let netns = pod::open_netns(&args.netns)?;
    let mut rollback = Rollback::default();
    let result = attach(args, conf, &netns, &mut rollback);
    let result = rollback.finish(result)?;
    let mut notes = Vec::new();
    if !conf.port_mappings.is_empty() {
        notes.push(format!(
            "{} port mappings are recorded but not carried: publish ports with the reference plugin portmap in the \
             same conflist",
            conf.port_mappings.len()
        ));
    }
    Ok(Answer { result, notes })
}

fn attach<'a>(
    args: &'a Args,
    conf: &'a NetConf,
    netns: &NetNs,
    rollback: &mut Rollback<'a>,
) -> Result<Value> {
    let mut pod = pod::open_netlink(netns)?;
    let existing = pod.link(&args.ifname).map_err(kernel(format!("look for {} in the pod", args.ifname)))?;
    if existing.is_some() {
        let message = format!("interface {} is already in the pod", args.ifname);
        return Err(Error::new(Code::Conflict, message));
    }
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
    // An attachment of the same name would have been found by its reservation: this is what a killed ADD left.
    host.delete_link(&host_name).map_err(kernel(format!("delete a left-over {host_name}")))?;
    let leftover = host_name.clone();
    rollback.push(move || {
        drop(Netlink::open().and_then(|mut host| host.delete_link(&leftover)));
    });
    routed::attach(&mut host, &mut pod, netns, &veth, &addresses, &conf.routes)?;
    routed::ensure_forwarding()?;
    let attachment = record(args, conf, &host_name, &veth, &addresses);
    let key = attachment.key();
    let (header, given) = (&conf.header, addresses.clone());
    rollback.push(move || drop(masquerade::leave(header, &key, &given)));
    masquerade::join(conf, &attachment, &mut host)?;
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

fn reserve<'a>(args: &'a Args, conf: &'a NetConf, rollback: &mut Rollback<'a>) -> Result<Vec<Ipv4Addr>> {
    if let Some(kind) = &conf.header.delegate {
        // Even a failed delegate may have reserved something (CNI 1.1 §4).
        rollback.push(move || drop(ipam::delegate(kind, "DEL", args, &conf.raw)));
        let result = ipam::delegate(kind, "ADD", args, &conf.raw)?.unwrap_or_default();
        return delegated_addresses(kind, &result);
    }
    let mut requested = conf.requested.clone();
    if let Some(ip) = args.extra.get("IP").filter(|_| requested.is_empty()) {
        requested.push(parse_requested("CNI_ARGS IP", ip)?);
    }
    let owner = Owner { container_id: args.container_id.clone(), ifname: args.ifname.clone() };
    let addresses = Store::new(conf.header.ipam_dir.clone()).reserve(&owner, &conf.ranges, &requested)?;
    rollback.push(move || drop(Store::new(conf.header.ipam_dir.clone()).release(&owner)));
    Ok(addresses)
}

fn delegated_addresses(kind: &str, result: &Value) -> Result<Vec<Ipv4Addr>> {
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

fn record(
    args: &Args,
    conf: &NetConf,
    host_name: &str,
    veth: &Veth<'_>,
    addresses: &[Ipv4Addr],
) -> Attachment {
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
        ips: addresses.iter().copied().map(IpAddr::V4).collect(),
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
