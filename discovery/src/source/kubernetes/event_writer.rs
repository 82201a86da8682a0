//! Writes notices as Events (events.k8s.io/v1), one after the other. The only thing that is ever written to the server.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ObjectReference, Service};
use k8s_openapi::api::events::v1::{Event, EventSeries};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use kube::api::{Api, ListParams, Patch, PatchParams, PostParams};
use tokio::sync::mpsc;

use super::access::Access;
use super::follower::{Failure, answered};
use super::pause::Pause;
use crate::notice::{Notice, Regarding};

/// How often a notice is tried while the server does not answer: a minute and a half.
const TRIES: usize = 12;

/// The same notice within this counts the Event there is up, in place of another one; client-go's.
const SERIES: Duration = Duration::from_secs(360);

/// Series remembered at a time.
const REMEMBERED: usize = 64;

/// The API's limits, in bytes.
const NOTE: usize = 1024;
const INSTANCE: usize = 128;

/// Cluster-scoped objects have their Events here.
const NO_NAMESPACE: &str = "default";

/// Writes for one program on one node.
pub(crate) struct EventWriter {
    access: Access,
    program: &'static str,
    instance: String,
    client: Option<kube::Client>,
    series: HashMap<(Notice, Option<String>), Series>,
}

/// An Event that was written.
struct Series {
    event: String,
    count: i32,
    last: Instant,
}

impl EventWriter {
    pub(crate) fn new(access: Access, program: &'static str, node_name: &str) -> Self {
        let instance = shortened(format!("{program}-{node_name}"), INSTANCE);
        Self { access, program, instance, client: None, series: HashMap::new() }
    }

    /// Ends when nobody can say anything any more.
    pub(crate) async fn run(mut self, mut queue: mpsc::Receiver<Notice>) {
        while let Some(notice) = queue.recv().await {
            self.series.retain(|_, series| series.last.elapsed() < SERIES);
            let mut pause = Pause::default();
            for remaining in (0..TRIES).rev() {
                let Err(failure) = self.write(&notice).await else { break };
                if remaining == 0 || failure.is_final() {
                    tracing::info!(reason = notice.reason, error = %failure, "no Event is recorded");
                    break;
                }
                // The next one reads the certificates and tokens that are there then.
                self.client = None;
                tokio::time::sleep(pause.next(failure.asks_for())).await;
            }
        }
    }

    async fn write(&mut self, notice: &Notice) -> Result<(), Failure> {
        let client = match &self.client {
            Some(client) => client.clone(),
            None => self.client.insert(self.access.client().await.map_err(Failure::Access)?).clone(),
        };
        let key = (notice.clone(), uid(client.clone(), &notice.regarding).await?);
        let events: Api<Event> = Api::namespaced(client, notice.regarding.namespace());
        if let Some(series) = self.series.get_mut(&key) {
            let more = EventSeries { count: series.count + 1, last_observed_time: now() };
            let patch = Patch::Merge(serde_json::json!({ "series": more }));
            let params = PatchParams::default();
            match answered(events.patch(&series.event, &params, &patch)).await {
                Ok(_) => {
                    (series.count, series.last) = (more.count, Instant::now());
                    return Ok(());
                }
                // Events live for an hour, or less.
                Err(failure) if failure.code() == Some(404) => {}
                Err(failure) => return Err(failure),
            }
        }
        let params = PostParams::default();
        let event = self.event(notice, key.1.clone());
        let written = answered(events.create(&params, &event)).await?;
        if self.series.len() < REMEMBERED {
            let event = written.metadata.name.unwrap_or_default();
            self.series.insert(key, Series { event, count: 1, last: Instant::now() });
        }
        Ok(())
    }

    fn event(&self, notice: &Notice, uid: Option<String>) -> Event {
        let regarding = ObjectReference { uid, ..notice.regarding.reference() };
        Event {
            metadata: ObjectMeta {
                generate_name: regarding.name.as_ref().map(|name| format!("{name}-")),
                namespace: Some(notice.regarding.namespace().to_owned()),
                ..ObjectMeta::default()
            },
            type_: Some(if notice.is_warning { "Warning" } else { "Normal" }.to_owned()),
            reason: Some(notice.reason.to_owned()),
            action: Some(notice.action.to_owned()),
            note: Some(shortened(notice.note.clone(), NOTE)),
            regarding: Some(regarding),
            reporting_controller: Some(self.program.to_owned()),
            reporting_instance: Some(self.instance.clone()),
            event_time: Some(now()),
            ..Event::default()
        }
    }
}

impl Regarding {
    fn namespace(&self) -> &str {
        match self {
            Self::Node(_) => NO_NAMESPACE,
            Self::Service(name) => &name.namespace,
        }
    }

    fn reference(&self) -> ObjectReference {
        let of = |kind: &str, name: &str| ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some(kind.to_owned()),
            name: Some(name.to_owned()),
            ..ObjectReference::default()
        };
        match self {
            Self::Node(name) => of("Node", name),
            Self::Service(name) => {
                ObjectReference { namespace: Some(name.namespace.to_string()), ..of("Service", &name.name) }
            }
        }
    }
}

/// The uid of the object there is now, by which `kubectl describe` finds its Events; a Node's is its name, as kubelet and
/// kube-proxy write it.
async fn uid(client: kube::Client, object: &Regarding) -> Result<Option<String>, Failure> {
    let name = match object {
        Regarding::Node(name) => return Ok(Some(name.clone())),
        Regarding::Service(name) => name,
    };
    let services: Api<Service> = Api::namespaced(client, &name.namespace);
    let only = ListParams::default().fields(&format!("metadata.name={}", name.name));
    let found = answered(services.list_metadata(&only)).await?;
    Ok(found.items.into_iter().next().and_then(|service| service.metadata.uid))
}

fn now() -> MicroTime {
    MicroTime(Timestamp::now())
}

/// Not in the middle of a character.
fn shortened(mut text: String, limit: usize) -> String {
    text.truncate(text.floor_char_boundary(limit));
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::NamespacedName;

    #[test]
    fn an_event_is_within_the_limits_of_the_api_and_where_kubectl_looks_for_it() {
        let writer = EventWriter::new(Access::InCluster, "portolan-proxy", &"n".repeat(200));
        let mut notice = Notice {
            regarding: Regarding::Node("node-1".into()),
            is_warning: false,
            reason: "Starting",
            action: "StartProxy",
            note: "ü".repeat(NOTE),
        };
        let event = writer.event(&notice, None);
        assert_eq!(event.metadata.namespace.as_deref(), Some("default"));
        assert_eq!((event.note.unwrap().len(), event.reporting_instance.unwrap().len()), (NOTE, INSTANCE));
        notice.regarding = Regarding::Service(NamespacedName::new("shop", "web"));
        let event = writer.event(&notice, None);
        assert_eq!(event.metadata.namespace.as_deref(), Some("shop"));
        assert_eq!(event.regarding.unwrap().namespace.as_deref(), Some("shop"));
    }
}
