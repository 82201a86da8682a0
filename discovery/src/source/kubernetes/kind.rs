//! The conversion of each resource.

use std::fmt::Debug;
use std::sync::Arc;

use serde::de::DeserializeOwned;

use super::interner::Interner;
use crate::convert::wire::{EndpointSlice, Namespace, Node, Pod, Service, ServiceCidr};
use crate::convert::{self, Findings};
use crate::event::{Object, Resource};

/// The decoded fields of an API type.
pub(super) trait Kind: Clone + Debug + DeserializeOwned + Send + 'static {
    const RESOURCE: Resource;

    /// Converts it to an object of the model.
    fn object(self, findings: &mut Findings, interner: &mut Interner) -> Option<Object>;
}

impl Kind for EndpointSlice {
    const RESOURCE: Resource = Resource::EndpointSlices;

    fn object(self, findings: &mut Findings, interner: &mut Interner) -> Option<Object> {
        let mut slice = convert::endpoint_slice(self, findings)?;
        interner.share(&mut slice);
        Some(Object::EndpointSlice(Arc::new(slice)))
    }
}

macro_rules! kinds {
    ($($kind:ident: $resource:ident by $convert:ident,)*) => {$(
        impl Kind for $kind {
            const RESOURCE: Resource = Resource::$resource;

            fn object(self, findings: &mut Findings, _: &mut Interner) -> Option<Object> {
                convert::$convert(self, findings).map(|object| Object::$kind(Arc::new(object)))
            }
        }
    )*};
}

kinds! {
    Service: Services by service,
    Node: Nodes by node,
    Namespace: Namespaces by namespace,
    Pod: Pods by pod,
    ServiceCidr: ServiceCidrs by service_cidr,
}
