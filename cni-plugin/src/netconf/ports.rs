//! `runtimeConfig.portMappings`, parsed without a JSON tree: there may be thousands.

use attachment::PortMapping;
use serde::Deserialize;

use super::invalid;
use crate::error::Result;

/// One mapping, with the names of the CNI conventions or of containerd's Go fields. Null means absent.
#[derive(Deserialize)]
struct Wire {
    #[serde(default, rename = "hostPort", alias = "HostPort")]
    host_port: Option<u16>,
    #[serde(default, rename = "containerPort", alias = "ContainerPort")]
    container_port: Option<u16>,
    #[serde(default, alias = "Protocol")]
    protocol: Option<String>,
    #[serde(default, rename = "hostIP", alias = "HostIP")]
    host_ip: Option<String>,
}

/// Returns the mappings. Consecutive ports are one mapping.
pub(super) fn parse(text: Option<&str>) -> Result<Vec<PortMapping>> {
    let wire: Option<Vec<Wire>> = serde_json::from_str(text.unwrap_or("null"))
        .map_err(|e| invalid(format!("network configuration: runtimeConfig.portMappings: {e}")))?;
    let mappings = wire.into_iter().flatten().enumerate().map(|(index, mapping)| mapping.validate(index));
    let merged = PortMapping::merge(mappings.collect::<Result<_>>()?);
    merged.map_err(|conflict| invalid(format!("runtimeConfig.portMappings: {conflict}")))
}

impl Wire {
    fn validate(self, index: usize) -> Result<PortMapping> {
        let field = |name: &str| format!("runtimeConfig.portMappings[{index}].{name}");
        let port = |name: &str, port: Option<u16>| match port {
            Some(0) => Err(invalid(format!("{}: 0 is not a port", field(name)))),
            Some(port) => Ok(port),
            None => Err(invalid(format!("{}: is missing", field(name)))),
        };
        let host_port = port("hostPort", self.host_port)?;
        let container_port = port("containerPort", self.container_port)?;
        let mut protocol = self.protocol.filter(|text| !text.is_empty()).unwrap_or_else(|| "tcp".to_owned());
        protocol.make_ascii_lowercase();
        if !["tcp", "udp", "sctp"].contains(&protocol.as_str()) {
            return Err(invalid(format!("{}: {protocol:?} is not tcp, udp or sctp", field("protocol"))));
        }
        let host_ip = self.host_ip.filter(|text| !text.is_empty());
        let wrong = |text: &str| invalid(format!("{}: {text:?} is not an IP address", field("hostIP")));
        let host_ip = host_ip.map(|text| text.parse().map_err(|_e| wrong(&text))).transpose()?;
        Ok(PortMapping { host_port, container_port, protocol, host_ip, range: 1 })
    }
}
