//! The configuration as it was received.

use std::collections::BTreeMap;

use serde_json::Value;
use serde_json::value::RawValue;

use crate::error::{Code, Error, Result};

/// The text, and its JSON without port mappings: a pod may have thousands, and only ADD and CHECK read them.
#[derive(Debug)]
pub(crate) struct Config {
    /// The complete text, for a delegated IPAM plugin.
    pub(crate) text: String,
    pub(crate) value: Value,
    /// `runtimeConfig.portMappings`, if it is set.
    pub(super) port_mappings: Option<String>,
}

type Fields<'a> = BTreeMap<String, &'a RawValue>;

impl Config {
    /// Parses the text, which must be a JSON object.
    pub(crate) fn parse(text: String) -> Result<Self> {
        let decode = |e| Error::new(Code::Decode, format!("the network configuration is not JSON: {e}"));
        let Ok(fields) = serde_json::from_str::<Fields<'_>>(&text) else {
            serde_json::from_str::<Value>(&text).map_err(decode)?;
            return Err(Error::new(Code::Decode, "the network configuration is not a JSON object"));
        };
        let mut port_mappings = None;
        let mut value = serde_json::Map::new();
        for (key, raw) in fields {
            let runtime_config =
                (key == "runtimeConfig").then(|| serde_json::from_str::<Fields<'_>>(raw.get()));
            let parsed = match runtime_config {
                Some(Ok(fields)) => {
                    let (ports, rest) = fields.into_iter().partition::<Fields<'_>, _>(is_ports);
                    port_mappings = ports.into_values().next_back().map(|ports| ports.get().to_owned());
                    let rest = rest.into_iter().map(|(key, raw)| Ok((key, serde_json::from_str(raw.get())?)));
                    rest.collect::<serde_json::Result<serde_json::Map<_, _>>>().map(Value::Object)
                }
                Some(Err(_)) | None => serde_json::from_str(raw.get()),
            };
            value.insert(key, parsed.map_err(decode)?);
        }
        Ok(Self { value: value.into(), port_mappings, text })
    }

    /// The complete configuration, port mappings included.
    pub(crate) fn complete(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|_| self.value.clone())
    }
}

/// containerd may use the Go field name, with an upper-case first letter.
fn is_ports((key, _): &(String, &RawValue)) -> bool {
    ["portMappings", "PortMappings"].contains(&key.as_str())
}
