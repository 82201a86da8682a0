//! Runs the guides of docs/ command by command.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use testbed::{KUBELET_TUNABLES, containerd_config, go_tool, import_image, wait_for};

use crate::deb::provide;
use crate::machine::Machine;

/// podman settings for a machine without CAP_SYS_RESOURCE, with both kinds of cgroups, and with storage on an
/// overlay.
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

/// The image that the guides use.
const BUSYBOX: &str = "docker.io/library/busybox:latest";

/// Imports the machine's busybox under the image name of the guides, in place of a registry.
const IMAGE: &str = "
    mkdir -p /run/image/bin /run/image/tmp; cp /bin/busybox /run/image/bin/
    for applet in sh httpd wget; do ln -s busybox /run/image/bin/$applet; done
    tar c -C /run/image . | podman import --change 'CMD [\"/bin/sh\"]' - docker.io/library/busybox:latest
";

/// Returns the commands of a page: its `sh` blocks.
fn commands(page: &str) -> Vec<String> {
    let blocks = page.split("```sh\n").skip(1).filter_map(|rest| rest.split("```").next());
    blocks.map(str::to_owned).collect()
}

/// Returns the state that belongs to Portolan, without the runtime's own state.
fn ours(machine: &Machine) -> Vec<String> {
    let state = machine.state().unwrap();
    let is_ours = |line: &&str| line.contains("portolan") || line.contains("ptl") || line.contains("10.22.");
    state.lines().filter(is_ours).map(str::to_owned).collect()
}

/// Copies the first package to where the guides expect it, and the second one for the upgrade.
fn provide_one(machine: &Machine) {
    provide(machine);
    machine
        .shell("cd /run/packages; mv 0.1.0-1.deb portolan_0.1.0-1_amd64.deb; mv 0.1.0-2.deb /run/next.deb")
        .unwrap();
}

/// Upgrades the package under a load of requests, none of which may fail.
fn upgrade_under_load(machine: &Machine, service: &str) {
    let address =
        machine.shell(&format!("dig +short @10.96.0.10 {service}.default.svc.cluster.local")).unwrap();
    let requests = format!(
        "count=0; until [ -e /run/enough ]; do curl -fsS -m 3 -o /dev/null http://{}/; count=$((count + \
         1)); done; echo $count",
        address.trim()
    );
    let old = machine.main_pid("portolan-proxy").unwrap();
    std::thread::scope(|scope| {
        let load = scope.spawn(|| machine.shell(&requests));
        machine.shell("dpkg -i /run/next.deb").unwrap();
        machine.wait_for_hot_restart(old);
        machine.shell("touch /run/enough").unwrap();
        let count: u32 = load.join().unwrap().unwrap().trim().parse().unwrap();
        assert!(count > 20, "only {count} requests");
    });
    machine.shell("rm /run/enough /run/next.deb").unwrap();
}

#[test]
fn commands_of_the_podman_guide_succeed() {
    let machine = Machine::boot().unwrap();
    provide_one(&machine);
    machine.shell(PODMAN).unwrap();
    machine.shell(IMAGE).unwrap();
    let before = ours(&machine);
    let blocks = commands(include_str!("../../../docs/guide-podman.md"));
    assert_eq!(blocks.len(), 7);
    let mut outputs = Vec::new();
    for block in &blocks {
        let script = format!("cd /run/packages\n{block}");
        // Steps that only query are retried: a test is faster than a reader.
        let creates = block.contains("run -d") || block.contains("install");
        let run = || machine.shell(&script);
        if block.contains("nodePort") {
            run().unwrap();
            let by_port = || {
                let status = machine.shell("portolan status shop")?;
                ensure!(status.contains("192.0.2.2:30080/tcp"), "{status}");
                Ok(())
            };
            wait_for("the node port", by_port).unwrap();
            continue;
        }
        outputs.push(if creates { run().unwrap() } else { wait_for("the step", run).unwrap() });
        if outputs.len() == 4 {
            upgrade_under_load(&machine, "shop");
        }
    }
    assert!(outputs[2].contains("default/shop-1") && outputs[2].contains("default/shop-2"), "{}", outputs[2]);
    assert!(outputs[3].starts_with("one\n") || outputs[3].starts_with("two\n"), "{}", outputs[3]);
    assert!(outputs[3].contains("shop:80 can be reached"), "{}", outputs[3]);
    assert!(outputs[4].ends_with("two\n"), "{}", outputs[4]);
    assert_eq!(ours(&machine), before);
}

/// The kubelet requires two cgroup controllers.
const CONTROLLERS: &str = "
    for controller in cpu cpuacct; do
        mkdir -p /sys/fs/cgroup/$controller; mount -t cgroup -o $controller cgroup /sys/fs/cgroup/$controller
    done
";

/// Starts containerd as a unit and imports the machine's busybox under the image name of the guide.
fn start_containerd(machine: &Machine) {
    let config = containerd_config(BUSYBOX, "/usr/lib/cni".as_ref(), "/etc/cni/net.d".as_ref());
    let start = format!(
        r"
        mkdir -p /etc/containerd
        cat > /etc/containerd/config.toml <<END
{config}
END
        printf '[Service]\nExecStart=/usr/bin/containerd\nKillMode=process\n' > /etc/systemd/system/containerd.service
        systemctl daemon-reload; systemctl start containerd
        mkdir -p /run/image/root/bin /run/image/root/tmp; cp /bin/busybox /run/image/root/bin/
        for applet in sh httpd sleep; do ln -s busybox /run/image/root/bin/$applet; done
        "
    );
    machine.shell(&start).unwrap();
    wait_long_for("containerd", || machine.shell("ctr version"));
    let socket = "/run/containerd/containerd.sock";
    machine.shell(&import_image("/run/image".as_ref(), BUSYBOX, socket.as_ref())).unwrap();
}

/// Retries for two minutes: a kubelet needs tens of seconds for its first pod.
fn wait_long_for(what: &str, mut attempt: impl FnMut() -> Result<String>) -> String {
    let deadline = Instant::now() + Duration::from_secs(120);
    loop {
        match attempt() {
            Ok(output) => return output,
            Err(error) if Instant::now() > deadline => panic!("waiting for {what}: {error:#}"),
            Err(_) => std::thread::sleep(Duration::from_millis(500)),
        }
    }
}

#[test]
fn commands_of_the_kubelet_guide_succeed() {
    let machine = Machine::boot().unwrap();
    provide_one(&machine);
    machine.shell(CONTROLLERS).unwrap();
    machine.shell(KUBELET_TUNABLES).unwrap();
    start_containerd(&machine);
    let kubelet = go_tool("control-plane").unwrap();
    machine.shell(&format!("ln -s {} /usr/bin/kubelet", kubelet.display())).unwrap();
    let before = ours(&machine);
    let blocks = commands(include_str!("../../../docs/guide-kubelet.md"));
    let [install, start, pod, service, ask, remove, purge] = &blocks[..] else { panic!("{blocks:#?}") };
    machine.shell(&format!("cd /run/packages\n{install}")).unwrap();
    for block in [start, pod, service] {
        machine.shell(block).unwrap();
    }
    let output = wait_long_for("the answer", || machine.shell(ask));
    assert!(
        output.contains("shop:80 can be reached") && output.ends_with("hello from the shop\n"),
        "{output}"
    );
    upgrade_under_load(&machine, "shop");
    machine.shell(remove).unwrap();
    wait_long_for("the last pod to be removed", || {
        let status = machine.shell("portolan status")?;
        ensure!(status.contains("0 pods attached"), "{status}");
        Ok(status)
    });
    machine.shell(purge).unwrap();
    assert_eq!(ours(&machine), before);
}
