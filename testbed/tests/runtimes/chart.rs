//! The Helm chart on a cluster of one node: installation, upgrade under load, removal.

use std::collections::BTreeSet;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use netns::NetNs;
use serde_json::Value;
use tempfile::TempDir;
use testbed::{Binaries, ControlPlane, Node, Program, go_tool};

use super::containerd::Containerd;
use super::{kubelet, load};

const WORKSPACE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

/// The default image of the chart.
const IMAGE: &str = concat!("localhost/portolan:", env!("CARGO_PKG_VERSION"));

/// The image of the next version.
const NEXT_IMAGE: &str = "localhost/portolan:next";

const VALUES: &str = "apiServer.host=192.0.2.2,cni.enabled=true,cni.clusterCIDRs={10.244.0.0/16}";

/// Only the loopback plugin is installed; external names are resolved by the external network.
const FRESH: &str = "
    mount -t tmpfs tmpfs /opt; mkdir -p /opt/cni/bin; cp /usr/lib/cni/loopback /opt/cni/bin
    rm -f /etc/resolv.conf; echo nameserver 192.0.2.1 > /etc/resolv.conf
";

/// Copies the programs with their shared libraries. Release programs are static.
const IMAGE_ROOT: &str = "
    mkdir -p $root
    for program in portolan portolan-proxy portolan-dns portolan-cni; do
        strip -o $root/$program $programs/$program
        ldd $programs/$program | grep -o '/[^ ]*' | xargs cp -Lu --parents -t $root
    done
";

/// Prints the state that a program could leave. Forwarding stays enabled, as in docs/cni-plugin.md.
const STATE: &str = "
    for what in address route rule; do
        ip -j $what show table all 2>/dev/null || ip -j $what; ip -j -6 $what show table all 2>/dev/null || true
    done
    nft -j list ruleset; find /opt /etc/cni /etc/portolan /var/lib/portolan /run/portolan 2>/dev/null || true
";

const WEB: &str = r#"
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {clusterIP: 10.96.7.7, selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      automountServiceAccountToken: false
      terminationGracePeriodSeconds: 1
      containers:
      - name: web
        image: localhost/local:test
        imagePullPolicy: Never
        command: [sh, -c, "busybox mkdir -p /tmp; echo $HOSTNAME > /tmp/index.html; exec busybox httpd -f -p 8080 -h /tmp"]
        readinessProbe: {httpGet: {path: /, port: 8080}, periodSeconds: 1}
"#;

/// A cluster without a pod network.
struct Fixture {
    node: Node,
    directory: TempDir,
    control_plane: ControlPlane,
}

impl Fixture {
    fn new() -> Self {
        let node = Node::new().unwrap();
        kubelet::prepare(&node);
        node.shell(FRESH).unwrap();
        let mut control_plane = ControlPlane::start(&node).unwrap();
        control_plane.start_all_controllers().unwrap();
        Self { node, directory: TempDir::new().unwrap(), control_plane }
    }

    /// Imports an image of the workspace's programs under both names.
    fn import_images(&self, containerd: &Containerd<'_>) {
        let (programs, image) = (Binaries::find().unwrap().path(""), self.directory.path().join("image"));
        let script = format!("programs={} root={}/root\n{IMAGE_ROOT}", programs.display(), image.display());
        self.node.shell(&script).unwrap();
        containerd.import_image(IMAGE, &image);
        let socket = self.directory.path().join("containerd.sock");
        let tag = format!("ctr -a {} -n k8s.io images tag {IMAGE} {NEXT_IMAGE}", socket.display());
        self.node.shell(&tag).unwrap();
    }

    fn start_kubelet(&self) -> Program {
        kubelet::start(&self.control_plane, self.directory.path())
    }

    fn kubectl(&self, line: &str) -> Result<String> {
        self.control_plane.kubectl(&line.split(' ').collect::<Vec<_>>(), "")
    }

    fn helm(&self, line: &str) -> Result<()> {
        let own = self.directory.path().join("helm");
        let mut helm = Command::new(go_tool("helm")?);
        helm.args(line.split(' ')).current_dir(WORKSPACE);
        helm.env("KUBECONFIG", self.control_plane.kubeconfig("admin")?);
        for name in ["HELM_CACHE_HOME", "HELM_CONFIG_HOME", "HELM_DATA_HOME"] {
            helm.env(name, &own);
        }
        let output = self.node.run(|| helm.output())?;
        ensure!(output.status.success(), "helm {line}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    }

    fn wait<T>(&self, what: &str, attempt: impl FnMut() -> Result<T>) -> T {
        kubelet::wait(self.directory.path(), what, attempt)
            .unwrap_or_else(|error| panic!("{error:#}\n{}", self.report()))
    }

    /// Returns pods, Events and logs, for error messages.
    fn report(&self) -> String {
        let pods = self.kubectl("get pods -A -o wide").unwrap_or_default();
        let events = self.kubectl("get events -A").unwrap_or_default();
        format!("{pods}\n{events}\n{}", self.control_plane.logs())
    }

    /// Returns the state of kernel and file system, one element a line.
    fn state(&self) -> BTreeSet<String> {
        let output = self.node.shell(STATE).unwrap();
        let elements = |line: &str| match serde_json::from_str::<Value>(line) {
            Ok(Value::Array(elements)) => elements,
            Ok(Value::Object(object)) => object.into_iter().map(|(_, value)| value).collect(),
            _ => vec![Value::from(line)],
        };
        output.lines().flat_map(elements).map(|element| element.to_string()).collect()
    }

    /// Returns the network namespace of one of the Deployment's pods.
    fn a_pod(&self) -> Result<NetNs> {
        let records = self.node.shell("cat /run/portolan/attachments/portolan/*.json")?;
        let mut records = serde_json::Deserializer::from_str(&records).into_iter::<Value>();
        let record = records.next().context("no pod is attached")??;
        self.node.netns(record["netns"].as_str().context("a record has a namespace")?.as_ref())
    }

    /// Returns name, image and restart count of each container of the DaemonSets.
    fn containers(&self) -> BTreeSet<String> {
        let columns = "{range .items[*]}{.spec.containers[0].name} {.spec.containers[0].image} \
            {.status.containerStatuses[0].restartCount}{\"\\n\"}{end}";
        let arguments = ["-n", "kube-system", "get", "pods", "-o", &format!("jsonpath={columns}")];
        let output = self.control_plane.kubectl(&arguments, "").unwrap();
        output.lines().map(str::to_owned).collect()
    }

    fn uninstall(&self) {
        self.kubectl("delete deployment web --cascade=foreground").unwrap();
        self.helm("uninstall portolan --namespace kube-system --wait").unwrap();
        let cleanup = include_str!("../../../deploy/kubernetes/cleanup.yaml");
        self.control_plane.apply(cleanup).unwrap();
        self.wait("the node to be clean", || {
            self.kubectl("-n kube-system rollout status daemonset/portolan-cleanup --timeout=5s")
        });
        self.kubectl("-n kube-system delete daemonset portolan-cleanup --cascade=foreground").unwrap();
    }
}

#[expect(clippy::print_stdout, reason = "figures for the log of a run")]
fn assert_nothing_lost(outcomes: [load::Outcome; 2]) {
    for (what, outcome) in ["requests", "queries"].iter().zip(outcomes) {
        println!("{what}: {} in all, the longest {:?}", outcome.count, outcome.longest);
        assert!(outcome.failures.is_empty(), "{what}: {:#?}", outcome.failures);
        assert!(outcome.count > 0, "no {what}");
    }
}

#[test]
fn chart_makes_a_node_ready_upgrades_without_loss_and_uninstalls_cleanly() {
    let fixture = Fixture::new();
    let containerd = Containerd::start_empty(&fixture.node, fixture.directory.path());
    fixture.import_images(&containerd);
    let before = fixture.state();
    let _kubelet = fixture.start_kubelet();
    fixture
        .helm(&format!(
            "install portolan deploy/helm/portolan --namespace kube-system --wait --timeout 2m --set {VALUES}"
        ))
        .unwrap_or_else(|error| panic!("{error:#}\n{}", fixture.report()));
    fixture.wait("the Node to be ready", || {
        fixture.kubectl("wait --for=condition=Ready node/node-1 --timeout=5s")
    });
    fixture.control_plane.apply(WEB).unwrap();
    fixture.wait("the Deployment", || fixture.kubectl("rollout status deployment/web --timeout=5s"));

    // A pod resolves a short name with its search list, and connects to the virtual IP.
    let container = containerd.crictl("ps -q --name web").unwrap();
    let container = container.lines().next().unwrap();
    fixture.wait("the Service by name", || {
        let request = "(echo GET / HTTP/1.0; echo) | nc -w 3 web 80";
        let output = containerd.crictl(&format!("exec {container} sh -c '{request}'"))?;
        ensure!(output.lines().last().is_some_and(|line| line.starts_with("web-")), "{output}");
        Ok(())
    });

    // Helm does not wait for a DaemonSet that its controller has not processed yet. An old pod that is not
    // ready is deleted at once.
    for name in ["portolan-proxy", "portolan-dns"] {
        fixture.wait(name, || {
            fixture.kubectl(&format!("-n kube-system rollout status daemonset/{name} --timeout=5s"))
        });
    }
    let page = ("10.96.7.7:80".parse().unwrap(), "web-");
    let query = ("10.96.0.10:53".parse().unwrap(), "web.default.svc.cluster.local");
    let upgrade = format!(
        "upgrade portolan deploy/helm/portolan --namespace kube-system --wait --timeout 2m --reuse-values \
         --set image={NEXT_IMAGE}"
    );
    let (upgraded, outcomes) = load::during(&fixture.a_pod().unwrap(), page, query, || {
        let upgraded = fixture.helm(&upgrade);
        // The old pods are deleted last.
        let expected = ["portolan-dns", "portolan-proxy"].map(|name| format!("{name} {NEXT_IMAGE} 0"));
        fixture.wait("the deletion of the old pods", || {
            let found = fixture.containers();
            ensure!(found == BTreeSet::from(expected.clone()), "{found:?}");
            Ok(())
        });
        upgraded
    });
    upgraded.unwrap_or_else(|error| panic!("{error:#}\n{}", fixture.report()));
    assert_nothing_lost(outcomes);

    fixture.uninstall();
    let now = fixture.state();
    let differ: Vec<&String> = now.symmetric_difference(&before).collect();
    assert!(differ.is_empty(), "{differ:#?}");
}
