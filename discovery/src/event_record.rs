//! Kubernetes Events about objects of the cluster, which `kubectl describe` shows.

use tokio::task::JoinSet;

use crate::discovery::ControlPlane;
use crate::event::Resource;
use crate::model::NamespacedName;

/// Events that wait to be written; further ones are dropped.
#[cfg(feature = "kubernetes")]
const QUEUE: usize = 64;

/// An Event about an object.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct EventRecord {
    /// The object.
    pub regarding: Regarding,
    /// Whether the owner of the object has to act.
    pub is_warning: bool,
    /// The reason, for programs: `FailedToStartServiceHealthcheck`.
    pub reason: &'static str,
    /// The action, for programs: `Listen`.
    pub action: &'static str,
    /// The text.
    pub note: String,
}

/// An object of the cluster.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Regarding {
    /// The resource.
    pub resource: Resource,
    /// The name. The namespace is empty for cluster-scoped resources.
    pub name: NamespacedName,
    /// The UID. That of a Service is looked up if it is unknown.
    pub uid: Option<String>,
}

impl Regarding {
    /// The Node with this name. In Events its UID is its name, as with kubelet and kube-proxy.
    pub fn node(name: &str) -> Self {
        Self { resource: Resource::Nodes, name: NamespacedName::new("", name), uid: Some(name.to_owned()) }
    }

    /// A Service.
    pub fn service(name: NamespacedName) -> Self {
        Self { resource: Resource::Services, name, uid: None }
    }
}

/// Records Events of the cluster. Never waits, and may drop some; the log has all of them. The default
/// recorder drops all.
#[derive(Clone, Debug, Default)]
pub struct Recorder {
    #[cfg(feature = "kubernetes")]
    queue: Option<tokio::sync::mpsc::Sender<EventRecord>>,
}

impl Recorder {
    /// Starts a writer as one of `tasks`, for a program and its node. It ends with the last clone. With a
    /// directory as the source all Events are dropped.
    #[cfg_attr(
        not(feature = "kubernetes"),
        expect(unused_variables, reason = "there is no server to write to")
    )]
    pub fn start(
        control_plane: &ControlPlane,
        program: &'static str,
        node_name: &str,
        tasks: &mut JoinSet<()>,
    ) -> Self {
        Self {
            #[cfg(feature = "kubernetes")]
            queue: match control_plane {
                ControlPlane::Manifests(_) => None,
                ControlPlane::Kubernetes(access) => {
                    let (sender, queue) = tokio::sync::mpsc::channel(QUEUE);
                    let writer = crate::source::EventWriter::new(access.clone(), program, node_name);
                    tasks.spawn(writer.run(queue));
                    Some(sender)
                }
            },
        }
    }

    /// Records an Event.
    #[cfg_attr(
        not(feature = "kubernetes"),
        expect(unused_variables, reason = "there is no server to write to")
    )]
    pub fn record(&self, event: EventRecord) {
        #[cfg(feature = "kubernetes")]
        if let Some(queue) = &self.queue
            && let Err(error) = queue.try_send(event)
        {
            tracing::debug!(%error, "no Event is recorded");
        }
    }
}
