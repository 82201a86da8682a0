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

/// Where tests have their servers: below the ports that the kernel gives to clients, 32768 and up unless somebody changed it.
const PORTS: Range<u16> = 12_000..32_000;

/// For how long something may not be as it should: far longer than it takes, on a machine that does much else at the same time.
const PATIENCE: Duration = Duration::from_secs(30);

/// The process groups of all programs that have not been waited for.
static RUNNING: Mutex<BTreeSet<u32>> = Mutex::new(BTreeSet::new());

fn running() -> MutexGuard<'static, BTreeSet<u32>> {
    RUNNING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Where the programs under test are.
#[derive(Clone, Debug)]
pub struct Binaries(PathBuf);

/// A running program, stopped when this is dropped.
#[derive(Debug)]
pub struct Program {
    child: Child,
    name: String,
}

impl Binaries {
    /// Next to the program that is running: `target/release`, or the parent of `target/debug/deps` for a test.
    ///
    /// # Errors
    /// When `portolan-cni`, `portolan-proxy` or `portolan-dns` is not there: `cargo build --workspace` makes them.
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

    /// The path of one of them.
    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Program {
    /// Starts a program inside the node. Its log goes to `log`.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(node: &Node, binary: &Path, arguments: &[&str], log: &Path) -> Result<Self> {
        Self::spawn(binary, arguments, log, |command| node.run(|| command.spawn()))
    }

    /// As [`Program::start`], beyond the node's uplink.
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
        // A group of its own, so that workers it starts go with it.
        command.process_group(0);
        // Locked while it starts, so that `kill_all` misses none.
        let mut running = running();
        let child = spawn(&mut command).with_context(|| format!("start {}", binary.display()))?;
        running.insert(child.id());
        Ok(Self { child, name: binary.file_name().unwrap_or_default().to_string_lossy().into_owned() })
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Waits for it to end by itself.
    ///
    /// # Errors
    /// When it is still there after half a minute.
    pub fn wait(&mut self) -> Result<ExitStatus> {
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            // Locked from its end until it is forgotten, as another process may get its id.
            let mut running = running();
            if let Some(status) = self.child.try_wait()? {
                running.remove(&self.child.id());
                return Ok(status);
            }
            drop(running);
            std::thread::sleep(Duration::from_millis(5));
        }
        bail!("{} has not ended", self.name)
    }

    /// Sends SIGTERM and waits for the end.
    ///
    /// # Errors
    /// When it is still there after half a minute.
    pub fn terminate(&mut self) -> Result<ExitStatus> {
        kill(Pid::from_raw(i32::try_from(self.child.id())?), Signal::SIGTERM)?;
        self.wait()
    }
}

impl Program {
    /// Ends it and all it has started at once; one that has ended already is fine.
    pub fn kill(&mut self) {
        kill_group(self.child.id());
        running().remove(&self.child.id());
        drop(self.child.wait());
    }

    /// Ends all there are, and lets none start any more: for a process that exits without dropping its handles, which
    /// those programs would outlive.
    pub fn kill_all() {
        let running = running();
        running.iter().copied().for_each(kill_group);
        // Whoever wants to start another one waits for good.
        std::mem::forget(running);
    }
}

fn kill_group(group: u32) {
    // It may have gone already.
    if let Ok(group) = i32::try_from(group) {
        killpg(Pid::from_raw(group), Signal::SIGKILL).ok();
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Tries `attempt` until it succeeds.
///
/// # Errors
/// The last error, after half a minute.
pub fn wait_for<T>(what: &str, mut attempt: impl FnMut() -> Result<T>) -> Result<T> {
    let deadline = Instant::now() + PATIENCE;
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

/// A port for a server of this test alone: no other test gets it while this process lives, and no client is given it, since it lies
/// below `net.ipv4.ip_local_port_range`. Which are taken is known by names of abstract Unix sockets, which end with their process.
///
/// # Errors
/// When none is free.
pub fn free_port() -> Result<u16> {
    static TAKEN: Mutex<Vec<UnixListener>> = Mutex::new(Vec::new());
    // Each process starts elsewhere, so that few names are tried in vain.
    let first = usize::try_from(std::process::id())? * 61;
    for offset in 0..PORTS.len() {
        let port = PORTS.start + u16::try_from((first + offset) % PORTS.len())?;
        let name = SocketAddr::from_abstract_name(format!("portolan-test-port-{port}"))?;
        let Ok(reservation) = UnixListener::bind_addr(&name) else { continue };
        // Something else on this machine may have it.
        if TcpListener::bind(("127.0.0.1", port)).is_ok() && UdpSocket::bind(("127.0.0.1", port)).is_ok() {
            TAKEN.lock().unwrap_or_else(PoisonError::into_inner).push(reservation);
            return Ok(port);
        }
    }
    bail!("no port in {PORTS:?} is free")
}
