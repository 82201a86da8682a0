use std::io;

use futures_util::future::join_all;
use hickory_resolver::proto::op::{DnsRequestOptions, Query};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use super::*;

fn request() -> DnsRequest {
    DnsRequest::from_query(Query::default(), DnsRequestOptions::default())
}

fn tls() -> Tls {
    let ring = Arc::new(tokio_rustls::rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(ring).with_safe_default_protocol_versions().unwrap();
    let config = config.with_root_certificates(RootCertStore::empty()).with_no_client_auth();
    Tls { config, name: ServerName::try_from("dns.example").unwrap() }
}

/// A server, and the number of its connections.
async fn serve<F>(each: fn(TcpStream) -> F) -> (SocketAddr, Arc<AtomicUsize>, JoinSet<()>)
where
    F: Future<Output = io::Result<()>> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, count) = (listener.local_addr().unwrap(), Arc::new(AtomicUsize::new(0)));
    let (counted, mut tasks) = (Arc::clone(&count), JoinSet::new());
    tasks.spawn(async move {
        let mut connections = JoinSet::new();
        while let Ok((stream, _)) = listener.accept().await {
            counted.fetch_add(1, Relaxed);
            connections.spawn(async move {
                let _ = each(stream).await;
            });
        }
    });
    (address, count, tasks)
}

/// Never completes a handshake.
async fn hold(mut stream: TcpStream) -> io::Result<()> {
    while stream.read(&mut [0; 4096]).await? > 0 {}
    Ok(())
}

/// Answers each query after a moment.
async fn answer_late(mut stream: TcpStream) -> io::Result<()> {
    let (mut queries, mut wire) = (Vec::new(), [0; 4096]);
    loop {
        let length = stream.read(&mut wire).await?;
        if length == 0 {
            return Ok(());
        }
        queries.extend_from_slice(&wire[..length]);
        sleep(Duration::from_millis(100)).await;
        while let Some((frame, rest)) = queries
            .split_first_chunk::<2>()
            .and_then(|(length, rest)| rest.split_at_checked(usize::from(u16::from_be_bytes(*length))))
        {
            let mut reply = frame.to_vec();
            reply[2] |= 0x80;
            stream.write_all(&u16::try_from(reply.len()).unwrap().to_be_bytes()).await?;
            stream.write_all(&reply).await?;
            queries = rest.to_vec();
        }
    }
}

#[tokio::test]
async fn limit_of_connections_is_not_exceeded() {
    let (address, count, _server) = serve(hold).await;
    let streams = Streams::new(address, Some(tls()), Runtime::default());
    let request = request();
    let queries = join_all((0..40).map(|_| streams.ask(&request)));
    assert!(timeout(ANSWER_TIMEOUT / 2, queries).await.is_err());
    assert_eq!(count.load(Relaxed), MAX_CONNECTIONS);
}

/// Another server has answered the query meanwhile.
#[tokio::test]
async fn connection_whose_query_is_dropped_is_still_opened() {
    let (address, count, _server) = serve(hold).await;
    let streams = Streams::new(address, Some(tls()), Runtime::default());
    let request = request();
    for _ in 0..5 {
        assert!(timeout(ANSWER_TIMEOUT / 20, streams.ask(&request)).await.is_err());
    }
    assert_eq!(count.load(Relaxed), 1);
}

/// More queries than all connections accept.
#[tokio::test]
async fn queries_beyond_the_limit_of_connections_wait() {
    let (address, _, _server) = serve(answer_late).await;
    let streams = Streams::new(address, None, Runtime::default());
    let request = request();
    let answers = join_all((0..2500).map(|_| streams.ask(&request))).await;
    assert_eq!(answers.iter().filter(|answer| answer.is_err()).count(), 0);
}
