//! What the plugin keeps on the node while there are pods, and may keep after the last one.

use std::fs;
use std::io;
use std::path::Path;

use nftables::{Batch, Netfilter};

use crate::tool;

/// `stateDir` of the plugin. The proxy has a file of its own in it.
const DIRECTORY: &str = "/run/portolan";

/// The plugin's part of it: directories, and the file by which its commands wait for each other.
const OURS: [&str; 5] = ["attachments", "delegated", "ipam", "networks", "ports"];
const LOCK: &str = "lock";

/// The plugin's table.
const TABLE: &str = "portolan";

/// The metric by which the plugin's `unreachable <pool>` route loses against any other.
const LAST_RESORT: u32 = u32::MAX - 1;

/// Removes it; says what could not be removed. What is not there is fine.
pub(super) fn remove() -> Vec<String> {
    let directory = Path::new(DIRECTORY);
    let mut errors: Vec<String> = OURS
        .iter()
        .filter_map(|part| match fs::remove_dir_all(directory.join(part)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Some(format!("remove {DIRECTORY}/{part}: {e}")),
            _ => None,
        })
        .collect();
    drop(fs::remove_file(directory.join(LOCK)));
    // A proxy that runs has its pid file here.
    drop(fs::remove_dir(directory));
    if let Ok(netfilter) = Netfilter::open()
        && netfilter.has_table(TABLE).unwrap_or(false)
    {
        let mut batch = Batch::new(TABLE);
        batch.delete_table();
        let deleted = batch.commit(&netfilter);
        errors.extend(deleted.err().map(|e| format!("delete nft table inet {TABLE}: {e}")));
    }
    for family in ["-4", "-6"] {
        let routes =
            tool::json("ip", &[family, "-j", "route", "show", "type", "unreachable"]).unwrap_or_default();
        let ours = routes.as_array().into_iter().flatten().filter(|route| route["metric"] == LAST_RESORT);
        for destination in ours.filter_map(|route| route["dst"].as_str()) {
            drop(tool::output("ip", &[family, "route", "del", "unreachable", destination]));
        }
    }
    errors
}
