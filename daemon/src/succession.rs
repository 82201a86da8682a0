//! Sockets passed from a running process to the one that takes its place, so that nothing is lost that waits
//! in them.
//!
//! The old process listens at an abstract unix address: network namespaces have their own, as they have the
//! sockets, and nothing is left of it when the process is killed. The new one connects and is given the
//! sockets (`SCM_RIGHTS`) and a note. Both have the same sockets now, and the old one goes on with them until
//! the new one says that it has begun. If either of them dies before that, the other one serves.

use std::cell::Cell;
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, FromRawFd as _, OwnedFd, RawFd};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixListener as StdListener, UnixStream as StdStream};
use std::time::Duration;

use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};
use nix::unistd::geteuid;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, Interest};
use tokio::net::{UnixListener, UnixStream};
use tokio::time::timeout;

/// Descriptors a message; the kernel takes 253 (`SCM_MAX_FD`).
const CHUNK: usize = 128;

/// The other process does nothing else while it talks to us.
const PATIENCE: Duration = Duration::from_secs(5);

/// How often a name is tried again that another process has.
const HOLD_INTERVAL: Duration = Duration::from_millis(200);

/// A note is a key or a counter, no more.
const MAX_NOTE: usize = 4096;

/// More sockets than this are not ours.
const MAX_SOCKETS: usize = 16 * 1024;

/// What the process before has left.
#[derive(Debug)]
pub struct Inheritance {
    /// What it wrote down for us.
    pub note: Vec<u8>,
    /// Its sockets, in no order: each knows its type and its address.
    pub sockets: Vec<OwnedFd>,
    /// The process itself, which still serves.
    pub predecessor: Predecessor,
}

/// A process that serves until it is relieved.
#[derive(Debug)]
pub struct Predecessor(UnixStream);

/// The process that serves under a name; successors come to ask.
#[derive(Debug)]
pub struct Incumbent(UnixListener);

/// Asks the process that serves under this name, if there is one.
///
/// # Errors
/// When there is one and it does not hand over: it belongs to another user, or has handed over already, or it
/// hangs.
pub async fn inherit(name: &str) -> io::Result<Option<Inheritance>> {
    let stream = match StdStream::connect_addr(&SocketAddr::from_abstract_name(name)?) {
        Ok(stream) => stream,
        Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => return Ok(None),
        Err(e) => return Err(e),
    };
    stream.set_nonblocking(true)?;
    let mut stream = UnixStream::from_std(stream)?;
    check_owner(&stream)?;
    let (note, sockets) = timeout(PATIENCE, receive(&mut stream)).await??;
    Ok(Some(Inheritance { note, sockets, predecessor: Predecessor(stream) }))
}

/// Holds a name for as long as this runs; as soon as the process that has it gives it up. Cancel-safe: the
/// name is free then.
pub async fn hold(name: &str) {
    loop {
        let taken = SocketAddr::from_abstract_name(name).and_then(|address| StdListener::bind_addr(&address));
        if let Ok(_held) = taken {
            return std::future::pending().await;
        }
        tokio::time::sleep(HOLD_INTERVAL).await;
    }
}

impl Predecessor {
    /// Returns when it has ended without being relieved. Cancel-safe.
    pub async fn ended(&self) {
        // It says nothing more: all there is to read is the end.
        while self.0.readable().await.is_ok() {
            match self.0.try_read(&mut [0]) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                _ => return,
            }
        }
    }

    /// Notifies it that we serve, and waits until no other process can query it.
    pub async fn relieve(mut self) {
        let mut end = [0];
        let farewell = async {
            self.0.write_all(b"!").await?;
            self.0.read(&mut end).await
        };
        // If it hangs or has exited, this process serves.
        let _ = timeout(PATIENCE, farewell).await;
    }
}

impl Incumbent {
    /// Takes the place under this name.
    ///
    /// # Errors
    /// `AddrInUse` when another process has it.
    pub fn take(name: &str) -> io::Result<Self> {
        let listener = StdListener::bind_addr(&SocketAddr::from_abstract_name(name)?)?;
        listener.set_nonblocking(true)?;
        Ok(Self(UnixListener::from_std(listener)?))
    }

    /// Hands note and sockets to whoever comes, one after the other, until one of them serves. `is_claimed`
    /// says whether another process has them and has not begun yet.
    pub async fn await_successor(self, note: &[u8], sockets: &[OwnedFd], is_claimed: &Cell<bool>) {
        loop {
            let Ok((mut stream, _)) = self.0.accept().await else {
                // As after any failed accept: descriptors may be short.
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            };
            let handed = async {
                check_owner(&stream)?;
                timeout(PATIENCE, send(&mut stream, note, sockets)).await??;
                tracing::info!("a successor has the sockets");
                is_claimed.set(true);
                let mut word = [0];
                // It reads its files first, which may take any time; if it dies, the connection ends.
                stream.read_exact(&mut word).await
            };
            let handed = handed.await;
            is_claimed.set(false);
            match handed {
                Ok(_) => {
                    // In this order: when the connection ends, the name is free.
                    drop(self.0);
                    return;
                }
                Err(error) => tracing::warn!(%error, "a successor has not taken over"),
            }
        }
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

async fn receive(stream: &mut UnixStream) -> io::Result<(Vec<u8>, Vec<OwnedFd>)> {
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
    async fn what_waits_in_a_socket_passes_to_the_successor() {
        let name = name("waits");
        assert!(inherit(&name).await.unwrap().is_none());
        let sockets: Vec<UdpSocket> = (0..300).map(|_| UdpSocket::bind("127.0.0.1:0").unwrap()).collect();
        let address = sockets[299].local_addr().unwrap();
        UdpSocket::bind("127.0.0.1:0").unwrap().send_to(b"early", address).unwrap();
        let sockets: Vec<OwnedFd> = sockets.into_iter().map(OwnedFd::from).collect();
        let (incumbent, is_claimed) = (Incumbent::take(&name).unwrap(), Cell::new(false));
        let old = async {
            incumbent.await_successor(b"secret", &sockets, &is_claimed).await;
            drop(sockets);
        };
        let new = async {
            // One that gives up changes nothing.
            drop(inherit(&name).await.unwrap());
            let inheritance = inherit(&name).await.unwrap().unwrap();
            let ended = timeout(Duration::from_millis(50), inheritance.predecessor.ended()).await;
            assert!(ended.is_err() && is_claimed.get(), "it is still there");
            assert_eq!((&inheritance.note[..], inheritance.sockets.len()), (&b"secret"[..], 300));
            inheritance.predecessor.relieve().await;
            drop(Incumbent::take(&name).unwrap());
            assert!(!is_claimed.get());
            inheritance.sockets
        };
        let ((), inherited) = tokio::join!(old, new);
        let found = inherited.into_iter().map(UdpSocket::from).find(|s| s.local_addr().unwrap() == address);
        let mut buffer = [0; 8];
        assert_eq!(found.unwrap().recv(&mut buffer).unwrap(), 5);
    }

    #[tokio::test]
    async fn a_predecessor_that_dies_is_noticed() {
        let name = name("dies");
        let (incumbent, is_claimed) = (Incumbent::take(&name).unwrap(), Cell::new(false));
        let inheritance = async { inherit(&name).await.unwrap().unwrap() };
        let inheritance = tokio::select! {
            () = incumbent.await_successor(b"", &[], &is_claimed) => unreachable!(),
            inheritance = inheritance => inheritance,
        };
        // The select has dropped it.
        inheritance.predecessor.ended().await;
        assert!(inherit(&name).await.unwrap().is_none());
    }
}
