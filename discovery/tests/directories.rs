//! Discovery with real directories: every change shows in the next snapshot.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use portolan_discovery::model::{IpFamily, NamespacedName};
use portolan_discovery::{Config, ControlPlane, Discovery, Interest, ServiceInterest, Snapshot};

/// Less than the half minute after which a directory is scanned without an event.
const TIMEOUT: Duration = Duration::from_secs(10);

const WEB: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec:\n  selector: {app: web}\n  \
                   ports:\n  - {port: 80, targetPort: 8080}\n";
const POD: &str =
    "apiVersion: v1\nkind: Pod\nmetadata: {name: web-0, labels: {app: web}}\nspec: {containers: []}\n";

fn start(root: &Path, attachments: bool) -> Discovery {
    portolan_discovery::start(Config {
        control_plane: ControlPlane::Manifests(root.join("manifests")),
        interest: Interest {
            services: ServiceInterest::All,
            nodes: true,
            namespaces: true,
            pods: false,
            pod_names: false,
        },
        attachments: attachments.then(|| root.join("attachments")),
        service_cidrs: vec!["10.96.0.0/12".parse().unwrap()],
    })
}

/// The first snapshot for which `is` holds, before the periodic scan.
async fn until(discovery: &Discovery, what: &str, is: impl Fn(&Snapshot) -> bool) -> Arc<Snapshot> {
    let mut snapshots = discovery.snapshots.clone();
    match tokio::time::timeout(TIMEOUT, snapshots.wait_for(|snapshot| is(snapshot))).await {
        Ok(Ok(snapshot)) => Arc::clone(&snapshot),
        Ok(Err(_)) => panic!("discovery ended before: {what}"),
        Err(_elapsed) => {
            panic!("not within {TIMEOUT:?}: {what}; last: {:?}", discovery.snapshots.borrow().health())
        }
    }
}

fn endpoints(snapshot: &Snapshot) -> Vec<String> {
    let Some(entry) = snapshot.service(&NamespacedName::new("default", "web")) else { return Vec::new() };
    let found = entry.endpoints(&entry.service.ports[0], IpFamily::V4, None, |_| false);
    found.iter().map(|(address, _)| address.to_string()).collect()
}

fn has_web(snapshot: &Snapshot) -> bool {
    snapshot.service(&NamespacedName::new("default", "web")).is_some()
}

fn is_unreadable(snapshot: &Snapshot) -> bool {
    snapshot.sources.get("manifests").is_some_and(|source| source.failure.is_some())
}

/// Writes like `kubectl`, editors and configuration management: to another file, then renamed into place.
fn put(path: &Path, text: &str) {
    let beside = path.with_extension("new");
    fs::write(&beside, text).unwrap();
    fs::rename(beside, path).unwrap();
}

#[tokio::test]
async fn state_is_not_synced_until_the_directory_exists() {
    let root = tempfile::tempdir().unwrap();
    let discovery = start(root.path(), false);
    let missing = until(&discovery, "the missing directory is reported", is_unreadable).await;
    assert!(!missing.synced);
    assert!(missing.health().1.contains("manifests"), "{:?}", missing.health());

    fs::create_dir(root.path().join("beside")).unwrap();
    fs::write(root.path().join("beside/web.yaml"), WEB).unwrap();
    fs::rename(root.path().join("beside"), root.path().join("manifests")).unwrap();
    let found = until(&discovery, "the directory is read", |s| s.synced).await;
    assert!(has_web(&found) && !is_unreadable(&found));
    discovery.stop().await;
}

#[tokio::test]
async fn files_are_added_changed_broken_repaired_and_deleted() {
    let root = tempfile::tempdir().unwrap();
    let manifests = root.path().join("manifests");
    fs::create_dir(&manifests).unwrap();
    let discovery = start(root.path(), false);
    until(&discovery, "the empty directory is read", |s| s.synced).await;

    put(&manifests.join("web.yaml"), WEB);
    until(&discovery, "the Service appears", has_web).await;
    put(&manifests.join("web.yaml"), "apiVersion: v1\nkind: [");
    let broken = until(&discovery, "the error is reported", |s| !s.problems.is_empty()).await;
    assert!(has_web(&broken), "the last good content stays");
    put(&manifests.join("web.yaml"), &WEB.replace("port: 80,", "port: 81,"));
    let corrected = until(&discovery, "the error is resolved", |s| s.problems.is_empty()).await;
    let entry = corrected.service(&NamespacedName::new("default", "web")).unwrap();
    assert_eq!(entry.service.ports[0].port, 81);
    fs::remove_file(manifests.join("web.yaml")).unwrap();
    until(&discovery, "the Service is deleted", |s| !has_web(s)).await;
    discovery.stop().await;
}

/// How long a file may be missing before it counts as deleted.
const SETTLING: Duration = Duration::from_millis(100);

/// Like vim: renames the old file away, writes a new one in its place, deletes the old one. Slowly, as over a
/// network. Returns how long no complete file existed.
fn edit(path: &Path, text: &str) -> Duration {
    const PAUSE: Duration = Duration::from_millis(5);
    let aside = path.with_extension("yaml~");
    let started = Instant::now();
    fs::rename(path, &aside).unwrap();
    std::thread::sleep(PAUSE);
    let mut file = fs::File::create(path).unwrap();
    std::thread::sleep(PAUSE);
    file.write_all(text.as_bytes()).unwrap();
    drop(file);
    let took = started.elapsed();
    fs::remove_file(aside).unwrap();
    took
}

#[tokio::test]
async fn file_replaced_by_an_editor_is_never_taken_for_deleted() {
    let root = tempfile::tempdir().unwrap();
    let manifests = root.path().join("manifests");
    fs::create_dir(&manifests).unwrap();
    let file = manifests.join("web.yaml");
    put(&file, WEB);
    let discovery = start(root.path(), false);
    until(&discovery, "the Service appears", has_web).await;

    let port = |s: &Snapshot| {
        s.service(&NamespacedName::new("default", "web")).map(|entry| entry.service.ports[0].port)
    };
    for number in 81..111 {
        let (file, text) = (file.clone(), WEB.replace("port: 80,", &format!("port: {number},")));
        let editing = tokio::task::spawn_blocking(move || edit(&file, &text));
        let seen = until(&discovery, "the edit, or worse", |s| port(s) != Some(number - 1)).await;
        // On a busy machine the editor may take longer than a reader waits.
        if editing.await.unwrap() < SETTLING {
            assert_eq!(port(&seen), Some(number));
        }
        until(&discovery, "the edit", |s| port(s) == Some(number)).await;
    }
    fs::remove_file(file).unwrap();
    until(&discovery, "the Service is deleted", |s| !has_web(s)).await;
    discovery.stop().await;
}

#[tokio::test]
async fn directory_that_vanishes_keeps_its_state_and_is_watched_again_when_it_returns() {
    let root = tempfile::tempdir().unwrap();
    let manifests = root.path().join("manifests");
    fs::create_dir(&manifests).unwrap();
    put(&manifests.join("web.yaml"), WEB);
    let discovery = start(root.path(), false);
    until(&discovery, "the Service appears", has_web).await;

    fs::remove_dir_all(&manifests).unwrap();
    let lost = until(&discovery, "the loss is reported", is_unreadable).await;
    assert!(lost.synced, "the last state is still served");

    fs::create_dir(&manifests).unwrap();
    until(&discovery, "the source is back", |s| !is_unreadable(s)).await;
    put(&manifests.join("web.yaml"), &WEB.replace("port: 80,", "port: 82,"));
    let is_new = |s: &Snapshot| {
        s.service(&NamespacedName::new("default", "web")).is_some_and(|e| e.service.ports[0].port == 82)
    };
    until(&discovery, "the returned directory is watched", is_new).await;
    discovery.stop().await;
}

#[tokio::test]
async fn attachment_gives_a_pod_its_address_and_its_removal_takes_it_away() {
    let root = tempfile::tempdir().unwrap();
    let manifests = root.path().join("manifests");
    fs::create_dir(&manifests).unwrap();
    fs::write(manifests.join("web.yaml"), format!("{WEB}---\n{POD}")).unwrap();
    let discovery = start(root.path(), true);
    let store = attachment::Store::new(root.path().join("attachments"));
    let attachment = attachment::Attachment {
        network: "pods".into(),
        container_id: "c0".into(),
        ifname: "eth0".into(),
        netns: "/run/netns/c0".into(),
        ips: vec!["10.22.0.2".parse().unwrap()],
        mac: String::new(),
        host_interface: String::new(),
        bridge: None,
        pod: Some(attachment::Pod { namespace: "default".into(), name: "web-0".into(), uid: None }),
        labels: [].into(),
        port_mappings: vec![],
        reserved_ports: None,
    };
    store.write(&attachment).unwrap();
    until(&discovery, "the pod is an endpoint", |s| endpoints(s) == ["10.22.0.2:8080"]).await;
    store.remove(&attachment.key()).unwrap();
    until(&discovery, "the pod is none any more", |s| s.synced && endpoints(s).is_empty()).await;
    discovery.stop().await;
}

/// Root can read everything, so the threads that read files run as another user.
#[test]
fn unreadable_file_or_directory_is_read_within_seconds_after_permission_is_granted() {
    let root = tempfile::tempdir().unwrap();
    let (manifests, web) = (root.path().join("manifests"), root.path().join("manifests/web.yaml"));
    let allow = |path: &Path, mode: u32| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    allow(root.path(), 0o755);
    fs::create_dir(&manifests).unwrap();
    fs::write(&web, WEB).unwrap();
    allow(&web, 0o600);
    fs::write(manifests.join("pod.yaml"), POD).unwrap();
    let drop_privileges = || {
        nix::unistd::setfsuid(nix::unistd::Uid::from_raw(65_534));
    };
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_all().on_thread_start(drop_privileges).build().unwrap();
    runtime.block_on(async {
        let discovery = start(root.path(), false);
        let unread = |s: &Snapshot| s.synced && s.health().1.contains("web.yaml: cannot be read");
        until(&discovery, "the file that may not be read is reported", unread).await;
        allow(&web, 0o644);
        let read = until(&discovery, "it may be read now", has_web).await;
        assert!(read.problems.is_empty(), "{:?}", read.problems);
        // A directory whose files cannot be listed: their last state stays.
        allow(&manifests, 0o700);
        fs::create_dir(manifests.join("folder")).unwrap();
        let stale =
            until(&discovery, "the directory that may not be listed is reported", is_unreadable).await;
        assert!(has_web(&stale));
        let shop = "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop}\n";
        fs::write(manifests.join("shop.yaml"), shop).unwrap();
        allow(&manifests, 0o755);
        let is_whole = |s: &Snapshot| s.namespaces.contains("shop") && s.problems.is_empty();
        until(&discovery, "it may be listed now", is_whole).await;
    });
}
