//! Builds the package as `make deb` does, from the programs under test.

use std::path::Path;
use std::process::Command;
use std::sync::LazyLock;

use tempfile::TempDir;
use testbed::{Binaries, go_tool};

use crate::machine::Machine;

/// Two successive versions.
pub(crate) const VERSIONS: [&str; 2] = ["0.1.0-1", "0.1.0-2"];

const WORKSPACE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

/// Both packages, built once for all tests.
static PACKAGES: LazyLock<TempDir> = LazyLock::new(|| {
    let directory = TempDir::new().unwrap();
    let programs = format!("RELEASE={}", Binaries::find().unwrap().path("").display());
    let mut generate = Command::new("make");
    run(generate.args(["--no-print-directory", "package-files", &programs]).current_dir(WORKSPACE));
    for version in VERSIONS {
        let mut build = Command::new(go_tool("bin/cargo-deb").unwrap());
        build.args([
            "deb",
            "--no-build",
            "--no-strip",
            "--fast",
            "--profile",
            "dev",
            "--package",
            "portolan-cli",
        ]);
        build.args(["--deb-version", version, "--output"]).arg(file(directory.path(), version));
        run(build.current_dir(WORKSPACE));
    }
    directory
});

fn file(directory: &Path, version: &str) -> std::path::PathBuf {
    directory.join(version).with_extension("deb")
}

fn run(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Copies the packages to the machine. Returns their paths.
pub(crate) fn provide(machine: &Machine) -> [String; 2] {
    machine.shell("mkdir -p /run/packages").unwrap();
    VERSIONS.map(|version| {
        let target = format!("/run/packages/{version}.deb");
        let bytes = std::fs::read(file(PACKAGES.path(), version)).unwrap();
        machine.node.run(|| std::fs::write(&target, bytes)).unwrap();
        target
    })
}
