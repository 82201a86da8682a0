//! An object of a list or a watch, decoded separately.
//!
//! Decoding a line or a list never fails because of the content of an object. An object that cannot be
//! decoded is still present, with its name, its version and the error. So it cannot end the watch.

use std::borrow::Cow;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use super::kind::Kind;
use crate::convert::{self, Finding};

/// An object, or why it cannot be decoded.
#[derive(Clone, Debug)]
pub(super) struct Decoded<K> {
    /// Name, namespace, UID and version, as far as they can be decoded.
    pub(super) metadata: ObjectMeta,
    pub(super) object: Result<K, Finding>,
}

/// The fields that are decoded of every object. A field of another type counts as absent.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Header {
    metadata: Metadata,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Metadata {
    name: Text,
    namespace: Text,
    uid: Text,
    resource_version: Text,
}

#[derive(Default)]
struct Text(Option<String>);

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <&RawValue>::deserialize(deserializer)?;
        Ok(Self(serde_json::from_str(text.get()).ok()))
    }
}

impl<'de, K: Kind> Deserialize<'de> for Decoded<K> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <&RawValue>::deserialize(deserializer)?.get();
        let Header { metadata } = serde_json::from_str(text).unwrap_or_default();
        let metadata = ObjectMeta {
            name: metadata.name.0,
            namespace: metadata.namespace.0,
            uid: metadata.uid.0,
            resource_version: metadata.resource_version.0,
            ..ObjectMeta::default()
        };
        Ok(Self { metadata, object: convert::decode(&mut serde_json::Deserializer::from_str(text)) })
    }
}

impl<K: Kind> kube::Resource for Decoded<K> {
    type DynamicType = ();
    // Some kinds are namespaced. The library needs it for requests with a namespace.
    type Scope = kube::core::NamespaceResourceScope;

    fn kind(_: &()) -> Cow<'_, str> {
        K::RESOURCE.kind().into()
    }

    fn group(_: &()) -> Cow<'_, str> {
        K::RESOURCE.group().into()
    }

    fn version(_: &()) -> Cow<'_, str> {
        "v1".into()
    }

    fn plural(_: &()) -> Cow<'_, str> {
        K::RESOURCE.plural().into()
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}
