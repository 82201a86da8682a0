//! What the load is sent to: answers every message with itself, swallows streams. In a pod, on the core that the client is not
//! on: where the scheduler puts them together or apart, medians have two modes.

use std::collections::HashMap;
use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd as _;

use netns::NetNs;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

use crate::cores;

/// Port that echoes, TCP and UDP.
pub(crate) const ECHO_PORT: u16 = 9090;

/// Port that swallows a stream and says how many bytes it had (eight, big-endian).
pub(crate) const SINK_PORT: u16 = 9091;

/// Starts the servers, which live as long as the process.
pub(crate) fn start(pod: &NetNs, address: IpAddr) -> anyhow::Result<()> {
    let at = |port| SocketAddr::new(address, port);
    let echo = pod.run(|| TcpListener::bind(at(ECHO_PORT)))??;
    let sink = pod.run(|| TcpListener::bind(at(SINK_PORT)))??;
    let datagrams = pod.run(|| UdpSocket::bind(at(ECHO_PORT)))??;
    spawn(move || echo_streams(&echo));
    spawn(move || {
        for stream in sink.incoming().flatten() {
            std::thread::spawn(move || swallow(stream));
        }
        Ok(())
    });
    spawn(move || {
        let mut message = [0; 65_535];
        while let Ok((length, from)) = datagrams.recv_from(&mut message) {
            // A client that has gone is its own affair.
            drop(datagrams.send_to(&message[..length], from));
        }
        Ok(())
    });
    Ok(())
}

/// A thread on the servers' core, with all that it starts.
fn spawn(work: impl FnOnce() -> io::Result<()> + Send + 'static) {
    std::thread::spawn(move || {
        // Where there is nothing to choose, it stays where it is.
        drop(cores::pin_server());
        // A server whose namespace goes has nothing to say.
        drop(work());
    });
}

/// The same on 127.0.0.1: what a request costs where no network is between.
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
                    // Closing takes it out of the epoll set.
                    streams.remove(&event.data());
                }
            }
        }
    }
}

fn swallow(mut stream: TcpStream) -> io::Result<()> {
    let (mut buffer, mut total) = (vec![0; 256 * 1024], 0_u64);
    loop {
        let length = stream.read(&mut buffer)?;
        if length == 0 {
            return stream.write_all(&total.to_be_bytes());
        }
        total += length as u64;
    }
}
