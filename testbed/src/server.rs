//! A server in a pod that says its pod's name.

use std::io::Write as _;
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use anyhow::Result;

use crate::Pod;

/// Accepts connections in a pod, writes the pod's name and closes; ends when dropped.
#[derive(Debug)]
pub struct NameServer {
    stop: Arc<AtomicBool>,
    address: String,
    pod: netns::NetNs,
    thread: Option<JoinHandle<()>>,
}

impl NameServer {
    /// Listens on `port` of the pod's address.
    ///
    /// # Errors
    /// As `bind(2)`.
    pub fn start(pod: &Pod, port: u16) -> Result<Self> {
        let address = format!("{}:{port}", pod.ip);
        let listener = pod.netns.run(|| TcpListener::bind(&address))??;
        let stop = Arc::new(AtomicBool::new(false));
        let (name, stopped) = (pod.name.clone(), Arc::clone(&stop));
        // The socket stays in the pod's namespace, whoever accepts on it.
        let thread = std::thread::spawn(move || {
            while let Ok((mut client, _)) = listener.accept() {
                if stopped.load(Ordering::Relaxed) {
                    return;
                }
                // A client that has gone is its own affair.
                drop(client.write_all(name.as_bytes()));
            }
        });
        let pod = netns::NetNs::open(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&std::os::fd::AsFd::as_fd(&pod.netns))))?;
        Ok(Self { stop, address, pod, thread: Some(thread) })
    }
}

impl Drop for NameServer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // One more connection, from inside the pod, wakes the accept.
        drop(self.pod.run(|| std::net::TcpStream::connect(&self.address)));
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}
