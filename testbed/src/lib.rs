//! Nodes and pods in private network namespaces, for tests, the benchmark and the demo only.
//!
//! A [`Node`] is isolated from the machine: it has its own network and mounts, and so its own `/run/netns`
//! and `/run/portolan`. The kernel removes it with its last process and handle. [`Network`] acts as the
//! container runtime: it runs the real CNI plugin for each [`Pod`]. [`Program`] is a process that is killed
//! when its handle is dropped. A [`ControlPlane`] is a real API server. A [`Cluster`] is a node with both
//! daemons; a [`Fleet`] is several of them, on the subnets of one [`Router`].

mod certificate;
mod cluster;
mod containerd;
mod control_plane;
mod fleet;
mod go_tool;
mod hostname_server;
mod kubelet;
mod network;
mod node;
mod program;
mod router;

pub use certificate::certify;
pub use cluster::Cluster;
pub use containerd::{containerd_config, import_image};
pub use control_plane::ControlPlane;
pub use fleet::Fleet;
pub use go_tool::go_tool;
pub use hostname_server::HostnameServer;
pub use kubelet::KUBELET_TUNABLES;
pub use network::{Network, Plugin, Pod};
pub use node::Node;
pub use program::{Binaries, Program, free_port, wait_for};
pub use router::Router;
