//! The server of the upstream tests, `agnhost netexec`: it answers with its name, the client's address or an
//! echo, over HTTP and UDP.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use netns::NetNs;
use nix::sys::socket;
use testbed::{Cluster, Node, Pod};

/// The port of the server, as upstream.
pub(crate) const PORT: u16 = 8080;

/// Deadline of an answer, long enough for a busy machine.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Deadline of an answer where the datagram may be lost.
const ATTEMPT: Duration = Duration::from_millis(500);

/// The location of a client or server: a pod, the node's network, or the external network.
#[derive(Clone, Copy)]
pub(crate) enum Location<'a> {
    Pod(&'a Pod),
    Node(&'a Node),
    Outside(&'a NetNs),
}

/// The protocol of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocol {
    Http,
    Udp,
}

pub(crate) const PROTOCOLS: [Protocol; 2] = [Protocol::Http, Protocol::Udp];

/// The server. Stops when dropped.
pub(crate) struct Agnhost {
    listener: TcpListener,
    is_done: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

/// A client that keeps its UDP socket, and so its port.
pub(crate) struct Flow(UdpSocket);

impl Location<'_> {
    pub(crate) fn run<T: Send>(self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        match self {
            Self::Pod(pod) => pod.netns.run(work)?,
            Self::Node(node) => node.run(work),
            Self::Outside(netns) => netns.run(work)?,
        }
    }

    /// Sends one request from a new socket.
    pub(crate) fn ask(self, protocol: Protocol, address: &str, question: &str) -> Result<String> {
        self.run(|| match protocol {
            Protocol::Http => get(address, question),
            Protocol::Udp => Flow::open(address)?.ask(question),
        })
    }
}

impl Agnhost {
    /// Starts the server on port 8080 of this address.
    pub(crate) fn start(location: Location<'_>, ip: &str, name: &str) -> Self {
        let at = SocketAddr::new(ip.parse().unwrap(), PORT);
        let bind = || Ok((TcpListener::bind(at)?, UdpSocket::bind(at)?));
        let (listener, datagrams) = location.run(bind).unwrap();
        let is_done = Arc::new(AtomicBool::new(false));
        let (accepting, own) = (listener.try_clone().unwrap(), name.to_owned());
        let http = std::thread::spawn(move || {
            while let Ok((client, from)) = accepting.accept() {
                let own = own.clone();
                // A thread for each client, so that an idle client does not block others. It ends with the
                // connection.
                std::thread::spawn(move || serve(client, from, &own).ok());
            }
        });
        let (udp_done, own) = (Arc::clone(&is_done), name.to_owned());
        datagrams.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        let udp = std::thread::spawn(move || answer_datagrams(&datagrams, &udp_done, &own));
        Self { listener, is_done, threads: vec![http, udp] }
    }

    /// Starts the server in a pod, on its address.
    pub(crate) fn in_pod(pod: &Pod) -> Self {
        Self::start(Location::Pod(pod), &pod.ip, &pod.name)
    }
}

impl Drop for Agnhost {
    fn drop(&mut self) {
        self.is_done.store(true, Ordering::Relaxed);
        socket::shutdown(self.listener.as_raw_fd(), socket::Shutdown::Both).unwrap();
        for thread in self.threads.drain(..) {
            thread.join().unwrap();
        }
    }
}

impl Flow {
    /// Opens a flow in the network namespace of the calling thread.
    pub(crate) fn open(address: &str) -> Result<Self> {
        let to: SocketAddr = address.parse()?;
        let any = if to.is_ipv4() { IpAddr::from([0; 4]) } else { IpAddr::from([0; 16]) };
        let socket = UdpSocket::bind((any, 0))?;
        socket.connect(to)?;
        socket.set_read_timeout(Some(TIMEOUT))?;
        Ok(Self(socket))
    }

    pub(crate) fn ask(&self, question: &str) -> Result<String> {
        self.0.send(question.as_bytes())?;
        let mut answer = vec![0; 65_535];
        let length = self.0.recv(&mut answer)?;
        answer.truncate(length);
        Ok(String::from_utf8(answer)?)
    }

    /// As [`Flow::ask`], with a short deadline for datagrams that may be lost.
    pub(crate) fn try_ask(&self, question: &str) -> Result<String> {
        self.0.set_read_timeout(Some(ATTEMPT))?;
        let answer = self.ask(question);
        self.0.set_read_timeout(Some(TIMEOUT))?;
        answer
    }
}

/// Starts a pod of application `app` with the server, and writes its manifest.
pub(crate) fn agnhost(cluster: &Cluster, name: &str, app: &str) -> (Pod, Agnhost) {
    let pod = cluster.add_pod(name).unwrap();
    let server = Agnhost::in_pod(&pod);
    cluster.apply(&format!("pod-{name}.yaml"), &super::pod_manifest(name, app, "")).unwrap();
    (pod, server)
}

/// Sends one HTTP request in the network namespace of the calling thread. The path is the question.
fn get(address: &str, question: &str) -> Result<String> {
    let mut stream = TcpStream::connect_timeout(&address.parse()?, TIMEOUT)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.write_all(format!("GET /{question} HTTP/1.1\r\nHost: {address}\r\n\r\n").as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").context("no answer")?;
    ensure!(head.starts_with("HTTP/1.1 200"), "{head}");
    Ok(body.to_owned())
}

fn serve(mut client: TcpStream, from: SocketAddr, name: &str) -> Result<()> {
    client.set_read_timeout(Some(Duration::from_secs(30)))?;
    let mut request = Vec::new();
    let mut buffer = [0; 4096];
    while !request.ends_with(b"\r\n\r\n") {
        match client.read(&mut buffer)? {
            0 => return Ok(()),
            length => request.extend(&buffer[..length]),
        }
    }
    let request = String::from_utf8(request)?;
    let question = request.split(' ').nth(1).unwrap_or_default().trim_start_matches('/');
    let body = answer(question, from, name);
    write!(client, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len())?;
    Ok(())
}

fn answer_datagrams(socket: &UdpSocket, is_done: &AtomicBool, name: &str) {
    let mut question = vec![0; 65_535];
    while !is_done.load(Ordering::Relaxed) {
        match socket.recv_from(&mut question) {
            Ok((length, from)) => {
                let reply = answer(&String::from_utf8_lossy(&question[..length]), from, name);
                // The client may have closed its socket.
                let _ = socket.send_to(reply.as_bytes(), from);
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            // The ICMP error of an earlier answer.
            Err(_) => {}
        }
    }
}

fn answer(question: &str, from: SocketAddr, name: &str) -> String {
    match question {
        "hostname" => name.to_owned(),
        "clientip" => from.ip().to_string(),
        other => other.strip_prefix("echo?msg=").unwrap_or_default().to_owned(),
    }
}
