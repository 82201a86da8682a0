//! A machine of its own, made of namespaces.

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

/// The node's address on its uplink, where it is alone.
const UPLINK_ADDRESS: &str = "192.0.2.2";

/// The other end of that uplink, outside the node.
const OUTSIDE_ADDRESS: &str = "192.0.2.1";

/// A private node. Cloning it is another handle to the same one.
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

/// How a node is connected to the outside.
#[derive(Clone, Debug)]
pub(crate) struct Uplink {
    /// Name of the other end, outside.
    pub(crate) port: String,
    /// The node's address and that of its gateway for each family, IPv4 first.
    pub(crate) addresses: Vec<(IpNetwork, IpAddr)>,
}

impl Node {
    /// A node with `lo`, an uplink `uplink0` (192.0.2.2/24) and a default route to [`Node::outside`], with empty
    /// directories of its own on `/run/netns` and `/run/portolan`.
    ///
    /// # Errors
    /// What the kernel or `ip` says; most often that root is needed.
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

    /// A node that is connected by a port of an outside that it may share with others.
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

    /// Runs `work` inside the node, on a thread of its own. A process it starts is born there.
    ///
    /// # Panics
    /// When the node's own namespaces cannot be entered, and when `work` panics.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let inside = || {
            enter_mounts(&self.0.mounts)
                .expect("a node's mount namespace can be entered by a thread of its own");
            work()
        };
        self.0.net.run(inside).expect("a node's network namespace can be entered")
    }

    /// The network beyond the uplink, to see packets as the rest of the world does.
    pub fn outside(&self) -> &NetNs {
        &self.0.outside
    }

    /// The node's own address.
    pub fn address(&self) -> &str {
        &self.0.address
    }

    /// Its addresses of every family it has.
    pub fn addresses(&self) -> Vec<IpAddr> {
        self.0.uplink.addresses.iter().map(|(address, _)| address.ip()).collect()
    }

    /// The address of the world outside.
    pub fn outside_address(&self) -> &str {
        &self.0.outside_address
    }

    /// Runs a shell command line inside and returns what it prints.
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
    /// What the kernel says.
    pub fn add_netns(&self, name: &str) -> Result<PathBuf> {
        let path = Path::new("/run/netns").join(name);
        self.run(|| NetNs::create_named(&path).map(drop))?;
        Ok(path)
    }

    /// Opens a namespace by a path that exists in the node.
    ///
    /// # Errors
    /// When it is not there.
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
        // Without a link-local address that is usable at once, nothing could be resolved for a second.
        self.shell("echo 0 > /proc/sys/net/ipv6/conf/uplink0/accept_dad; ip link set lo up && ip link set uplink0 up")?;
        for (address, gateway) in &self.0.uplink.addresses {
            let usable_at_once = if address.is_ipv6() { "nodad" } else { "" };
            self.shell(&format!(
                "ip address add {address} dev uplink0 {usable_at_once} && ip route add default via {gateway}"
            ))?;
        }
        Ok(())
    }
}

/// An address with the length of its prefix.
pub(crate) fn network(address: &str, prefix: u8) -> IpNetwork {
    let address = address.parse().expect("an address of the testbed's own");
    IpNetwork::new(address, prefix).expect("a prefix of the testbed's own")
}

/// Runs a shell command line where the calling thread is.
pub(crate) fn shell(script: &str) -> Result<String> {
    let output = Command::new("sh").args(["-ec", script]).output().context("start sh")?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    ensure!(output.status.success(), "{script}: {}{}", text(&output.stdout), text(&output.stderr));
    Ok(text(&output.stdout))
}

/// On the calling thread: mounts of its own, with empty directories where the runtime state of a node lives.
fn private_mounts() -> Result<File> {
    unshare(CloneFlags::CLONE_NEWNS).context("unshare mounts")?;
    // Nothing may travel back to the machine; namespaces mounted later must reach processes of the node.
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)?;
    mount(Some("tmpfs"), "/run", Some("tmpfs"), MsFlags::empty(), None::<&str>).context("mount on /run")?;
    std::fs::create_dir_all("/run/netns")?;
    for directory in ["/etc", "/var/lib"] {
        keep_writes_off(directory)?;
    }
    // podman's locks, and anything else that is shared by name.
    mount(Some("tmpfs"), "/dev/shm", Some("tmpfs"), MsFlags::empty(), None::<&str>)
        .context("mount on /dev/shm")?;
    std::fs::create_dir_all("/run/portolan")?;
    Ok(File::open("/proc/thread-self/ns/mnt")?)
}

/// An overlay shows the machine's files and keeps what is written there off the machine: a pod's resolv.conf in
/// /etc/netns for `ip netns exec`, a runtime's configuration and state.
fn keep_writes_off(directory: &str) -> Result<()> {
    let own = Path::new("/run/overlay").join(directory.trim_start_matches('/'));
    let (upper, work) = (own.join("upper"), own.join("work"));
    std::fs::create_dir_all(&upper)?;
    std::fs::create_dir_all(&work)?;
    let options = format!("lowerdir={directory},upperdir={},workdir={}", upper.display(), work.display());
    let overlay = Some("overlay");
    mount(overlay, directory, overlay, MsFlags::empty(), Some(options.as_str()))
        .with_context(|| format!("mount on {directory}"))
}

/// A thread that shares its root and working directory with others may not change its mounts, so it stops sharing.
#[expect(clippy::disallowed_methods, reason = "a mount namespace, on a thread that exists for this alone")]
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
    fn a_node_reaches_the_outside_and_nothing_shows_on_the_machine() {
        let before = shell("ip -j link; ip -j route; ls /run/netns 2>/dev/null || true").unwrap();
        let node = Node::new().unwrap();
        node.shell(&format!("ping -c1 -W2 {OUTSIDE_ADDRESS}")).unwrap();
        let path = node.add_netns("pod").unwrap();
        node.shell("ip netns exec pod ip link show lo").unwrap();
        node.netns(&path).unwrap();
        assert_eq!(shell("ip -j link; ip -j route; ls /run/netns 2>/dev/null || true").unwrap(), before);
    }
}
