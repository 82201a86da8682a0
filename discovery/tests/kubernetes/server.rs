//! An API server that sends what a test requires, including what a real one would refuse to store.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Duration;

use portolan_discovery::{Access, Resource};

/// Clones are the same server.
#[derive(Clone)]
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    state: Arc<(Mutex<State>, Condvar)>,
}

#[derive(Default)]
pub(crate) struct State {
    pub(crate) version: u64,
    objects: BTreeMap<(&'static str, String), String>,
    /// Version, resource and line of each event.
    log: Vec<(u64, &'static str, String)>,
    /// The response in place of a resource: status and message.
    pub(crate) refusals: BTreeMap<&'static str, (u16, &'static str)>,
    /// Watches end as soon as they have begun.
    pub(crate) ends_watches: bool,
    /// Every request is answered with an HTML page and status 200, as by a load balancer without backends.
    pub(crate) shows_page: bool,
    /// Streamed lists end before they are complete.
    pub(crate) cuts_lists: bool,
    /// Lists are not streamed, as by servers before Kubernetes 1.32.
    pub(crate) refuses_streams: bool,
    /// Open watches end when this changes.
    generation: u64,
    /// Paths and queries of all requests.
    pub(crate) requests: Vec<String>,
    /// Events that were written.
    pub(crate) events: Vec<serde_json::Value>,
}

impl State {
    /// Sets the response in place of a resource.
    pub(crate) fn refuse(&mut self, resource: &'static str, code: u16, message: &'static str) {
        self.refusals.insert(resource, (code, message));
    }
}

impl Server {
    pub(crate) fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let state = State { version: 100, ..State::default() };
        let server = Self { address, state: Arc::new((Mutex::new(state), Condvar::new())) };
        let serving = server.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let server = serving.clone();
                std::thread::spawn(move || server.serve(stream).ok());
            }
        });
        server
    }

    pub(crate) fn access(&self, directory: &std::path::Path) -> Access {
        let file = directory.join("kubeconfig");
        let text = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: it\ncontexts: [{{name: it, context: {{cluster: it, user: it}}}}]\n\
             clusters: [{{name: it, cluster: {{server: 'http://{}'}}}}]\nusers: [{{name: it, user: {{}}}}]\n",
            self.address
        );
        std::fs::write(&file, text).unwrap();
        Access::Kubeconfig(file)
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.0.lock().unwrap()
    }

    /// Stores an object: JSON in which `VERSION` stands for its version.
    pub(crate) fn put(&self, resource: Resource, name: &str, json: &str) {
        let mut state = self.state();
        state.version += 1;
        let json = json.replace("VERSION", &state.version.to_string());
        let before = state.objects.insert((resource.plural(), name.to_owned()), json.clone());
        let kind = if before.is_some() { "MODIFIED" } else { "ADDED" };
        self.say(state, resource, format!("{{\"type\":\"{kind}\",\"object\":{json}}}"));
    }

    pub(crate) fn delete(&self, resource: Resource, name: &str) {
        let mut state = self.state();
        state.version += 1;
        let json = state.objects.remove(&(resource.plural(), name.to_owned())).unwrap();
        self.say(state, resource, format!("{{\"type\":\"DELETED\",\"object\":{json}}}"));
    }

    /// Sends a line on every watch of a resource.
    pub(crate) fn say(&self, mut state: MutexGuard<'_, State>, resource: Resource, line: String) {
        let version = state.version;
        state.log.push((version, resource.plural(), line));
        self.state.1.notify_all();
    }

    /// Closes all watches after a change.
    pub(crate) fn change(&self, change: impl FnOnce(&mut State)) {
        let mut state = self.state();
        change(&mut state);
        state.generation += 1;
        self.state.1.notify_all();
    }

    /// A restored history: only these objects, at a much lower version.
    pub(crate) fn restore(&self, resource: Resource, name: &str, json: &str) {
        self.change(|state| {
            (state.version, state.objects, state.log) = (10, BTreeMap::new(), Vec::new());
            state.objects.insert((resource.plural(), name.to_owned()), json.replace("VERSION", "10"));
        });
    }

    pub(crate) fn watches(&self, resource: Resource) -> usize {
        let path = format!("/{}?", resource.plural());
        self.state()
            .requests
            .iter()
            .filter(|line| line.contains(&path) && line.contains("watch=true"))
            .count()
    }

    fn serve(&self, stream: TcpStream) -> std::io::Result<()> {
        let mut reader = BufReader::new(stream.try_clone()?);
        let mut stream = stream;
        loop {
            let (mut first, mut length) = (String::new(), 0);
            if reader.read_line(&mut first)? == 0 {
                return Ok(());
            }
            loop {
                let mut line = String::new();
                reader.read_line(&mut line)?;
                if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                    length = value.trim().parse().unwrap();
                }
                if line.trim().is_empty() {
                    break;
                }
            }
            let mut body = vec![0; length];
            reader.read_exact(&mut body)?;
            let target = first.split(' ').nth(1).unwrap().to_owned();
            self.state().requests.push(target.clone());
            if first.starts_with("POST") {
                let event: serde_json::Value = serde_json::from_slice(&body).unwrap();
                self.state().events.push(event.clone());
                answer(&mut stream, 201, &event.to_string())?;
                continue;
            }
            let (path, query) = target.split_once('?').unwrap_or((&target, ""));
            let resource = path.rsplit('/').next().unwrap();
            let is_refused = self.state().refuses_streams && query.contains("sendInitialEvents=true");
            let refusal = self.state().refusals.get(resource).copied();
            let refusal = if is_refused { Some((422, "sendInitialEvents is forbidden")) } else { refusal };
            let shows_page = self.state().shows_page;
            if shows_page {
                answer(&mut stream, 200, "<html>\n<h1>No server is available</h1>\n</html>\n")?;
            } else if let Some((code, message)) = refusal {
                let status = serde_json::json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": message, "reason": "", "code": code});
                answer(&mut stream, code, &status.to_string())?;
            } else if query.contains("watch=true") {
                return self.watch(&mut stream, resource, query);
            } else {
                let state = self.state();
                let items = state.objects.iter().filter(|((of, _), _)| *of == resource);
                let items: Vec<_> = items.map(|(_, json)| json.as_str()).collect();
                let list = format!(
                    "{{\"kind\":\"List\",\"apiVersion\":\"v1\",\"metadata\":{{\"resourceVersion\":\"{}\"}},\"items\":[{}]}}",
                    state.version,
                    items.join(",")
                );
                drop(state);
                answer(&mut stream, 200, &list)?;
            }
        }
    }

    fn watch(&self, stream: &mut TcpStream, resource: &str, query: &str) -> std::io::Result<()> {
        stream.write_all(
            b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n",
        )?;
        let mut state = self.state();
        let generation = state.generation;
        let (mut version, mut lines) = (state.version, Vec::new());
        if query.contains("sendInitialEvents=true") {
            let objects = state.objects.iter().filter(|((of, _), _)| *of == resource);
            lines.extend(objects.map(|(_, json)| format!("{{\"type\":\"ADDED\",\"object\":{json}}}")));
            if state.cuts_lists {
                drop(state);
                write_lines(stream, lines)?;
                return stream.write_all(b"0\r\n\r\n");
            }
            lines.push(format!("{{\"type\":\"BOOKMARK\",\"object\":{{\"kind\":\"X\",\"apiVersion\":\"v1\",\"metadata\":{{\"resourceVersion\":\"{version}\",\"annotations\":{{\"k8s.io/initial-events-end\":\"true\"}}}}}}}}"));
        } else {
            let from = query.split('&').find_map(|pair| pair.strip_prefix("resourceVersion="));
            version = from.unwrap().parse().unwrap();
        }
        while !state.ends_watches && state.generation == generation {
            lines.extend(
                state
                    .log
                    .iter()
                    .filter(|(at, of, _)| *at > version && *of == resource)
                    .map(|(_, _, line)| line.clone()),
            );
            version = version.max(state.version);
            drop(state);
            write_lines(stream, std::mem::take(&mut lines))?;
            state = self.state();
            let has_news = state.log.iter().any(|(at, of, _)| *at > version && *of == resource);
            if !has_news {
                state = self.state.1.wait_timeout(state, Duration::from_secs(1)).unwrap().0;
            }
        }
        drop(state);
        stream.write_all(b"0\r\n\r\n")
    }
}

fn write_lines(stream: &mut TcpStream, lines: Vec<String>) -> std::io::Result<()> {
    for line in lines {
        write!(stream, "{:x}\r\n{line}\n\r\n", line.len() + 1)?;
    }
    stream.flush()
}

fn answer(stream: &mut TcpStream, code: u16, body: &str) -> std::io::Result<()> {
    let head = format!(
        "HTTP/1.1 {code} X\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(format!("{head}{body}").as_bytes())
}
