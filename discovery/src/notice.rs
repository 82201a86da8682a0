//! What happens here to an object of the cluster, for whoever describes it with `kubectl`.

use tokio::task::JoinSet;

use crate::discovery::ControlPlane;
use crate::event::Resource;
use crate::model::NamespacedName;

/// Notices that wait to be written; more are dropped.
#[cfg(feature = "kubernetes")]
const QUEUE: usize = 64;

/// A note about an object.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Notice {
    /// What it is about.
    pub regarding: Regarding,
    /// Whether the owner of the object has to act.
    pub is_warning: bool,
    /// Why, for programs: `FailedToStartServiceHealthcheck`.
    pub reason: &'static str,
    /// What was being done, for programs: `Listen`.
    pub action: &'static str,
    /// For people.
    pub note: String,
}

/// An object of the cluster.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Regarding {
    /// What it is.
    pub resource: Resource,
    /// Its name; the namespace is empty where the resource has none.
    pub name: NamespacedName,
    /// Its uid. That of a Service is looked up where it is not known.
    pub uid: Option<String>,
}

impl Regarding {
    /// The Node of this name. In Events its uid is its name, as kubelet and kube-proxy write it.
    pub fn node(name: &str) -> Self {
        Self { resource: Resource::Nodes, name: NamespacedName::new("", name), uid: Some(name.to_owned()) }
    }

    /// A Service.
    pub fn service(name: NamespacedName) -> Self {
        Self { resource: Resource::Services, name, uid: None }
    }
}

/// Records notices as Events of the cluster. Never waits, and may lose some: the log has them all. The
/// default one drops all.
#[derive(Clone, Debug, Default)]
pub struct Recorder {
    #[cfg(feature = "kubernetes")]
    queue: Option<tokio::sync::mpsc::Sender<Notice>>,
}

impl Recorder {
    /// Starts to write, as one of `tasks`, in the name of a program and its node; ends with the last clone. A
    /// directory has no place for Events: notices are dropped.
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

    /// Records a notice.
    #[cfg_attr(
        not(feature = "kubernetes"),
        expect(unused_variables, reason = "there is no server to write to")
    )]
    pub fn record(&self, notice: Notice) {
        #[cfg(feature = "kubernetes")]
        if let Some(queue) = &self.queue
            && let Err(error) = queue.try_send(notice)
        {
            tracing::debug!(%error, "no Event is recorded");
        }
    }
}
