//! `portolan-dns` and the servers a user could run instead, each on an address of its own in one node.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use tempfile::TempDir;
use testbed::{Binaries, Node, Program, go_tool, wait_for};

use super::names::{self, Queries};
use crate::cores::Cores;
use crate::interrupt;
use crate::peers;
use crate::processor::Process;
use crate::record::{Configuration, Record};

/// On the loopback, where every address of the network is local.
const NETWORK: &str = "10.53.0.1/16";

/// A server that runs on the servers' core.
pub(super) struct Server {
    pub(super) name: &'static str,
    pub(super) address: SocketAddr,
    pub(super) process: Process,
    pub(super) configuration: Configuration,
    /// What starts it, on the servers' core.
    command: Vec<String>,
    /// It stops when this is dropped.
    program: Program,
}

/// The node, and who serves there.
pub(super) struct Lab {
    pub(super) node: Node,
    pub(super) cores: Cores,
    pub(super) servers: Vec<Server>,
    directory: TempDir,
    upstream: Option<Program>,
}

/// What is needed to start one.
struct Start<'a> {
    name: &'static str,
    address: Ipv4Addr,
    binary: PathBuf,
    arguments: Vec<String>,
    /// Its file, or its flags.
    text: String,
    version: &'a [&'a str],
    /// Answered once it serves.
    queries: &'a Queries,
}

const UPSTREAM: Ipv4Addr = Ipv4Addr::new(10, 53, 0, 9);

impl Lab {
    /// A node with nothing in it.
    pub(super) fn empty() -> Result<Self> {
        let cores = Cores::choose()?;
        let node = Node::new()?;
        node.shell(&format!("ip address add {NETWORK} dev lo"))?;
        Ok(Self { node, cores, servers: Vec::new(), directory: TempDir::new()?, upstream: None })
    }

    /// All servers there are. Of the others, the record says how to get them.
    pub(super) fn with_all(record: &mut Record) -> Result<Self> {
        let mut lab = Self::empty()?;
        let directory = lab.directory.path().to_owned();
        fs::write(directory.join("cluster.zone"), names::cluster_zone())?;
        fs::write(directory.join("external.zone"), names::external_zone())?;
        fs::create_dir(directory.join("manifests"))?;
        names::write_manifests(&directory.join("manifests"))?;
        let has_knot = peers::is_there(record, "knotd", peers::KNOT);
        if has_knot {
            lab.start_upstream()?;
        } else {
            record.not_measured.push("names outside: knotd serves them, see there".to_owned());
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
        // It has nothing but names outside.
        if peers::is_there(record, "unbound", peers::UNBOUND) && has_knot {
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

    /// Whether somebody answers for names outside.
    pub(super) fn has_upstream(&self) -> bool {
        self.upstream.is_some()
    }

    /// `portolan-dns` on these manifests, with more flags.
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
        self.start(Start { name: "portolan-dns", address, binary, arguments, text, version, queries })
    }

    /// The world outside.
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
        self.start(Start { name: "knotd", address, binary, arguments, text, version, queries })
    }

    /// A worker for each protocol, as many as it has cores.
    fn knot_config(&self, address: Ipv4Addr, domain: &str, zone: &str) -> String {
        let directory = self.directory.path().display();
        let state = self.directory.path().join(domain);
        let state = state.display();
        format!(
            "server:\n    listen: {address}@53\n    rundir: {state}\n    user: root\n    udp-workers: 1\n    tcp-workers: 1\n    \
             background-workers: 1\ndatabase:\n    storage: {state}\nzone:\n  - domain: {domain}\n    file: {directory}/{zone}\n    \
             zonefile-sync: -1\n    journal-content: none\n"
        )
    }

    fn start_hickory(&mut self, queries: &Queries) -> Result<()> {
        let address = Ipv4Addr::new(10, 53, 0, 3);
        let zone = self.directory.path().join("cluster.zone").to_string_lossy().into_owned();
        let arguments = ["hickory", "cluster.local.", &zone, &format!("{address}:53")].map(str::to_owned);
        let text = "hickory_server::Server with a Catalog of one FileZoneHandler, which is in memory; tokio, a thread a core"
            .to_owned();
        let (name, binary) = ("hickory", std::env::current_exe()?);
        self.start(Start { name, address, binary, arguments: arguments.into(), text, version: &[], queries })
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
        self.start(Start { name: "CoreDNS", address, binary, arguments, text, version, queries })
    }

    fn start_unbound(&mut self, queries: &Queries) -> Result<()> {
        let address = Ipv4Addr::new(10, 53, 0, 5);
        let directory = self.directory.path().display();
        let text = format!(
            "server:\n  interface: {address}\n  access-control: 0.0.0.0/0 allow\n  do-daemonize: no\n  username: \"\"\n  \
             chroot: \"\"\n  directory: \"{directory}\"\n  pidfile: \"\"\n  use-syslog: no\n  num-threads: 1\n  \
             module-config: \"iterator\"\n  msg-cache-size: 64m\n  rrset-cache-size: 128m\n  incoming-num-tcp: 256\n  \
             so-rcvbuf: 4m\n  so-sndbuf: 4m\n\
             remote-control:\n  control-enable: no\n\
             forward-zone:\n  name: \".\"\n  forward-addr: {UPSTREAM}\n"
        );
        let arguments = vec!["-d".to_owned(), "-c".to_owned(), self.write("unbound.conf", &text)?];
        let (binary, version) = ("/usr/sbin/unbound".into(), &["-V"][..]);
        self.start(Start { name: "unbound", address, binary, arguments, text, version, queries })
    }

    fn write(&self, name: &str, text: &str) -> Result<String> {
        for domain in ["example.org", "cluster.local"] {
            fs::create_dir_all(self.directory.path().join(domain))?;
        }
        let file = self.directory.path().join(name);
        fs::write(&file, text)?;
        Ok(file.to_string_lossy().into_owned())
    }

    fn start(&mut self, start: Start<'_>) -> Result<()> {
        interrupt::check()?;
        let Start { name, address, binary, arguments, text, version, queries } = start;
        let address = SocketAddr::from((address, 53));
        // Whoever has it would be measured in its place.
        self.node.run(|| UdpSocket::bind(address)).with_context(|| {
            format!("{name}: {address} is taken; `ss -lnup` in its namespace tells by whom")
        })?;
        let core = self.cores.server.to_string();
        let mut command = vec!["-c".to_owned(), core.clone(), binary.to_string_lossy().into_owned()];
        command.extend(arguments);
        let program = self.run(name, &command)?;
        let said = || self.log(name);
        self.wait_for(address, queries).with_context(|| format!("{name}: {}", said()))?;
        let process = Process(program.id());
        ensure!(process.is_running(), "{name} has ended: {}", said());
        // Once more: knotd puts its threads on cores of its own choice.
        self.node.shell(&format!("taskset -a -c -p {core} {} >&2", program.id()))?;
        let directory = self.directory.path().to_string_lossy().into_owned();
        let configuration = Configuration {
            name: name.to_owned(),
            version: if version.is_empty() { "0.26.3".to_owned() } else { first_line(&binary, version) },
            // Where its own files are does not matter to a reader.
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

    /// Starts a server once more, beside itself, and waits until the process before has ended.
    pub(super) fn succeed(&mut self, index: usize) -> Result<()> {
        let new = self.run(self.servers[index].name, &self.servers[index].command)?;
        let server = &mut self.servers[index];
        server.process = Process(new.id());
        let status = std::mem::replace(&mut server.program, new).wait();
        let status = status.with_context(|| self.log(self.servers[index].name))?;
        ensure!(status.success(), "{status}: {}", self.log(self.servers[index].name));
        Ok(())
    }

    /// Until it answers rightly.
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
        // `Address already in use` and the like are in its log.
        wait_for(&server.to_string(), answers)
    }
}

/// The first line it says.
fn first_line(binary: &Path, arguments: &[&str]) -> String {
    let Ok(output) = Command::new(binary).args(arguments).output() else { return "unknown".to_owned() };
    let said = [output.stdout, output.stderr].concat();
    String::from_utf8_lossy(&said).lines().next().unwrap_or("unknown").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_in_use_is_named_with_who_has_it() {
        let mut lab = Lab::empty().unwrap();
        let manifests = lab.directory().join("manifests");
        fs::create_dir(&manifests).unwrap();
        let version = Queries::one_text("dns-version.cluster.local");
        lab.start_portolan(&manifests, &[], &version).unwrap();
        // The first one would answer in place of the second.
        let error = format!("{:#}", lab.start_portolan(&manifests, &[], &version).unwrap_err());
        assert!(error.contains("portolan-dns: 10.53.0.1:53 is taken; `ss -lnup`"), "{error}");
        assert!(error.contains("Address already in use"), "{error}");
    }
}
