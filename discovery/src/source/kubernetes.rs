//! The Kubernetes API server. [`kube::runtime::watcher`] lists and watches each resource separately.
//!
//! ```text
//! watcher ──objects, decoded one by one──> Replica ──changes──> index
//!    └─> kube::Client ──> ApiServer (reconnects, checks versions, sees bookmarks)
//! ```
//! The last state is kept however long the server is unreachable. An object that cannot be decoded keeps its
//! own last state.

mod access;
mod api_server;
mod decoded;
mod event_writer;
mod interner;
mod kind;
mod reflector;
mod replica;

use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::convert::wire;
use crate::discovery::{Interest, ServiceInterest};
use crate::event::{Event, Resource};
use crate::event_record::Recorder;
use crate::problem::{Location, Problem, Severity};
pub use access::Access;
use api_server::ApiServer;
pub(crate) use event_writer::EventWriter;
use kind::Kind;
use reflector::{Reflector, probe};

/// The labels for another proxy, and for no proxy.
const PROXY_NAME: &str = "service.kubernetes.io/service-proxy-name";
const HEADLESS: &str = "service.kubernetes.io/headless";

/// The label of slices that belong to a Service. There may be others.
const OF_A_SERVICE: &str = "kubernetes.io/service-name";

/// The resources that a program needs.
pub(crate) fn resources(interest: &Interest) -> Vec<Resource> {
    let mut resources = vec![Resource::Services, Resource::EndpointSlices, Resource::ServiceCidrs];
    if interest.nodes {
        resources.push(Resource::Nodes);
    }
    if interest.namespaces {
        resources.push(Resource::Namespaces);
    }
    if interest.pods {
        resources.push(Resource::Pods);
    }
    resources
}

/// Starts a reflector for each resource.
pub(crate) fn run(
    access: &Access,
    interest: &Interest,
    recorder: &Recorder,
    events: &mpsc::Sender<Vec<Event>>,
    tasks: &mut JoinSet<()>,
) {
    fn start<K: Kind>(
        (access, interest, recorder, events): (&Access, &Interest, &Recorder, &mpsc::Sender<Vec<Event>>),
        tasks: &mut JoinSet<()>,
    ) {
        let labels = labels(K::RESOURCE, interest);
        let (access, recorder, events) = (access.clone(), recorder.clone(), events.clone());
        tasks.spawn(Reflector::<K>::new(access, labels, recorder, interest.pod_names, events).run());
    }
    let with = (access, interest, recorder, events);
    for resource in resources(interest) {
        match resource {
            Resource::Services => start::<wire::Service>(with, tasks),
            Resource::EndpointSlices => start::<wire::EndpointSlice>(with, tasks),
            Resource::Nodes => start::<wire::Node>(with, tasks),
            Resource::Namespaces => start::<wire::Namespace>(with, tasks),
            Resource::Pods => start::<wire::Pod>(with, tasks),
            Resource::ServiceCidrs => start::<wire::ServiceCidr>(with, tasks),
        }
    }
}

/// Checks that each resource can be listed. Returns the problems.
pub(crate) fn check(access: &Access, interest: &Interest) -> Vec<Problem> {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return vec![problem(Severity::Error, "the event loop", error.to_string())],
    };
    runtime.block_on(async {
        let server = ApiServer::new(access.clone());
        let mut problems = Vec::new();
        for resource in resources(interest) {
            let labels = &labels(resource, interest);
            let found = match resource {
                Resource::Services => probe::<wire::Service>(&server, labels).await,
                Resource::EndpointSlices => probe::<wire::EndpointSlice>(&server, labels).await,
                Resource::Nodes => probe::<wire::Node>(&server, labels).await,
                Resource::Namespaces => probe::<wire::Namespace>(&server, labels).await,
                Resource::Pods => probe::<wire::Pod>(&server, labels).await,
                Resource::ServiceCidrs => probe::<wire::ServiceCidr>(&server, labels).await,
            };
            problems.extend(found.err().map(|(message, is_optional)| {
                let severity = if is_optional { Severity::Warning } else { Severity::Error };
                problem(severity, resource.source(), message)
            }));
        }
        problems
    })
}

fn problem(severity: Severity, object: &str, message: String) -> Problem {
    Problem { location: Location::Api, severity, object: Some(object.to_owned()), message }
}

/// The label selector of a resource; empty means all objects.
fn labels(resource: Resource, interest: &Interest) -> String {
    let mut labels = Vec::new();
    if resource == Resource::EndpointSlices {
        labels.push(OF_A_SERVICE.to_owned());
    }
    if let (Resource::Services | Resource::EndpointSlices, ServiceInterest::CarriedBy(name)) =
        (resource, &interest.services)
    {
        labels.push(
            name.as_ref().map_or_else(|| format!("!{PROXY_NAME}"), |name| format!("{PROXY_NAME}={name}")),
        );
        labels.push(format!("!{HEADLESS}"));
    }
    labels.join(",")
}
