//! A route of the pod, in the format of `ipam.routes` and of results.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use serde::{Deserialize, Deserializer, Serialize};

/// `RT_SCOPE_LINK`: a route of this scope or a narrower one has no gateway.
const SCOPE_LINK: u8 = 253;

/// A destination with its gateway and options.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub(crate) struct Route {
    pub(crate) dst: IpNetwork,
    #[serde(default, deserialize_with = "address_or_none", skip_serializing_if = "Option::is_none")]
    pub(crate) gw: Option<IpAddr>,
    #[serde(flatten)]
    pub(crate) options: RouteOptions,
}

/// The route options that CNI 1.1 added. 0 is the kernel's default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default)]
pub(crate) struct RouteOptions {
    /// Largest packet in bytes.
    #[serde(skip_serializing_if = "is_default")]
    pub(crate) mtu: u32,
    /// The MSS in bytes that the pod advertises over TCP.
    #[serde(skip_serializing_if = "is_default")]
    pub(crate) advmss: u32,
    /// The metric: of two routes to one destination the kernel prefers the lower one.
    #[serde(skip_serializing_if = "is_default")]
    pub(crate) priority: u32,
    #[serde(skip_serializing_if = "is_default")]
    pub(crate) table: Option<u32>,
    /// `RT_SCOPE_*`.
    #[serde(skip_serializing_if = "is_default")]
    pub(crate) scope: Option<u8>,
}

impl Route {
    /// A route without options.
    pub(crate) fn new(dst: IpNetwork, gw: Option<IpAddr>) -> Self {
        Self { dst, gw, options: RouteOptions::default() }
    }

    /// Whether the destination is on the link, so that no gateway is implied.
    pub(crate) fn is_on_link(&self) -> bool {
        self.gw.is_none() && self.options.scope.is_some_and(|scope| scope >= SCOPE_LINK)
    }
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// Go writes an unset address as an empty string.
fn address_or_none<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<IpAddr>, D::Error> {
    let text = Option::<String>::deserialize(deserializer)?.filter(|text| !text.is_empty());
    text.map(|text| text.parse().map_err(serde::de::Error::custom)).transpose()
}
