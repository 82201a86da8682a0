//! The Kubernetes API server: each resource is listed and watched by a follower of its own.
//!
//! ```text
//! list, streamed (WatchList) or in pages ──> Replica, buffered ──one batch──> index
//!   └─> watch: events, bookmarks ──> Replica ──what has changed──> index
//!         ├─ closed, broken, silent, 429, 500 ──> watch again from the last version, after a pause
//!         └─ 410, or a history that is not ours ──> list again; what has not changed stays as it is
//! ```
//! What was said last stays in force, however long the server is away.

mod access;
mod event_writer;
mod follower;
mod interner;
mod kind;
mod pause;
mod replica;

use k8s_openapi::api::core::v1::{Namespace, Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::discovery::{Interest, ServiceInterest};
use crate::event::{Event, Resource};
use crate::problem::{Location, Problem, Severity};
pub use access::Access;
pub(crate) use event_writer::EventWriter;
use follower::{Follower, Selectors};

/// The labels that say which proxy is meant, and that none is.
const PROXY_NAME: &str = "service.kubernetes.io/service-proxy-name";
const HEADLESS: &str = "service.kubernetes.io/headless";

/// Slices that belong to a Service; there may be others.
const OF_A_SERVICE: &str = "kubernetes.io/service-name";

/// What is asked for, on behalf of these.
pub(crate) fn resources(interest: &Interest) -> Vec<Resource> {
    let mut resources = vec![Resource::Services, Resource::EndpointSlices];
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

/// Starts a follower for each resource.
pub(crate) fn run(
    access: &Access,
    interest: &Interest,
    events: &mpsc::Sender<Vec<Event>>,
    tasks: &mut JoinSet<()>,
) {
    for resource in resources(interest) {
        let (access, events) = (access.clone(), events.clone());
        match resource {
            Resource::Services => {
                tasks.spawn(Follower::<Service>::new(access, carried(interest, &[]), events).run());
            }
            Resource::EndpointSlices => {
                let selectors = carried(interest, &[OF_A_SERVICE]);
                let follower = Follower::<EndpointSlice>::new(access, selectors, events);
                tasks.spawn(follower.keeping_pods(interest.pod_names).run());
            }
            Resource::Nodes => {
                tasks.spawn(Follower::<Node>::new(access, Selectors::default(), events).run());
            }
            Resource::Namespaces => {
                tasks.spawn(Follower::<Namespace>::new(access, Selectors::default(), events).run());
            }
            Resource::Pods => {
                tasks.spawn(Follower::<Pod>::new(access, Selectors::default(), events).run());
            }
        }
    }
}

/// Asks for leave to list each resource and says what is wrong.
pub(crate) fn check(access: &Access, interest: &Interest) -> Vec<Problem> {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return vec![trouble("the event loop".into(), error.to_string())],
    };
    runtime.block_on(async {
        let client = match access.client().await {
            Ok(client) => client,
            Err(error) => return vec![trouble("the API server".into(), follower::explain(&error))],
        };
        let mut problems = Vec::new();
        for resource in resources(interest) {
            let client = client.clone();
            let found = match resource {
                Resource::Services => follower::probe::<Service>(client, carried(interest, &[])).await,
                Resource::EndpointSlices => {
                    follower::probe::<EndpointSlice>(client, carried(interest, &[OF_A_SERVICE])).await
                }
                Resource::Nodes => follower::probe::<Node>(client, Selectors::default()).await,
                Resource::Namespaces => follower::probe::<Namespace>(client, Selectors::default()).await,
                Resource::Pods => follower::probe::<Pod>(client, Selectors::default()).await,
            };
            problems.extend(found.err().map(|error| trouble(resource.source().into(), error)));
        }
        problems
    })
}

fn trouble(object: String, message: String) -> Problem {
    Problem { location: Location::Api, severity: Severity::Error, object: Some(object), message }
}

/// Those of Services and EndpointSlices; with `more` besides.
fn carried(interest: &Interest, more: &[&str]) -> Selectors {
    let mut labels: Vec<String> = more.iter().map(|label| (*label).to_owned()).collect();
    if let ServiceInterest::CarriedBy(name) = &interest.services {
        labels.push(
            name.as_ref().map_or_else(|| format!("!{PROXY_NAME}"), |name| format!("{PROXY_NAME}={name}")),
        );
        labels.push(format!("!{HEADLESS}"));
    }
    Selectors { labels: labels.join(",") }
}
