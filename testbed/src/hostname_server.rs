//! A server in a pod that answers with the pod's name.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::AsRawFd as _;
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::Result;
use nix::sys::socket;

use crate::Pod;

/// Accepts connections in a pod, writes the pod's name and closes. Stops when dropped.
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
        // The socket stays in the pod's namespace, whichever thread accepts.
        let listener = pod.netns.run(|| TcpListener::bind((pod.ip.as_str(), port)))??;
        let accepting = listener.try_clone()?;
        let name = pod.name.clone();
        let thread = std::thread::spawn(move || {
            while let Ok((client, _)) = accepting.accept() {
                // The client may have closed the connection.
                let _ = answer(client, &name);
            }
        });
        Ok(Self { listener, thread: Some(thread) })
    }
}

impl Drop for HostnameServer {
    fn drop(&mut self) {
        // Wakes the accepting thread, also after the pod's interface was removed.
        let woken = socket::shutdown(self.listener.as_raw_fd(), socket::Shutdown::Both);
        woken.expect("a listening socket can be shut down");
        if let Some(thread) = self.thread.take() {
            // A panic of the server thread fails the request of the test.
            let _ = thread.join();
        }
    }
}

fn answer(mut client: TcpStream, name: &str) -> std::io::Result<()> {
    client.write_all(name.as_bytes())?;
    client.shutdown(Shutdown::Write)?;
    // Closing with unread data would send a reset.
    client.set_read_timeout(Some(Duration::from_secs(1)))?;
    let mut request = [0; 1024];
    while client.read(&mut request)? > 0 {}
    Ok(())
}
