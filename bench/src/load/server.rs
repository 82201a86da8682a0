//! The servers of the load, in a pod: one echoes messages, one discards streams. They run on another core
//! than the client: left to the scheduler, medians have two modes.

use std::collections::HashMap;
use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd as _;

use netns::NetNs;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

use crate::cores;

/// Port of the echo server, TCP and UDP.
pub(crate) const ECHO_PORT: u16 = 9090;

/// Port of the server that discards a stream and replies with its length (eight bytes, big-endian).
pub(crate) const SINK_PORT: u16 = 9091;

/// Starts the servers. They run until the process exits.
pub(crate) fn start(pod: &NetNs, address: IpAddr) -> anyhow::Result<()> {
    let at = |port| SocketAddr::new(address, port);
    let echo = pod.run(|| TcpListener::bind(at(ECHO_PORT)))??;
    let sink = pod.run(|| TcpListener::bind(at(SINK_PORT)))??;
    let datagrams = pod.run(|| UdpSocket::bind(at(ECHO_PORT)))??;
    spawn(move || echo_streams(&echo));
    spawn(move || {
        for stream in sink.incoming().flatten() {
            std::thread::spawn(move || discard(stream));
        }
        Ok(())
    });
    spawn(move || {
        let mut message = [0; 65_535];
        while let Ok((length, from)) = datagrams.recv_from(&mut message) {
            // The client may have closed its socket.
            let _ = datagrams.send_to(&message[..length], from);
        }
        Ok(())
    });
    Ok(())
}

/// Starts a thread, and the threads that it starts, on the servers' core.
fn spawn(work: impl FnOnce() -> io::Result<()> + Send + 'static) {
    std::thread::spawn(move || {
        // Without a second core the thread is not pinned.
        let _ = cores::pin_server();
        // The server ends with an error when its namespace is removed.
        let _ = work();
    });
}

/// Starts the servers on 127.0.0.1, for the cost of a request without a network.
pub(crate) fn start_on_loopback(pod: &NetNs) -> anyhow::Result<()> {
    start(pod, IpAddr::from([127, 0, 0, 1]))
}

fn echo_streams(listener: &TcpListener) -> io::Result<()> {
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    let readable = |data| EpollEvent::new(EpollFlags::EPOLLIN, data);
    epoll.add(listener, readable(0))?;
    let mut streams: HashMap<u64, TcpStream> = HashMap::new();
    let mut events = [EpollEvent::empty(); 64];
    let mut message = [0; 65_536];
    loop {
        let count = epoll.wait(&mut events, EpollTimeout::NONE)?;
        for event in &events[..count] {
            if event.data() == 0 {
                let Ok((stream, _)) = listener.accept() else { continue };
                stream.set_nodelay(true)?;
                let number = u64::try_from(stream.as_raw_fd()).map_err(io::Error::other)?;
                epoll.add(&stream, readable(number))?;
                streams.insert(number, stream);
            } else if let Some(stream) = streams.get_mut(&event.data()) {
                let length = stream.read(&mut message).unwrap_or(0);
                if length == 0 || stream.write_all(&message[..length]).is_err() {
                    // Closing removes it from the epoll set.
                    streams.remove(&event.data());
                }
            }
        }
    }
}

fn discard(mut stream: TcpStream) -> io::Result<()> {
    let (mut buffer, mut total) = (vec![0; 256 * 1024], 0_u64);
    loop {
        let length = stream.read(&mut buffer)?;
        if length == 0 {
            return stream.write_all(&total.to_be_bytes());
        }
        total += length as u64;
    }
}
