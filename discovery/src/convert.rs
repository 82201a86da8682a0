//! Converts API objects to the model. All validation is here.
//!
//! Every problem of an object is reported, not only the first. An object with an error is not used. A warning
//! is about a field that has an effect on a cluster but none here.

mod endpoint_slice;
mod node;
mod pod;
mod service;
mod service_cidr;
mod traffic;
pub(crate) mod wire;

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use serde::{Deserialize, Deserializer};

use crate::model::{NamespacedName, Protocol};
use crate::problem::Severity;

pub(crate) use endpoint_slice::endpoint_slice;
pub(crate) use node::{namespace, node};
pub(crate) use pod::pod;
pub(crate) use service::service;
pub(crate) use service_cidr::service_cidr;
use wire::ObjectMeta;

/// A finding about one field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Finding {
    pub(crate) severity: Severity,
    /// A path such as `spec.ports[0].port`; empty for the object as a whole.
    pub(crate) field: String,
    pub(crate) message: String,
}

/// Decodes the fields that the data plane uses.
///
/// # Errors
/// If a field has a wrong type. The finding has the path of the field.
pub(crate) fn decode<'de, T: Deserialize<'de>>(deserializer: impl Deserializer<'de>) -> Result<T, Finding> {
    serde_path_to_error::deserialize(deserializer).map_err(|error| {
        let path = error.path().to_string();
        let field = if path == "." { String::new() } else { path };
        let mut message = error.into_inner().to_string();
        // A position in the text is useless: the user has not seen that text.
        message.truncate(message.rfind(" at line ").unwrap_or(message.len()));
        Finding { severity: Severity::Error, field, message: shortened(message) }
    })
}

/// Maximum number of findings per object, which may have thousands of fields.
const FINDINGS: usize = 20;

/// Maximum length of a message, which may quote a value of any length.
const MESSAGE: usize = 300;

fn shortened(mut message: String) -> String {
    if message.len() > MESSAGE {
        message.truncate(message.floor_char_boundary(MESSAGE));
        message.push('…');
    }
    message
}

/// The findings of one object.
#[derive(Debug, Default)]
pub(crate) struct Findings(pub(crate) Vec<Finding>);

impl Findings {
    pub(crate) fn error(&mut self, field: &str, message: impl Into<String>) {
        self.add(Severity::Error, field, message.into());
    }

    pub(crate) fn warn(&mut self, field: &str, message: impl Into<String>) {
        self.add(Severity::Warning, field, message.into());
    }

    pub(crate) fn has_errors(&self) -> bool {
        self.0.iter().any(|finding| finding.severity == Severity::Error)
    }

    /// Runs `read` for a field that an API server does not validate. An error in it becomes a warning: the
    /// field is ignored, and the object is used.
    pub(crate) fn optional<T>(&mut self, read: impl FnOnce(&mut Self) -> T) -> T {
        let mut found = Self::default();
        let value = read(&mut found);
        for finding in &mut found.0 {
            if finding.severity == Severity::Error {
                finding.severity = Severity::Warning;
                finding.message.push_str("; ignored");
            }
        }
        self.0.append(&mut found.0);
        value
    }

    fn add(&mut self, severity: Severity, field: &str, message: String) {
        let is_first_error = severity == Severity::Error && !self.has_errors();
        if self.0.len() < FINDINGS || is_first_error {
            self.0.push(Finding { severity, field: field.to_owned(), message: shortened(message) });
        }
    }
}

/// Parses a range `ADDRESS/PREFIX` without host bits: `10.96.0.1/12` is an error.
///
/// # Errors
/// A sentence with the value and the expected format.
pub fn parse_cidr(text: &str) -> Result<IpNetwork, String> {
    let cidr: IpNetwork = match text.contains('/') {
        true => text.parse().map_err(|e| format!("{text:?} is not a range of addresses: {e}"))?,
        false => return Err(format!("{text:?} is not a range of addresses: there is no /PREFIX")),
    };
    if cidr.ip() != cidr.network() {
        return Err(format!("{text:?} has host bits set; the range is {}/{}", cidr.network(), cidr.prefix()));
    }
    Ok(cidr)
}

fn namespaced_name(metadata: &ObjectMeta, findings: &mut Findings) -> Option<NamespacedName> {
    let name = name(metadata, findings)?;
    let namespace = match metadata.namespace.as_str() {
        "" => "default",
        namespace => namespace,
    };
    if !is_dns_label(namespace) {
        findings.error("metadata.namespace", format!("{namespace:?} {NOT_A_LABEL}"));
        return None;
    }
    Some(NamespacedName::new(namespace, name))
}

fn name(metadata: &ObjectMeta, findings: &mut Findings) -> Option<String> {
    if metadata.name.is_empty() {
        findings.error("metadata.name", "is missing");
        return None;
    }
    Some(metadata.name.clone())
}

const NOT_A_LABEL: &str =
    "is not a DNS label: at most 63 of a-z, 0-9 and -, with a letter or digit at both ends (RFC 1123)";

/// A name that is a label of a DNS name.
fn is_dns_label(text: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    let outer = |byte: Option<&u8>| byte.is_some_and(|byte| *byte != b'-');
    let bytes = text.as_bytes();
    bytes.len() <= 63 && outer(bytes.first()) && outer(bytes.last()) && bytes.iter().all(|byte| inner(*byte))
}

fn address(field: &str, text: &str, findings: &mut Findings) -> Option<IpAddr> {
    let parsed = parse_address(text);
    if parsed.is_none() {
        findings.error(field, format!("{text:?} is not an IP address"));
    }
    parsed
}

/// Like the API server: the parts of an IPv4 address are decimal, even with leading zeros.
fn parse_address(text: &str) -> Option<IpAddr> {
    let trimmed = |part: &str| match part.trim_start_matches('0') {
        "" => part.get(..1).unwrap_or_default().to_owned(),
        rest => rest.to_owned(),
    };
    let plain = || text.split('.').map(trimmed).collect::<Vec<_>>().join(".");
    text.parse().ok().or_else(|| plain().parse().ok().map(IpAddr::V4))
}

fn port_number(field: &str, number: i32, findings: &mut Findings) -> Option<u16> {
    let port = u16::try_from(number).ok().filter(|port| *port > 0);
    if port.is_none() {
        findings.error(field, format!("{number} is not a port (1-65535)"));
    }
    port
}

fn protocol(field: &str, text: Option<&str>, findings: &mut Findings) -> Option<Protocol> {
    match text.unwrap_or("TCP") {
        "TCP" => Some(Protocol::Tcp),
        "UDP" => Some(Protocol::Udp),
        "SCTP" => Some(Protocol::Sctp),
        other => {
            findings.error(field, format!("{other:?} is not TCP, UDP or SCTP"));
            None
        }
    }
}
