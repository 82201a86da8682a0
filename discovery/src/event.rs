//! What a source tells the index.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use attachment::Attachment;

use crate::model::{EndpointSlice, Namespace, NamespacedName, Node, Pod, Service, ServiceCidr};
use crate::problem::{Location, Problem};

/// The source of Kubernetes YAML.
pub(crate) const MANIFESTS: &str = "manifests";

/// The source of attachment records.
pub(crate) const ATTACHMENTS: &str = "attachments";

/// Where objects come from. Origins are ordered, and where two define the same object the first one wins,
/// whichever came first in time: that is how two daemons started at different moments agree.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Origin {
    /// A file of the manifest directory.
    Manifest(PathBuf),
    /// A file of the attachment directory.
    Attachment(PathBuf),
    /// An object of the Kubernetes API; the namespace is empty where the resource has none.
    Api(Resource, NamespacedName),
}

/// What the Kubernetes API is asked for. Each is a source of its own: it is listed and watched by itself.
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

    /// The API group; empty for the core. The version is `v1` for all of them.
    pub fn group(self) -> &'static str {
        match self {
            Self::EndpointSlices => "discovery.k8s.io",
            Self::ServiceCidrs => "networking.k8s.io",
            _ => "",
        }
    }

    /// Whether an API server may be without it, or without the right to it.
    pub fn is_optional(self) -> bool {
        self == Self::ServiceCidrs
    }

    /// The name in paths of the API.
    pub fn plural(self) -> &'static str {
        self.source().trim_start_matches("kubernetes/")
    }
}

impl Origin {
    /// The source it belongs to.
    pub fn source(&self) -> &'static str {
        match self {
            Self::Manifest(_) => MANIFESTS,
            Self::Attachment(_) => ATTACHMENTS,
            Self::Api(resource, _) => resource.source(),
        }
    }
}

/// One thing a source has seen.
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

/// An object and where it was read.
#[derive(Clone, Debug, PartialEq)]
pub struct Sourced {
    /// The object.
    pub object: Object,
    /// For messages about conflicts with other objects.
    pub location: Location,
}

/// A step from one state of the world to the next.
#[derive(Clone, Debug)]
pub enum Event {
    /// All objects of `origin` now, in place of all it had before. No objects and no problems: it was
    /// deleted.
    Replace {
        /// Who.
        origin: Origin,
        /// The objects. `None` keeps those it had before: the file is broken and its last good content stays.
        objects: Option<Vec<Sourced>>,
        /// What is wrong with it.
        problems: Vec<Problem>,
    },
    /// The source as a whole cannot be read (`Some`), or can be again (`None`). Its objects stay.
    Source {
        /// Which source, as it shows in `/readyz?verbose`: `manifests`, `attachments`, `kubernetes/services`.
        name: &'static str,
        /// Why not.
        outage: Option<Outage>,
    },
    /// The source is complete for the first time.
    Synced(&'static str),
}

/// A source that cannot be followed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outage {
    /// Why not.
    pub problem: Problem,
    /// The last moment at which its state was known to be current.
    pub since: Instant,
}
