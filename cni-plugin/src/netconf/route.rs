//! A route for the pod, as `ipam.routes` and results have it.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use serde::{Deserialize, Deserializer, Serialize};

/// `RT_SCOPE_LINK`: from here on a route has no gateway.
const SCOPE_LINK: u8 = 253;

/// A destination and the way there.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub(crate) struct Route {
    pub(crate) dst: IpNetwork,
    #[serde(default, deserialize_with = "address_or_none", skip_serializing_if = "Option::is_none")]
    pub(crate) gw: Option<IpAddr>,
    #[serde(flatten)]
    pub(crate) options: RouteOptions,
}

/// What CNI 1.1 adds to a route. 0 is the kernel's default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default)]
pub(crate) struct RouteOptions {
    /// Largest packet in bytes.
    #[serde(skip_serializing_if = "is_default")]
    pub(crate) mtu: u32,
    /// Largest segment of TCP in bytes that the pod offers.
    #[serde(skip_serializing_if = "is_default")]
    pub(crate) advmss: u32,
    /// The metric: of two routes to one destination the kernel uses the one with less.
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

    /// Whether the destination is on the link itself, so that no gateway is implied.
    pub(crate) fn is_on_link(&self) -> bool {
        self.gw.is_none() && self.options.scope.is_some_and(|scope| scope >= SCOPE_LINK)
    }
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// Go writes an address that is not set as an empty string.
fn address_or_none<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<IpAddr>, D::Error> {
    let text = Option::<String>::deserialize(deserializer)?.filter(|text| !text.is_empty());
    text.map(|text| text.parse().map_err(serde::de::Error::custom)).transpose()
}
