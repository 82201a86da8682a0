//! Programs under test.

use std::collections::BTreeSet;
use std::net::{TcpListener, UdpSocket};
use std::ops::Range;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;

use crate::Node;

/// Ports for servers of tests: below the kernel's default range of ephemeral ports, which starts at 32768.
const PORTS: Range<u16> = 12_000..32_000;

/// Deadline of all waits: long enough for a machine under heavy load.
const DEADLINE: Duration = Duration::from_secs(30);

/// Process groups of all programs that have not been reaped.
static RUNNING: Mutex<BTreeSet<u32>> = Mutex::new(BTreeSet::new());

fn running() -> MutexGuard<'static, BTreeSet<u32>> {
    RUNNING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The directory of the programs under test.
#[derive(Clone, Debug)]
pub struct Binaries(PathBuf);

/// A running program. Dropping it kills the program.
#[derive(Debug)]
pub struct Program {
    child: Child,
    name: String,
}

impl Binaries {
    /// Finds the directory of the running program: `target/release`, or the parent of `target/debug/deps` for
    /// a test.
    ///
    /// # Errors
    /// When `portolan-cni`, `portolan-proxy` or `portolan-dns` is missing: `cargo build --workspace` builds
    /// them.
    pub fn find() -> Result<Self> {
        let own = std::env::current_exe()?;
        let directory = own.ancestors().skip(1).take(2).find(|d| d.join("portolan-cni").is_file());
        let directory =
            directory.context("portolan-cni is not built: run `cargo build --workspace`")?.to_owned();
        for name in ["portolan-proxy", "portolan-dns"] {
            ensure!(directory.join(name).is_file(), "{name} is not built: run `cargo build --workspace`");
        }
        Ok(Self(directory))
    }

    /// Returns the path of a program.
    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Program {
    /// Starts a program inside the node. Its output is written to `log`.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(node: &Node, binary: &Path, arguments: &[&str], log: &Path) -> Result<Self> {
        Self::spawn(binary, arguments, log, |command| node.run(|| command.spawn()))
    }

    /// As [`Program::start`], in the external network of the node.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start_outside(node: &Node, binary: &Path, arguments: &[&str], log: &Path) -> Result<Self> {
        let outside = node.outside();
        Self::spawn(binary, arguments, log, |command| {
            outside.run(|| command.spawn()).map_err(std::io::Error::other)?
        })
    }

    fn spawn(
        binary: &Path,
        arguments: &[&str],
        log: &Path,
        spawn: impl FnOnce(&mut Command) -> std::io::Result<Child>,
    ) -> Result<Self> {
        let output = std::fs::File::create(log)?;
        let mut command = Command::new(binary);
        command.args(arguments).stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
        // Its own process group, so that its workers are killed with it.
        command.process_group(0);
        // Held while the program starts, so that `kill_all` misses none.
        let mut running = running();
        let child = spawn(&mut command).with_context(|| format!("start {}", binary.display()))?;
        running.insert(child.id());
        Ok(Self { child, name: binary.file_name().unwrap_or_default().to_string_lossy().into_owned() })
    }

    /// Returns the process ID.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Waits until the program exits.
    ///
    /// # Errors
    /// When it still runs after half a minute.
    pub fn wait(&mut self) -> Result<ExitStatus> {
        let deadline = Instant::now() + DEADLINE;
        while Instant::now() < deadline {
            // Held until its ID is removed, since another process may get the same ID.
            let mut running = running();
            if let Some(status) = self.child.try_wait()? {
                running.remove(&self.child.id());
                return Ok(status);
            }
            drop(running);
            std::thread::sleep(Duration::from_millis(5));
        }
        bail!("{} has not exited", self.name)
    }

    /// Sends SIGTERM and waits until the program exits.
    ///
    /// # Errors
    /// When it still runs after half a minute.
    pub fn terminate(&mut self) -> Result<ExitStatus> {
        kill(Pid::from_raw(i32::try_from(self.child.id())?), Signal::SIGTERM)?;
        self.wait()
    }
}

impl Program {
    /// Kills the program and its process group, if it still runs.
    pub fn kill(&mut self) {
        kill_group(self.child.id());
        running().remove(&self.child.id());
        // It may have been reaped already.
        let _ = self.child.wait();
    }

    /// Kills all programs and prevents further starts. A process that exits without dropping its handles must
    /// call it, or the programs outlive it.
    pub fn kill_all() {
        let running = running();
        running.iter().copied().for_each(kill_group);
        // A thread that starts another program blocks forever.
        std::mem::forget(running);
    }
}

fn kill_group(group: u32) {
    // The group may have exited.
    if let Ok(group) = i32::try_from(group) {
        let _ = killpg(Pid::from_raw(group), Signal::SIGKILL);
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Repeats `attempt` until it succeeds.
///
/// # Errors
/// The last error, after half a minute.
pub fn wait_for<T>(what: &str, mut attempt: impl FnMut() -> Result<T>) -> Result<T> {
    let deadline = Instant::now() + DEADLINE;
    loop {
        match attempt() {
            Ok(value) => return Ok(value),
            Err(error) if Instant::now() > deadline => {
                return Err(error.context(format!("waiting for {what}")));
            }
            Err(_) => std::thread::sleep(Duration::from_millis(10)),
        }
    }
}

/// Reserves a port for a server of this test: no other test gets it while this process runs, and no client
/// does, since it is below `net.ipv4.ip_local_port_range`. Abstract Unix sockets mark reserved ports; the
/// kernel removes them with the process.
///
/// # Errors
/// When no port is free.
pub fn free_port() -> Result<u16> {
    static TAKEN: Mutex<Vec<UnixListener>> = Mutex::new(Vec::new());
    // Each process starts at a different offset, so that few attempts fail.
    let first = usize::try_from(std::process::id())? * 61;
    for offset in 0..PORTS.len() {
        let port = PORTS.start + u16::try_from((first + offset) % PORTS.len())?;
        let name = SocketAddr::from_abstract_name(format!("portolan-test-port-{port}"))?;
        let Ok(reservation) = UnixListener::bind_addr(&name) else { continue };
        // Another process on the machine may use the port.
        if TcpListener::bind(("127.0.0.1", port)).is_ok() && UdpSocket::bind(("127.0.0.1", port)).is_ok() {
            TAKEN.lock().unwrap_or_else(PoisonError::into_inner).push(reservation);
            return Ok(port);
        }
    }
    bail!("no port in {PORTS:?} is free")
}
