//! UDP frontends: a table of flows, each with a connected socket of its own to its endpoint.
//!
//! The table is what conntrack is to kube-proxy, with one difference that users feel: when an endpoint stops serving,
//! its flows are dropped at once and the next datagram goes to one that does.

mod flow;

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use tokio::net::UdpSocket;
use tokio::task::JoinSet;
use tracing::debug;

use crate::frontend::Frontend;
use crate::worker::Context;
use crate::worker::poller::Poller;
use flow::Flow;

/// The largest datagram there is.
const DATAGRAM: usize = 65_535;

/// Serves a frontend on the current worker until it closes. Its flows end with it.
pub(crate) async fn serve(
    socket: std::net::UdpSocket,
    frontend: Arc<Frontend>,
    context: Arc<Context>,
    poller: Arc<Poller>,
) -> io::Result<()> {
    let socket = Arc::new(UdpSocket::from_std(socket)?);
    let mut table = Table { socket, frontend, context, poller, flows: HashMap::new(), tasks: JoinSet::new() };
    let mut datagram = vec![0; DATAGRAM];
    loop {
        tokio::select! {
            () = table.frontend.closed() => return Ok(()),
            () = table.frontend.endpoints_changed() => table.drop_stale(),
            Some(ended) = table.tasks.join_next() => table.forget(ended.ok()),
            received = table.socket.recv_from(&mut datagram) => match received {
                Ok((length, client)) => table.forward(client, &datagram[..length]).await,
                // An ICMP error for an earlier reply: that client is gone, the others are not.
                Err(error) => debug!(frontend = %table.frontend.key, %error, "receiving failed"),
            },
        }
    }
}

struct Table {
    socket: Arc<UdpSocket>,
    frontend: Arc<Frontend>,
    context: Arc<Context>,
    poller: Arc<Poller>,
    flows: HashMap<SocketAddr, Flow>,
    /// Each flow's reader; it yields the flow's client and endpoint when it ends.
    tasks: JoinSet<(SocketAddr, SocketAddr)>,
}

impl Table {
    async fn forward(&mut self, client: SocketAddr, datagram: &[u8]) {
        if !self.flows.contains_key(&client) && !self.open(client) {
            self.context.metrics.udp_dropped.inc();
            return;
        }
        let flow = &self.flows[&client];
        match flow.send(datagram).await {
            Ok(()) => {
                self.context.metrics.udp_to_upstream.inc();
                self.poller.active();
            }
            Err(error) => {
                debug!(service = %self.frontend.service, endpoint = %flow.endpoint, %error, "sending failed");
                self.context.metrics.udp_dropped.inc();
                self.close(client);
            }
        }
    }

    /// Opens a flow for a client that has none. False when the table is full or no endpoint can be reached.
    fn open(&mut self, client: SocketAddr) -> bool {
        if self.flows.len() >= self.context.udp_max_flows {
            return false;
        }
        let set = self.frontend.endpoints();
        if !set.admits(client.ip()) {
            return false;
        }
        let pool = set.pool(|| self.context.is_inside(client.ip()));
        let Some(endpoint) = self.frontend.candidates(&set, pool, client.ip()).next() else { return false };
        let endpoint = endpoint.address;
        let source = self.context.source(client.ip(), endpoint.ip());
        match Flow::open(endpoint, source) {
            Ok(flow) => {
                self.frontend.remember(&set, client.ip(), endpoint);
                let idle = self.context.udp_idle_timeout;
                let metrics = Arc::clone(&self.context.metrics);
                let poller = Arc::clone(&self.poller);
                let reader = flow.read_replies(client, Arc::clone(&self.socket), idle, metrics, poller);
                self.flows.insert(client, flow.with_task(self.tasks.spawn(reader)));
                self.context.metrics.udp_flows.inc();
                true
            }
            Err(error) => {
                debug!(service = %self.frontend.service, %endpoint, %error, "cannot open a flow");
                false
            }
        }
    }

    fn drop_stale(&mut self) {
        let endpoints = self.frontend.endpoints();
        let stale = self.flows.iter().filter(|(_, flow)| !endpoints.may_keep(flow.endpoint));
        for client in stale.map(|(client, _)| *client).collect::<Vec<_>>() {
            self.close(client);
        }
    }

    /// A reader has ended by itself. Its flow may have been replaced meanwhile by one to another endpoint.
    fn forget(&mut self, ended: Option<(SocketAddr, SocketAddr)>) {
        if let Some((client, endpoint)) = ended
            && self.flows.get(&client).is_some_and(|flow| flow.endpoint == endpoint)
        {
            self.close(client);
        }
    }

    fn close(&mut self, client: SocketAddr) {
        if let Some(flow) = self.flows.remove(&client) {
            flow.abort();
            self.context.metrics.udp_flows.dec();
        }
    }
}

impl Drop for Table {
    fn drop(&mut self) {
        self.context.metrics.udp_flows.sub(i64::try_from(self.flows.len()).unwrap_or(0));
    }
}
