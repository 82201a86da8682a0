//! The kernel's state of a TCP connection (`TCP_INFO`).
#![expect(unsafe_code, reason = "neither nix nor socket2 reads this option")]

use std::io;
use std::mem::{MaybeUninit, size_of};
use std::os::fd::{AsFd, AsRawFd as _};
use std::time::Duration;

use nix::libc;

/// The state of one connection at one moment. Fields that an older kernel does not have are 0.
#[derive(Debug)]
pub(crate) struct TcpInfo(libc::tcp_info);

/// Reads the state.
///
/// # Errors
/// If the socket is not a TCP socket.
pub(crate) fn read(socket: &impl AsFd) -> io::Result<TcpInfo> {
    let mut info = MaybeUninit::<libc::tcp_info>::zeroed();
    let mut length = libc::socklen_t::try_from(size_of::<libc::tcp_info>()).expect("some hundred bytes");
    // SAFETY: the kernel writes at most `length` bytes, which is the size of what both pointers point to.
    let result = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            info.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it is made of integers, all of which are zero where the kernel has written nothing.
    Ok(TcpInfo(unsafe { info.assume_init() }))
}

impl TcpInfo {
    /// Whether data or a FIN is unacknowledged by the peer's kernel.
    pub(crate) fn has_unacknowledged(&self) -> bool {
        self.0.tcpi_unacked > 0 || self.0.tcpi_notsent_bytes > 0
    }

    /// Received segments: data, acknowledgements, and keepalive probes.
    pub(crate) fn segments_received(&self) -> u32 {
        self.0.tcpi_segs_in
    }

    /// Time since the last acknowledgement of the peer's kernel, including those of probes.
    pub(crate) fn since_acknowledgement(&self) -> Duration {
        Duration::from_millis(self.0.tcpi_last_ack_recv.into())
    }
}
