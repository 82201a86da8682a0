//! containerd with its Container Runtime Interface, configured for a machine without CAP_SYS_RESOURCE and
//! with both kinds of cgroups.

use std::path::Path;

/// Returns a configuration file with `image` as the sandbox image, and the directories of CNI plugins and
/// configurations.
pub fn containerd_config(image: &str, plugins: &Path, conflists: &Path) -> String {
    let (plugins, conflists) = (plugins.display(), conflists.display());
    format!(
        r#"
version = 2
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{image}"
disable_cgroup = true
disable_apparmor = true
restrict_oom_score_adj = true
[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "native"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "{plugins}"
conf_dir = "{conflists}"
"#
    )
}

/// Returns a script that imports the files in `directory/root` as an image. Its command sleeps, as that of a
/// sandbox must.
///
/// The script builds a docker archive of layer, configuration and manifest.
pub fn import_image(directory: &Path, image: &str, socket: &Path) -> String {
    let (directory, socket) = (directory.display(), socket.display());
    format!(
        r#"
cd {directory}; tar cf layer.tar -C root .
printf '{{"architecture":"amd64","os":"linux","config":{{"Cmd":["/bin/sleep","100000"]}},"rootfs":{{"type":"layers","diff_ids":["sha256:%s"]}}}}' $(sha256sum layer.tar | cut -d' ' -f1) > image.json
printf '[{{"Config":"image.json","RepoTags":["{image}"],"Layers":["layer.tar"]}}]' > manifest.json
tar cf image.tar image.json layer.tar manifest.json
ctr -a {socket} -n k8s.io images import --snapshotter native image.tar
"#
    )
}
