//! What the upstream tests run in their pods, `agnhost netexec`: a server that says its name, its client's address or
//! what it was told, over HTTP and over UDP.

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

/// The port that all of them listen on, as upstream.
pub(crate) const PORT: u16 = 8080;

/// How long a client waits for an answer: longer than a busy machine takes.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long it waits where a datagram may be lost.
const ATTEMPT: Duration = Duration::from_millis(500);

/// Where something runs: in a pod, with `hostNetwork: true` on a node, or beyond the node's uplink.
#[derive(Clone, Copy)]
pub(crate) enum Place<'a> {
    Pod(&'a Pod),
    Node(&'a Node),
    Outside(&'a NetNs),
}

/// Which way a question is put.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    Http,
    Udp,
}

pub(crate) const WAYS: [Way; 2] = [Way::Http, Way::Udp];

/// Ends when dropped.
pub(crate) struct Agnhost {
    listener: TcpListener,
    over: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

/// A client that keeps its UDP socket, and so its port.
pub(crate) struct Flow(UdpSocket);

impl Place<'_> {
    pub(crate) fn run<T: Send>(self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        match self {
            Self::Pod(pod) => pod.netns.run(work)?,
            Self::Node(node) => node.run(work),
            Self::Outside(netns) => netns.run(work)?,
        }
    }

    /// Asks once, from a new socket.
    pub(crate) fn ask(self, way: Way, address: &str, question: &str) -> Result<String> {
        self.run(|| match way {
            Way::Http => get(address, question),
            Way::Udp => Flow::open(address)?.ask(question),
        })
    }
}

impl Agnhost {
    /// Answers on port 8080 of this address.
    pub(crate) fn start(place: Place<'_>, ip: &str, name: &str) -> Self {
        let at = SocketAddr::new(ip.parse().unwrap(), PORT);
        let bind = || Ok((TcpListener::bind(at)?, UdpSocket::bind(at)?));
        let (listener, datagrams) = place.run(bind).unwrap();
        let over = Arc::new(AtomicBool::new(false));
        let (accepting, own) = (listener.try_clone().unwrap(), name.to_owned());
        let http = std::thread::spawn(move || {
            while let Ok((client, from)) = accepting.accept() {
                let own = own.clone();
                // Its own thread, so that a client that only connects keeps nobody waiting; ends with the client.
                std::thread::spawn(move || serve(client, from, &own).ok());
            }
        });
        let (over_too, own) = (Arc::clone(&over), name.to_owned());
        datagrams.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        let udp = std::thread::spawn(move || answer_datagrams(&datagrams, &over_too, &own));
        Self { listener, over, threads: vec![http, udp] }
    }

    /// In a pod, on its own address.
    pub(crate) fn in_pod(pod: &Pod) -> Self {
        Self::start(Place::Pod(pod), &pod.ip, &pod.name)
    }
}

impl Drop for Agnhost {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        socket::shutdown(self.listener.as_raw_fd(), socket::Shutdown::Both).unwrap();
        for thread in self.threads.drain(..) {
            thread.join().unwrap();
        }
    }
}

impl Flow {
    /// From where the calling thread is.
    pub(crate) fn open(address: &str) -> Result<Self> {
        let to: SocketAddr = address.parse()?;
        let any = if to.is_ipv4() { IpAddr::from([0; 4]) } else { IpAddr::from([0; 16]) };
        let socket = UdpSocket::bind((any, 0))?;
        socket.connect(to)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        Ok(Self(socket))
    }

    pub(crate) fn ask(&self, question: &str) -> Result<String> {
        self.0.send(question.as_bytes())?;
        let mut answer = vec![0; 65_535];
        let length = self.0.recv(&mut answer)?;
        answer.truncate(length);
        Ok(String::from_utf8(answer)?)
    }

    /// The same where the datagram may be lost.
    pub(crate) fn try_ask(&self, question: &str) -> Result<String> {
        self.0.set_read_timeout(Some(ATTEMPT))?;
        let answer = self.ask(question);
        self.0.set_read_timeout(Some(PATIENCE))?;
        answer
    }
}

/// A pod of application `app` with such a server, described by a manifest.
pub(crate) fn agnhost(cluster: &Cluster, name: &str, app: &str) -> (Pod, Agnhost) {
    let pod = cluster.add_pod(name).unwrap();
    let server = Agnhost::in_pod(&pod);
    cluster.apply(&format!("pod-{name}.yaml"), &super::pod_manifest(name, app, "")).unwrap();
    (pod, server)
}

/// One HTTP request, from where the calling thread is; the path is the question.
fn get(address: &str, question: &str) -> Result<String> {
    let mut stream = TcpStream::connect_timeout(&address.parse()?, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
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

fn answer_datagrams(socket: &UdpSocket, over: &AtomicBool, name: &str) {
    let mut question = vec![0; 65_535];
    while !over.load(Ordering::Relaxed) {
        match socket.recv_from(&mut question) {
            Ok((length, from)) => {
                let said = answer(&String::from_utf8_lossy(&question[..length]), from, name);
                // A client that has gone is its own affair.
                socket.send_to(said.as_bytes(), from).ok();
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            // An ICMP error for an earlier answer.
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
