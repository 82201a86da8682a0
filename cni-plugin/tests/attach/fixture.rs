//! A node with the plugin.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use testbed::{Node, Plugin};

pub(crate) struct Fixture {
    pub(crate) plugin: Plugin,
}

impl Fixture {
    pub(crate) fn new() -> Self {
        let binary = PathBuf::from(env!("CARGO_BIN_EXE_portolan-cni"));
        Self { plugin: Plugin { binary, node: Node::new().unwrap() } }
    }

    pub(crate) fn node(&self) -> &Node {
        &self.plugin.node
    }

    pub(crate) fn netns(&self, name: &str) -> PathBuf {
        self.node().add_netns(name).unwrap()
    }

    pub(crate) fn try_call(
        &self,
        command: &str,
        id: &str,
        netns: &str,
        config: &Value,
    ) -> Result<Value, Value> {
        self.plugin.command(command, id, Path::new(netns), config).unwrap()
    }

    pub(crate) fn add(&self, id: &str, config: &Value) -> Value {
        let netns = self.netns(id);
        self.try_call("ADD", id, netns.to_str().unwrap(), config).unwrap()
    }

    /// DEL, CHECK, STATUS and GC print nothing when they succeed.
    pub(crate) fn quiet(&self, command: &str, id: &str, config: &Value) {
        let netns = format!("/run/netns/{id}");
        assert_eq!(self.try_call(command, id, &netns, config), Ok(Value::Null), "{command} {id}");
    }

    pub(crate) fn refused(&self, command: &str, id: &str, netns: &str, config: &Value) -> (u64, String) {
        let error = self.try_call(command, id, netns, config).unwrap_err();
        assert!(error["cniVersion"].is_string(), "{error}");
        (error["code"].as_u64().unwrap(), error["msg"].as_str().unwrap().to_owned())
    }

    pub(crate) fn json(&self, script: &str) -> Value {
        let text = self.node().shell(script).unwrap();
        if text.is_empty() { Value::Null } else { serde_json::from_str(&text).unwrap() }
    }

    /// Everything on the node that the plugin created.
    pub(crate) fn traces(&self) -> String {
        self.node()
            .shell(
                "ip -o link | grep -c ptl || true; ip route | grep -v -e 192.0.2 || true; nft list ruleset; \
                 find /run/portolan -name '*.json' -o -path '*owners/*' 2>/dev/null || true",
            )
            .unwrap()
    }

    /// What is left of pods: [`Fixture::traces`] without what stays after the last pod, the empty nft table
    /// and the settings of its networks.
    pub(crate) fn traces_of_pods(&self) -> String {
        let ruleset = self.json("nft -j list ruleset");
        let objects = ruleset["nftables"].as_array().unwrap().iter();
        // The bridges in `same-interface` stay for all their pods and are removed with the table.
        let is_of_pod =
            |set: &Value| set["name"] != "same-interface" || set["elem"].to_string().contains("ptl");
        let is_full = |object: &&Value| {
            let sets = ["set", "map"].iter().map(|kind| &object[kind]);
            sets.into_iter().any(|set| set["elem"].is_array() && is_of_pod(set))
                || object["table"]["name"].as_str().is_some_and(|name| name != "portolan")
        };
        let full: Vec<String> = objects.filter(is_full).map(|object| format!("{object}\n")).collect();
        let rest = self.node().shell(
            "ip -o link | grep -c ptl || true; ip route | grep -v -e 192.0.2 || true; \
             ip -6 route | grep fd00:22 || true; ip neigh | grep ptl || true; ip -o link | grep ptb || true; \
             find /run/portolan -name '*.json' -not -path '*/networks/*' -a -not -path '*/ports/*' \
             -o -path '*/owners/*' -o -path '*/ports/*' -not -size -3c 2>/dev/null || true",
        );
        rest.unwrap() + &full.concat()
    }

    /// Nothing is left of any pod, and after `cleanup` nothing at all.
    pub(crate) fn assert_nothing_left(&self) {
        assert_eq!(self.traces_of_pods(), NOTHING);
        let cleanup = format!("{} cleanup", self.plugin.binary.display());
        assert_eq!(self.node().shell(&cleanup).unwrap(), "");
        assert_eq!(self.traces(), NOTHING);
        assert_eq!(self.node().shell("ls -d /run/portolan 2>/dev/null || true").unwrap(), "");
    }
}

pub(crate) fn config(version: &str) -> Value {
    json!({
        "cniVersion": version, "name": "pods", "type": "portolan-cni",
        "ipam": { "ranges": [[{ "subnet": "10.22.0.0/24" }]] },
    })
}

/// Without a cooldown, so that a test need not wait for an address to become free.
pub(crate) fn small(subnet: &str) -> Value {
    let mut config = config("1.1.0");
    config["ipam"] = json!({ "cooldown": 0, "ranges": [[{ "subnet": subnet }]] });
    config
}

pub(crate) fn merge(mut config: Value, patch: Value) -> Value {
    config.as_object_mut().unwrap().extend(patch.as_object().unwrap().clone());
    config
}

pub(crate) fn address(result: &Value) -> String {
    result["ips"][0]["address"].as_str().unwrap().split('/').next().unwrap().to_owned()
}

pub(crate) const NOTHING: &str = "0\n";

pub(crate) fn addresses(result: &Value) -> Vec<IpAddr> {
    let ips = result["ips"].as_array().unwrap().iter();
    ips.map(|ip| ip["address"].as_str().unwrap().split('/').next().unwrap().parse().unwrap()).collect()
}
