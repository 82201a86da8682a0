//! Closed loops: the next request is sent after the answer.

use std::io::{self, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream, UdpSocket};
use std::os::fd::AsFd as _;
use std::time::Instant;

use anyhow::Result;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

use super::{Block, DEADLINE, Destination, Load, Shape, resolve};

pub(super) fn run(block: &mut Block, load: Load, to: &Destination, end: Instant) -> Result<()> {
    let mut message = vec![7; load.message];
    match load.shape {
        Shape::Requests | Shape::Many if load.connections == 1 => {
            let mut stream = connect(to.echo)?;
            repeat(block, end, || exchange(&mut stream, &mut message))
        }
        Shape::Requests | Shape::Many | Shape::Open => many(block, load, to.echo, end),
        Shape::Connections => repeat(block, end, || exchange(&mut connect(to.echo)?, &mut message)),
        Shape::Cold => repeat(block, end, || {
            let ip = resolve::resolve(&to.host)?;
            exchange(&mut connect(SocketAddr::new(ip, to.echo.port()))?, &mut message)
        }),
        Shape::Stream => stream(block, to.sink, end),
        Shape::Datagrams => {
            let unspecified = if to.echo.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
            let socket = UdpSocket::bind(unspecified)?;
            socket.connect(to.echo)?;
            socket.set_read_timeout(Some(DEADLINE))?;
            repeat(block, end, || {
                socket.send(&message)?;
                socket.recv(&mut message).map(|_length| ())
            })
        }
    }
}

fn repeat(block: &mut Block, end: Instant, mut request: impl FnMut() -> io::Result<()>) -> Result<()> {
    loop {
        let started = Instant::now();
        if started >= end {
            return Ok(());
        }
        match request() {
            Ok(()) => block.answered(started)?,
            Err(_) => block.errors += 1,
        }
    }
}

/// Many connections in one thread; each sends the next request after its answer.
fn many(block: &mut Block, load: Load, address: SocketAddr, end: Instant) -> Result<()> {
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    let mut streams = Vec::new();
    let mut message = vec![7; load.message];
    for number in 0..load.connections {
        let mut stream = connect(address)?;
        epoll.add(stream.as_fd(), EpollEvent::new(EpollFlags::EPOLLIN, number as u64))?;
        stream.write_all(&message)?;
        streams.push((stream, Instant::now()));
    }
    let mut events = vec![EpollEvent::empty(); load.connections];
    while Instant::now() < end {
        let count = epoll.wait(&mut events, EpollTimeout::try_from(DEADLINE)?)?;
        anyhow::ensure!(count > 0, "no answer within {DEADLINE:?}");
        for event in &events[..count] {
            let (stream, sent) = &mut streams[usize::try_from(event.data())?];
            match stream.read_exact(&mut message) {
                Ok(()) => block.answered(*sent)?,
                Err(_) => block.errors += 1,
            }
            *sent = Instant::now();
            stream.write_all(&message)?;
        }
    }
    Ok(())
}

/// Sends a stream. The time counts until the receiver confirms the last byte.
fn stream(block: &mut Block, address: SocketAddr, end: Instant) -> Result<()> {
    let mut stream = connect(address)?;
    let buffer = vec![7; 256 * 1024];
    while Instant::now() < end {
        stream.write_all(&buffer)?;
    }
    stream.shutdown(Shutdown::Write)?;
    let mut total = [0; 8];
    stream.read_exact(&mut total)?;
    block.units = u64::from_be_bytes(total) as f64 / f64::from(1 << 20);
    Ok(())
}

pub(super) fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&address, DEADLINE)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(DEADLINE))?;
    Ok(stream)
}

fn exchange(stream: &mut TcpStream, message: &mut [u8]) -> io::Result<()> {
    stream.write_all(message)?;
    stream.read_exact(message)
}
