//! The configuration as written. Unknown keys belong to other plugins (CNI 1.1 §1).

use std::path::PathBuf;

use serde::Deserialize;
use serde_json::Value;

use super::Route;

/// containerd writes the fields of a capability with their Go names, such as `HostPort`. A plugin written in
/// Go accepts both, so `HostPort` is `hostPort` here too.
pub(super) fn lower_field_names(value: &mut Value) {
    match value {
        Value::Array(items) => items.iter_mut().for_each(lower_field_names),
        Value::Object(fields) => {
            let lowered = std::mem::take(fields).into_iter().map(|(name, mut value)| {
                lower_field_names(&mut value);
                let (first, rest) = name.split_at_checked(1).unwrap_or(("", &name));
                (first.to_ascii_lowercase() + rest, value)
            });
            *fields = lowered.collect();
        }
        _ => {}
    }
}

/// Removes the keys that are null. Go's encoding/json treats null as an absent key, and runtimes written in
/// Go send null for an empty list: containerd 1.6 sends `"options": null` for a pod without DNS options. A
/// null in a list stays: a list has no absent items.
pub(super) fn without_nulls(value: &Value) -> Value {
    match value {
        Value::Array(items) => items.iter().map(without_nulls).collect(),
        Value::Object(fields) => {
            let present = fields.iter().filter(|(_, value)| !value.is_null());
            present.map(|(name, value)| (name.clone(), without_nulls(value))).collect()
        }
        other => other.clone(),
    }
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Wire {
    pub(super) mode: Option<String>,
    pub(super) mtu: Option<u32>,
    pub(super) ip_masq: Option<bool>,
    #[serde(rename = "nonMasqueradeCIDRs")]
    pub(super) non_masquerade_cidrs: Vec<String>,
    pub(super) service_proxy: Option<String>,
    pub(super) ipam: WireIpam,
    pub(super) dns: WireDns,
    pub(super) args: WireArgs,
    pub(super) runtime_config: WireRuntime,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct WireIpam {
    pub(super) ranges: Vec<Vec<WireRange>>,
    pub(super) routes: Vec<Route>,
    pub(super) resolv_conf: Option<PathBuf>,
    #[serde(flatten)]
    pub(super) single: WireRange,
}

#[derive(Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct WireRange {
    pub(crate) subnet: Option<String>,
    pub(crate) range_start: Option<String>,
    pub(crate) range_end: Option<String>,
    pub(crate) gateway: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
pub(super) struct WireDns {
    pub(super) nameservers: Vec<String>,
    pub(super) domain: Option<String>,
    pub(super) search: Vec<String>,
    pub(super) options: Vec<String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
pub(super) struct WireArgs {
    pub(super) cni: WireCniArgs,
}

#[derive(Default, Deserialize)]
#[serde(default)]
pub(super) struct WireCniArgs {
    pub(super) labels: Vec<WireLabel>,
    pub(super) ips: Vec<String>,
    pub(super) mac: Option<String>,
}

#[derive(Deserialize)]
pub(super) struct WireLabel {
    pub(super) key: String,
    pub(super) value: String,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct WireRuntime {
    pub(super) ips: Vec<String>,
    pub(super) mac: Option<String>,
    pub(super) dns: Option<WireRuntimeDns>,
    pub(super) ip_ranges: Vec<Vec<WireRange>>,
    pub(super) bandwidth: Option<Value>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
pub(super) struct WireRuntimeDns {
    pub(super) servers: Vec<String>,
    pub(super) searches: Vec<String>,
    pub(super) options: Vec<String>,
}
