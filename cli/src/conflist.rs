//! CNI network configurations in a runtime's directory, in the order in which the runtime reads them.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

/// The plugin's name: `type` of a configuration, and name of the binary.
pub(crate) const PLUGIN: &str = "portolan-cni";

/// File name extensions of configurations, as in libcni.
const EXTENSIONS: [&str; 3] = ["conf", "conflist", "json"];

/// A configuration file.
#[derive(Debug)]
pub(crate) struct Conflist {
    pub(crate) path: PathBuf,
    pub(crate) content: Result<Value, String>,
}

/// Returns the configuration files of a directory, sorted by name.
pub(crate) fn list(directory: &Path) -> Vec<Conflist> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let mut paths: Vec<PathBuf> = entries
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|e| EXTENSIONS.iter().any(|known| e == *known)))
        .collect();
    paths.sort();
    paths.into_iter().map(|path| Conflist { content: read(&path), path }).collect()
}

fn read(path: &Path) -> Result<Value, String> {
    let text = fs::read_to_string(path).map_err(|error| error.to_string())?;
    serde_json::from_str(&text).map_err(|error| format!("not JSON: {error}"))
}

impl Conflist {
    /// Returns whether the file configures portolan-cni.
    pub(crate) fn is_ours(&self) -> bool {
        self.plugin().is_some()
    }

    /// Returns `mtu` of portolan-cni, in bytes.
    pub(crate) fn mtu(&self) -> Option<u64> {
        self.plugin()?["mtu"].as_u64()
    }

    /// Returns `ipam.ranges[][].subnet` of portolan-cni.
    pub(crate) fn subnets(&self) -> Vec<&str> {
        let sets = self.plugin().and_then(|plugin| plugin["ipam"]["ranges"].as_array()).into_iter().flatten();
        sets.filter_map(Value::as_array).flatten().filter_map(|range| range["subnet"].as_str()).collect()
    }

    fn plugin(&self) -> Option<&Value> {
        let content = self.content.as_ref().ok()?;
        let listed = content["plugins"].as_array().into_iter().flatten();
        listed.chain([content]).find(|plugin| plugin["type"] == PLUGIN)
    }
}
