//! Memory of the proxy for idle clients.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::interrupt;
use crate::load::MESSAGE;
use crate::processor::Process;
use crate::record::{Record, Table};
use crate::statistics::Estimate;
use crate::topology::{ECHO, Topology};

/// Number of idle clients: enough to average out the proxy's own allocations, and few enough for a limit of
/// 20,000 open files, of which client, server and proxy use one or two for each connection.
const COUNT: usize = 4000;

/// Measures clients that stay open after one answer.
pub(super) fn measure(record: &mut Record) -> Result<()> {
    let mut table = Table::new(
        "Idle clients",
        &["", "open", "resident before", "with them", "each"],
        "Each has received one answer. Memory of the proxy, without kernel memory.",
    );
    let mut row = |name: &str, id: &str, open: fn(SocketAddr) -> Result<Client>| -> Result<()> {
        interrupt::check()?;
        let topology = Topology::new(&[])?;
        let proxy = Process(topology.cluster.proxy.id());
        let before = proxy.memory().now;
        let at = SocketAddr::new(topology.virtual_ip.parse()?, ECHO);
        let open_all =
            || (0..COUNT).map(|_| interrupt::check().and_then(|()| open(at))).collect::<Result<Vec<_>>>();
        let clients = topology.client.netns.run(open_all)?.with_context(|| format!("{COUNT} {name}"))?;
        let with = proxy.memory().now;
        #[expect(clippy::cast_precision_loss, reason = "some thousand")]
        let each = (with - before) * 1024.0 / clients.len() as f64;
        let cells = [format!("{before:.1} MiB"), format!("{with:.1} MiB"), format!("{each:.1} KiB")];
        table.row([name.to_owned(), clients.len().to_string()].into_iter().chain(cells));
        record.measured(id, Estimate::from(each));
        Ok(())
    };
    row("connections", "idle-connection", connection)?;
    row("flows", "idle-flow", flow)?;
    record.tables.push(table);
    Ok(())
}

/// A client that stays open until it is dropped.
enum Client {
    Connection { _stream: TcpStream },
    Flow { _socket: UdpSocket },
}

fn connection(at: SocketAddr) -> Result<Client> {
    let mut stream = TcpStream::connect(at)?;
    stream.write_all(&[0; MESSAGE])?;
    stream.read_exact(&mut [0; MESSAGE])?;
    Ok(Client::Connection { _stream: stream })
}

fn flow(at: SocketAddr) -> Result<Client> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.set_read_timeout(Some(Duration::from_secs(5)))?;
    socket.connect(at)?;
    socket.send(&[0; MESSAGE])?;
    socket.recv(&mut [0; MESSAGE])?;
    Ok(Client::Flow { _socket: socket })
}
