//! Routes to the pods of other nodes: one route for each range in `spec.podCIDRs` of a Node.
//!
//! ```text
//! a node on the same link:  10.22.2.0/24 via 192.0.2.3                       proto 113
//! any other:                10.22.3.0/24 via 10.22.3.0 dev portolan-vxlan onlink  proto 113
//!                           neighbour 10.22.3.0 -> MAC of the node, forwarded to 203.0.113.2:8472
//! ```
//! The kernel's state is compared with the desired state after every change of the Nodes, and periodically: a
//! deleted route, even with its interface, is restored within seconds. Routes of others are not changed. If
//! one conflicts, ours is reported and not added.
//!
//! Unlike everything else of the proxy, these routes stay when it stops: pods reach pods without it. The next
//! process reuses them; `portolan-proxy --cleanup` removes them.

mod plan;
mod table;
mod tunnel;

use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use discovery::{Snapshot, Snapshots};
use rtnetlink::Handle;
use tokio::task::JoinSet;
use tracing::{info, warn};

use crate::kernel::node_address;
use crate::metrics::Metrics;
use crate::node_context::NodeConfig;
use plan::{Own, Plan};
use table::Table;

/// Interval of checks of the kernel's state. It is longer if a check takes more than a twentieth of the
/// interval, up to the limit.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);
const LONGEST_INTERVAL: Duration = Duration::from_secs(5);

/// How nodes are reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum NodeRoutes {
    /// Directly if they are on the same link, otherwise by VXLAN.
    Auto,
    /// Directly only. Nodes on another link are reported and not reached.
    Direct,
    /// Not at all: another program adds the routes.
    Off,
}

/// Maintains the routes until it is dropped.
#[derive(Debug)]
pub(crate) struct Keeper {
    _tasks: JoinSet<()>,
}

impl Keeper {
    /// Starts watching the Nodes.
    ///
    /// # Errors
    /// If a netlink socket cannot be opened.
    pub(crate) fn start(
        mode: NodeRoutes,
        node_config: NodeConfig,
        snapshots: Snapshots,
        metrics: Arc<Metrics>,
    ) -> io::Result<Self> {
        let mut tasks = JoinSet::new();
        if mode != NodeRoutes::Off {
            let (connection, handle, _) = rtnetlink::new_connection_with_strict_check()?;
            tasks.spawn(connection);
            tasks.spawn(run(Reconciler { handle, mode, node_config, metrics }, snapshots));
        }
        Ok(Self { _tasks: tasks })
    }
}

/// Removes all routes and the tunnel. What is missing is no error.
///
/// # Errors
/// An error of the kernel.
pub(crate) async fn clean_up() -> io::Result<()> {
    let (connection, handle, _) = rtnetlink::new_connection_with_strict_check()?;
    let mut tasks = JoinSet::new();
    tasks.spawn(connection);
    let mut problems = Table::read(&handle).await.map_err(io::Error::other)?.remove_all(&handle).await;
    problems.extend(tunnel::remove(&handle).await.err().map(|error| error.to_string()));
    tasks.shutdown().await;
    problems.into_iter().next().map_or(Ok(()), |first| Err(io::Error::other(first)))
}

struct Reconciler {
    handle: Handle,
    mode: NodeRoutes,
    node_config: NodeConfig,
    metrics: Arc<Metrics>,
}

async fn run(reconciler: Reconciler, mut snapshots: Snapshots) {
    let (mut pause, mut known) = (CHECK_INTERVAL, Vec::new());
    // Looks for leftovers of an earlier process once, even if there is no other node any more.
    let mut settled = false;
    loop {
        let snapshot = Arc::clone(&snapshots.borrow_and_update());
        // An absent Node counts as deleted only after every source was read.
        if snapshot.synced && !(settled && snapshot.nodes.is_empty()) {
            let started = Instant::now();
            match reconciler.own(&snapshot) {
                Ok(own) => {
                    let (plan, problems) = reconciler.reconcile(own, &snapshot).await;
                    settled = problems.is_empty() && plan.routes.is_empty();
                    reconciler.metrics.node_routes.set(i64::try_from(plan.routes.len()).unwrap_or(i64::MAX));
                    reconciler.report(&problems, &mut known);
                }
                Err(error) => {
                    reconciler.report(&[format!("read the addresses of this node: {error}")], &mut known);
                }
            }
            pause = (started.elapsed() * 20).clamp(CHECK_INTERVAL, LONGEST_INTERVAL);
        }
        // Most snapshots change Services only.
        let is_news = |next: &Arc<Snapshot>| {
            next.synced != snapshot.synced
                || !Arc::ptr_eq(&next.nodes, &snapshot.nodes)
                || !Arc::ptr_eq(&next.service_cidrs, &snapshot.service_cidrs)
        };
        tokio::select! {
            changed = snapshots.wait_for(is_news) => if changed.is_err() { return },
            () = tokio::time::sleep(pause) => {}
        }
    }
}

impl Reconciler {
    /// Updates the kernel's routes. Returns the desired state and the problems.
    async fn reconcile(&self, own: Own, snapshot: &Snapshot) -> (Plan, Vec<String>) {
        let others: Vec<_> = snapshot.nodes.values().filter(|node| !own.is(node)).collect();
        let addresses = others.iter().flat_map(|node| node.addresses.iter().copied());
        let paths = table::paths(&self.handle, addresses).await;
        let mut plan = plan::plan(&own, &others, &paths, self.mode == NodeRoutes::Auto);
        let mut problems = std::mem::take(&mut plan.problems);
        let device = if plan.peers.is_empty() {
            tunnel::remove(&self.handle).await.map(|()| None)
        } else {
            tunnel::ensure(&self.handle, &own, &plan).await.map(Some)
        };
        let device = device.unwrap_or_else(|error| {
            problems.push(format!("{}: {error}", tunnel::NAME));
            None
        });
        match Table::read(&self.handle).await {
            Ok(table) => problems.extend(table.apply(&self.handle, &plan, device).await),
            Err(error) => problems.push(format!("read the routes: {error}")),
        }
        (plan, problems)
    }

    fn own(&self, snapshot: &Snapshot) -> io::Result<Own> {
        let node = snapshot.nodes.get(self.node_config.node_name.as_str());
        let ranges = node.into_iter().flat_map(|node| &node.pod_cidrs).chain(&self.node_config.pod_cidrs);
        let underlay = match node_address::primary(true)? {
            None => node_address::primary(false)?,
            v4 => v4,
        };
        Ok(Own {
            name: self.node_config.node_name.clone(),
            addresses: node_address::all()?,
            pod_cidrs: ranges.copied().collect(),
            service_cidrs: snapshot.service_cidrs.to_vec(),
            underlay,
        })
    }

    /// Logs changes of the problems once.
    fn report(&self, problems: &[String], known: &mut Vec<String>) {
        self.metrics.node_route_problems.set(i64::try_from(problems.len()).unwrap_or(i64::MAX));
        for problem in problems.iter().filter(|problem| !known.contains(problem)) {
            warn!(%problem, "pods of another node cannot be reached");
        }
        if problems.is_empty() && !known.is_empty() {
            info!(routes = self.metrics.node_routes.get(), "the pods of all other nodes can be reached");
        }
        problems.clone_into(known);
    }
}

/// The first address of a family.
fn of_family(addresses: &[IpAddr], v4: bool) -> Option<IpAddr> {
    addresses.iter().copied().find(|address| address.is_ipv4() == v4)
}
