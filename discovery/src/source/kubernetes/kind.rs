//! What each resource is turned into.

use std::fmt::Debug;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Namespace, Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use serde::de::DeserializeOwned;

use super::interner::Interner;
use crate::convert::{self, Findings};
use crate::event::{Object, Resource};

/// An API type that is followed.
pub(super) trait Kind:
    kube::Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + 'static
{
    const RESOURCE: Resource;

    /// Keeps what the data plane needs of it.
    fn object(self, findings: &mut Findings, interner: &mut Interner) -> Option<Object>;
}

impl Kind for Service {
    const RESOURCE: Resource = Resource::Services;

    fn object(self, findings: &mut Findings, _: &mut Interner) -> Option<Object> {
        convert::service(self, findings).map(|service| Object::Service(Arc::new(service)))
    }
}

impl Kind for EndpointSlice {
    const RESOURCE: Resource = Resource::EndpointSlices;

    fn object(self, findings: &mut Findings, interner: &mut Interner) -> Option<Object> {
        let mut slice = convert::endpoint_slice(self, findings)?;
        interner.share(&mut slice);
        Some(Object::EndpointSlice(Arc::new(slice)))
    }
}

impl Kind for Node {
    const RESOURCE: Resource = Resource::Nodes;

    fn object(self, findings: &mut Findings, _: &mut Interner) -> Option<Object> {
        convert::node(self, findings).map(|node| Object::Node(Arc::new(node)))
    }
}

impl Kind for Pod {
    const RESOURCE: Resource = Resource::Pods;

    fn object(self, findings: &mut Findings, _: &mut Interner) -> Option<Object> {
        convert::pod(self, findings).map(|pod| Object::Pod(Arc::new(pod)))
    }
}

impl Kind for Namespace {
    const RESOURCE: Resource = Resource::Namespaces;

    fn object(self, findings: &mut Findings, _: &mut Interner) -> Option<Object> {
        convert::namespace(self, findings).map(|namespace| Object::Namespace(Arc::new(namespace)))
    }
}
