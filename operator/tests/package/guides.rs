//! The guides of docs/, command by command as they are written there.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use testbed::{go_tool, wait_for};

use crate::deb::provide;
use crate::machine::Machine;

/// Within the limits of a machine without CAP_SYS_RESOURCE and with both kinds of cgroups; storage that works on an overlay.
const PODMAN: &str = "
    cat > /etc/containers/containers.conf <<END
[engine]
cgroup_manager = 'cgroupfs'
events_logger = 'none'
lock_type = 'file'
runtime = 'runc'
[containers]
default_ulimits = ['nofile=20000:20000', 'nproc=4096:4096']
log_driver = 'k8s-file'
END
    printf '[storage]\\ndriver = \"vfs\"\\ngraphroot = \"/run/storage\"\\nrunroot = \"/run/podman\"\\n' > /etc/containers/storage.conf
";

/// What a registry would give: the machine's busybox, under the name that the guides use.
const IMAGE: &str = "
    mkdir -p /run/image/bin /run/image/tmp; cp /bin/busybox /run/image/bin/
    for applet in sh httpd wget; do ln -s busybox /run/image/bin/$applet; done
    tar c -C /run/image . | podman import --change 'CMD [\"/bin/sh\"]' - docker.io/library/busybox:latest
";

/// containerd within the same limits, the hierarchies that a kubelet wants to see (systemd leaves links where it could not
/// mount two of them as one), and settings of the kernel that a kubelet would change for the whole machine.
const CONTAINERD: &str = "
    mkdir -p /run/ctr/root /run/kernel
    for controller in cpu cpuacct cpuset; do
        directory=/sys/fs/cgroup/$controller; mountpoint -q $directory && [ ! -L $directory ] && continue
        [ ! -L $directory ] || rm $directory
        mkdir -p $directory; mount -t cgroup -o $controller cgroup $directory
    done
    cat > /etc/containerd/config.toml <<END
version = 2
root = '/run/ctr/root'
[plugins.'io.containerd.grpc.v1.cri']
sandbox_image = 'docker.io/library/busybox:latest'
disable_cgroup = true
disable_apparmor = true
restrict_oom_score_adj = true
[plugins.'io.containerd.grpc.v1.cri'.containerd]
snapshotter = 'native'
[plugins.'io.containerd.grpc.v1.cri'.cni]
bin_dir = '/usr/lib/cni'
conf_dir = '/etc/cni/net.d'
END
    set_aside() { echo $2 > /run/kernel/$(basename $1); mount --bind /run/kernel/$(basename $1) /proc/sys/$1; }
    set_aside vm/overcommit_memory 1; set_aside vm/panic_on_oom 0; set_aside kernel/panic 10; set_aside kernel/panic_on_oops 1
    set_aside kernel/keys/root_maxkeys 1000000; set_aside kernel/keys/root_maxbytes 25000000
    mkdir -p /run/image/bin /run/image/tmp; cp /bin/busybox /run/image/bin/
    for applet in sh httpd sleep; do ln -s busybox /run/image/bin/$applet; done
    cd /run/ctr; tar cf layer.tar -C /run/image .
    printf '{\"architecture\":\"amd64\",\"os\":\"linux\",\"config\":{\"Cmd\":[\"/bin/sleep\",\"100000\"]},\"rootfs\":{\"type\":\"layers\",\"diff_ids\":[\"sha256:%s\"]}}' $(sha256sum layer.tar | cut -d' ' -f1) > image.json
    printf '[{\"Config\":\"image.json\",\"RepoTags\":[\"docker.io/library/busybox:latest\"],\"Layers\":[\"layer.tar\"]}]' > manifest.json
    tar cf image.tar image.json layer.tar manifest.json
    systemd-run --unit containerd -p KillMode=mixed containerd
";

/// A kubelet takes its time: it looks at the runtime, the volumes and the pod every ten seconds.
const KUBELET: Duration = Duration::from_secs(120);

fn wait_longer<T>(mut attempt: impl FnMut() -> Result<T>) -> T {
    let deadline = Instant::now() + KUBELET;
    loop {
        match attempt() {
            Ok(value) => return value,
            Err(error) if Instant::now() > deadline => panic!("{error:#}"),
            Err(_) => std::thread::sleep(Duration::from_millis(200)),
        }
    }
}

/// The commands of a page: what stands in its `sh` blocks.
fn commands(page: &str) -> Vec<String> {
    let blocks = page.split("```sh\n").skip(1).filter_map(|rest| rest.split("```").next());
    blocks.map(str::to_owned).collect()
}

/// What there is of ours on the machine; the runtime's own state is the runtime's.
fn ours(machine: &Machine) -> Vec<String> {
    let state = machine.state().unwrap();
    let is_ours = |line: &&str| line.contains("portolan") || line.contains("ptl") || line.contains("10.22.");
    state.lines().filter(is_ours).map(str::to_owned).collect()
}

#[test]
fn the_podman_guide_works_as_it_is_written() {
    let machine = Machine::boot().unwrap();
    provide(&machine);
    machine.shell("cd /run/packages; mv 0.1.0-1.deb portolan_0.1.0-1_amd64.deb; rm 0.1.0-2.deb").unwrap();
    machine.shell(PODMAN).unwrap();
    machine.shell(IMAGE).unwrap();
    let before = ours(&machine);
    let blocks = commands(include_str!("../../../docs/guide-podman.md"));
    assert_eq!(blocks.len(), 7);
    let mut said = Vec::new();
    for block in &blocks {
        let script = format!("cd /run/packages\n{block}");
        // A reader is slower than a test, and does not ask a program that has not started yet.
        let creates = block.contains("run -d") || block.contains("install");
        let run = || machine.shell(&script);
        said.push(if creates { run().unwrap() } else { wait_for("the step", run).unwrap() });
    }
    assert!(said[2].contains("default/shop-1") && said[2].contains("default/shop-2"), "{}", said[2]);
    assert!(said[3].starts_with("one\n") || said[3].starts_with("two\n"), "{}", said[3]);
    assert!(said[3].contains("shop:80 can be reached"), "{}", said[3]);
    assert!(said[4].ends_with("two\n"), "{}", said[4]);
    assert!(said[5].contains("192.0.2.2:30080/tcp"), "{}", said[5]);
    assert_eq!(ours(&machine), before);
}

#[test]
fn the_kubelet_guide_works_as_it_is_written() {
    let machine = Machine::boot().unwrap();
    provide(&machine);
    let before = ours(&machine);
    machine.shell("cd /run/packages; mv 0.1.0-1.deb portolan_0.1.0-1_amd64.deb; rm 0.1.0-2.deb").unwrap();
    machine.shell(CONTAINERD).unwrap();
    let kubelet = go_tool("kubelet").unwrap();
    machine.node.run(|| std::fs::copy(kubelet, "/usr/bin/kubelet")).unwrap();
    wait_for("containerd", || {
        machine.shell("ctr -n k8s.io images import --snapshotter native /run/ctr/image.tar")
    })
    .unwrap();

    let blocks = commands(include_str!("../../../docs/guide-kubelet.md"));
    let [install, start, pod, service, ask, take_away, uninstall] = &blocks[..] else { panic!("{blocks:?}") };
    for block in [install, start, pod, service] {
        machine.shell(&format!("cd /run/packages\n{block}")).unwrap();
    }
    let said = wait_longer(|| machine.shell(ask));
    assert!(
        said.contains("(pod default/shop-node-1) accepts") && said.ends_with("hello from the shop\n"),
        "{said}"
    );
    machine.shell(take_away).unwrap();
    wait_longer(|| {
        let status = machine.shell("portolan status")?;
        ensure!(status.contains("\n0 pods attached"), "{status}");
        Ok(())
    });
    machine.shell(uninstall).unwrap();
    machine.shell("systemctl stop containerd; rm /usr/bin/kubelet").unwrap();
    assert_eq!(ours(&machine), before);
}
