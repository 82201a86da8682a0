//! A private node, made of namespaces.

use std::fs::File;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use ipnetwork::IpNetwork;
use netns::NetNs;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

/// Address of a single node on its uplink.
const UPLINK_ADDRESS: &str = "192.0.2.2";

/// Address of the other end of that uplink, outside the node.
const OUTSIDE_ADDRESS: &str = "192.0.2.1";

/// A private node. A clone is another handle to the same node.
#[derive(Clone, Debug)]
pub struct Node(Arc<Namespaces>);

#[derive(Debug)]
struct Namespaces {
    net: NetNs,
    mounts: File,
    outside: Arc<NetNs>,
    uplink: Uplink,
    address: String,
    outside_address: String,
}

/// The connection of a node to the external network.
#[derive(Clone, Debug)]
pub(crate) struct Uplink {
    /// Interface name of the outer end.
    pub(crate) port: String,
    /// The node's address and its gateway for each family, IPv4 first.
    pub(crate) addresses: Vec<(IpNetwork, IpAddr)>,
}

impl Node {
    /// A node with `lo`, an uplink `uplink0` (192.0.2.2/24), a default route to [`Node::outside`], and its
    /// own empty directories `/run/netns` and `/run/portolan`.
    ///
    /// # Errors
    /// When the kernel or `ip` refuses, usually for lack of root privileges.
    pub fn new() -> Result<Self> {
        let outside = NetNs::create_unnamed().context("create the outside network (root is needed)")?;
        let address = (network(UPLINK_ADDRESS, 24), OUTSIDE_ADDRESS.parse()?);
        let uplink = Uplink { port: "uplink".into(), addresses: vec![address] };
        let node = Self::connected(Arc::new(outside), uplink)?;
        let outside =
            || shell(&format!("ip address add {OUTSIDE_ADDRESS}/24 dev uplink && ip link set lo up"));
        node.outside().run(outside)??;
        Ok(node)
    }

    /// A node that is connected to an external network, which other nodes may share.
    pub(crate) fn connected(outside: Arc<NetNs>, uplink: Uplink) -> Result<Self> {
        let net = NetNs::create_unnamed().context("create the node's network (root is needed)")?;
        let mounts = std::thread::scope(|scope| scope.spawn(|| net.run(private_mounts)).join());
        let mounts =
            mounts.map_err(|_panic| anyhow::anyhow!("setting up the node's mounts panicked"))???;
        let (address, gateway) = uplink.addresses[0];
        let (address, outside_address) = (address.ip().to_string(), gateway.to_string());
        let node = Self(Arc::new(Namespaces { net, mounts, outside, uplink, address, outside_address }));
        node.connect_uplink().context("connect the node's uplink")?;
        Ok(node)
    }

    /// Runs `work` inside the node on a new thread. Processes that it starts run inside the node too.
    ///
    /// # Panics
    /// When the node's namespaces cannot be entered, and when `work` panics.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let inside = || {
            enter_mounts(&self.0.mounts)
                .expect("a node's mount namespace can be entered by a thread of its own");
            work()
        };
        self.0.net.run(inside).expect("a node's network namespace can be entered")
    }

    /// Returns the external network beyond the uplink.
    pub fn outside(&self) -> &NetNs {
        &self.0.outside
    }

    /// Returns the node's address.
    pub fn address(&self) -> &str {
        &self.0.address
    }

    /// Returns the node's addresses of all its families.
    pub fn addresses(&self) -> Vec<IpAddr> {
        self.0.uplink.addresses.iter().map(|(address, _)| address.ip()).collect()
    }

    /// Returns the address of the gateway in the external network.
    pub fn outside_address(&self) -> &str {
        &self.0.outside_address
    }

    /// Runs a shell command line inside the node. Returns the output.
    ///
    /// # Errors
    /// When it fails; the error has its standard error.
    pub fn shell(&self, script: &str) -> Result<String> {
        self.run(|| shell(script))
    }

    /// The process id of the portolan-proxy that serves: it listens at `@portolan-proxy`.
    ///
    /// # Errors
    /// When none does.
    pub fn serving_proxy(&self) -> Result<u32> {
        let listeners = self.shell("ss -Hxlp src unix:@portolan-proxy")?;
        let pid = listeners.split("pid=").nth(1).and_then(|rest| rest.split(',').next());
        pid.context("no proxy serves")?.parse().context(listeners.clone())
    }

    /// Creates a named network namespace, as a runtime does for a pod, and returns its path.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn add_netns(&self, name: &str) -> Result<PathBuf> {
        let path = Path::new("/run/netns").join(name);
        self.run(|| NetNs::create_named(&path).map(|_netns| ()))?;
        Ok(path)
    }

    /// Opens a network namespace by its path in the node.
    ///
    /// # Errors
    /// When it does not exist.
    pub fn netns(&self, path: &Path) -> Result<NetNs> {
        Ok(self.run(|| NetNs::open(path))?)
    }

    fn connect_uplink(&self) -> Result<()> {
        let net = format!("/proc/{}/fd/{}", std::process::id(), fd_number(&self.0.net));
        let port = &self.0.uplink.port;
        let outside = self.0.outside.run(|| {
            shell(&format!(
                "ip link add {port} type veth peer name uplink0 netns {net} && ip link set {port} up"
            ))
        })?;
        outside?;
        // Without duplicate address detection the link-local address is usable at once; neighbour discovery
        // needs it.
        self.shell(
            "echo 0 > /proc/sys/net/ipv6/conf/uplink0/accept_dad; ip link set lo up && ip link \
            set uplink0 up",
        )?;
        for (address, gateway) in &self.0.uplink.addresses {
            let usable_at_once = if address.is_ipv6() { "nodad" } else { "" };
            self.shell(&format!(
                "ip address add {address} dev uplink0 {usable_at_once} && ip route add default via {gateway}"
            ))?;
        }
        Ok(())
    }
}

/// Returns an address with its prefix length.
pub(crate) fn network(address: &str, prefix: u8) -> IpNetwork {
    let address = address.parse().expect("a valid address of the testbed");
    IpNetwork::new(address, prefix).expect("a valid prefix of the testbed")
}

/// Runs a shell command line in the namespaces of the calling thread.
pub(crate) fn shell(script: &str) -> Result<String> {
    let output = Command::new("sh").args(["-ec", script]).output().context("start sh")?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    ensure!(output.status.success(), "{script}: {}{}", text(&output.stdout), text(&output.stderr));
    Ok(text(&output.stdout))
}

/// Gives the calling thread a mount namespace with empty directories for the runtime state of a node.
fn private_mounts() -> Result<File> {
    unshare(CloneFlags::CLONE_NEWNS).context("unshare mounts")?;
    // Private propagation keeps all mounts off the machine.
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)?;
    mount(Some("tmpfs"), "/run", Some("tmpfs"), MsFlags::empty(), None::<&str>).context("mount on /run")?;
    std::fs::create_dir_all("/run/netns")?;
    for directory in ["/etc", "/var/lib"] {
        mount_overlay(directory)?;
    }
    // podman's locks and other shared memory objects.
    mount(Some("tmpfs"), "/dev/shm", Some("tmpfs"), MsFlags::empty(), None::<&str>)
        .context("mount on /dev/shm")?;
    std::fs::create_dir_all("/run/portolan")?;
    Ok(File::open("/proc/thread-self/ns/mnt")?)
}

/// Mounts an overlay on a directory: the node sees the machine's files, and its writes do not reach the
/// machine. Tests write /etc/netns for `ip netns exec`, and the runtimes' configuration and state.
fn mount_overlay(directory: &str) -> Result<()> {
    let own = Path::new("/run/overlay").join(directory.trim_start_matches('/'));
    let (upper, work) = (own.join("upper"), own.join("work"));
    std::fs::create_dir_all(&upper)?;
    std::fs::create_dir_all(&work)?;
    let options = format!("lowerdir={directory},upperdir={},workdir={}", upper.display(), work.display());
    let overlay = Some("overlay");
    mount(overlay, directory, overlay, MsFlags::empty(), Some(options.as_str()))
        .with_context(|| format!("mount on {directory}"))
}

/// Enters a mount namespace. The kernel requires a thread that does not share its root and working directory.
#[expect(clippy::disallowed_methods, reason = "a mount namespace, on a dedicated thread")]
fn enter_mounts(mounts: &File) -> Result<()> {
    unshare(CloneFlags::CLONE_FS)?;
    nix::sched::setns(mounts, CloneFlags::CLONE_NEWNS)?;
    Ok(())
}

fn fd_number(ns: &NetNs) -> i32 {
    use std::os::fd::{AsFd, AsRawFd};
    ns.as_fd().as_raw_fd()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn node_reaches_the_external_network_and_leaves_the_machine_unchanged() {
        let before = shell("ip -j link; ip -j route; ls /run/netns 2>/dev/null || true").unwrap();
        let node = Node::new().unwrap();
        node.shell(&format!("ping -c1 -W2 {OUTSIDE_ADDRESS}")).unwrap();
        let path = node.add_netns("pod").unwrap();
        node.shell("ip netns exec pod ip link show lo").unwrap();
        node.netns(&path).unwrap();
        assert_eq!(shell("ip -j link; ip -j route; ls /run/netns 2>/dev/null || true").unwrap(), before);
    }
}
