//! What the container runtime finds: the plugin, and whether Portolan's configuration is the first.

use std::os::unix::fs::PermissionsExt as _;

use super::{Args, Finding};
use crate::conflist;
use crate::process;

const CHECK: &str = "runtime";

pub(super) fn check(args: &Args) -> Vec<Finding> {
    vec![plugin(args), order(args), daemons()]
}

fn plugin(args: &Args) -> Finding {
    let path = args.bin_dir.join(conflist::PLUGIN);
    let install = "portolan install --runtime podman|containerd|crio";
    match std::fs::metadata(&path) {
        Ok(file) if file.is_file() && file.permissions().mode() & 0o111 != 0 => {
            Finding::ok(CHECK, format!("{} is installed", path.display()))
        }
        Ok(_) => Finding::error(CHECK, format!("{} cannot be executed", path.display()), install),
        Err(error) => {
            let elsewhere = "or name the runtime's directory: --bin-dir DIR";
            Finding::warning(CHECK, format!("{}: {error}", path.display()), format!("{install}, {elsewhere}"))
        }
    }
}

/// containerd and CRI-O use the first file by name; podman selects by the network's name.
fn order(args: &Args) -> Finding {
    let lists = conflist::list(&args.conf_dir);
    let broken = lists.iter().find_map(|list| Some((&list.path, list.content.as_ref().err()?)));
    if let Some((path, error)) = broken {
        return Finding::error(
            CHECK,
            format!("{}: {error}", path.display()),
            "fix or remove it: runtimes may fail on it",
        );
    }
    let Some(own) = lists.iter().find(|list| list.is_ours()) else {
        let seen = format!("no configuration in {} names {}", args.conf_dir.display(), conflist::PLUGIN);
        return Finding::warning(CHECK, seen, "portolan install --runtime podman|containerd|crio");
    };
    match lists.first() {
        Some(first) if first.path != own.path => Finding::warning(
            CHECK,
            format!(
                "{} comes before {}: containerd and CRI-O use the first by name",
                first.path.display(),
                own.path.display()
            ),
            format!(
                "mv {} {}.disabled, if its network is not needed",
                first.path.display(),
                first.path.display()
            ),
        ),
        _ => Finding::ok(CHECK, format!("{} is the first configuration", own.path.display())),
    }
}

fn daemons() -> Finding {
    let stopped: Vec<&str> = ["portolan-proxy", "portolan-dns"]
        .into_iter()
        .filter(|name| process::named(name).is_empty())
        .collect();
    if stopped.is_empty() {
        return Finding::ok(CHECK, "portolan-proxy and portolan-dns run");
    }
    let units = stopped.join(" ");
    Finding::warning(
        CHECK,
        format!("{} not running", stopped.join(" and ")),
        format!("systemctl enable --now {units}"),
    )
}
