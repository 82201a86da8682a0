//! A node whose first process is systemd, with a file system of its own on top of the machine's.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use testbed::{Node, wait_for};

/// Hierarchies of cgroups that systemd uses, as `/proc/self/cgroup` names them, and where they are mounted.
const CGROUPS: [(&str, &str); 5] = [
    ("name=systemd", "systemd"),
    ("", "unified"),
    ("pids", "pids"),
    ("devices", "devices"),
    ("memory", "memory"),
];

/// Everything a package may write, on layers of the node's own; and of units only what systemd cannot do without, so that
/// nothing of the machine's starts.
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

/// In a process namespace: what systemd expects to be mounted. It would set limits that are the whole machine's;
/// what is under `net` is the node's own.
const BOOT: &str = "
    mount -t proc proc /proc; mount -t tmpfs tmpfs /tmp
    mount --bind /proc/sys /proc/sys; mount --bind /proc/sys/net /proc/sys/net; mount -o remount,bind,ro /proc/sys
    umount -R /sys/fs/cgroup; mount -t tmpfs tmpfs /sys/fs/cgroup
    mkdir /sys/fs/cgroup/systemd /sys/fs/cgroup/unified
    mount -t cgroup2 cgroup2 /sys/fs/cgroup/unified
    mount -t cgroup -o none,name=systemd,xattr cgroup /sys/fs/cgroup/systemd
    exec env container=testbed /usr/lib/systemd/systemd --unit=multi-user.target
";

/// Where a package could leave anything, without dpkg's own notes and what systemd has while it runs.
const STATE: &str = "
    find /etc /usr /opt /var/lib /var/cache /run \\( -path /run/overlay -o -path /run/systemd -o -path /run/packages -o -path /var/lib/dpkg \
        -o -path /var/cache/man -o -path /run/lock -o -path /run/credentials -o -path /etc/machine-id -o -name '*.dsh-also' -o -name ld.so.cache \\) -prune \
        -o -type d -printf '%p d %m\\n' -o -printf '%p %y %m %s %l\\n' | sort
    ip -o link; ip rule; ip -6 rule; ip route show table all; nft list ruleset; dpkg -l portolan 2>/dev/null | grep '^.[^n]  *portolan' || true
";

/// A running machine; it is off when this is dropped.
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
        let unshare = "exec unshare --mount --pid --fork --uts --ipc --cgroup --kill-child --propagation private sh -ec \"$0\"";
        let script = format!("{}; {unshare}", enter.join("; "));
        let mut line = Command::new("sh");
        line.args(["-ec", &script, BOOT]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let outer = node.run(|| line.spawn())?;
        let mut machine = Self { node, outer, init: 0, cgroups };
        machine.init = wait_for("the first process", || machine.find_init())?;
        wait_for("systemd", || {
            let said = machine.shell("systemctl is-system-running || true")?;
            ensure!(["running\n", "degraded\n"].contains(&said.as_str()), "{said}");
            Ok(())
        })?;
        Ok(machine)
    }

    /// The only child of `unshare`, once it is what it shall be.
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

    /// What there is, to be compared.
    pub(crate) fn state(&self) -> Result<String> {
        self.shell(STATE)
    }

    /// Waits until a proxy has taken over from that one, which has ended, and both daemons are well.
    pub(crate) fn wait_for_successor(&self, old: u32) {
        let ended = || {
            let new = self.main_pid("portolan-proxy")?;
            let left = self.shell(&format!("test -d /proc/{old} || echo gone"))?;
            ensure!(new != old && left == "gone\n", "{old} {new}");
            Ok(())
        };
        wait_for("the next proxy", ended).unwrap();
        wait_for("both daemons", || self.shell("portolan status")).unwrap();
    }

    /// The main process of a service, as systemd sees it.
    pub(crate) fn main_pid(&self, unit: &str) -> Result<u32> {
        Ok(self.shell(&format!("systemctl show -P MainPID {unit}"))?.trim().parse()?)
    }
}

/// A part of each tree of its own: what systemd makes of it is gone afterwards.
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
        // The first process goes with the one that made its namespace, and all others of the namespace with it.
        drop(self.outer.kill());
        drop(self.outer.wait());
        for group in &self.cgroups {
            let remove = || {
                let line = Command::new("find")
                    .arg(group)
                    .args(["-depth", "-type", "d", "-exec", "rmdir", "{}", ";"])
                    .output()?;
                ensure!(!group.exists(), "{line:?}");
                Ok(())
            };
            drop(wait_for("the cgroups to be empty", remove));
        }
    }
}
