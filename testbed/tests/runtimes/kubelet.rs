//! A cluster of one node with kubelet and containerd; Portolan provides the whole pod network.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use testbed::{Cluster, ControlPlane, KUBELET_TUNABLES, Node, Program, go_tool};

use super::assert_nothing_left;
use super::containerd::Containerd;

const FLAGS: [&str; 4] =
    ["--cni-conflist", "/etc/cni/net.d/10-portolan.conflist", "--cluster-cidr", "10.244.0.0/16"];

/// Keeps what the kubelet writes outside its directories on the node.
const PRIVATE_DIRECTORIES: &str = "rm -f /etc/cni/net.d/*; mount -t tmpfs tmpfs /var/log";

/// Prepares a node for a kubelet.
pub(super) fn prepare(node: &Node) {
    node.shell(PRIVATE_DIRECTORIES).unwrap();
    node.shell(KUBELET_TUNABLES).unwrap();
}

/// Returns the kubelet's configuration, for a machine with cgroups v1 and v2 side by side and a disk that may
/// be full.
fn configuration(directory: &Path) -> String {
    let directory = directory.display();
    format!(
        r#"
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
containerRuntimeEndpoint: unix://{directory}/containerd.sock
clusterDNS: [10.96.0.10]
clusterDomain: cluster.local
enableServer: false
authentication: {{anonymous: {{enabled: false}}, webhook: {{enabled: false}}}}
authorization: {{mode: AlwaysAllow}}
makeIPTablesUtilChains: false
failCgroupV1: false
cgroupDriver: cgroupfs
cgroupsPerQOS: false
enforceNodeAllocatable: []
localStorageCapacityIsolation: false
evictionHard: {{memory.available: 0%, nodefs.available: 0%, nodefs.inodesFree: 0%, imagefs.available: 0%}}
imageGCHighThresholdPercent: 100
podLogsDir: {directory}/logs
volumePluginDir: {directory}/volume-plugins
syncFrequency: 1s
nodeStatusUpdateFrequency: 1s
nodeStatusReportFrequency: 1s
"#
    )
}

/// Returns a pod that serves its name, with a readiness probe.
fn pod(name: &str) -> String {
    format!(
        r#"
apiVersion: v1
kind: Pod
metadata: {{name: {name}, labels: {{app: web}}}}
spec:
  nodeName: node-1
  automountServiceAccountToken: false
  terminationGracePeriodSeconds: 1
  containers:
  - name: {name}
    image: localhost/local:test
    imagePullPolicy: Never
    command: [sh, -c, "busybox mkdir -p /tmp; echo $HOSTNAME > /tmp/index.html; exec busybox httpd -f -p 8080 -h /tmp"]
    readinessProbe: {{httpGet: {{path: /, port: 8080}}, periodSeconds: 1}}
---
"#
    )
}

const SERVICE: &str = "
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}
";

/// The cluster.
struct Fixture {
    control_plane: ControlPlane,
    cluster: Cluster,
}

impl Fixture {
    fn new() -> Self {
        let node = Node::new().unwrap();
        prepare(&node);
        let mut control_plane = ControlPlane::start(&node).unwrap();
        control_plane.start_controllers().unwrap();
        let cluster = Cluster::start_with_control_plane(&control_plane, &FLAGS).unwrap();
        Self { control_plane, cluster }
    }

    fn kubectl(&self, line: &str) -> Result<String> {
        self.control_plane.kubectl(&line.split(' ').collect::<Vec<_>>(), "")
    }

    fn wait<T>(&self, what: &str, attempt: impl FnMut() -> Result<T>) -> T {
        let waited = wait(self.cluster.directory(), what, attempt);
        waited.unwrap_or_else(|error| panic!("{error:#}\n{}", self.cluster.logs()))
    }
}

/// Starts the kubelet of `node-1` with a containerd whose socket is in this directory.
pub(super) fn start(control_plane: &ControlPlane, directory: &Path) -> Program {
    let file = directory.join("kubelet.yaml");
    std::fs::write(&file, configuration(directory)).unwrap();
    let flags = [
        "kubelet".to_owned(),
        format!("--config={}", file.display()),
        format!("--kubeconfig={}", control_plane.kubeconfig("admin").unwrap().display()),
        format!("--root-dir={}", directory.join("kubelet").display()),
        "--hostname-override=node-1".to_owned(),
        "--node-ip=192.0.2.2".to_owned(),
    ];
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let binary = go_tool("control-plane").unwrap();
    Program::start(control_plane.node(), &binary, &flags, &directory.join("kubelet.log")).unwrap()
}

/// Repeats an attempt for up to two minutes: a kubelet is slow. The error has the end of its log.
pub(super) fn wait<T>(directory: &Path, what: &str, mut attempt: impl FnMut() -> Result<T>) -> Result<T> {
    let deadline = Instant::now() + Duration::from_secs(120);
    loop {
        match attempt() {
            Err(error) if Instant::now() > deadline => {
                let log = std::fs::read_to_string(directory.join("kubelet.log")).unwrap_or_default();
                let last: Vec<&str> = log.lines().rev().take(40).collect();
                return Err(error.context(format!("waiting for {what}\n{}", last.join("\n"))));
            }
            Err(_) => std::thread::sleep(Duration::from_millis(100)),
            done => return done,
        }
    }
}

#[test]
fn kubelet_pods_reach_each_other_by_name_through_a_service() {
    let mut fixture = Fixture::new();
    let containerd = Containerd::start_bare(&fixture.cluster);
    let _kubelet = start(&fixture.control_plane, fixture.cluster.directory());
    fixture.wait("the Node", || fixture.kubectl("get node node-1"));
    // Without a pod CIDR there is no CNI configuration, and the node is not ready.
    let ready = "{.status.conditions[?(@.type==\"Ready\")].status}";
    let is_ready = || fixture.kubectl(&format!("get node node-1 -o jsonpath={ready}"));
    assert_ne!(is_ready().unwrap(), "True");
    let ranges = r#"{"spec":{"podCIDR":"10.244.7.0/24","podCIDRs":["10.244.7.0/24"]}}"#;
    fixture.kubectl(&format!("patch node node-1 -p {ranges}")).unwrap();
    fixture.wait("the Node to be ready", || {
        let status = is_ready()?;
        ensure!(status == "True", "{status}");
        Ok(())
    });

    fixture.wait("the service account of pods", || fixture.kubectl("get serviceaccount default"));
    fixture.control_plane.apply(&(pod("web-1") + &pod("web-2") + SERVICE)).unwrap();
    fixture
        .wait("both pods", || fixture.kubectl("wait --for=condition=Ready pod/web-1 pod/web-2 --timeout=5s"));
    let address = fixture.kubectl("get pod web-1 -o jsonpath={.status.podIP}").unwrap();
    assert!(address.starts_with("10.244.7."), "{address}");

    // Each pod reaches both pods by the short name of the Service, also itself.
    let ask = |from: &str| {
        let container = containerd.crictl(&format!("ps -q --name {from}"))?;
        let request = "(echo GET / HTTP/1.0; echo) | nc -w 3 web 80";
        let answer = containerd.crictl(&format!("exec {} sh -c '{request}'", container.trim()))?;
        Ok::<_, anyhow::Error>(answer.lines().last().unwrap_or_default().to_owned())
    };
    for from in ["web-1", "web-2"] {
        for to in ["web-1", "web-2"] {
            fixture.wait(&format!("{to} to answer {from}"), || {
                let answer = ask(from)?;
                ensure!(answer == to, "{answer}");
                Ok(())
            });
        }
    }
    // A deleted pod receives no more requests.
    fixture.kubectl("delete pod web-1").unwrap();
    fixture.wait("the removal of its endpoint", || {
        let slices = fixture.kubectl(
            "get endpointslices -l kubernetes.io/service-name=web -o \
            jsonpath={.items[*].endpoints[*].addresses}",
        )?;
        ensure!(!slices.contains(&address), "{slices}");
        Ok(())
    });
    fixture.wait("the other one", || ask("web-2"));
    for _ in 0..10 {
        assert_eq!(ask("web-2").unwrap(), "web-2");
    }
    fixture.kubectl("delete pod web-2").unwrap();
    fixture.wait("the sandboxes to end", || {
        // The kubelet removes them a minute later.
        let sandboxes = containerd.crictl("pods -q --state Ready")?;
        ensure!(sandboxes.is_empty(), "{sandboxes}");
        Ok(())
    });
    drop(containerd);
    fixture.cluster.proxy.terminate().unwrap();
    let routes = fixture.cluster.node.shell("ip route").unwrap();
    assert!(!routes.contains("10.244."), "{routes}");
    assert_nothing_left(&fixture.cluster.node);
}
