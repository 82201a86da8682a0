//! Queries over TCP (RFC 7766) and TLS (RFC 7858): as many at a time as the client likes, answered in the order in which answers come.
//!
//! Not hickory's server, which answers the queries of a connection one after the other, takes any number of connections,
//! and encodes each reply anew, within limits on compression that large answers do not survive. Nor hickory's stream, which takes
//! memory for a whole message when it has read its length.

mod connections;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use daemon::drain::Drain;
use daemon::log::RateLimit;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{timeout, timeout_at};
use tokio_rustls::TlsAcceptor;

use crate::metrics::Protocol;
use crate::responder::{IDLE, Responder, Step};
pub(crate) use connections::Connections;
use connections::Place;

/// While the program ends, a client that says nothing for so long has its answers.
const LINGER: Duration = Duration::from_millis(500);

/// A client that takes no answers for so long is, too, and one that does not get on with its TLS handshake.
const WRITE: Duration = Duration::from_secs(5);

/// Queries of one connection that may wait for upstream servers; meanwhile it is not read.
const MAX_WAITING: usize = 128;

/// Answers gathered before they are written.
const CHUNK: usize = 16 * 1024;

/// What every connection has room for: any query that is not padded to death.
const INPUT: usize = 4 * 1024;

/// Accepts until the drain begins, then lets connections finish what they have.
pub(crate) async fn serve(
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    open: Arc<Connections>,
    responder: Arc<Responder>,
    drain: Drain,
) {
    let mut connections = JoinSet::new();
    let warnings = RateLimit::default();
    let mut arrived = None;
    loop {
        let permit = tokio::select! {
            () = drain.started() => break,
            Some(_) = connections.join_next() => continue,
            accepted = listener.accept(), if arrived.is_none() => {
                match accepted {
                    Ok(connection) => arrived = Some(connection),
                    Err(error) => {
                        if let Some(suppressed) = warnings.admit() {
                            tracing::warn!(%error, suppressed, "cannot accept a connection");
                        }
                        tokio::time::sleep(Duration::from_millis(100)).await;
                    }
                }
                continue;
            }
            // With a client there, so that no connection has to go for none.
            permit = open.permit(), if arrived.is_some() => permit,
        };
        let Some((stream, client)) = arrived.take() else { continue };
        let mut place = open.enter(client.ip(), permit);
        let (tls, responder, drain) = (tls.clone(), Arc::clone(&responder), drain.clone());
        connections.spawn(async move {
            let evicted = place.evicted.clone();
            let place = &mut place;
            let serve = async {
                stream.set_nodelay(true)?;
                match tls {
                    Some(tls) => greet(&tls, stream, client, place, &responder, &drain).await,
                    None => converse(stream, (Protocol::Tcp, client), place, &responder, &drain).await,
                }
            };
            // What a client does to its connection concerns no other.
            tokio::select! {
                ended = serve => drop(ended),
                () = evicted.cancelled() => {}
            }
        });
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

async fn greet(
    tls: &TlsAcceptor,
    stream: TcpStream,
    client: SocketAddr,
    place: &mut Place,
    responder: &Arc<Responder>,
    drain: &Drain,
) -> io::Result<()> {
    let mut stream = timeout(WRITE, tls.accept(stream)).await??;
    converse(&mut stream, (Protocol::Tls, client), place, responder, drain).await?;
    // So that the client can tell the end from a connection that was cut.
    timeout(WRITE, stream.shutdown()).await?
}

async fn converse(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    from: (Protocol, SocketAddr),
    place: &mut Place,
    responder: &Arc<Responder>,
    drain: &Drain,
) -> io::Result<()> {
    let (mut input, mut output) = (Vec::with_capacity(INPUT), Vec::new());
    // A query has to come whole within the time that a silent connection has.
    let mut heard = tokio::time::Instant::now();
    let mut lower = Vec::with_capacity(256);
    let mut waiting: JoinSet<Vec<u8>> = JoinSet::new();
    let mut is_open = true;
    loop {
        let mut read = 0;
        while waiting.len() < MAX_WAITING
            && let Some(message) = frame(&input[read..])
        {
            read += 2 + message.len();
            if let Some(mut transfer) = responder.transfer(message, from.1) {
                // Nothing else is written meanwhile, and no more is made than is taken.
                while put_framed(&mut output, |output| transfer.next_message(output)) {
                    write(&mut stream, &mut output).await?;
                }
                continue;
            }
            if answer(responder, from, message, &mut lower, &mut output) == Step::Wait {
                let (responder, message) = (Arc::clone(responder), message.to_vec());
                waiting.spawn(async move {
                    let mut framed = vec![0; 2];
                    responder.later(&message, from, &mut framed).await;
                    framed
                });
            }
            if output.len() >= CHUNK {
                write(&mut stream, &mut output).await?;
            }
        }
        input.drain(..read);
        write(&mut stream, &mut output).await?;
        if read > 0 || !waiting.is_empty() {
            heard = tokio::time::Instant::now();
        }
        give_back(&mut input, &mut output);
        if !place.may_keep(input.len().saturating_sub(INPUT)) {
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        if waiting.is_empty() && frame(&input).is_none() && !is_open {
            return Ok(());
        }
        let draining = drain.is_started();
        let patience = if draining { LINGER } else { IDLE };
        tokio::select! {
            read = timeout_at(heard + patience, stream.read_buf(&mut input)), if is_open && waiting.len() < MAX_WAITING => {
                match read {
                    Ok(read) => is_open = read? > 0,
                    Err(_idle) if waiting.is_empty() => return Ok(()),
                    Err(_idle) => {}
                }
            }
            Some(Ok(framed)) = waiting.join_next() => {
                let start = output.len();
                output.extend_from_slice(&framed);
                close_frame(&mut output, start);
            }
            // What is on its way has the whole of the last patience.
            () = drain.started(), if !draining => heard = tokio::time::Instant::now(),
        }
    }
}

/// Memory that a long query or answer has taken.
fn give_back(input: &mut Vec<u8>, output: &mut Vec<u8>) {
    if input.len() <= INPUT && input.capacity() > INPUT {
        input.shrink_to(INPUT);
    }
    output.shrink_to(CHUNK);
}

/// The first whole message: what follows its length (RFC 1035 §4.2.2).
fn frame(input: &[u8]) -> Option<&[u8]> {
    let (length, rest) = input.split_first_chunk::<2>()?;
    rest.get(..usize::from(u16::from_be_bytes(*length)))
}

fn answer(
    responder: &Responder,
    (protocol, client): (Protocol, SocketAddr),
    message: &[u8],
    lower: &mut Vec<u8>,
    output: &mut Vec<u8>,
) -> Step {
    put_framed(output, |output| {
        responder.now(message, (protocol, &|| Some(client)), Instant::now(), lower, output)
    })
}

/// Appends what `put` writes, its length in front.
fn put_framed<T>(output: &mut Vec<u8>, put: impl FnOnce(&mut Vec<u8>) -> T) -> T {
    let start = output.len();
    output.extend_from_slice(&[0, 0]);
    let result = put(output);
    close_frame(output, start);
    result
}

/// Writes the length in front of a message, or takes the empty frame back.
fn close_frame(output: &mut Vec<u8>, start: usize) {
    match u16::try_from(output.len() - start - 2) {
        Ok(length) if length > 0 => {
            if let Some(bytes) = output.get_mut(start..start + 2) {
                bytes.copy_from_slice(&length.to_be_bytes());
            }
        }
        _ => output.truncate(start),
    }
}

async fn write(stream: &mut (impl AsyncWrite + Unpin), output: &mut Vec<u8>) -> io::Result<()> {
    if !output.is_empty() {
        timeout(WRITE, async {
            stream.write_all(output).await?;
            // TLS keeps what the socket did not take.
            stream.flush().await
        })
        .await??;
        output.clear();
    }
    Ok(())
}
