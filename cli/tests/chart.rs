//! The Helm chart and its rendered manifests, validated by a real API server.

#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

use std::process::Command;

use anyhow::ensure;
use testbed::{Binaries, ControlPlane, Node, Program, go_tool, wait_for};

const WORKSPACE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

/// Returns the output of `helm template` with these values.
fn render(values: &str) -> String {
    let mut helm = Command::new(go_tool("helm").unwrap());
    helm.args([
        "template",
        "portolan",
        "deploy/helm/portolan",
        "--namespace",
        "kube-system",
        "--kube-version",
        "1.34",
    ]);
    let output = helm.args(["--set", values]).current_dir(WORKSPACE).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn manifests_equal_the_rendered_chart() {
    let output = Command::new("make")
        .args(["--no-print-directory", "-s", "manifests", "MANIFESTS=/dev/stdout"])
        .current_dir(WORKSPACE)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let rendered = String::from_utf8(output.stdout).unwrap();
    assert_eq!(rendered, include_str!("../../deploy/kubernetes/portolan.yaml"), "run `make manifests`");
}

#[test]
fn roles_equal_the_rendered_chart_and_pods_are_watched_only_if_configured() {
    let roles = include_str!("../../deploy/kubernetes/rbac.yaml");
    let with_pods = roles.replace("[services, namespaces]", "[services, namespaces, pods]");
    for (values, roles) in [("disabled", roles), ("insecure", roles), ("verified", &with_pods)] {
        let rendered = render(&format!("apiServer.host=192.0.2.10,dns.pods={values}"));
        for object in roles.split("---\n") {
            assert!(rendered.contains(object.trim_end()), "{values}: {object} in {rendered}");
        }
        let flag = format!("- --pods={values}");
        assert_eq!(rendered.contains(&flag), values != "disabled", "{rendered}");
    }
}

#[test]
fn api_server_accepts_every_object_of_the_chart_with_strict_validation() {
    let node = Node::new().unwrap();
    let control_plane = ControlPlane::start(&node).unwrap();
    let dry_run = ["apply", "--dry-run=server", "--validate=strict", "-f", "-"];
    for values in [
        "apiServer.host=192.0.2.10",
        "apiServer.host=::1,cni.enabled=true,cni.clusterCIDRs={10.244.0.0/16,fd00:244::/48},\
         proxy.extraArgs={--poll=0}",
    ] {
        let rendered = render(values);
        let output = control_plane.kubectl(&dry_run, &rendered).unwrap();
        for object in [
            "daemonset.apps/portolan-proxy",
            "daemonset.apps/portolan-dns",
            "clusterrole.rbac.authorization.k8s.io/portolan-dns",
        ] {
            assert!(output.contains(object), "{object}: {output}");
        }
        // Strict validation rejects a misspelled field.
        let misspelled = rendered.replace("readOnlyRootFilesystem", "readOnlyRootFileSystem");
        let refused = control_plane.kubectl(&dry_run, &misspelled).unwrap_err().to_string();
        assert!(refused.contains("unknown field"), "{refused}");
    }
    let cleanup = include_str!("../../deploy/kubernetes/cleanup.yaml");
    let output = control_plane.kubectl(&dry_run, cleanup).unwrap();
    assert!(output.contains("daemonset.apps/portolan-cleanup"), "{output}");
    let image = concat!("image: localhost/portolan:", env!("CARGO_PKG_VERSION"));
    assert_eq!(cleanup.matches(image).count(), 3, "its image is the chart's");
}

#[test]
fn chart_without_the_api_servers_address_fails_with_an_explanation() {
    let mut helm = Command::new(go_tool("helm").unwrap());
    helm.args(["template", "deploy/helm/portolan", "--kube-version", "1.34"]);
    let output = helm.current_dir(WORKSPACE).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(
        !output.status.success()
            && stderr.contains("apiServer.host: the API server by an address that needs no Service"),
        "{stderr}"
    );
}

/// A program started as the container of its DaemonSet: with the service account's token, the CA and the API
/// server's address.
struct Container<'a> {
    node: &'a Node,
    program: &'a str,
    flags: &'a [&'a str],
    environment: [String; 2],
    directory: tempfile::TempDir,
}

impl<'a> Container<'a> {
    fn new(node: &'a Node, control_plane: &ControlPlane, program: &'a str, flags: &'a [&'a str]) -> Self {
        control_plane.apply(include_str!("../../deploy/kubernetes/rbac.yaml")).unwrap();
        let token = control_plane.kubectl(&["-n", "kube-system", "create", "token", program], "").unwrap();
        let kubeconfig = std::fs::read_to_string(control_plane.kubeconfig("admin").unwrap()).unwrap();
        let authority =
            kubeconfig.split("certificate-authority: ").nth(1).unwrap().split('}').next().unwrap();
        let directory = "/var/run/secrets/kubernetes.io/serviceaccount";
        node.shell(&format!(
            "mkdir -p {directory}; cp {authority} {directory}/ca.crt; printf '%s' '{}' > {directory}/token; \
             printf kube-system > {directory}/namespace",
            token.trim()
        ))
        .unwrap();
        let environment = [
            format!("KUBERNETES_SERVICE_HOST={}", node.address()),
            "KUBERNETES_SERVICE_PORT=6443".to_owned(),
        ];
        Self { node, program, flags, environment, directory: tempfile::tempdir().unwrap() }
    }

    /// Starts the program with a log of that name.
    fn start(&self, log: &str) -> Program {
        let binary = Binaries::find().unwrap().path(self.program).display().to_string();
        let mut line: Vec<&str> = self.environment.iter().map(String::as_str).collect();
        line.extend([&binary, "--in-cluster"]);
        line.extend(self.flags);
        Program::start(self.node, "/usr/bin/env".as_ref(), &line, &self.directory.path().join(log)).unwrap()
    }

    /// Waits until a log contains a text.
    fn wait_for(&self, log: &str, words: &str) {
        wait_for(words, || {
            let log_text = std::fs::read_to_string(self.directory.path().join(log))?;
            ensure!(log_text.contains(words), "{log}: {log_text}");
            Ok(())
        })
        .unwrap();
    }
}

#[test]
fn proxy_replaced_by_a_rolling_update_runs_until_the_kubelet_stops_it() {
    let node = Node::new().unwrap();
    let control_plane = ControlPlane::start(&node).unwrap();
    let container = Container::new(&node, &control_plane, "portolan-proxy", &["--node-name=node-1"]);
    let start = |log: &str| {
        let program = container.start(log);
        wait_for("the hot restart", || {
            let serving = node.serving_proxy()?;
            ensure!(serving == program.id(), "process {serving} serves");
            Ok(())
        })
        .unwrap();
        program
    };
    let mut old = start("old.log");
    let _new = start("new.log");
    container.wait_for("old.log", "waiting to be stopped");
    node.shell(&format!("test -d /proc/{}", old.id())).unwrap();
    assert!(old.terminate().unwrap().success());
    node.shell("curl -fsS -m 2 http://127.0.0.1:10256/readyz; ip route show table local | grep 10.96")
        .unwrap();
}

#[test]
fn dns_server_replaced_by_a_rolling_update_runs_until_the_kubelet_stops_it() {
    let node = Node::new().unwrap();
    let control_plane = ControlPlane::start(&node).unwrap();
    let container = Container::new(&node, &control_plane, "portolan-dns", &["--listen=127.0.0.1:53"]);
    let resolve = || {
        let answer =
            node.shell("dig +short +time=1 +tries=1 @127.0.0.1 kubernetes.default.svc.cluster.local")?;
        ensure!(answer.trim() == "10.96.0.1", "{answer}");
        Ok(())
    };
    let mut old = container.start("old.log");
    wait_for("an answer", resolve).unwrap();
    let _new = container.start("new.log");
    container.wait_for("new.log", "serving in place of the previous process");
    container.wait_for("old.log", "waiting to be stopped");
    node.shell(&format!("test -d /proc/{}", old.id())).unwrap();
    resolve().unwrap();
    assert!(old.terminate().unwrap().success());
    node.shell("curl -fsS -m 2 http://127.0.0.1:10264/ready").unwrap();
    resolve().unwrap();
}
