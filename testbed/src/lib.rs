//! For tests, the benchmark and the demo only: nodes and pods in network namespaces of their own.
//!
//! A [`Node`] is invisible to the machine it runs on: its network, its mounts and so its `/run/netns` and
//! `/run/portolan` are its own, and all of it is gone with its last process and handle.

mod node;

pub use node::Node;
