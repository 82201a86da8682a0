//! Installs the CNI plugin for a container runtime, and removes it again.
//!
//! A receipt ([`receipt`]) records each file before it is written, so that `uninstall` knows the files even
//! after a crash. Files of other origin, and files that were changed later, are never touched.

mod receipt;
mod runtime;

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::io::Write as _;
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail, ensure};
use serde::Serialize;
use serde_json::{Value, json};

use crate::conflist::{self, PLUGIN};
use crate::{attached_pods, command};
use receipt::{Entry, Receipt};
use runtime::{Layout, Runtime};

const CONFLIST: &str = "10-portolan.conflist";

/// Flags of `portolan install`.
#[derive(Debug, clap::Args)]
pub(crate) struct InstallArgs {
    /// The container runtime. Without it, the installed plugin is updated.
    #[arg(long, value_name = "RUNTIME")]
    runtime: Option<Runtime>,

    /// The plugin to install [default: portolan-cni beside this program].
    #[arg(long, value_name = "FILE")]
    plugin: Option<PathBuf>,

    /// The runtime's directory of plugins [default: from its configuration].
    #[arg(long, value_name = "DIR", requires = "runtime")]
    bin_dir: Option<PathBuf>,

    /// The runtime's directory of network configurations [default: from its configuration].
    #[arg(long, value_name = "DIR", requires = "runtime")]
    conf_dir: Option<PathBuf>,

    /// Install only the plugin: another program writes the configuration, such as `portolan-proxy
    /// --cni-conflist`.
    #[arg(long, requires = "runtime")]
    plugin_only: bool,

    /// Ranges of the pods' addresses, one for each family.
    #[arg(
        long,
        value_name = "CIDR",
        value_delimiter = ',',
        default_value = "10.22.0.0/16",
        requires = "runtime"
    )]
    pod_cidr: Vec<String>,

    /// DNS server of the pods.
    #[arg(long, value_name = "IP", default_value = "10.96.0.10", requires = "runtime")]
    dns: IpAddr,
}

/// Flags of `portolan uninstall`.
#[derive(Debug, clap::Args)]
pub(crate) struct UninstallArgs {
    /// Uninstall while pods are attached: their runtime can then no longer detach them.
    #[arg(long)]
    force: bool,
}

/// What was done with each file.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    actions: Vec<Action>,
    /// Next steps for the operator.
    next: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Action {
    what: &'static str,
    path: PathBuf,
}

/// A file to install.
struct File {
    path: PathBuf,
    content: Vec<u8>,
    mode: u32,
    kind: Kind,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Always updated.
    Program,
    /// Kept if the operator has changed it.
    Configuration,
}

/// Installs or updates.
///
/// # Errors
/// When a file of other origin is in the way, the plugin is not found, or a file cannot be written. The
/// receipt has the files written until then.
pub(crate) fn install(args: &InstallArgs) -> anyhow::Result<Report> {
    let mut receipt = Receipt::load()?;
    let plugin = fs::read(plugin(args)?).context("read the plugin")?;
    let mut done = Report { actions: Vec::new(), next: Vec::new() };
    let files = match args.runtime {
        Some(runtime) => files_to_install(args, runtime, plugin, &receipt, &mut done)?,
        None => installed_programs(&receipt, &plugin)?,
    };
    for file in &files {
        file.check(&receipt)?;
    }
    for file in files {
        done.actions.push(file.write(&mut receipt)?);
    }
    Ok(done)
}

fn plugin(args: &InstallArgs) -> anyhow::Result<PathBuf> {
    let path = args.plugin.clone().unwrap_or_else(|| sibling_binary(PLUGIN));
    ensure!(
        path.is_file(),
        "{PLUGIN} is not at {}: `make build` builds it; --plugin FILE names it",
        path.display()
    );
    Ok(path)
}

/// Returns the path of a program in the directory of this one; otherwise its name, for `PATH`.
fn sibling_binary(name: &str) -> PathBuf {
    let own = std::env::current_exe().ok();
    let neighbour = own.and_then(|own| Some(own.parent()?.join(name))).filter(|path| path.is_file());
    neighbour.unwrap_or_else(|| name.into())
}

/// Returns the programs that an earlier call installed. Configurations are not updated.
fn installed_programs(receipt: &Receipt, plugin: &[u8]) -> anyhow::Result<Vec<File>> {
    let programs: Vec<File> = receipt
        .entries
        .iter()
        .filter(|(_, entry)| entry.text.is_none())
        .map(|(path, _)| File {
            path: path.clone(),
            content: plugin.to_vec(),
            mode: 0o755,
            kind: Kind::Program,
        })
        .collect();
    ensure!(
        !programs.is_empty(),
        "nothing is installed yet: portolan install --runtime podman|containerd|crio"
    );
    Ok(programs)
}

fn files_to_install(
    args: &InstallArgs,
    runtime: Runtime,
    plugin: Vec<u8>,
    receipt: &Receipt,
    done: &mut Report,
) -> anyhow::Result<Vec<File>> {
    let Layout { bin_dir, conf_dir, settings } = runtime.layout()?;
    let bin_dir = args.bin_dir.clone().unwrap_or(bin_dir);
    let conf_dir = args.conf_dir.clone().unwrap_or(conf_dir);
    let mut files =
        vec![File { path: bin_dir.join(PLUGIN), content: plugin, mode: 0o755, kind: Kind::Program }];
    if args.plugin_only {
        return Ok(files);
    }
    let text = |path: PathBuf, text: String| File {
        path,
        content: text.into_bytes(),
        mode: 0o644,
        kind: Kind::Configuration,
    };
    files.extend(settings.map(|(path, content)| text(path, content)));
    let own = conf_dir.join(CONFLIST);
    let lists = conflist::list(&conf_dir);
    // An existing configuration for the plugin is sufficient.
    if let Some(list) = lists.iter().find(|list| list.is_ours() && !receipt.entries.contains_key(&list.path))
    {
        done.actions.push(Action { what: "kept, it already names the plugin", path: list.path.clone() });
        return Ok(files);
    }
    if let Some(list) = lists
        .iter()
        .find(|list| list.path != own && list.content.as_ref().is_ok_and(|c| c["name"] == "portolan"))
    {
        bail!("{} has a network \"portolan\" of another plugin: remove it", list.path.display());
    }
    if let Some(first) = lists.first().filter(|list| list.path < own && runtime != Runtime::Podman) {
        done.next.push(format!(
            "{} comes first by name, and {runtime} uses the first: remove it",
            first.path.display()
        ));
    }
    done.next.extend(runtime.next());
    files.push(text(own, conflist_for(&args.pod_cidr, args.dns)));
    Ok(files)
}

fn conflist_for(pod_cidrs: &[String], dns: IpAddr) -> String {
    let ranges: Vec<Value> = pod_cidrs.iter().map(|subnet| json!([{ "subnet": subnet }])).collect();
    let content = json!({
        "cniVersion": "1.0.0",
        "name": "portolan",
        "plugins": [{
            "type": PLUGIN,
            "capabilities": { "bandwidth": true, "portMappings": true },
            "ipam": { "ranges": ranges },
            "dns": {
                "nameservers": [dns],
                "search": ["default.svc.cluster.local", "svc.cluster.local", "cluster.local"],
                "options": ["ndots:5"],
            },
        }],
    });
    format!("{content:#}\n")
}

impl File {
    /// Checks that no file of other origin would be overwritten. Called for all files before the first write.
    fn check(&self, receipt: &Receipt) -> anyhow::Result<()> {
        let Ok(present) = fs::read(&self.path) else { return Ok(()) };
        if receipt.entries.contains_key(&self.path) || present == self.content {
            return Ok(());
        }
        bail!("{} already exists and is not from `portolan install`: remove it", self.path.display())
    }

    /// Writes the file atomically, unless the present one is kept.
    fn write(&self, receipt: &mut Receipt) -> anyhow::Result<Action> {
        let action = |what| Ok(Action { what, path: self.path.clone() });
        if let Ok(present) = fs::read(&self.path) {
            if present == self.content {
                return action("up to date");
            }
            let written = receipt.entries.get(&self.path).and_then(|entry| entry.text.as_deref());
            if self.kind == Kind::Configuration && written != Some(&String::from_utf8_lossy(&present)) {
                return action("kept, it was changed after the installation");
            }
        }
        let text =
            (self.kind == Kind::Configuration).then(|| String::from_utf8_lossy(&self.content).into_owned());
        let directory = self.path.parent().context("a file is in a directory")?;
        receipt.create_directories(directory)?;
        receipt.entries.insert(self.path.clone(), Entry { text });
        receipt.save()?;
        write_atomically(&self.path, &self.content, self.mode)
            .with_context(|| format!("write {}", self.path.display()))?;
        action("written")
    }
}

/// Writes a file by a rename: a runtime may read or execute it at any moment.
fn write_atomically(path: &Path, content: &[u8], mode: u32) -> std::io::Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    // libcni ignores files with this extension.
    name.push(".new");
    let new = path.with_file_name(name);
    // A killed run may have left a file with another mode. Usually there is none.
    let _ = fs::remove_file(&new);
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&new)?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(&new, path)
}

/// Runs `portolan-cni cleanup`, which removes the plugin's state on the node. Returns its error.
fn clean_up(receipt: &Receipt) -> Option<String> {
    let mut programs = receipt.entries.keys().filter(|path| path.ends_with("portolan-cni") && path.exists());
    let cleaned = command::output(&programs.next()?.to_string_lossy(), &["cleanup"]);
    cleaned.err().map(|e| e.to_string())
}

/// Removes the files of the receipt.
///
/// # Errors
/// While pods are attached; and when a file cannot be removed, after all files were tried.
pub(crate) fn uninstall(args: &UninstallArgs) -> anyhow::Result<Report> {
    let mut receipt = Receipt::load()?;
    let pods = attached_pods::all(attachment::DEFAULT_DIRECTORY.as_ref());
    if !pods.is_empty() && !args.force {
        let names: BTreeSet<String> = pods.iter().map(attached_pods::name).collect();
        let names = names.into_iter().collect::<Vec<_>>().join(", ");
        bail!(
            "pods are attached, and only the plugin can detach them: {names}; stop them first, or use --force"
        );
    }
    let mut done = Report { actions: Vec::new(), next: Vec::new() };
    let mut errors = Vec::new();
    if pods.is_empty() {
        errors.extend(clean_up(&receipt));
    }
    for (path, entry) in &receipt.entries {
        let changed =
            entry.text.as_ref().is_some_and(|text| fs::read_to_string(path).is_ok_and(|now| now != *text));
        if changed {
            done.actions.push(Action {
                what: "kept, it was changed after the \
                installation",
                path: path.clone(),
            });
            continue;
        }
        match fs::remove_file(path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                errors.push(format!("remove {}: {e}", path.display()))
            }
            _ => done.actions.push(Action { what: "removed", path: path.clone() }),
        }
    }
    if !errors.is_empty() {
        // The receipt is kept, so that the next call can retry.
        bail!("{}", errors.join("; "));
    }
    receipt.remove()?;
    Ok(done)
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for action in &self.actions {
            writeln!(f, "{}: {}", action.path.display(), action.what)?;
        }
        if self.actions.is_empty() {
            writeln!(f, "nothing to do")?;
        }
        self.next.iter().try_for_each(|next| writeln!(f, "next: {next}"))
    }
}
