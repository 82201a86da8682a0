//! The guides of docs/, command by command as they are written there.

use anyhow::ensure;
use testbed::wait_for;

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
        said.push(if creates { run().unwrap() } else { wait_for("the step", run).unwrap() });
    }
    assert!(said[2].contains("default/shop-1") && said[2].contains("default/shop-2"), "{}", said[2]);
    assert!(said[3].starts_with("one\n") || said[3].starts_with("two\n"), "{}", said[3]);
    assert!(said[3].contains("shop:80 can be reached"), "{}", said[3]);
    assert!(said[4].ends_with("two\n"), "{}", said[4]);
    assert_eq!(ours(&machine), before);
}
