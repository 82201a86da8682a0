//! For tests, the benchmark and the demo only: nodes and pods in network namespaces of their own.
//!
//! A [`Node`] is invisible to the machine it runs on: its network, its mounts and so its `/run/netns` and
//! `/run/portolan` are its own, and all of it is gone with its last process and handle. [`Network`] plays the container
//! runtime: it runs the real CNI plugin for each [`Pod`]. [`Program`] is a daemon that does not outlive its handle.
//! A [`ControlPlane`] is a real API server. A [`Cluster`] is a node with everything running; a [`Fleet`] several of them, on the subnets of one [`Router`].

mod certificate;
mod cluster;
mod containerd;
mod control_plane;
mod fleet;
mod hostname_server;
mod kubelet;
mod network;
mod node;
mod program;
mod router;
mod tool;

pub use certificate::certify;
pub use cluster::Cluster;
pub use containerd::{containerd_config, import_image};
pub use control_plane::ControlPlane;
pub use fleet::Fleet;
pub use hostname_server::HostnameServer;
pub use kubelet::KUBELET_TUNABLES;
pub use network::{Network, Plugin, Pod};
pub use node::Node;
pub use program::{Binaries, Program, free_port, wait_for};
pub use router::Router;
pub use tool::go_tool;
