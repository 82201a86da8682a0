//! The objects of the data plane: small, validated, free of API types.

mod endpoint;
mod name;
mod node;
mod pod;
mod service;
mod service_cidr;
mod traffic;

pub use endpoint::{Conditions, Endpoint, EndpointPort, EndpointSlice, Hints};
pub use name::NamespacedName;
pub use node::{Namespace, Node};
pub use pod::{Pod, PodPort};
pub use service::{FamilyPolicy, IpFamily, Protocol, Service, ServiceKind, ServicePort, TargetPort};
pub use service_cidr::ServiceCidr;
pub use traffic::{BalancerKind, Distribution, ProxyClass, TrafficRules};
