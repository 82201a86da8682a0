//! `runtimeConfig.bandwidth`: bits on the wire, converted to bytes.

use serde::Deserialize;
use serde_json::Value;

use super::invalid;
use crate::error::Result;

/// The default burst: what passes in a tenth of a second, and at least one TSO packet.
const DEFAULT_BURST: u64 = 64 * 1024;
const BURSTS_A_SECOND: u64 = 10;

/// The limits of a pod.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Bandwidth {
    pub(crate) to_pod: Option<Limit>,
    pub(crate) from_pod: Option<Limit>,
}

/// One direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Limit {
    /// Bytes per second.
    pub(crate) rate: u64,
    /// Bytes that may pass at once after a pause.
    pub(crate) burst: u32,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Wire {
    ingress_rate: u64,
    ingress_burst: u64,
    egress_rate: u64,
    egress_burst: u64,
}

impl Bandwidth {
    /// Does not check whether the burst is large enough for a packet.
    pub(super) fn parse(wire: Option<&Value>) -> Result<Self> {
        let Some(wire) = wire.filter(|wire| !wire.is_null()) else { return Ok(Self::default()) };
        let wire = Wire::deserialize(wire).map_err(|e| invalid(format!("runtimeConfig.bandwidth: {e}")))?;
        Ok(Self {
            to_pod: limit("ingress", wire.ingress_rate, wire.ingress_burst)?,
            from_pod: limit("egress", wire.egress_rate, wire.egress_burst)?,
        })
    }
}

fn limit(direction: &str, rate: u64, burst: u64) -> Result<Option<Limit>> {
    let field = |name: &str| format!("runtimeConfig.bandwidth.{direction}{name}");
    if rate == 0 {
        // A burst without a rate limits nothing: the rate was forgotten.
        if burst > 0 {
            return Err(invalid(format!("{} is missing beside {}", field("Rate"), field("Burst"))));
        }
        return Ok(None);
    }
    if rate < 8 {
        return Err(invalid(format!("{}: {rate} bits a second are less than a byte", field("Rate"))));
    }
    let rate = rate / 8;
    let burst = if burst == 0 { (rate / BURSTS_A_SECOND).max(DEFAULT_BURST) } else { burst / 8 };
    let burst = u32::try_from(burst).map_err(|_e| {
        invalid(format!("{}: {burst} bytes are more than the kernel takes, {}", field("Burst"), u32::MAX))
    })?;
    Ok(Some(Limit { rate, burst }))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn bits_become_bytes_and_errors_name_the_field() {
        let parse = |wire: Value| Bandwidth::parse(Some(&wire)).map_err(|e| e.message);
        let both =
            parse(json!({ "ingressRate": 8_000_000, "ingressBurst": 160_000, "egressRate": 80_000_000 }));
        let to_pod = Some(Limit { rate: 1_000_000, burst: 20_000 });
        let from_pod = Some(Limit { rate: 10_000_000, burst: 1_000_000 });
        assert_eq!(both, Ok(Bandwidth { to_pod, from_pod }));
        // What containerd sends for a pod's annotation.
        let annotated = parse(json!({ "egressRate": 1_000_000, "egressBurst": 4_294_967_295_u64 })).unwrap();
        assert_eq!(annotated.from_pod, Some(Limit { rate: 125_000, burst: 536_870_911 }));
        assert_eq!(parse(json!({})), Ok(Bandwidth::default()));
        for (wire, expected) in [
            (json!({ "ingressBurst": 8000 }), "bandwidth.ingressRate is missing beside"),
            (json!({ "egressRate": 7 }), "bandwidth.egressRate: 7 bits a second are less than a byte"),
            (json!({ "ingressRate": 8, "ingressBurst": 40_000_000_000_u64 }), "more than the kernel takes"),
            (json!({ "ingressRate": -1 }), "runtimeConfig.bandwidth: invalid value"),
        ] {
            let error = parse(wire).unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
    }
}
