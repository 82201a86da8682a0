use std::sync::atomic::{AtomicBool, Ordering};

use super::*;

fn names(changes: &Changes) -> (Vec<String>, Vec<String>) {
    let name = |path: &PathBuf| path.file_name().unwrap().to_str().unwrap().to_owned();
    (changes.changed.iter().map(|(path, _)| name(path)).collect(), changes.removed.iter().map(name).collect())
}

fn strings(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

#[test]
fn only_changed_files_are_read_again() {
    let root = tempfile::tempdir().unwrap();
    let path = |name: &str| root.path().join(name);
    let mut directory = Directory::new(root.path().to_owned(), false, &["yaml"], Duration::ZERO);
    for name in ["b.yaml", "a.yaml", ".hidden.yaml", "notes.txt", "a.yaml~"] {
        fs::write(path(name), "x").unwrap();
    }
    assert_eq!(names(&directory.scan(&ScanScope::All).unwrap()), (strings(&["a.yaml", "b.yaml"]), vec![]));
    assert_eq!(names(&directory.scan(&ScanScope::All).unwrap()), (vec![], vec![]));
    fs::write(path("new"), "y").unwrap();
    fs::rename(path("new"), path("b.yaml")).unwrap();
    fs::remove_file(path("a.yaml")).unwrap();
    assert_eq!(
        names(&directory.scan(&ScanScope::All).unwrap()),
        (strings(&["b.yaml"]), strings(&["a.yaml"]))
    );
    fs::remove_dir_all(root.path()).unwrap();
    assert_eq!(directory.scan(&ScanScope::All).unwrap_err().kind(), ErrorKind::NotFound);
}

#[test]
fn scan_of_one_file_finds_its_change_and_ignores_others() {
    let root = tempfile::tempdir().unwrap();
    let path = |name: &str| root.path().join(name);
    let mut directory = Directory::new(root.path().to_owned(), false, &["yaml"], Duration::ZERO);
    fs::write(path("a.yaml"), "x").unwrap();
    directory.scan(&ScanScope::All).unwrap();
    fs::write(path("b.yaml"), "x").unwrap();
    fs::write(path("a.yaml"), "longer").unwrap();
    let at = |name: &str| ScanScope::Files([path(name)].into());
    assert_eq!(names(&directory.scan(&at("a.yaml")).unwrap()), (strings(&["a.yaml"]), vec![]));
    fs::remove_file(path("a.yaml")).unwrap();
    assert_eq!(names(&directory.scan(&at("a.yaml")).unwrap()), (vec![], strings(&["a.yaml"])));
    assert_eq!(names(&directory.scan(&at("a.yaml")).unwrap()), (vec![], vec![]));
    assert_eq!(names(&directory.scan(&ScanScope::All).unwrap()), (strings(&["b.yaml"]), vec![]));
}

#[test]
fn swapped_symlink_is_a_change_as_in_a_mounted_config_map() {
    let root = tempfile::tempdir().unwrap();
    for (version, text) in [("v1", "one"), ("v2", "two")] {
        fs::create_dir(root.path().join(version)).unwrap();
        fs::write(root.path().join(version).join("a.yaml"), text).unwrap();
    }
    let link =
        |version: &str, name: &str| std::os::unix::fs::symlink(version, root.path().join(name)).unwrap();
    link("v1", "..data");
    link("..data/a.yaml", "a.yaml");
    let mut directory = Directory::new(root.path().to_owned(), false, &["yaml"], Duration::ZERO);
    directory.scan(&ScanScope::All).unwrap();
    link("v2", "..tmp");
    fs::rename(root.path().join("..tmp"), root.path().join("..data")).unwrap();
    let changes = directory.scan(&ScanScope::All).unwrap();
    assert_eq!(changes.changed[0].1.as_ref().unwrap(), b"two");
}

#[test]
fn file_that_is_missing_or_empty_for_a_moment_is_not_deleted() {
    let root = tempfile::tempdir().unwrap();
    let (file, aside) = (root.path().join("a.yaml"), root.path().join("a.yaml~"));
    let settling = Duration::from_secs(1);
    let mut directory = Directory::new(root.path().to_owned(), false, &["yaml"], settling);
    fs::write(&file, "x").unwrap();
    directory.scan(&ScanScope::All).unwrap();
    for leave in [|file: &Path| fs::remove_file(file), |file: &Path| fs::write(file, "")] {
        leave(&file).unwrap();
        let (begun, back) = (std::time::Instant::now(), file.clone());
        let writing = thread::spawn(move || {
            thread::sleep(settling / 4);
            fs::write(back, "new").unwrap();
        });
        let changes = directory.scan(&ScanScope::Files([file.clone()].into())).unwrap();
        assert_eq!(names(&changes), (strings(&["a.yaml"]), vec![]));
        assert_eq!(changes.changed[0].1.as_ref().unwrap(), b"new");
        assert!(begun.elapsed() >= settling);
        writing.join().unwrap();
    }
    fs::rename(&file, &aside).unwrap();
    assert_eq!(names(&directory.scan(&ScanScope::All).unwrap()), (vec![], strings(&["a.yaml"])));
}

#[test]
fn file_that_cannot_be_examined_is_not_deleted() {
    let root = tempfile::tempdir().unwrap();
    let file = root.path().join("a.yaml");
    let mut directory = Directory::new(root.path().to_owned(), false, &["yaml"], Duration::ZERO);
    fs::write(&file, "x").unwrap();
    directory.scan(&ScanScope::All).unwrap();
    fs::remove_file(&file).unwrap();
    std::os::unix::fs::symlink("a.yaml", &file).unwrap();
    let changes = directory.scan(&ScanScope::All).unwrap();
    assert_eq!(names(&changes), (strings(&["a.yaml"]), vec![]));
    assert!(changes.changed[0].1.is_err(), "{changes:?}");
    assert_eq!(names(&directory.scan(&ScanScope::All).unwrap()), (vec![], vec![]));
    fs::remove_file(&file).unwrap();
    assert_eq!(names(&directory.scan(&ScanScope::All).unwrap()), (vec![], strings(&["a.yaml"])));
}

#[test]
fn folder_deleted_during_a_scan_affects_no_other_file() {
    let root = tempfile::tempdir().unwrap();
    let (stays, goes) = (root.path().join("stays"), root.path().join("goes"));
    fs::create_dir(&stays).unwrap();
    fs::write(stays.join("a.json"), "{}").unwrap();
    let mut directory = Directory::new(root.path().to_owned(), true, &["json"], Duration::ZERO);
    directory.scan(&ScanScope::All).unwrap();
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                fs::create_dir(&goes).unwrap();
                fs::remove_dir(&goes).unwrap();
            }
        });
        let scans = (0..5000).map(|_| directory.scan(&ScanScope::All));
        let found: Vec<_> = scans.map(|changes| changes.map(|changes| names(&changes))).collect();
        done.store(true, Ordering::Relaxed);
        for changes in found {
            assert_eq!(changes.unwrap(), (vec![], vec![]));
        }
    });
}
