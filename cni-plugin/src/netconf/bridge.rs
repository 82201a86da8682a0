//! The keys of bridge mode, with the names and meanings of the reference plugin `bridge`.

use serde::Deserialize;
use serde_json::Value;

use super::invalid;
use crate::args::is_valid_ifname;
use crate::error::Result;

/// The default bridge name of the reference plugin.
const DEFAULT_NAME: &str = "cni0";

/// A configuration with one of these keys and without `mode` was written for the reference plugin.
const KEYS: [&str; 13] = [
    "bridge",
    "isGateway",
    "isDefaultGateway",
    "forceAddress",
    "hairpinMode",
    "promiscMode",
    "macspoofchk",
    "enabledad",
    "portIsolation",
    "disableContainerInterface",
    "vlan",
    "vlanTrunk",
    "preserveDefaultVlan",
];

/// How the pods of a network are bridged.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[expect(clippy::struct_excessive_bools, reason = "each is a key of the configuration")]
pub(crate) struct Bridge {
    #[serde(rename = "bridge")]
    pub(crate) name: String,
    /// Whether the bridge has the pods' gateway address.
    pub(crate) is_gateway: bool,
    /// Whether the gateway is the pods' default route.
    pub(crate) is_default_gateway: bool,
    /// Whether a different address of the bridge is replaced.
    pub(crate) force_address: bool,
    pub(crate) hairpin_mode: bool,
    pub(crate) promisc_mode: bool,
    /// Whether frames from another MAC address than the pod's are dropped.
    #[serde(rename = "macspoofchk")]
    pub(crate) mac_spoof_check: bool,
    /// Whether IPv6 addresses wait for duplicate address detection.
    #[serde(rename = "enabledad")]
    pub(crate) enable_dad: bool,
    /// Whether pods of the bridge cannot reach each other.
    pub(crate) port_isolation: bool,
    /// Whether the pod's end stays down and without addresses.
    pub(crate) disable_container_interface: bool,
    /// The VLAN setting, if there is one.
    #[serde(skip)]
    pub(crate) vlan: Option<String>,
}

impl Default for Bridge {
    fn default() -> Self {
        Self {
            name: DEFAULT_NAME.to_owned(),
            is_gateway: false,
            is_default_gateway: false,
            force_address: false,
            hairpin_mode: false,
            promisc_mode: false,
            mac_spoof_check: false,
            enable_dad: false,
            port_isolation: false,
            disable_container_interface: false,
            vlan: None,
        }
    }
}

impl Bridge {
    /// Whether the configuration has a key of the reference plugin `bridge`.
    pub(super) fn is_meant(raw: &Value) -> bool {
        KEYS.iter().any(|key| raw.get(key).is_some())
    }

    /// Parses the keys. VLAN keys are refused when the bridge is set up, where the reason is known.
    pub(super) fn parse(raw: &Value) -> Result<Self> {
        let parsed = Self::deserialize(raw).map_err(|e| invalid(format!("network configuration: {e}")))?;
        if !is_valid_ifname(&parsed.name) {
            let rule = "a bridge's name has 1 to 15 bytes without /, : or white space";
            return Err(invalid(format!("bridge: {:?}: {rule}", parsed.name)));
        }
        if parsed.hairpin_mode && parsed.promisc_mode {
            let why = "a promiscuous bridge needs no hairpin";
            return Err(invalid(format!("hairpinMode and promiscMode are both true: {why}, choose one")));
        }
        let vlan = match (&raw["vlan"], &raw["vlanTrunk"]) {
            (Value::Null, Value::Null) => None,
            (Value::Number(zero), Value::Null) if zero.as_u64() == Some(0) => None,
            (Value::Null, trunk) => Some(format!("vlanTrunk: {trunk}")),
            (vlan, _) => Some(format!("vlan: {vlan}")),
        };
        // The default gateway is a gateway.
        Ok(Self { is_gateway: parsed.is_gateway || parsed.is_default_gateway, vlan, ..parsed })
    }
}
