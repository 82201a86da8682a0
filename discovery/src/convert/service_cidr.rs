//! `networking.k8s.io/v1/ServiceCIDR`.

use super::{Findings, name, parse_cidr, wire};
use crate::model::ServiceCidr;

/// Converts a ServiceCIDR.
pub(crate) fn service_cidr(object: wire::ServiceCidr, findings: &mut Findings) -> Option<ServiceCidr> {
    let name = name(&object.metadata, findings)?.into();
    let mut cidrs = Vec::new();
    for (index, text) in object.spec.cidrs.iter().enumerate() {
        match parse_cidr(text) {
            Ok(cidr) => cidrs.push(cidr),
            Err(message) => findings.error(&format!("spec.cidrs[{index}]"), message),
        }
    }
    Some(ServiceCidr { name, cidrs })
}
