//! Writes Events (events.k8s.io/v1) one by one. Nothing else is ever written to the server.

use std::time::Duration;

use k8s_openapi::api::core::v1::ObjectReference;
use kube::api::{Api, ListParams};
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use tokio::sync::mpsc;

use super::access::Access;
use super::api_server::ApiServer;
use super::decoded::Decoded;
use super::reflector::{Failure, pause};
use crate::convert::wire::Service;
use crate::event_record::{EventRecord, Regarding};

/// Attempts per Event while the server does not respond: a minute and a half.
const TRIES: usize = 12;

/// Five per second, like client-go.
const INTERVAL: Duration = Duration::from_millis(200);

/// The limits of the API in bytes.
const NOTE: usize = 1024;
const INSTANCE: usize = 128;

/// Writes for one program on one node.
pub(crate) struct EventWriter {
    client: kube::Client,
    recorder: Recorder,
}

impl EventWriter {
    pub(crate) fn new(access: Access, program: &'static str, node_name: &str) -> Self {
        let client = ApiServer::new(access).client();
        let instance = shortened(&format!("{program}-{node_name}"), INSTANCE);
        let reporter = Reporter { controller: program.to_owned(), instance: Some(instance) };
        Self { recorder: Recorder::new(client.clone(), reporter), client }
    }

    /// Ends when all [`crate::Recorder`]s are dropped.
    pub(crate) async fn run(self, mut queue: mpsc::Receiver<EventRecord>) {
        while let Some(event) = queue.recv().await {
            let mut pause = pause();
            for remaining in (0..TRIES).rev() {
                let Err(failure) = self.write(&event).await.map_err(Failure) else { break };
                if remaining == 0 || failure.is_final() {
                    tracing::info!(reason = event.reason, error = %failure, "no Event is recorded");
                    break;
                }
                tokio::time::sleep(pause.next().unwrap_or(INTERVAL).max(failure.retry_after())).await;
            }
            tokio::time::sleep(INTERVAL).await;
        }
    }

    async fn write(&self, event: &EventRecord) -> kube::Result<()> {
        let mut reference = event.regarding.reference();
        if reference.uid.is_none() {
            reference.uid = self.uid(&event.regarding).await?;
        }
        let event = Event {
            type_: if event.is_warning { EventType::Warning } else { EventType::Normal },
            reason: event.reason.to_owned(),
            action: event.action.to_owned(),
            note: Some(shortened(&event.note, NOTE)),
            secondary: None,
        };
        self.recorder.publish(&event, &reference).await
    }

    /// The UID of the current Service, by which `kubectl describe` finds its Events.
    async fn uid(&self, service: &Regarding) -> kube::Result<Option<String>> {
        let services: Api<Decoded<Service>> = Api::namespaced(self.client.clone(), &service.name.namespace);
        let only = ListParams::default().fields(&format!("metadata.name={}", service.name.name));
        let found = services.list(&only).await?;
        Ok(found.items.into_iter().next().and_then(|service| service.metadata.uid))
    }
}

impl Regarding {
    fn reference(&self) -> ObjectReference {
        let group = self.resource.group();
        let namespace = Some(self.name.namespace.to_string()).filter(|namespace| !namespace.is_empty());
        ObjectReference {
            api_version: Some(if group.is_empty() { "v1".to_owned() } else { format!("{group}/v1") }),
            kind: Some(self.resource.kind().to_owned()),
            name: Some(self.name.name.to_string()),
            namespace,
            uid: self.uid.clone(),
            ..ObjectReference::default()
        }
    }
}

/// Does not split a character.
fn shortened(text: &str, limit: usize) -> String {
    text[..text.floor_char_boundary(limit)].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_shortened_between_characters() {
        assert_eq!(shortened(&"ü".repeat(NOTE), 7), "üüü");
        assert_eq!(shortened("web", INSTANCE), "web");
    }
}
