//! Queries over QUIC (RFC 9250), by quinn.
//!
//! Not hickory-server's `register_quic_listener`: it waits for the handshake of one client, up to 5 s, before
//! it takes the next, bounds neither connections nor their bytes (quinn's default is 1.2 MiB a stream, 100
//! streams), and answers the queries of a connection one after the other.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use daemon::drain::Drain;
use quinn::crypto::rustls::QuicServerConfig;
use quinn::{
    Endpoint, EndpointConfig, Incoming, RecvStream, SendStream, ServerConfig, TokioRuntime, TransportConfig,
    VarInt,
};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_rustls::rustls;

use crate::connections::{Connections, Place};
use crate::https::MAX_QUERY;
use crate::metrics::Protocol;
use crate::responder::{IDLE, Responder};

/// What clients that negotiate call it (RFC 9250 §4.1.1).
pub(crate) const PROTOCOL: &[u8] = b"doq";

/// Queries of one connection at a time.
const MAX_STREAMS: usize = 32;

/// Bytes of replies that wait for one client.
const MAX_UNSENT: u64 = 128 * 1024;

/// Bytes of packets of connections that are not accepted yet.
const MAX_INCOMING: u64 = 1 << 20;

/// While the program ends, queries under way are given so long. The next process may have the same address already, and
/// clients whose packets the kernel still brings here are not answered until the socket is closed.
const LINGER: Duration = Duration::from_secs(1);

/// Why a connection or a stream ends (RFC 9250 §4.3).
const NO_ERROR: VarInt = VarInt::from_u32(0);
const PROTOCOL_ERROR: VarInt = VarInt::from_u32(2);
const EXCESSIVE_LOAD: VarInt = VarInt::from_u32(4);

/// Takes the packets of a socket.
///
/// # Errors
/// When the socket cannot be used.
pub(crate) fn open(socket: UdpSocket, tls: rustls::ServerConfig) -> io::Result<Endpoint> {
    let tls = QuicServerConfig::try_from(tls).map_err(io::Error::other)?;
    let mut transport = TransportConfig::default();
    let window = VarInt::try_from(MAX_QUERY + 2).unwrap_or(VarInt::MAX);
    let idle = IDLE.try_into().map_err(io::Error::other)?;
    transport
        .max_concurrent_bidi_streams(VarInt::try_from(MAX_STREAMS).unwrap_or(VarInt::MAX))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .stream_receive_window(window)
        .receive_window(VarInt::try_from(MAX_STREAMS * MAX_QUERY).unwrap_or(VarInt::MAX))
        .send_window(MAX_UNSENT)
        .max_idle_timeout(Some(idle))
        .datagram_receive_buffer_size(None);
    let mut server = ServerConfig::with_crypto(Arc::new(tls));
    server.transport_config(Arc::new(transport)).incoming_buffer_size_total(MAX_INCOMING);
    Endpoint::new(EndpointConfig::default(), Some(server), socket, Arc::new(TokioRuntime))
}

/// Accepts until the drain begins, then lets connections finish what they have.
pub(crate) async fn serve(
    endpoint: Endpoint,
    open: Arc<Connections>,
    responder: Arc<Responder>,
    drain: Drain,
) {
    let mut connections = JoinSet::new();
    let mut arrived = None;
    loop {
        let permit = tokio::select! {
            biased;
            permit = open.permit(), if arrived.is_some() => permit,
            () = drain.started() => break,
            Some(_) = connections.join_next() => continue,
            incoming = endpoint.accept(), if arrived.is_none() => {
                let Some(incoming) = incoming else { break };
                // A client that has not shown that the address is its own costs no place of another.
                if incoming.remote_address_validated() {
                    arrived = Some(incoming);
                } else {
                    drop(incoming.retry());
                }
                continue;
            }
        };
        let Some(incoming) = arrived.take() else { continue };
        let place = open.enter(incoming.remote_address().ip(), permit);
        let (responder, drain) = (Arc::clone(&responder), drain.clone());
        connections.spawn(async move { converse(incoming, place, &responder, &drain).await });
    }
    drop(arrived);
    endpoint.set_server_config(None);
    while connections.join_next().await.is_some() {}
    endpoint.close(NO_ERROR, b"");
    // The last packets.
    drop(timeout(IDLE, endpoint.wait_idle()).await);
}

async fn converse(incoming: Incoming, place: Place, responder: &Arc<Responder>, drain: &Drain) {
    let client = incoming.remote_address();
    let connection = tokio::select! {
        connection = timeout(IDLE, incoming.into_future()) => connection,
        () = place.evicted.cancelled() => return,
        () = drain.started() => return,
    };
    let Ok(Ok(connection)) = connection else { return };
    let mut streams = JoinSet::new();
    let code = loop {
        tokio::select! {
            stream = connection.accept_bi(), if streams.len() < MAX_STREAMS => match stream {
                Ok((reply, query)) => _ = streams.spawn(answer(query, reply, client, Arc::clone(responder))),
                Err(_ended) => return,
            },
            Some(answered) = streams.join_next() => match answered {
                Ok(Ok(())) => {}
                _ => break PROTOCOL_ERROR,
            },
            // quinn ends a connection whose client is silent, but not one that is only kept alive.
            () = sleep(IDLE), if streams.is_empty() => break NO_ERROR,
            () = place.evicted.cancelled() => break EXCESSIVE_LOAD,
            () = drain.started() => {
                let ended = async { while streams.join_next().await.is_some() {} };
                drop(timeout(LINGER, ended).await);
                break NO_ERROR;
            }
        }
    };
    connection.close(code, b"");
}

/// Answers the query of a stream.
///
/// # Errors
/// When it is against the protocol.
async fn answer(
    mut query: RecvStream,
    mut reply: SendStream,
    client: SocketAddr,
    responder: Arc<Responder>,
) -> Result<(), ()> {
    // A client may give up a query, or its connection.
    let Ok(read) = timeout(IDLE, query.read_to_end(MAX_QUERY + 2)).await else { return Ok(()) };
    let framed = match read {
        Ok(framed) => framed,
        Err(quinn::ReadToEndError::TooLong) => return Err(()),
        Err(quinn::ReadToEndError::Read(_)) => return Ok(()),
    };
    let Some((length, message)) = framed.split_first_chunk().filter(|(_, message)| message.len() >= 2) else {
        return Err(());
    };
    // One message, without an id (RFC 9250 §4.2, §4.2.1).
    if usize::from(u16::from_be_bytes(*length)) != message.len() || message.get(..2) != Some(&[0, 0]) {
        return Err(());
    }
    let answered = responder.answer(message.to_vec(), (Protocol::Quic, client)).await.ok_or(())?;
    let length = u16::try_from(answered.len()).unwrap_or_default().to_be_bytes();
    let send = async {
        reply.write_all(&[&length[..], &answered].concat()).await?;
        drop(reply.finish());
        // The connection may end when the client has it.
        drop(reply.stopped().await);
        Ok::<_, quinn::WriteError>(())
    };
    drop(timeout(IDLE, send).await);
    Ok(())
}
