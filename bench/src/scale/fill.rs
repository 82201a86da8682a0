//! Creates Services and EndpointSlices as their controllers would, in batches.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Result;
use serde_json::{Value, json};
use testbed::ControlPlane;

use crate::interrupt;
use crate::progress::Progress;

/// Services in one call of `kubectl`.
const BATCH: usize = 500;

/// Nodes of the endpoints, in three zones.
const NODES: usize = 1000;

/// Creates the Services and slices. Returns how long that took.
pub(super) fn fill(control_plane: &ControlPlane, services: usize, endpoints: usize) -> Result<Duration> {
    let started = Instant::now();
    let mut batches = Vec::new();
    for first in (0..services).step_by(BATCH) {
        let last = services.min(first + BATCH);
        let items: Vec<Value> =
            (first..last).flat_map(|number| [service(number), slice(number, endpoints)]).collect();
        batches.push(json!({ "apiVersion": "v1", "kind": "List", "items": items }).to_string());
    }
    let queue = Mutex::new((batches.iter().enumerate(), Progress::new("creating Services", batches.len())));
    let next = || {
        let (batches, progress) = &mut *queue.lock().unwrap_or_else(PoisonError::into_inner);
        let (number, batch) = batches.next().filter(|_| !interrupt::requested())?;
        progress.at(number);
        Some(batch)
    };
    let create = || {
        std::iter::from_fn(next).try_for_each(|batch| {
            control_plane.kubectl(&["create", "--validate=false", "-f", "-"], batch).map(|_output| ())
        })
    };
    // Two concurrent requests keep the API server busy.
    std::thread::scope(|scope| {
        let other = scope.spawn(create);
        create()?;
        other.join().map_err(|_panic| anyhow::anyhow!("creating objects panicked"))?
    })?;
    Ok(started.elapsed())
}

fn service(number: usize) -> Value {
    let name = format!("service-{number}");
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": { "name": name, "labels": { "app": name } },
        "spec": { "ports": [{ "name": "http", "port": 80, "targetPort": 8080 }] },
    })
}

fn slice(number: usize, endpoints: usize) -> Value {
    let endpoint = |index: usize| {
        let pod = number * endpoints + index;
        json!({
            "addresses": [format!("10.{}.{}.{}", 128 + pod / 62_500 % 64, pod / 250 % 250, 1 + pod % 250)],
            "conditions": { "ready": true, "serving": true, "terminating": false },
            "nodeName": format!("node-{}", pod % NODES),
            "zone": format!("zone-{}", pod % 3),
            "targetRef": {
                "kind": "Pod",
                "namespace": "default",
                "name": format!("service-{number}-7d4b9c6f5b-{index:05}"),
                "uid": format!("{pod:08x}-0000-4000-8000-000000000000"),
            },
        })
    };
    json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": format!("service-{number}-slice"),
            "labels": {
                "kubernetes.io/service-name": format!("service-{number}"),
                "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io",
            },
        },
        "addressType": "IPv4",
        "ports": [{ "name": "http", "port": 8080, "protocol": "TCP" }],
        "endpoints": (0..endpoints).map(endpoint).collect::<Vec<_>>(),
    })
}
