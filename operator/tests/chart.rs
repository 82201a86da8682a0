//! The Helm chart and what is rendered from it, by the real API server.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::process::Command;

use testbed::{ControlPlane, Node, go_tool};

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
