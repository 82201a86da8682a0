//! A server in a pod that says its pod's name.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::AsRawFd as _;
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::Result;
use nix::sys::socket;

use crate::Pod;

/// Accepts connections in a pod, writes the pod's name and closes; ends when dropped.
#[derive(Debug)]
pub struct HostnameServer {
    listener: TcpListener,
    thread: Option<JoinHandle<()>>,
}

impl HostnameServer {
    /// Listens on `port` of the pod's address.
    ///
    /// # Errors
    /// As `bind(2)`.
    pub fn start(pod: &Pod, port: u16) -> Result<Self> {
        // The socket stays in the pod's namespace, whoever accepts on it.
        let listener = pod.netns.run(|| TcpListener::bind((pod.ip.as_str(), port)))??;
        let accepting = listener.try_clone()?;
        let name = pod.name.clone();
        let thread = std::thread::spawn(move || {
            while let Ok((client, _)) = accepting.accept() {
                // A client that has gone is its own affair.
                drop(answer(client, &name));
            }
        });
        Ok(Self { listener, thread: Some(thread) })
    }
}

impl Drop for HostnameServer {
    fn drop(&mut self) {
        // Wakes the accept, also when the pod's interface has gone.
        let woken = socket::shutdown(self.listener.as_raw_fd(), socket::Shutdown::Both);
        woken.expect("a listening socket can be shut down");
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

fn answer(mut client: TcpStream, name: &str) -> std::io::Result<()> {
    client.write_all(name.as_bytes())?;
    client.shutdown(Shutdown::Write)?;
    // Closing with a request unread would be a reset.
    client.set_read_timeout(Some(Duration::from_secs(1)))?;
    let mut request = [0; 1024];
    while client.read(&mut request)? > 0 {}
    Ok(())
}
