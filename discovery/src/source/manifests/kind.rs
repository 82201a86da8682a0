//! The conversion of each kind of manifest.

use std::sync::Arc;

use serde::de::DeserializeOwned;
use serde_json::Value;

use super::Reading;
use crate::convert::{self, Findings};
use crate::event::{Object, Sourced};
use crate::problem::{Location, Problem, Severity};

/// The key of an object within a file: kind, namespace, name.
pub(super) type ObjectKey = (String, String, String);

/// Kinds that are common in application manifests and have no effect on the data plane.
const IRRELEVANT: [&str; 22] = [
    "ConfigMap",
    "ClusterRole",
    "ClusterRoleBinding",
    "CustomResourceDefinition",
    "Event",
    "HorizontalPodAutoscaler",
    "IngressClass",
    "Lease",
    "LimitRange",
    "PersistentVolume",
    "PersistentVolumeClaim",
    "PodDisruptionBudget",
    "PodTemplate",
    "PriorityClass",
    "ResourceQuota",
    "Role",
    "RoleBinding",
    "RuntimeClass",
    "Secret",
    "ServiceAccount",
    "StorageClass",
    "VolumeAttachment",
];

/// Kinds that a user may expect to have an effect, and what to do instead.
const NOT_HONOURED: [(&str, &str); 12] = [
    ("CronJob", WORKLOAD),
    ("DaemonSet", WORKLOAD),
    ("Deployment", WORKLOAD),
    ("Job", WORKLOAD),
    ("ReplicaSet", WORKLOAD),
    ("ReplicationController", WORKLOAD),
    ("StatefulSet", WORKLOAD),
    ("Endpoints", "is deprecated and not read; write an EndpointSlice (discovery.k8s.io/v1)"),
    ("Gateway", "is not honoured: HTTP routing is left to a gateway of your choice"),
    ("HTTPRoute", "is not honoured: HTTP routing is left to a gateway of your choice"),
    ("Ingress", "is not honoured: HTTP routing is left to a gateway of your choice"),
    ("NetworkPolicy", "is not enforced: every pod can reach every other"),
];

const WORKLOAD: &str =
    "creates no pods here; start them with your container runtime and describe each as kind: Pod";

/// Reads one object, or the items of a list. `at` is the path of the object in its document, empty for the
/// document itself.
pub(super) fn read(value: &Value, at: &str, location: &dyn Fn(&str) -> Location, reading: &mut Reading) {
    let Some(kind) = value.get("kind").and_then(Value::as_str) else {
        let what = if value.is_object() { "has no kind" } else { "is not a mapping of fields" };
        return problem(reading, location(at), Severity::Error, None, format!("the document {what}"));
    };
    if let (Some(Value::Array(items)), true) = (value.get("items"), kind.ends_with("List")) {
        for (index, item) in items.iter().enumerate() {
            let mut item = item.clone();
            complete_item(&mut item, value, kind);
            read(&item, &format!("{at}.items[{index}]"), location, reading);
        }
        return;
    }
    let api_version = value.get("apiVersion").and_then(Value::as_str).unwrap_or_default();
    match kind {
        "Service" => object(value, "v1", at, location, reading, convert::service, Object::Service),
        "Pod" => object(value, "v1", at, location, reading, convert::pod, Object::Pod),
        "Node" => object(value, "v1", at, location, reading, convert::node, Object::Node),
        "ServiceCIDR" => {
            let version = "networking.k8s.io/v1";
            object(value, version, at, location, reading, convert::service_cidr, Object::ServiceCidr);
        }
        "Namespace" => object(value, "v1", at, location, reading, convert::namespace, Object::Namespace),
        "EndpointSlice" => {
            let version = "discovery.k8s.io/v1";
            object(value, version, at, location, reading, convert::endpoint_slice, Object::EndpointSlice);
        }
        _ => {
            let not_honoured = NOT_HONOURED.iter().find(|(name, _)| *name == kind);
            if let Some((_, instead)) = not_honoured {
                let (_, _, name) = key(value);
                let object = Some(format!("{kind} {name}"));
                problem(reading, location(at), Severity::Warning, object, (*instead).to_owned());
            } else if !IRRELEVANT.contains(&kind) {
                let message = format!("unknown kind {kind:?} (apiVersion {api_version:?}) is ignored");
                problem(reading, location(&format!("{at}.kind")), Severity::Warning, None, message);
            }
        }
    }
}

/// Adds the fields that a typed list (`ServiceList`) has for all of its items.
fn complete_item(item: &mut Value, list: &Value, list_kind: &str) {
    let of_list = list_kind.trim_end_matches("List");
    if let (Value::Object(fields), false) = (item, of_list.is_empty()) {
        fields.entry("kind").or_insert_with(|| of_list.into());
        fields.entry("apiVersion").or_insert_with(|| list["apiVersion"].clone());
    }
}

fn object<A: DeserializeOwned, M>(
    value: &Value,
    api_version: &str,
    at: &str,
    location: &dyn Fn(&str) -> Location,
    reading: &mut Reading,
    convert: fn(A, &mut Findings) -> Option<M>,
    wrap: fn(Arc<M>) -> Object,
) {
    let key = key(value);
    let name = match key.1.as_str() {
        "" => format!("{} {}", key.0, key.2),
        namespace => format!("{} {namespace}/{}", key.0, key.2),
    };
    let mut findings = Findings::default();
    let converted = parse(value, api_version, &mut findings).and_then(|api| convert(api, &mut findings));
    let converted = converted.filter(|_| !findings.has_errors());
    for finding in findings.0 {
        let location = location(&format!("{at}.{}", finding.field));
        let message = if finding.field.is_empty() {
            finding.message
        } else {
            format!("{}: {}", finding.field, finding.message)
        };
        problem(reading, location, finding.severity, Some(name.clone()), message);
    }
    match converted {
        Some(object) => {
            let sourced = Sourced { object: wrap(Arc::new(object)), location: location(at) };
            reading.objects.push((key, sourced));
        }
        None => reading.rejected.push(key),
    }
}

/// Decodes the fields like the API server: what it refuses is refused here.
fn parse<A: DeserializeOwned>(value: &Value, api_version: &str, findings: &mut Findings) -> Option<A> {
    match value.get("apiVersion").and_then(Value::as_str) {
        Some(version) if version == api_version => {}
        other => {
            let found = other.unwrap_or("missing");
            findings.error("apiVersion", format!("{found:?} should be {api_version:?}"));
            return None;
        }
    }
    convert::decode(value).map_err(|finding| findings.0.push(finding)).ok()
}

fn key(value: &Value) -> ObjectKey {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let kind = text(&value["kind"]);
    let metadata = &value["metadata"];
    let namespace = match (kind.as_str(), metadata["namespace"].as_str()) {
        ("Node" | "Namespace" | "ServiceCIDR", _) => "",
        (_, None | Some("")) => "default",
        (_, Some(namespace)) => namespace,
    };
    (kind, namespace.to_owned(), text(&metadata["name"]))
}

fn problem(
    reading: &mut Reading,
    location: Location,
    severity: Severity,
    object: Option<String>,
    message: String,
) {
    reading.problems.push(Problem { location, severity, object, message });
}
