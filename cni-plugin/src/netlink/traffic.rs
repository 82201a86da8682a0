//! Constructors of the traffic control messages.

use netlink_packet_core::{DefaultNla, Nla as _};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::tc::{
    TcAction, TcActionAttribute, TcActionGeneric, TcActionMirror, TcActionMirrorOption, TcActionOption,
    TcActionType, TcAttribute, TcFilterU32, TcFilterU32Option, TcHandle, TcHeader, TcMessage, TcMirror,
    TcMirrorActionType, TcOption, TcU32Key, TcU32Selector, TcU32SelectorFlags,
};

use crate::netconf::Limit;

/// The token bucket filter, and its attributes (`TCA_TBF_*`).
const TBF: &str = "tbf";
const PARAMETERS: u16 = 1;
const RATE_64: u16 = 4;
const BURST: u16 = 6;

/// The longest time in milliseconds that a packet waits for tokens. Packets beyond that are dropped, as with
/// the reference plugin `bandwidth`.
const LATENCY: u64 = 25;

/// Handle of the plugin's root qdisc.
const FIRST: TcHandle = TcHandle { major: 1, minor: 0 };
const INGRESS: TcHandle = TcHandle { major: 0xffff, minor: 0 };

/// Priority 1 and every protocol (`ETH_P_ALL`, in network byte order).
fn every_packet() -> u32 {
    (1 << 16) | u32::from(0x0003_u16.to_be())
}

/// The rate limit as the kernel reports it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RateLimit {
    /// Bytes per second.
    pub(crate) rate: u64,
}

/// Limits the rate at which packets leave the interface.
pub(super) fn limit(index: u32, limit: Limit) -> RouteNetlinkMessage {
    let queue = (limit.rate * LATENCY / 1000).saturating_add(limit.burst.into());
    let queue = u32::try_from(queue).unwrap_or(u32::MAX);
    let rate = u32::try_from(limit.rate).unwrap_or(u32::MAX);
    // struct tc_tbf_qopt: two tc_ratespec, of which only the rate matters here (the last 4 of 12 bytes), then
    // limit, buffer and mtu. The attribute with the burst in bytes overrides the buffer in ticks.
    let mut parameters =
        [[0; 8].as_slice(), &rate.to_ne_bytes(), &[0; 12], &queue.to_ne_bytes(), &[0; 8]].concat();
    // TC_LINKLAYER_ETHERNET: a rate without a table of transmission times.
    parameters[1] = 1;
    let option = |kind, value: Vec<u8>| TcOption::Other(DefaultNla::new(kind, value));
    let options = vec![
        option(PARAMETERS, parameters),
        option(RATE_64, limit.rate.to_ne_bytes().to_vec()),
        option(BURST, limit.burst.to_ne_bytes().to_vec()),
    ];
    let attributes = vec![TcAttribute::Kind(TBF.to_owned()), TcAttribute::Options(options)];
    RouteNetlinkMessage::NewQueueDiscipline(message(index, TcHandle::ROOT, FIRST, attributes))
}

/// The ingress qdisc, for filters of incoming packets.
pub(super) fn new_ingress(index: u32) -> RouteNetlinkMessage {
    let attributes = vec![TcAttribute::Kind("ingress".to_owned())];
    RouteNetlinkMessage::NewQueueDiscipline(message(index, TcHandle::INGRESS, INGRESS, attributes))
}

/// Redirects incoming packets to another interface.
pub(super) fn redirect(index: u32, to: u32) -> RouteNetlinkMessage {
    let mut selector = TcU32Selector::default();
    selector.flags = TcU32SelectorFlags::Terminal;
    selector.nkeys = 1;
    selector.keys = vec![TcU32Key::default()];
    let mut generic = TcActionGeneric::default();
    generic.action = TcActionType::Stolen;
    let mut mirror = TcMirror::default();
    mirror.generic = generic;
    mirror.eaction = TcMirrorActionType::EgressRedir;
    mirror.ifindex = to;
    let mut action = TcAction::default();
    action.attributes = vec![
        TcActionAttribute::Kind(TcActionMirror::KIND.to_owned()),
        TcActionAttribute::Options(vec![TcActionOption::Mirror(TcActionMirrorOption::Parms(mirror))]),
    ];
    let options = vec![
        TcOption::U32(TcFilterU32Option::Selector(selector)),
        TcOption::U32(TcFilterU32Option::Action(vec![action])),
    ];
    let attributes = vec![TcAttribute::Kind(TcFilterU32::KIND.to_owned()), TcAttribute::Options(options)];
    let mut message = message(index, INGRESS, TcHandle::UNSPEC, attributes);
    message.header.info = every_packet();
    RouteNetlinkMessage::NewTrafficFilter(message)
}

/// Requests the root qdisc.
pub(super) fn get_qdisc(index: u32) -> RouteNetlinkMessage {
    RouteNetlinkMessage::GetQueueDiscipline(message(index, TcHandle::ROOT, TcHandle::UNSPEC, Vec::new()))
}

/// Requests every ingress filter.
pub(super) fn get_filters(index: u32) -> RouteNetlinkMessage {
    RouteNetlinkMessage::GetTrafficFilter(message(index, INGRESS, TcHandle::UNSPEC, Vec::new()))
}

/// Parses the rate limit of an answer.
pub(super) fn rate_limit_of(answer: RouteNetlinkMessage) -> Option<RateLimit> {
    let RouteNetlinkMessage::NewQueueDiscipline(message) = answer else { return None };
    let is_limit = message.attributes.iter().any(|it| matches!(it, TcAttribute::Kind(kind) if kind == TBF));
    let options = message.attributes.iter().find_map(|attribute| match attribute {
        TcAttribute::Options(options) => Some(options),
        _ => None,
    })?;
    let Some(TcOption::Other(all)) = options.first().filter(|_| is_limit) else { return None };
    let mut value = vec![0; all.value_len()];
    all.emit_value(&mut value);
    // Nested attributes: RATE_64 is present only for rates beyond 32 bits.
    let (mut rest, mut rate) = (&value[..], None);
    while let (Some(length), Some(kind)) = (short(rest, 0), short(rest, 2)) {
        let body = rest.get(4..usize::from(length).max(4))?;
        match kind {
            PARAMETERS if rate.is_none() => {
                rate = body.get(8..12)?.try_into().ok().map(u32::from_ne_bytes).map(u64::from)
            }
            RATE_64 => rate = body.get(..8)?.try_into().ok().map(u64::from_ne_bytes),
            _ => {}
        }
        rest = rest.get(usize::from(length).max(4).next_multiple_of(4)..).unwrap_or_default();
    }
    rate.map(|rate| RateLimit { rate })
}

/// Whether an answer is a filter that redirects incoming packets to `to`.
pub(super) fn redirects(answer: &RouteNetlinkMessage, to: u32) -> bool {
    let RouteNetlinkMessage::NewTrafficFilter(message) = answer else { return false };
    let leads_there = |option: &TcActionOption| match option {
        TcActionOption::Mirror(TcActionMirrorOption::Parms(mirror)) => mirror.ifindex == to,
        _ => false,
    };
    let is_there = |action: &TcAction| {
        action
            .attributes
            .iter()
            .any(|it| matches!(it, TcActionAttribute::Options(options) if options.iter().any(leads_there)))
    };
    message.attributes.iter().any(|attribute| {
        let TcAttribute::Options(options) = attribute else { return false };
        options.iter().any(|option| match option {
            TcOption::U32(TcFilterU32Option::Action(actions)) => actions.iter().any(is_there),
            _ => false,
        })
    })
}

fn short(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..at + 2)?.try_into().ok().map(u16::from_ne_bytes)
}

fn message(index: u32, parent: TcHandle, handle: TcHandle, attributes: Vec<TcAttribute>) -> TcMessage {
    let index = i32::try_from(index).expect("the kernel counts interfaces with 31 bits");
    let header = TcHeader { index, parent, handle, ..TcHeader::default() };
    TcMessage::from_parts(header, attributes)
}
