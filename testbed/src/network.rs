//! Acts as a container runtime: creates namespaces for pods and calls CNI plugins.

use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use netns::NetNs;
use serde_json::{Value, json};

use crate::Node;

/// Ranges of the pods of all nodes.
pub(crate) const CLUSTER_CIDRS: [&str; 2] = ["10.22.0.0/16", "fd00:10:22::/48"];

/// A CNI plugin binary and the node to call it on.
#[derive(Clone, Debug)]
pub struct Plugin {
    /// The binary.
    pub binary: PathBuf,
    /// The node to call it on.
    pub node: Node,
}

/// A CNI network.
#[derive(Debug)]
pub struct Network {
    plugin: Plugin,
    config: Value,
}

/// An attached pod.
#[derive(Debug)]
pub struct Pod {
    /// Its name, in namespace `default`.
    pub name: String,
    /// Its address.
    pub ip: String,
    /// The result of ADD.
    pub result: Value,
    /// Its network namespace.
    pub netns: NetNs,
    path: PathBuf,
}

impl Plugin {
    /// Calls the plugin with these environment variables and this input. Returns its result, or its error
    /// object.
    ///
    /// # Errors
    /// When it cannot be started, or its output is neither empty nor one JSON value.
    pub fn call(&self, variables: &[(&str, &str)], input: &str) -> Result<std::result::Result<Value, Value>> {
        let output = self.node.run(|| -> Result<_> {
            let mut child = Command::new(&self.binary)
                .env_clear()
                .envs(variables.iter().copied())
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .with_context(|| format!("start {}", self.binary.display()))?;
            // A plugin may exit without reading its input.
            let _ = child.stdin.take().map(|mut stdin| stdin.write_all(input.as_bytes()));
            Ok(child.wait_with_output()?)
        })?;
        let text = String::from_utf8(output.stdout).context("the plugin's output is not text")?;
        let json = if text.is_empty() { Value::Null } else { serde_json::from_str(&text).context(text)? };
        Ok(if output.status.success() { Ok(json) } else { Err(json) })
    }

    /// Runs a CNI command for a container.
    ///
    /// # Errors
    /// As [`Plugin::call`].
    pub fn command(
        &self,
        command: &str,
        container: &str,
        netns: &Path,
        config: &Value,
    ) -> Result<std::result::Result<Value, Value>> {
        let netns = netns.to_string_lossy();
        let args = format!("IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME={container}");
        let variables = [
            ("CNI_COMMAND", command),
            ("CNI_CONTAINERID", container),
            ("CNI_NETNS", &*netns),
            ("CNI_IFNAME", "eth0"),
            ("CNI_PATH", "/usr/lib/cni"),
            ("CNI_ARGS", &args),
        ];
        self.call(&variables, &config.to_string())
    }
}

impl Network {
    /// A routed network `pods` on 10.22.0.0/16 whose pods use `nameserver`.
    pub fn new(plugin: Plugin, nameserver: &str) -> Self {
        Self::with_ranges(plugin, nameserver, &["10.22.0.0/16"])
    }

    /// As [`Network::new`], with these ranges. A pod gets an address of each.
    pub fn with_ranges(plugin: Plugin, nameserver: &str, ranges: &[&str]) -> Self {
        let ranges: Vec<Value> = ranges.iter().map(|subnet| json!([{ "subnet": subnet }])).collect();
        let config = json!({
            "cniVersion": "1.1.0",
            "name": "pods",
            "type": "portolan-cni",
            "ipam": { "ranges": ranges },
            // Traffic between pods keeps its source address, also across nodes.
            "nonMasqueradeCIDRs": CLUSTER_CIDRS,
            "dns": {
                "nameservers": [nameserver],
                "search": ["default.svc.cluster.local", "svc.cluster.local", "cluster.local"],
                "options": ["ndots:5"],
            },
        });
        Self { plugin, config }
    }

    /// A network with a configuration for any plugin.
    pub fn with_config(plugin: Plugin, config: Value) -> Self {
        Self { plugin, config }
    }

    /// Returns the configuration for the plugin.
    pub fn config(&self) -> &Value {
        &self.config
    }

    /// Creates a pod's namespace, attaches it and writes its resolv.conf.
    ///
    /// # Errors
    /// When the plugin fails.
    pub fn add(&self, name: &str) -> Result<Pod> {
        let path = self.plugin.node.add_netns(name)?;
        let netns = self.plugin.node.netns(&path)?;
        let result = match self.plugin.command("ADD", name, &path, &self.config)? {
            Ok(result) => result,
            Err(error) => bail!("ADD of {name}: {error}"),
        };
        let address = result["ips"][0]["address"].as_str().unwrap_or_default();
        let ip = address.split('/').next().unwrap_or_default().to_owned();
        ensure!(!ip.is_empty(), "ADD of {name} gave no address: {result}");
        netns.run(|| crate::node::shell("ip link set lo up"))??;
        self.write_resolv_conf(name, &result["dns"])?;
        Ok(Pod { name: name.to_owned(), ip, result, netns, path })
    }

    /// Detaches a pod and removes its namespace, as when a container is killed.
    ///
    /// # Errors
    /// When the plugin fails.
    pub fn remove(&self, pod: &Pod) -> Result<()> {
        let deleted = self.plugin.command("DEL", &pod.name, &pod.path, &self.config)?;
        if let Err(error) = deleted {
            bail!("DEL of {}: {error}", pod.name);
        }
        self.plugin.node.run(|| NetNs::remove_named(&pod.path))?;
        Ok(())
    }

    /// Writes the file that `ip netns exec` mounts over /etc/resolv.conf.
    fn write_resolv_conf(&self, name: &str, dns: &Value) -> Result<()> {
        let words = |key: &str| -> Vec<String> {
            let values = dns[key].as_array().into_iter().flatten();
            values.filter_map(|value| value.as_str().map(str::to_owned)).collect()
        };
        let mut text = String::new();
        for server in words("nameservers") {
            text += &format!("nameserver {server}\n");
        }
        text += &format!("search {}\noptions {}\n", words("search").join(" "), words("options").join(" "));
        let directory = Path::new("/etc/netns").join(name);
        let written = self.plugin.node.run(|| {
            std::fs::create_dir_all(&directory)?;
            std::fs::write(directory.join("resolv.conf"), text)
        });
        written.with_context(|| format!("write the resolv.conf of {name}"))
    }
}

impl Pod {
    /// Runs a shell command line in the pod's network namespace with its resolv.conf. Returns the output.
    ///
    /// # Errors
    /// When it fails.
    pub fn shell(&self, node: &Node, script: &str) -> Result<String> {
        let output = node.run(|| {
            let mut command = Command::new("ip");
            command.args(["netns", "exec", &self.name, "sh", "-ec", script]);
            command.stdout(Stdio::piped()).stderr(Stdio::piped()).output()
        })?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        ensure!(output.status.success(), "{script}: {}{}", text(&output.stdout), text(&output.stderr));
        Ok(text(&output.stdout))
    }

    /// Sends one request to a [`crate::HostnameServer`] at `address`. Returns the name of the pod that
    /// answered.
    ///
    /// # Errors
    /// As connecting and reading.
    pub fn ask(&self, address: &str) -> Result<String> {
        self.netns.run(|| {
            let timeout = std::time::Duration::from_secs(20);
            let mut stream = std::net::TcpStream::connect_timeout(&address.parse()?, timeout)?;
            stream.set_read_timeout(Some(timeout))?;
            let mut name = String::new();
            stream.read_to_string(&mut name)?;
            Ok(name)
        })?
    }
}
