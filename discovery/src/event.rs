//! The events from a source to the index.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use attachment::Attachment;

use crate::model::{EndpointSlice, Namespace, NamespacedName, Node, Pod, Service, ServiceCidr};
use crate::problem::{Location, Problem};

/// The source of Kubernetes YAML files.
pub(crate) const MANIFESTS: &str = "manifests";

/// The source of attachment records.
pub(crate) const ATTACHMENTS: &str = "attachments";

/// The place that defines an object. Origins are ordered: if two define the same object, the first in this
/// order wins, independent of time. So two daemons that start at different moments agree.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Origin {
    /// A file of the manifest directory.
    Manifest(PathBuf),
    /// A file of the attachment directory.
    Attachment(PathBuf),
    /// An object of the Kubernetes API. The namespace is empty for cluster-scoped resources.
    Api(Resource, NamespacedName),
}

/// A resource of the Kubernetes API. Each is a source, listed and watched separately.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Resource {
    /// `v1/services`.
    Services,
    /// `discovery.k8s.io/v1/endpointslices`.
    EndpointSlices,
    /// `v1/nodes`.
    Nodes,
    /// `v1/namespaces`.
    Namespaces,
    /// `v1/pods`.
    Pods,
    /// `networking.k8s.io/v1/servicecidrs`.
    ServiceCidrs,
}

impl Resource {
    /// The name of the source.
    pub fn source(self) -> &'static str {
        match self {
            Self::Services => "kubernetes/services",
            Self::EndpointSlices => "kubernetes/endpointslices",
            Self::Nodes => "kubernetes/nodes",
            Self::Namespaces => "kubernetes/namespaces",
            Self::Pods => "kubernetes/pods",
            Self::ServiceCidrs => "kubernetes/servicecidrs",
        }
    }

    /// The kind of its objects.
    pub fn kind(self) -> &'static str {
        match self {
            Self::Services => "Service",
            Self::EndpointSlices => "EndpointSlice",
            Self::Nodes => "Node",
            Self::Namespaces => "Namespace",
            Self::Pods => "Pod",
            Self::ServiceCidrs => "ServiceCIDR",
        }
    }

    /// The API group; empty for core. All versions are `v1`.
    pub fn group(self) -> &'static str {
        match self {
            Self::EndpointSlices => "discovery.k8s.io",
            Self::ServiceCidrs => "networking.k8s.io",
            _ => "",
        }
    }

    /// Whether a server may lack it, or may not allow to read it.
    pub fn is_optional(self) -> bool {
        self == Self::ServiceCidrs
    }

    /// The name in API paths.
    pub fn plural(self) -> &'static str {
        self.source().trim_start_matches("kubernetes/")
    }
}

impl Origin {
    /// The source of the origin.
    pub fn source(&self) -> &'static str {
        match self {
            Self::Manifest(_) => MANIFESTS,
            Self::Attachment(_) => ATTACHMENTS,
            Self::Api(resource, _) => resource.source(),
        }
    }
}

/// An object that a source has read.
#[derive(Clone, Debug, PartialEq)]
pub enum Object {
    /// `v1/Service`.
    Service(Arc<Service>),
    /// `discovery.k8s.io/v1/EndpointSlice`.
    EndpointSlice(Arc<EndpointSlice>),
    /// `v1/Pod`.
    Pod(Arc<Pod>),
    /// `v1/Node`.
    Node(Arc<Node>),
    /// `v1/Namespace`.
    Namespace(Arc<Namespace>),
    /// `networking.k8s.io/v1/ServiceCIDR`.
    ServiceCidr(Arc<ServiceCidr>),
    /// A record of the CNI plugin.
    Attachment(Arc<Attachment>),
}

/// An object with its location.
#[derive(Clone, Debug, PartialEq)]
pub struct Sourced {
    /// The object.
    pub object: Object,
    /// For messages about conflicts with other objects.
    pub location: Location,
}

/// A change of a source's state.
#[derive(Clone, Debug)]
pub enum Event {
    /// All current objects of `origin`, replacing the earlier ones. Without objects and problems the origin
    /// was deleted.
    Replace {
        /// The origin.
        origin: Origin,
        /// The objects. `None` keeps the earlier ones: the file is broken and its last good content stays.
        objects: Option<Vec<Sourced>>,
        /// The problems of the origin.
        problems: Vec<Problem>,
    },
    /// The source as a whole cannot be read (`Some`), or can be read again (`None`). Its objects stay.
    Source {
        /// The source, as shown in `/readyz?verbose`: `manifests`, `attachments`, `kubernetes/services`.
        name: &'static str,
        /// The failure.
        failure: Option<SourceFailure>,
    },
    /// The source was read completely for the first time.
    Synced(&'static str),
}

/// A failure to read or watch a source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceFailure {
    /// The problem.
    pub problem: Problem,
    /// The last moment at which its state was known to be current.
    pub since: Instant,
}
