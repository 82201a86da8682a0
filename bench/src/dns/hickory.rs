//! hickory-server with its in-memory zone: the baseline of a Rust program.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use hickory_server::proto::rr::{LowerName, Name};
use hickory_server::server::Server;
use hickory_server::store::file::{FileConfig, FileZoneHandler};
use hickory_server::zone_handler::{AxfrPolicy, Catalog, ZoneType};
use tokio::net::{TcpListener, UdpSocket};

/// Serves a zone file until the process exits.
///
/// # Errors
/// When the zone cannot be read or the address is taken.
pub fn serve_with_hickory(origin: &str, zone: &Path, address: SocketAddr) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let origin = Name::from_ascii(origin)?;
        let config = FileConfig { zone_path: zone.to_owned() };
        let handler = FileZoneHandler::try_from_config(
            origin.clone(),
            ZoneType::Primary,
            AxfrPolicy::Deny,
            None,
            &config,
        );
        let mut catalog = Catalog::new();
        catalog.upsert(LowerName::new(&origin), vec![Arc::new(handler.map_err(anyhow::Error::msg)?)]);
        let mut server = Server::new(catalog);
        server.register_socket(UdpSocket::bind(address).await?);
        server.register_listener(TcpListener::bind(address).await?, Duration::from_secs(10), 1024);
        Ok(server.block_until_done().await?)
    })
}
