//! Starts `portolan-dns` and its peers, each on its own address of one node.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use tempfile::TempDir;
use testbed::{Binaries, Node, Program, go_tool, wait_for};

use super::workload::{self, Queries};
use crate::cores::Cores;
use crate::interrupt;
use crate::peers;
use crate::processor::Process;
use crate::record::{Configuration, Record};

/// A network on the loopback, so that all its addresses are local.
const NETWORK: &str = "10.53.0.1/16";

/// A running server.
pub(super) struct Server {
    pub(super) name: &'static str,
    pub(super) address: SocketAddr,
    pub(super) process: Process,
    pub(super) configuration: Configuration,
    /// Its command line, pinned to the servers' core.
    command: Vec<String>,
    /// Stops when dropped.
    program: Program,
}

/// The node with its servers.
pub(super) struct Lab {
    pub(super) node: Node,
    pub(super) cores: Cores,
    pub(super) servers: Vec<Server>,
    directory: TempDir,
    upstream: Option<Program>,
}

/// Parameters to start a server.
struct ServerSpec<'a> {
    name: &'static str,
    address: Ipv4Addr,
    binary: PathBuf,
    arguments: Vec<String>,
    /// Its configuration file or flags.
    text: String,
    version: &'a [&'a str],
    /// Queries that it answers once it is ready.
    queries: &'a Queries,
}

const UPSTREAM: Ipv4Addr = Ipv4Addr::new(10, 53, 0, 9);

impl Lab {
    /// A node without servers.
    pub(super) fn empty() -> Result<Self> {
        let cores = Cores::choose()?;
        let node = Node::new()?;
        node.shell(&format!("ip address add {NETWORK} dev lo"))?;
        Ok(Self { node, cores, servers: Vec::new(), directory: TempDir::new()?, upstream: None })
    }

    /// Starts all installed servers. The record says how to install the missing ones.
    pub(super) fn with_all(record: &mut Record) -> Result<Self> {
        let mut lab = Self::empty()?;
        let directory = lab.directory.path().to_owned();
        fs::write(directory.join("cluster.zone"), workload::cluster_zone())?;
        fs::write(directory.join("external.zone"), workload::external_zone())?;
        fs::create_dir(directory.join("manifests"))?;
        workload::write_manifests(&directory.join("manifests"))?;
        let has_knot = peers::is_installed(record, "knotd", peers::KNOT);
        if has_knot {
            lab.start_upstream()?;
        } else {
            record.not_measured.push("external names: knotd serves them and is missing".to_owned());
        }
        let (services, external) = (Queries::services(), Queries::external());
        let portolan = ["--upstream", &UPSTREAM.to_string()].map(str::to_owned);
        lab.start_portolan(&directory.join("manifests"), &portolan, &services)?;
        lab.start_hickory(&services)?;
        if has_knot {
            lab.start_knotd(&services)?;
        }
        match go_tool("coredns") {
            Ok(binary) => lab.start_coredns(binary, &services)?,
            Err(_) => {
                record
                    .not_measured
                    .push("CoreDNS: not built; `make tools` builds it from its Go module".to_owned());
            }
        }
        // unbound serves only external names.
        if peers::is_installed(record, "unbound", peers::UNBOUND) && has_knot {
            lab.start_unbound(&external)?;
        }
        Ok(lab)
    }

    pub(super) fn server(&self, name: &str) -> Option<&Server> {
        self.servers.iter().find(|server| server.name == name)
    }

    pub(super) fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Returns whether a server for external names runs.
    pub(super) fn has_upstream(&self) -> bool {
        self.upstream.is_some()
    }

    /// Starts `portolan-dns` with these manifests and further flags.
    pub(super) fn start_portolan(
        &mut self,
        manifests: &Path,
        flags: &[String],
        queries: &Queries,
    ) -> Result<()> {
        let address = Ipv4Addr::new(10, 53, 0, 1);
        let mut arguments = vec!["--manifests".to_owned(), manifests.to_string_lossy().into_owned()];
        arguments.extend(["--listen".to_owned(), format!("{address}:53")]);
        arguments.extend_from_slice(flags);
        let binary = Binaries::find()?.path("portolan-dns");
        let text = arguments.join(" ");
        let version = &["--version"];
        self.start(ServerSpec { name: "portolan-dns", address, binary, arguments, text, version, queries })
    }

    /// Starts the server for external names.
    fn start_upstream(&mut self) -> Result<()> {
        let config = self.knot_config(UPSTREAM, "example.org", "external.zone");
        let file = self.write("upstream.conf", &config)?;
        let log = self.directory.path().join("upstream.log");
        self.upstream = Some(Program::start(&self.node, Path::new("/usr/sbin/knotd"), &["-c", &file], &log)?);
        self.wait_for(SocketAddr::from((UPSTREAM, 53)), &Queries::external())
            .with_context(|| format!("the upstream server: {}", fs::read_to_string(&log).unwrap_or_default()))
    }

    fn start_knotd(&mut self, queries: &Queries) -> Result<()> {
        let address = Ipv4Addr::new(10, 53, 0, 2);
        let text = self.knot_config(address, "cluster.local", "cluster.zone");
        let arguments = vec!["-c".to_owned(), self.write("knot.conf", &text)?];
        let (binary, version) = ("/usr/sbin/knotd".into(), &["-V"][..]);
        self.start(ServerSpec { name: "knotd", address, binary, arguments, text, version, queries })
    }

    /// Returns a knotd configuration with one worker for each protocol, since it has one core.
    fn knot_config(&self, address: Ipv4Addr, domain: &str, zone: &str) -> String {
        let directory = self.directory.path().display();
        let state = self.directory.path().join(domain);
        let state = state.display();
        format!(
            "server:\n    listen: {address}@53\n    rundir: {state}\n    user: root\n    udp-workers: 1\n    \
             tcp-workers: 1\n    background-workers: 1\ndatabase:\n    storage: {state}\nzone:\n  \
             - domain: {domain}\n    file: {directory}/{zone}\n    zonefile-sync: -1\n    \
             journal-content: none\n"
        )
    }

    fn start_hickory(&mut self, queries: &Queries) -> Result<()> {
        let address = Ipv4Addr::new(10, 53, 0, 3);
        let zone = self.directory.path().join("cluster.zone").to_string_lossy().into_owned();
        let arguments = ["hickory", "cluster.local.", &zone, &format!("{address}:53")].map(str::to_owned);
        let text =
            "hickory_server::Server with a Catalog of one in-memory FileZoneHandler; tokio, a thread a core";
        let text = text.to_owned();
        let (name, binary) = ("hickory", std::env::current_exe()?);
        self.start(ServerSpec {
            name,
            address,
            binary,
            arguments: arguments.into(),
            text,
            version: &[],
            queries,
        })
    }

    fn start_coredns(&mut self, binary: PathBuf, queries: &Queries) -> Result<()> {
        let address = Ipv4Addr::new(10, 53, 0, 4);
        let zone = self.directory.path().join("cluster.zone").display().to_string();
        let text = format!(
            "cluster.local {{\n  bind {address}\n  file {zone}\n}}\n\
             . {{\n  bind {address}\n  forward . {UPSTREAM}\n  cache 3600 {{\n    success 20000\n  }}\n}}\n"
        );
        let arguments = vec!["-conf".to_owned(), self.write("Corefile", &text)?];
        let version = &["-version"];
        self.start(ServerSpec { name: "CoreDNS", address, binary, arguments, text, version, queries })
    }

    fn start_unbound(&mut self, queries: &Queries) -> Result<()> {
        let address = Ipv4Addr::new(10, 53, 0, 5);
        let directory = self.directory.path().display();
        let text = format!(
            "server:\n  interface: {address}\n  access-control: 0.0.0.0/0 allow\n  do-daemonize: no\n  \
             username: \"\"\n  chroot: \"\"\n  directory: \"{directory}\"\n  pidfile: \"\"\n  use-syslog: \
             no\n  num-threads: 1\n  \
             module-config: \"iterator\"\n  msg-cache-size: 64m\n  rrset-cache-size: 128m\n  \
             incoming-num-tcp: 256\n  so-rcvbuf: 4m\n  so-sndbuf: 4m\n\
             remote-control:\n  control-enable: no\n\
             forward-zone:\n  name: \".\"\n  forward-addr: {UPSTREAM}\n"
        );
        let arguments = vec!["-d".to_owned(), "-c".to_owned(), self.write("unbound.conf", &text)?];
        let (binary, version) = ("/usr/sbin/unbound".into(), &["-V"][..]);
        self.start(ServerSpec { name: "unbound", address, binary, arguments, text, version, queries })
    }

    fn write(&self, name: &str, text: &str) -> Result<String> {
        for domain in ["example.org", "cluster.local"] {
            fs::create_dir_all(self.directory.path().join(domain))?;
        }
        let file = self.directory.path().join(name);
        fs::write(&file, text)?;
        Ok(file.to_string_lossy().into_owned())
    }

    fn start(&mut self, spec: ServerSpec<'_>) -> Result<()> {
        interrupt::check()?;
        let ServerSpec { name, address, binary, arguments, text, version, queries } = spec;
        let address = SocketAddr::from((address, 53));
        // A process that has the address already would be measured instead.
        self.node.run(|| UdpSocket::bind(address)).with_context(|| {
            format!("{name}: {address} is taken; `ss -lnup` in its namespace shows the process")
        })?;
        let core = self.cores.server.to_string();
        let mut command = vec!["-c".to_owned(), core.clone(), binary.to_string_lossy().into_owned()];
        command.extend(arguments);
        let program = self.run(name, &command)?;
        let output = || self.log(name);
        self.wait_for(address, queries).with_context(|| format!("{name}: {}", output()))?;
        let process = Process(program.id());
        ensure!(process.is_running(), "{name} has exited: {}", output());
        // Again, with all threads: knotd sets the affinity of its threads itself.
        self.node.shell(&format!("taskset -a -c -p {core} {} >&2", program.id()))?;
        let directory = self.directory.path().to_string_lossy().into_owned();
        let configuration = Configuration {
            name: name.to_owned(),
            version: if version.is_empty() { "0.26.3".to_owned() } else { first_line(&binary, version) },
            // The path of the temporary directory does not matter to a reader.
            text: text.replace(&directory, "DIR"),
        };
        self.servers.push(Server { name, address, process, configuration, command, program });
        Ok(())
    }

    fn run(&self, name: &str, command: &[String]) -> Result<Program> {
        let command: Vec<&str> = command.iter().map(String::as_str).collect();
        let log = self.directory.path().join(format!("{name}.log"));
        Program::start(&self.node, Path::new("/usr/bin/taskset"), &command, &log)
    }

    fn log(&self, name: &str) -> String {
        fs::read_to_string(self.directory.path().join(format!("{name}.log"))).unwrap_or_default()
    }

    /// Starts a second process of a server for a hot restart, and waits until the previous process has
    /// exited.
    pub(super) fn hot_restart(&mut self, index: usize) -> Result<()> {
        let new = self.run(self.servers[index].name, &self.servers[index].command)?;
        let server = &mut self.servers[index];
        server.process = Process(new.id());
        let status = std::mem::replace(&mut server.program, new).wait();
        let status = status.with_context(|| self.log(self.servers[index].name))?;
        ensure!(status.success(), "{status}: {}", self.log(self.servers[index].name));
        Ok(())
    }

    /// Waits until the server gives a correct answer.
    fn wait_for(&self, server: SocketAddr, queries: &Queries) -> Result<()> {
        let answers = || {
            self.node.run(|| {
                let socket = UdpSocket::bind("0.0.0.0:0")?;
                socket.set_read_timeout(Some(Duration::from_millis(300)))?;
                socket.connect(server)?;
                socket.send(&queries.messages[0])?;
                let mut answer = [0; 1232];
                let length = socket.recv(&mut answer)?;
                ensure!(queries.is_answered_by(0, 0, &answer[..length]), "{:02x?}", &answer[..length]);
                Ok(())
            })
        };
        // Errors such as `Address already in use` are in its log.
        wait_for(&server.to_string(), answers)
    }
}

/// Returns the first line that a program prints.
fn first_line(binary: &Path, arguments: &[&str]) -> String {
    let Ok(output) = Command::new(binary).args(arguments).output() else { return "unknown".to_owned() };
    let text = [output.stdout, output.stderr].concat();
    String::from_utf8_lossy(&text).lines().next().unwrap_or("unknown").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn port_in_use_is_reported_with_the_command_that_shows_the_process() {
        let mut lab = Lab::empty().unwrap();
        let manifests = lab.directory().join("manifests");
        fs::create_dir(&manifests).unwrap();
        let version = Queries::one_text("dns-version.cluster.local");
        lab.start_portolan(&manifests, &[], &version).unwrap();
        // Otherwise the first process would answer for the second.
        let error = format!("{:#}", lab.start_portolan(&manifests, &[], &version).unwrap_err());
        assert!(error.contains("portolan-dns: 10.53.0.1:53 is taken; `ss -lnup`"), "{error}");
        assert!(error.contains("Address already in use"), "{error}");
    }
}
