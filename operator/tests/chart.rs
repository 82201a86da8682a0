//! The Helm chart and what is rendered from it, by the real API server.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::process::Command;

use anyhow::ensure;
use testbed::{Binaries, ControlPlane, Node, Program, go_tool, wait_for};

const WORKSPACE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

/// What `helm template` prints with these values.
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
fn the_manifests_are_what_the_chart_renders() {
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
fn the_roles_are_what_the_chart_renders_and_pods_are_watched_only_if_that_is_wanted() {
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
fn an_api_server_takes_every_object_of_the_chart_to_the_letter() {
    let node = Node::new().unwrap();
    let control_plane = ControlPlane::start(&node).unwrap();
    let try_out = ["apply", "--dry-run=server", "--validate=strict", "-f", "-"];
    for values in [
        "apiServer.host=192.0.2.10",
        "apiServer.host=::1,cni.enabled=true,cni.clusterCIDRs={10.244.0.0/16,fd00:244::/48},proxy.extraArgs={--poll=0}",
    ] {
        let rendered = render(values);
        let said = control_plane.kubectl(&try_out, &rendered).unwrap();
        for object in [
            "daemonset.apps/portolan-proxy",
            "daemonset.apps/portolan-dns",
            "clusterrole.rbac.authorization.k8s.io/portolan-dns",
        ] {
            assert!(said.contains(object), "{object}: {said}");
        }
        // It would notice.
        let misspelled = rendered.replace("readOnlyRootFilesystem", "readOnlyRootFileSystem");
        let refused = control_plane.kubectl(&try_out, &misspelled).unwrap_err().to_string();
        assert!(refused.contains("unknown field"), "{refused}");
    }
    let cleanup = include_str!("../../deploy/kubernetes/cleanup.yaml");
    let said = control_plane.kubectl(&try_out, cleanup).unwrap();
    assert!(said.contains("daemonset.apps/portolan-cleanup"), "{said}");
    let image = concat!("image: localhost/portolan:", env!("CARGO_PKG_VERSION"));
    assert_eq!(cleanup.matches(image).count(), 3, "its image is the chart's");
}

#[test]
fn a_chart_without_the_servers_address_says_what_it_needs() {
    let mut helm = Command::new(go_tool("helm").unwrap());
    helm.args(["template", "deploy/helm/portolan", "--kube-version", "1.34"]);
    let output = helm.current_dir(WORKSPACE).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        !output.status.success()
            && said.contains("apiServer.host: the API server by an address that needs no Service"),
        "{said}"
    );
}

/// A container of the DaemonSet of that program: with the account's token, the authority, the server's address.
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
            "mkdir -p {directory}; cp {authority} {directory}/ca.crt; printf '%s' '{}' > {directory}/token; printf kube-system > {directory}/namespace",
            token.trim()
        ))
        .unwrap();
        let environment = [
            format!("KUBERNETES_SERVICE_HOST={}", node.address()),
            "KUBERNETES_SERVICE_PORT=6443".to_owned(),
        ];
        Self { node, program, flags, environment, directory: tempfile::tempdir().unwrap() }
    }

    /// Starts it, with a log of that name.
    fn start(&self, log: &str) -> Program {
        let binary = Binaries::find().unwrap().path(self.program).display().to_string();
        let mut line: Vec<&str> = self.environment.iter().map(String::as_str).collect();
        line.extend([&binary, "--in-cluster"]);
        line.extend(self.flags);
        Program::start(self.node, "/usr/bin/env".as_ref(), &line, &self.directory.path().join(log)).unwrap()
    }

    /// Waits for words in a log.
    fn wait_for(&self, log: &str, words: &str) {
        wait_for(words, || {
            let said = std::fs::read_to_string(self.directory.path().join(log))?;
            ensure!(said.contains(words), "{log}: {said}");
            Ok(())
        })
        .unwrap();
    }
}

#[test]
fn a_proxy_that_was_replaced_in_a_rolling_update_waits_for_the_kubelet_to_end_it() {
    let node = Node::new().unwrap();
    let control_plane = ControlPlane::start(&node).unwrap();
    let container = Container::new(&node, &control_plane, "portolan-proxy", &["--node-name=node-1"]);
    let start = |log: &str| {
        let program = container.start(log);
        wait_for("it to be in force", || {
            let serving = node.serving_proxy()?;
            ensure!(serving == program.id(), "process {serving} serves");
            Ok(())
        })
        .unwrap();
        program
    };
    let mut old = start("old.log");
    let _new = start("new.log");
    container.wait_for("old.log", "waiting to be told to end");
    node.shell(&format!("test -d /proc/{}", old.id())).unwrap();
    assert!(old.terminate().unwrap().success());
    node.shell("curl -fsS -m 2 http://127.0.0.1:10256/readyz; ip route show table local | grep 10.96")
        .unwrap();
}

#[test]
fn a_name_server_that_was_replaced_in_a_rolling_update_waits_for_the_kubelet_to_end_it() {
    let node = Node::new().unwrap();
    let control_plane = ControlPlane::start(&node).unwrap();
    let container = Container::new(&node, &control_plane, "portolan-dns", &["--listen=127.0.0.1:53"]);
    let ask = || {
        let said =
            node.shell("dig +short +time=1 +tries=1 @127.0.0.1 kubernetes.default.svc.cluster.local")?;
        ensure!(said.trim() == "10.96.0.1", "{said}");
        Ok(())
    };
    let mut old = container.start("old.log");
    wait_for("an answer", ask).unwrap();
    let _new = container.start("new.log");
    container.wait_for("new.log", "serving in place of the previous process");
    container.wait_for("old.log", "waiting to be told to end");
    node.shell(&format!("test -d /proc/{}", old.id())).unwrap();
    ask().unwrap();
    assert!(old.terminate().unwrap().success());
    node.shell("curl -fsS -m 2 http://127.0.0.1:10264/ready").unwrap();
    ask().unwrap();
}
