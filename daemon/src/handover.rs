//! Hot restart: the next process takes over from the running one, and nothing that waits in a socket is lost.
//!
//! The running process listens at an abstract unix address, its name. A network namespace has its own
//! abstract addresses, as it has its own sockets, and the kernel removes an address with its process. The
//! next process connects at its start and receives the sockets (`SCM_RIGHTS`) and a note. The running
//! process continues with the same sockets, and reports that it is claimed ([`Claim`]). The next process
//! tells it to stop once it serves itself. If either process exits before that, the other one serves.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, FromRawFd as _, OwnedFd, RawFd};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixListener as StdListener, UnixStream as StdStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};
use nix::unistd::geteuid;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, Interest};
use tokio::net::{UnixListener, UnixStream};
use tokio::time::timeout;

use crate::readiness::Condition;

/// Descriptors a message; the kernel takes 253 (`SCM_MAX_FD`).
const CHUNK: usize = 128;

/// How long one step of the protocol may take.
const TIMEOUT: Duration = Duration::from_secs(5);

/// How often a name is tried again that another process has.
const RETRY_INTERVAL: Duration = Duration::from_millis(200);

/// A note is a key or a counter, no more.
const MAX_NOTE: usize = 4096;

/// More sockets than this are not ours.
const MAX_SOCKETS: usize = 16 * 1024;

/// What the previous process has handed over.
#[derive(Debug)]
pub struct Handover {
    /// Its note.
    pub note: Vec<u8>,
    /// Its sockets, in no order: each knows its type and its address.
    pub sockets: Vec<OwnedFd>,
    /// The process itself, which still serves.
    pub previous: Previous,
}

/// A process that serves until [`Previous::stop`].
#[derive(Debug)]
pub struct Previous(UnixStream);

/// The process that serves under a name.
#[derive(Debug)]
pub struct Current(UnixListener);

/// Whether a next process has received the sockets and does not serve yet.
#[derive(Clone, Debug, Default)]
pub struct Claim(Arc<AtomicBool>);

/// Receives sockets and note of the process that serves under `name`, if there is one.
///
/// # Errors
/// When there is one and it does not hand over: it belongs to another user, has handed over to another
/// process already, or hangs.
pub async fn receive(name: &str) -> io::Result<Option<Handover>> {
    let stream = match StdStream::connect_addr(&SocketAddr::from_abstract_name(name)?) {
        Ok(stream) => stream,
        Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => return Ok(None),
        Err(e) => return Err(e),
    };
    stream.set_nonblocking(true)?;
    let mut stream = UnixStream::from_std(stream)?;
    check_owner(&stream)?;
    let (note, sockets) = timeout(TIMEOUT, read_handover(&mut stream)).await??;
    Ok(Some(Handover { note, sockets, previous: Previous(stream) }))
}

/// Whether a process serves under `name`.
pub fn is_held(name: &str) -> bool {
    bind(name).is_err_and(|error| error.kind() == io::ErrorKind::AddrInUse)
}

/// Holds `name` as soon as no other process has it, and until the future is dropped. Cancel-safe.
pub async fn hold(name: &str) {
    loop {
        if let Ok(_held) = bind(name) {
            return std::future::pending().await;
        }
        tokio::time::sleep(RETRY_INTERVAL).await;
    }
}

fn bind(name: &str) -> io::Result<StdListener> {
    StdListener::bind_addr(&SocketAddr::from_abstract_name(name)?)
}

impl Previous {
    /// Returns when the process has exited. Cancel-safe.
    pub async fn exited(&self) {
        // It sends nothing more: all there is to read is the end.
        while self.0.readable().await.is_ok() {
            match self.0.try_read(&mut [0]) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                _ => return,
            }
        }
    }

    /// Tells the process that this one serves, and waits until its name is free.
    pub async fn stop(mut self) {
        let mut end = [0];
        let stop = async {
            self.0.write_all(b"!").await?;
            self.0.read(&mut end).await
        };
        // If it hangs or has exited, this process serves.
        let _ = timeout(TIMEOUT, stop).await;
    }
}

impl Current {
    /// Takes `name`. If a process still has it, because it did not hand over when this one started, this stops
    /// that process as soon as it accepts a connection.
    pub async fn take(name: &str) -> Self {
        let mut is_reported = false;
        loop {
            let listener = bind(name).and_then(|listener| {
                listener.set_nonblocking(true)?;
                UnixListener::from_std(listener)
            });
            match listener {
                Ok(listener) => return Self(listener),
                Err(error) if !is_reported => {
                    tracing::warn!(%error, name, "the next process cannot find this one yet, trying again");
                    is_reported = true;
                }
                Err(_) => {}
            }
            if let Ok(Some(handover)) = receive(name).await {
                handover.previous.stop().await;
            }
            tokio::time::sleep(RETRY_INTERVAL).await;
        }
    }

    /// Hands note and sockets to each process that connects, one after the other, until one of them serves.
    pub async fn await_next(self, note: &[u8], sockets: &[OwnedFd], claim: &Claim) {
        loop {
            let Ok((mut stream, _)) = self.0.accept().await else {
                // As after any failed accept: descriptors may be short.
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            };
            let handed = async {
                check_owner(&stream)?;
                timeout(TIMEOUT, send(&mut stream, note, sockets)).await??;
                tracing::info!("the next process has started");
                claim.set(true);
                let mut word = [0];
                // It reads its sources first, which may take any time; if it exits, the connection ends.
                stream.read_exact(&mut word).await
            };
            let handed = handed.await;
            claim.set(false);
            match handed {
                Ok(_) => {
                    // In this order: when the connection ends, the name is free.
                    drop(self.0);
                    return;
                }
                Err(error) => tracing::warn!(%error, "the next process has not taken over"),
            }
        }
    }
}

impl Claim {
    /// Whether a next process is about to serve.
    pub fn is_claimed(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    fn set(&self, is_claimed: bool) {
        self.0.store(is_claimed, Ordering::Relaxed);
    }

    /// Both processes answer at the same addresses. A kubelet that waits for the next one must not take the
    /// answer of the running one for its own, so this one is not ready either.
    pub fn readiness(&self) -> Condition {
        let detail = if self.is_claimed() {
            "this process serves; the next one has started and does not serve yet"
        } else {
            "no next process is starting"
        };
        Condition { ready: !self.is_claimed(), detail: detail.to_owned() }
    }
}

/// Abstract addresses have no permissions.
fn check_owner(stream: &UnixStream) -> io::Result<()> {
    let other = stream.peer_cred()?.uid();
    if other == geteuid().as_raw() || other == 0 {
        return Ok(());
    }
    let text = format!("the process at the other end belongs to user {other}");
    Err(io::Error::new(io::ErrorKind::PermissionDenied, text))
}

async fn send(stream: &mut UnixStream, note: &[u8], sockets: &[OwnedFd]) -> io::Result<()> {
    for length in [note.len(), sockets.len()] {
        stream.write_u32(u32::try_from(length).map_err(io::Error::other)?).await?;
    }
    stream.write_all(note).await?;
    for chunk in sockets.chunks(CHUNK) {
        let raw: Vec<RawFd> = chunk.iter().map(AsRawFd::as_raw_fd).collect();
        let rights = [ControlMessage::ScmRights(&raw)];
        stream
            .async_io(Interest::WRITABLE, || {
                // A byte that carries them.
                let byte = [IoSlice::new(b"+")];
                Ok(sendmsg::<()>(stream.as_raw_fd(), &byte, &rights, MsgFlags::MSG_NOSIGNAL, None)?)
            })
            .await?;
    }
    Ok(())
}

async fn read_handover(stream: &mut UnixStream) -> io::Result<(Vec<u8>, Vec<OwnedFd>)> {
    let (length, count) = (stream.read_u32().await? as usize, stream.read_u32().await? as usize);
    if length > MAX_NOTE || count > MAX_SOCKETS {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut note = vec![0; length];
    stream.read_exact(&mut note).await?;
    let mut sockets = Vec::new();
    while sockets.len() < count {
        let found = stream.async_io(Interest::READABLE, || receive_chunk(stream.as_raw_fd())).await?;
        if found.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        sockets.extend(found);
    }
    Ok((note, sockets))
}

#[expect(unsafe_code, reason = "no safe wrapper takes descriptors out of a message")]
fn receive_chunk(stream: RawFd) -> io::Result<Vec<OwnedFd>> {
    let mut byte = [0];
    let mut vectors = [IoSliceMut::new(&mut byte)];
    let mut space = nix::cmsg_space!([RawFd; CHUNK]);
    let message = recvmsg::<()>(stream, &mut vectors, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC)?;
    let mut found = Vec::new();
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(raw) = control {
            // SAFETY: the kernel has just made these descriptors for us, and no other code has them.
            found.extend(raw.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use super::*;

    fn name(test: &str) -> String {
        format!("portolan-test/{test}/{}", std::process::id())
    }

    #[tokio::test]
    async fn queued_datagrams_reach_the_next_process() {
        let name = name("queued");
        assert!(receive(&name).await.unwrap().is_none() && !is_held(&name));
        let sockets: Vec<UdpSocket> = (0..300).map(|_| UdpSocket::bind("127.0.0.1:0").unwrap()).collect();
        let address = sockets[299].local_addr().unwrap();
        UdpSocket::bind("127.0.0.1:0").unwrap().send_to(b"early", address).unwrap();
        let sockets: Vec<OwnedFd> = sockets.into_iter().map(OwnedFd::from).collect();
        let (current, claim) = (Current::take(&name).await, Claim::default());
        let running = async {
            current.await_next(b"secret", &sockets, &claim).await;
            drop(sockets);
        };
        let next = async {
            // A process that exits before it serves changes nothing.
            drop(receive(&name).await.unwrap());
            let handover = receive(&name).await.unwrap().unwrap();
            let exited = timeout(Duration::from_millis(50), handover.previous.exited()).await;
            assert!(exited.is_err() && claim.is_claimed() && !claim.readiness().ready, "it still runs");
            assert_eq!((&handover.note[..], handover.sockets.len()), (&b"secret"[..], 300));
            assert!(is_held(&name));
            handover.previous.stop().await;
            assert!(!is_held(&name) && claim.readiness().ready);
            handover.sockets
        };
        let ((), received) = tokio::join!(running, next);
        let found = received.into_iter().map(UdpSocket::from).find(|s| s.local_addr().unwrap() == address);
        let mut buffer = [0; 8];
        assert_eq!(found.unwrap().recv(&mut buffer).unwrap(), 5);
    }

    #[tokio::test]
    async fn exit_of_the_previous_process_is_noticed() {
        let name = name("exit");
        let (current, claim) = (Current::take(&name).await, Claim::default());
        let handover = async { receive(&name).await.unwrap().unwrap() };
        let handover = tokio::select! {
            () = current.await_next(b"", &[], &claim) => unreachable!(),
            handover = handover => handover,
        };
        // The select has dropped it.
        handover.previous.exited().await;
        assert!(receive(&name).await.unwrap().is_none());
    }

    #[tokio::test]
    async fn process_that_did_not_hand_over_is_told_to_stop_later() {
        let name = name("late");
        let (current, claim) = (Current::take(&name).await, Claim::default());
        let (_next, ()) = tokio::join!(Current::take(&name), current.await_next(b"", &[], &claim));
    }
}
