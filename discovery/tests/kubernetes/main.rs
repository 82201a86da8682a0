//! Discovery with an API server that behaves unlike a real one: an invalid object or line must not affect
//! others.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod damage;
mod failures;
mod server;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use portolan_discovery::model::NamespacedName;
use portolan_discovery::{
    Access, Config, ControlPlane, Discovery, Interest, Problem, Recorder, Resource, ServiceInterest, Snapshot,
};
use tokio::task::JoinSet;

use server::Server;

/// Long, because tests run in parallel on busy machines.
const TIMEOUT: Duration = Duration::from_secs(60);

const ALL: [Resource; 6] = [
    Resource::Services,
    Resource::EndpointSlices,
    Resource::Nodes,
    Resource::Namespaces,
    Resource::Pods,
    Resource::ServiceCidrs,
];

/// A daemon that watches a server.
struct Fixture {
    discovery: Discovery,
    access: Access,
    _directory: tempfile::TempDir,
}

impl Fixture {
    fn start(server: &Server) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let access = server.access(directory.path());
        let discovery = discovery(&access, &Recorder::default());
        Self { discovery, access, _directory: directory }
    }

    /// The first snapshot for which `is` holds.
    async fn until(&self, what: &str, is: impl Fn(&Snapshot) -> bool) -> Arc<Snapshot> {
        until(&self.discovery, what, is).await
    }
}

fn discovery(access: &Access, recorder: &Recorder) -> Discovery {
    let config = Config {
        control_plane: ControlPlane::Kubernetes(access.clone()),
        interest: Interest {
            services: ServiceInterest::All,
            nodes: true,
            namespaces: true,
            pods: true,
            pod_names: false,
        },
        attachments: None,
        service_cidrs: vec!["10.96.0.0/12".parse().unwrap()],
    };
    portolan_discovery::start_with(config, recorder)
}

async fn until(discovery: &Discovery, what: &str, is: impl Fn(&Snapshot) -> bool) -> Arc<Snapshot> {
    let mut snapshots = discovery.snapshots.clone();
    match tokio::time::timeout(TIMEOUT, snapshots.wait_for(|snapshot| is(snapshot))).await {
        Ok(snapshot) => Arc::clone(&snapshot.unwrap()),
        Err(_elapsed) => {
            panic!("not within {TIMEOUT:?}: {what}; last: {:?}", discovery.snapshots.borrow().health())
        }
    }
}

/// A valid object of each kind; `number` tells them apart.
fn good(resource: Resource, number: u8) -> serde_json::Value {
    let name = format!("good-{number}");
    let metadata = serde_json::json!({
        "name": name, "namespace": if is_namespaced(resource) { "default" } else { "" }, "uid": format!("uid-{name}"),
        "resourceVersion": "VERSION", "labels": {"kubernetes.io/service-name": name, "app": "web"},
        "creationTimestamp": "2026-01-02T03:04:05Z", "annotations": {"example.com/note": "x"},
        "managedFields": [{"manager": "kubectl", "time": "2026-01-02T03:04:05Z", "fieldsV1": {"f:spec": {}}}],
    });
    let more = match resource {
        Resource::Services => serde_json::json!({
            "spec": {
                "type": "LoadBalancer", "clusterIP": format!("10.96.0.{number}"), "clusterIPs": [format!("10.96.0.{number}")],
                "ipFamilies": ["IPv4"], "ipFamilyPolicy": "SingleStack", "selector": {"app": "web"}, "sessionAffinity": "None",
                "ports": [{"name": "http", "port": 80, "protocol": "TCP", "targetPort": "http", "nodePort": 30000 + u16::from(number)}],
            },
            "status": {
                "loadBalancer": {"ingress": [{"ip": format!("192.0.2.{number}"), "ipMode": "VIP"}]},
                "conditions": [{"type": "A", "status": "True", "reason": "R", "message": "m", "lastTransitionTime": "2026-01-02T03:04:05Z"}],
            },
        }),
        Resource::EndpointSlices => serde_json::json!({
            "addressType": "IPv4",
            "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
            "endpoints": [{
                "addresses": [format!("10.0.0.{number}")], "conditions": {"ready": true, "serving": true, "terminating": false},
                "nodeName": "node-1", "zone": "a", "targetRef": {"kind": "Pod", "name": "p"}, "hints": {"forZones": [{"name": "a"}]},
            }],
        }),
        Resource::Nodes => serde_json::json!({
            "spec": {"podCIDR": format!("10.1.{number}.0/24"), "podCIDRs": [format!("10.1.{number}.0/24")], "taints": [{"key": "a"}]},
            "status": {"addresses": [{"type": "InternalIP", "address": format!("192.0.2.{number}")}],
                "conditions": [{"type": "Ready", "status": "True", "lastHeartbeatTime": "2026-01-02T03:04:05Z"}]},
        }),
        Resource::Namespaces => {
            serde_json::json!({"spec": {"finalizers": ["kubernetes"]}, "status": {"phase": "Active"}})
        }
        Resource::Pods => serde_json::json!({
            "spec": {"nodeName": "node-1", "containers": [{"name": "a", "ports": [{"name": "http", "containerPort": 8080}]}]},
            "status": {"phase": "Running", "podIP": format!("10.0.0.{number}"), "podIPs": [{"ip": format!("10.0.0.{number}")}],
                "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-02T03:04:05Z"}]},
        }),
        Resource::ServiceCidrs => serde_json::json!({"spec": {"cidrs": [format!("10.2.{number}.0/24")]}}),
    };
    let mut object = serde_json::json!({"apiVersion": "v1", "kind": resource.kind(), "metadata": metadata});
    object.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    object
}

fn is_namespaced(resource: Resource) -> bool {
    matches!(resource, Resource::Services | Resource::EndpointSlices | Resource::Pods)
}

/// Whether the object with that number is served correctly.
fn has(snapshot: &Snapshot, resource: Resource, number: u8) -> bool {
    let name = NamespacedName::new("default", format!("good-{number}"));
    let address = |net: [u8; 3]| std::net::IpAddr::from([net[0], net[1], net[2], number]);
    match resource {
        Resource::Services => snapshot.service(&name).is_some_and(|entry| {
            entry.cluster_ips == [address([10, 96, 0])]
                && entry.service.rules.load_balancer_ips == [address([192, 0, 2])]
        }),
        Resource::EndpointSlices => snapshot.service(&name).is_some_and(|entry| {
            entry
                .slices
                .iter()
                .flat_map(|slice| &slice.endpoints)
                .any(|endpoint| endpoint.address == address([10, 0, 0]))
        }),
        Resource::Nodes => {
            snapshot.nodes.get(&*name.name).is_some_and(|node| node.addresses == [address([192, 0, 2])])
        }
        Resource::Namespaces => snapshot.namespaces.contains(&*name.name),
        Resource::Pods => snapshot.pods.contains_key(&address([10, 0, 0])),
        Resource::ServiceCidrs => {
            snapshot.service_cidrs.contains(&format!("10.2.{number}.0/24").parse().unwrap())
        }
    }
}

/// Stores good objects of every kind.
fn put_good(server: &Server, number: u8) {
    for resource in ALL {
        server.put(resource, &format!("good-{number}"), &good(resource, number).to_string());
    }
}

fn has_all(snapshot: &Snapshot, numbers: &[u8]) -> bool {
    snapshot.synced
        && numbers.iter().all(|number| ALL.iter().all(|resource| has(snapshot, *resource, *number)))
}

fn errors(snapshot: &Snapshot) -> Vec<String> {
    snapshot.problems.iter().filter(|problem| problem.is_error()).map(Problem::to_string).collect()
}
