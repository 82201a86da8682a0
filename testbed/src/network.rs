//! The container runtime's part: namespaces for pods, and the CNI protocol.

use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use netns::NetNs;
use serde_json::{Value, json};

use crate::Node;

/// Where the addresses of all pods are, whatever their node.
pub(crate) const CLUSTER_CIDRS: [&str; 2] = ["10.22.0.0/16", "fd00:10:22::/48"];

/// A CNI plugin binary and how to call it in a node.
#[derive(Clone, Debug)]
pub struct Plugin {
    /// The binary.
    pub binary: PathBuf,
    /// The node to call it in.
    pub node: Node,
}

/// A CNI network with the pods that are attached to it.
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
    /// Calls the plugin with these variables and this input; returns its JSON, if any, or its error's.
    ///
    /// # Errors
    /// When it cannot be started, or prints anything but one JSON object or nothing.
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
            // One that does not read its input is allowed to.
            drop(child.stdin.take().map(|mut stdin| stdin.write_all(input.as_bytes())));
            Ok(child.wait_with_output()?)
        })?;
        let text = String::from_utf8(output.stdout).context("the plugin's output is not text")?;
        let json = if text.is_empty() { Value::Null } else { serde_json::from_str(&text).context(text)? };
        Ok(if output.status.success() { Ok(json) } else { Err(json) })
    }

    /// Calls the plugin for a container.
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
    /// A routed network `pods` on 10.22.0.0/16 whose pods ask `nameserver` for names.
    pub fn new(plugin: Plugin, nameserver: &str) -> Self {
        Self::with_ranges(plugin, nameserver, &["10.22.0.0/16"])
    }

    /// As [`Network::new`], with an address of each range for a pod.
    pub fn with_ranges(plugin: Plugin, nameserver: &str, ranges: &[&str]) -> Self {
        let ranges: Vec<Value> = ranges.iter().map(|subnet| json!([{ "subnet": subnet }])).collect();
        let config = json!({
            "cniVersion": "1.1.0",
            "name": "pods",
            "type": "portolan-cni",
            "ipam": { "ranges": ranges },
            // Pods of one cluster see each other's own addresses, whatever node they are on.
            "nonMasqueradeCIDRs": CLUSTER_CIDRS,
            "dns": {
                "nameservers": [nameserver],
                "search": ["default.svc.cluster.local", "svc.cluster.local", "cluster.local"],
                "options": ["ndots:5"],
            },
        });
        Self { plugin, config }
    }

    /// A network of any configuration, of this plugin or another one.
    pub fn with_config(plugin: Plugin, config: Value) -> Self {
        Self { plugin, config }
    }

    /// The configuration, as a plugin gets it.
    pub fn config(&self) -> &Value {
        &self.config
    }

    /// Creates a pod's namespace and attaches it. It has a resolv.conf of its own, as `ip netns exec` and runtimes do.
    ///
    /// # Errors
    /// What the plugin says.
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

    /// Detaches a pod and removes its namespace: what happens when a container is killed.
    ///
    /// # Errors
    /// What the plugin says.
    pub fn remove(&self, pod: &Pod) -> Result<()> {
        let deleted = self.plugin.command("DEL", &pod.name, &pod.path, &self.config)?;
        if let Err(error) = deleted {
            bail!("DEL of {}: {error}", pod.name);
        }
        self.plugin.node.run(|| NetNs::remove_named(&pod.path))?;
        Ok(())
    }

    /// `ip netns exec` mounts this over /etc/resolv.conf.
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
    /// Runs a shell command line in the pod's network and with its resolv.conf, and returns what it prints.
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

    /// One request to a [`crate::HostnameServer`] at `address`: the name of the pod that answered.
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
