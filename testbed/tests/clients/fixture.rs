//! A node with `portolan-dns`, a client pod, and unbound in the external network.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use testbed::{Binaries, Network, Node, Plugin, Pod, Program, wait_for};

/// A C program that resolves a name with its libc.
const LOOKUP_C: &str = r#"
#include <arpa/inet.h>
#include <netdb.h>
#include <stdio.h>
int main(int argc, char **argv) {
    struct addrinfo hints = { .ai_socktype = SOCK_STREAM }, *found;
    if (argc != 2 || getaddrinfo(argv[1], 0, &hints, &found)) return 1;
    for (; found; found = found->ai_next) {
        char text[64];
        void *address = found->ai_family == AF_INET
            ? (void *)&((struct sockaddr_in *)found->ai_addr)->sin_addr
            : (void *)&((struct sockaddr_in6 *)found->ai_addr)->sin6_addr;
        puts(inet_ntop(found->ai_family, address, text, sizeof text));
    }
}
"#;

/// A Go program that resolves a name without libc.
const LOOKUP_GO: &str = r#"
package main
import ("context"; "fmt"; "net"; "os")
func main() {
    resolver := net.Resolver{PreferGo: true}
    found, err := resolver.LookupHost(context.Background(), os.Args[1])
    if err != nil { fmt.Fprintln(os.Stderr, err); os.Exit(1) }
    for _, address := range found { fmt.Println(address) }
}
"#;

const UNBOUND: &str = "server:
  interface: 192.0.2.1@53
  do-ip6: no
  access-control: 192.0.2.0/24 allow
  do-daemonize: no
  chroot: \"\"
  username: \"\"
  pidfile: \"\"
  use-syslog: no
  local-zone: \".\" static
  local-data: \". 60 IN SOA ns.test. hm.test. 1 2 3 4 60\"
  local-data: \"www.test. 60 IN A 192.0.2.77\"
  local-data: \"www.test. 60 IN AAAA 2001:db8::77\"
  local-data: \"four.test. 60 IN A 192.0.2.78\"
remote-control:
  control-enable: no
";

const SERVICE: &str = "apiVersion: v1
kind: Service
metadata: {name: web}
spec: {clusterIP: 10.96.0.9, ports: [{port: 80}]}
";

/// The node with its programs.
pub(crate) struct Fixture {
    _dns: Program,
    _unbound: Program,
    pod: Pod,
    node: Node,
    directory: tempfile::TempDir,
}

impl Fixture {
    pub(crate) fn start(flags: &[&str]) -> Self {
        let (binaries, node) = (Binaries::find().unwrap(), Node::new().unwrap());
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        std::fs::create_dir(path("manifests")).unwrap();
        std::fs::write(path("manifests/web.yaml"), SERVICE).unwrap();
        std::fs::write(path("unbound.conf"), UNBOUND).unwrap();
        std::fs::write(path("resolv.conf"), "nameserver 192.0.2.1\nsearch corp.example\n").unwrap();
        let (config, log) = (path("unbound.conf"), path("unbound.log"));
        let arguments = ["-d", "-c", &config.to_string_lossy()];
        let unbound =
            Program::start_outside(&node, Path::new("/usr/sbin/unbound"), &arguments, &log).unwrap();
        node.shell("ip address add 10.96.0.10/32 dev lo; sysctl -qw net.ipv4.ip_forward=1").unwrap();
        let plugin = Plugin { binary: binaries.path("portolan-cni"), node: node.clone() };
        let pod = Network::new(plugin, "10.96.0.10").add("client").unwrap();
        let (manifests, resolv_conf) = (path("manifests"), path("resolv.conf"));
        let arguments =
            ["--manifests", &manifests.to_string_lossy(), "--resolv-conf", &resolv_conf.to_string_lossy()];
        let arguments = [&arguments[..], flags].concat();
        let dns =
            Program::start(&node, &binaries.path("portolan-dns"), &arguments, &path("dns.log")).unwrap();
        // The kubelet appends the node's search domain.
        node.shell("sed -i 's/^search.*/& corp.example/' /etc/netns/client/resolv.conf").unwrap();
        wait_for("an answer from outside", || {
            let answer = pod.shell(&node, "dig +short +time=1 +tries=1 @10.96.0.10 www.test")?;
            anyhow::ensure!(answer.trim() == "192.0.2.77", "{answer}");
            Ok(())
        })
        .unwrap();
        Self { _dns: dns, _unbound: unbound, pod, node, directory }
    }

    /// Runs a script in the pod.
    pub(crate) fn shell(&self, script: &str) -> String {
        let tools = format!("TOOLS={}; {script}", tools().display());
        self.pod.shell(&self.node, &tools).unwrap()
    }

    /// Returns the server's query count.
    pub(crate) fn queries(&self) -> u64 {
        let page = self.node.shell("curl -fsS -m 2 http://127.0.0.1:10262/metrics").unwrap();
        let lines = page.lines().filter(|line| line.starts_with("coredns_dns_requests_total{"));
        let counts = lines.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok());
        counts.sum()
    }

    /// Returns conntrack's failed insertions, of all CPUs.
    pub(crate) fn failed_inserts(&self) -> u64 {
        let table = self.node.shell("cat /proc/net/stat/nf_conntrack").unwrap();
        let mut lines = table.lines();
        let column =
            lines.next().unwrap().split_whitespace().position(|name| name == "insert_failed").unwrap();
        let counts = lines.map(|line| line.split_whitespace().nth(column).unwrap());
        counts.map(|count| u64::from_str_radix(count, 16).unwrap()).sum()
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.directory.path().join("dns.log")).unwrap_or_default()
    }
}

/// Builds the programs once. Returns their directory.
fn tools() -> &'static Path {
    static TOOLS: OnceLock<PathBuf> = OnceLock::new();
    TOOLS.get_or_init(|| {
        let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("clients");
        std::fs::create_dir_all(&directory).unwrap();
        std::fs::write(directory.join("lookup.c"), LOOKUP_C).unwrap();
        std::fs::write(directory.join("lookup.go"), LOOKUP_GO).unwrap();
        let run = |program: &str, arguments: &[&str]| {
            let mut command = Command::new(program);
            command.args(arguments).current_dir(&directory);
            command
                .env("CGO_ENABLED", "0")
                .env("GO111MODULE", "off")
                .env("GOCACHE", directory.join("go-cache"));
            let output = command.output().unwrap();
            assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
        };
        run("musl-gcc", &["-static", "-o", "musl-lookup", "lookup.c"]);
        run("go", &["build", "-o", "go-lookup", "lookup.go"]);
        directory
    })
}
