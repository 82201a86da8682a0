//! A node with systemd as its first process and overlays over the machine's file system.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use testbed::{Node, wait_for};

/// The cgroup hierarchies of systemd, as in `/proc/self/cgroup`, and their mount points.
const CGROUPS: [(&str, &str); 5] = [
    ("name=systemd", "systemd"),
    ("", "unified"),
    ("pids", "pids"),
    ("devices", "devices"),
    ("memory", "memory"),
];

/// Mounts overlays on all directories that a package may write to, and keeps only the units that systemd
/// requires, so that none of the machine's services starts.
const LAYERS: &str = "
    for directory in /usr /var/cache /var/log /opt; do
        own=/run/overlay$directory; mkdir -p $own/upper $own/work
        mount -t overlay overlay -o lowerdir=$directory,upperdir=$own/upper,workdir=$own/work $directory
    done
    rm -rf /opt/* /etc/cni /etc/portolan /etc/systemd/system/* /etc/init.d /usr/lib/systemd/system-generators /usr/sbin/policy-rc.d
    mount -t tmpfs tmpfs /usr/lib/systemd/system
    for target in basic sysinit shutdown network-online multi-user umount; do
        printf '[Unit]\\nDefaultDependencies=no\\n' > /usr/lib/systemd/system/$target.target
    done
    rmdir /run/portolan; mkdir -p /run/lock /run/systemd /etc/systemd/system/service.d
    printf '[Service]\\nStandardError=append:/run/systemd/services.log\\n' > /etc/systemd/system/service.d/log.conf
";

/// Mounts what systemd expects, in a PID namespace. /proc/sys is read-only, since systemd would set limits of
/// the whole machine; /proc/sys/net belongs to the node.
const BOOT: &str = "
    mount -t proc proc /proc; mount -t tmpfs tmpfs /tmp
    mount --bind /proc/sys /proc/sys; mount --bind /proc/sys/net /proc/sys/net; mount -o remount,bind,ro /proc/sys
    umount -R /sys/fs/cgroup; mount -t tmpfs tmpfs /sys/fs/cgroup
    mkdir /sys/fs/cgroup/systemd /sys/fs/cgroup/unified
    mount -t cgroup2 cgroup2 /sys/fs/cgroup/unified
    mount -t cgroup -o none,name=systemd,xattr cgroup /sys/fs/cgroup/systemd
    exec env container=testbed /usr/lib/systemd/systemd --unit=multi-user.target
";

/// Prints the state that a package could leave, without dpkg's own files and systemd's runtime state.
const STATE: &str = "
    find /etc /usr /opt /var/lib /var/cache /run \\( -path /run/overlay -o -path /run/systemd -o -path /run/packages -o -path /var/lib/dpkg \
        -o -path /var/cache/man -o -path /run/lock -o -path /run/credentials -o -path /etc/machine-id -o -name '*.dsh-also' -o -name ld.so.cache \\) -prune \
        -o -type d -printf '%p d %m\\n' -o -printf '%p %y %m %s %l\\n' | sort
    ip -o link; ip rule; ip -6 rule; ip route show table all; nft list ruleset; dpkg -l portolan 2>/dev/null | grep '^.[^n]  *portolan' || true
";

/// A running machine. Dropping it powers it off.
pub(crate) struct Machine {
    pub(crate) node: Node,
    outer: Child,
    init: u32,
    cgroups: Vec<PathBuf>,
}

impl Machine {
    pub(crate) fn boot() -> Result<Self> {
        let node = Node::new()?;
        node.shell(LAYERS)?;
        let cgroups = own_cgroups()?;
        let enter: Vec<String> = cgroups
            .iter()
            .map(|group| format!("mkdir {0}; echo $$ > {0}/cgroup.procs", group.display()))
            .collect();
        let unshare = "exec unshare --mount --pid --fork --uts --ipc --cgroup --kill-child --propagation \
            private sh -ec \"$0\"";
        let script = format!("{}; {unshare}", enter.join("; "));
        let mut line = Command::new("sh");
        line.args(["-ec", &script, BOOT]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let outer = node.run(|| line.spawn())?;
        let mut machine = Self { node, outer, init: 0, cgroups };
        machine.init = wait_for("the first process", || machine.find_init())?;
        wait_for("systemd", || {
            let state = machine.shell("systemctl is-system-running || true")?;
            ensure!(["running\n", "degraded\n"].contains(&state.as_str()), "{state}");
            Ok(())
        })?;
        Ok(machine)
    }

    /// Returns the only child of `unshare` once it is systemd.
    fn find_init(&self) -> Result<u32> {
        let children = std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", self.outer.id()))?;
        let child: u32 = children.split_whitespace().next().context("none yet")?.parse()?;
        let name = std::fs::read_to_string(format!("/proc/{child}/comm"))?;
        ensure!(name == "systemd\n", "{name}");
        Ok(child)
    }

    /// Runs a shell command line on the machine and returns what it prints.
    pub(crate) fn shell(&self, script: &str) -> Result<String> {
        let init = self.init.to_string();
        let line = [
            "--target", &init, "--mount", "--pid", "--uts", "--ipc", "--net", "--cgroup", "sh", "-ec", script,
        ];
        let output = Command::new("nsenter").args(line).env("DEBIAN_FRONTEND", "noninteractive").output()?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        ensure!(
            output.status.success(),
            "{script}: {}{}\n{}",
            text(&output.stdout),
            text(&output.stderr),
            self.logs()
        );
        Ok(text(&output.stdout))
    }

    /// What the services have logged.
    fn logs(&self) -> String {
        self.node.run(|| std::fs::read_to_string("/run/systemd/services.log")).unwrap_or_default()
    }

    /// Returns the state of the machine, for comparison.
    pub(crate) fn state(&self) -> Result<String> {
        self.shell(STATE)
    }

    /// Waits until the proxy `old` has exited after a hot restart, and both daemons are healthy.
    pub(crate) fn wait_for_hot_restart(&self, old: u32) {
        let exited = || {
            let new = self.main_pid("portolan-proxy")?;
            let state = self.shell(&format!("test -d /proc/{old} || echo exited"))?;
            ensure!(new != old && state == "exited\n", "{old} {new}");
            Ok(())
        };
        wait_for("the next proxy", exited).unwrap();
        wait_for("both daemons", || self.shell("portolan status")).unwrap();
    }

    /// Returns the main process of a service from systemd.
    pub(crate) fn main_pid(&self, unit: &str) -> Result<u32> {
        Ok(self.shell(&format!("systemctl show -P MainPID {unit}"))?.trim().parse()?)
    }
}

/// Returns a private cgroup in each hierarchy, which is removed afterwards.
fn own_cgroups() -> Result<Vec<PathBuf>> {
    let name = format!("portolan-{}-{:?}", std::process::id(), std::thread::current().id());
    let name = name.replace(['(', ')'], "");
    let ours = std::fs::read_to_string("/proc/self/cgroup")?;
    let mut groups = Vec::new();
    for line in ours.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (hierarchy, path) = (fields.next().unwrap_or_default(), fields.next().unwrap_or_default());
        let mounted = CGROUPS.iter().find(|(known, _)| *known == hierarchy);
        groups.extend(mounted.map(|(_, directory)| {
            PathBuf::from("/sys/fs/cgroup").join(directory).join(path.trim_start_matches('/')).join(&name)
        }));
    }
    Ok(groups)
}

impl Drop for Machine {
    fn drop(&mut self) {
        // The kernel kills systemd with `unshare` (--kill-child), and with it all processes of the PID
        // namespace. Errors mean that `unshare` has exited already.
        let _ = self.outer.kill();
        let _ = self.outer.wait();
        for group in &self.cgroups {
            let remove = || {
                let line = Command::new("find")
                    .arg(group)
                    .args(["-depth", "-type", "d", "-exec", "rmdir", "{}", ";"])
                    .output()?;
                ensure!(!group.exists(), "{line:?}");
                Ok(())
            };
            // A cgroup that cannot be removed must not fail the test.
            let _ = wait_for("the cgroups to be empty", remove);
        }
    }
}
