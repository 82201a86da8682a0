use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::*;

/// A poller that never polls.
static POLLER: std::sync::LazyLock<std::sync::Arc<Poller>> =
    std::sync::LazyLock::new(|| Poller::new(std::time::Duration::ZERO));

/// The client's end, the relay's two ends, the server's end.
async fn chain() -> (TcpStream, TcpStream, TcpStream, TcpStream) {
    let (client, accepted) = pair().await;
    let (upstream, server) = pair().await;
    (client, accepted, upstream, server)
}

/// Runs the relay, adds up its counts, and closes both sockets, as a connection does.
async fn run(mut client: TcpStream, mut upstream: TcpStream) -> (Sent, io::Result<()>) {
    let total = std::sync::Mutex::new(Sent::default());
    let count = |sent: Sent| {
        let mut total = total.lock().unwrap();
        total.to_upstream += sent.to_upstream;
        total.to_client += sent.to_client;
    };
    let result = relay(&mut client, &mut upstream, &POLLER, &Progress::default(), count).await;
    if result.is_err() {
        crate::kernel::socket::reset_on_close(&client);
        crate::kernel::socket::reset_on_close(&upstream);
    }
    (total.into_inner().unwrap(), result)
}

pub(super) async fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (connected, accepted) = tokio::join!(TcpStream::connect(address), listener.accept());
    (connected.unwrap(), accepted.unwrap().0)
}

#[tokio::test]
async fn half_close_leaves_the_other_direction_open() {
    let (mut client, accepted, upstream, mut server) = chain().await;
    let peers = async {
        client.write_all(b"question").await.unwrap();
        client.shutdown().await.unwrap();
        let mut question = String::new();
        server.read_to_string(&mut question).await.unwrap();
        assert_eq!(question, "question");
        server.write_all(b"a long answer").await.unwrap();
        drop(server);
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        answer
    };
    let ((sent, result), answer) = tokio::join!(run(accepted, upstream), peers);
    result.unwrap();
    assert_eq!(answer, "a long answer");
    assert_eq!(sent, Sent { to_upstream: 8, to_client: 13 });
}

#[tokio::test]
async fn reset_of_one_side_ends_the_relay_with_an_error() {
    let (client, accepted, upstream, server) = chain().await;
    crate::kernel::socket::reset_on_close(&client);
    drop(client);
    let (_, result) = run(accepted, upstream).await;
    assert_eq!(result.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    drop(server);
}

/// Sends and then resets, once the relay's side has acknowledged everything.
async fn send_and_reset(mut sender: TcpStream, bytes: &[u8]) {
    sender.write_all(bytes).await.unwrap();
    while crate::kernel::tcp_info::read(&sender).unwrap().has_unacknowledged() {
        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
    }
    crate::kernel::socket::reset_on_close(&sender);
}

#[tokio::test]
async fn bytes_before_a_reset_reach_a_slow_reader_from_either_side() {
    const LENGTH: usize = 300_000;
    for from_client in [true, false] {
        let (client, accepted, upstream, server) = chain().await;
        let (sender, mut receiver) = if from_client { (client, server) } else { (server, client) };
        let (reset, was_reset) = tokio::sync::oneshot::channel();
        let peers = async {
            let send = async {
                send_and_reset(sender, &vec![7; LENGTH]).await;
                reset.send(()).unwrap();
            };
            let receive = async {
                was_reset.await.unwrap();
                let mut received = Vec::new();
                let end = receiver.read_to_end(&mut received).await;
                (end.unwrap_err().kind(), received.len())
            };
            tokio::join!(send, receive).1
        };
        let ((_, result), received) = tokio::join!(run(accepted, upstream), peers);
        assert_eq!(result.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
        assert_eq!(received, (io::ErrorKind::ConnectionReset, LENGTH), "from the client: {from_client}");
    }
}

#[tokio::test]
async fn reply_to_a_client_that_only_writes_is_delivered() {
    let (mut client, accepted, upstream, mut server) = chain().await;
    let peers = async {
        let serve = async {
            server.read_exact(&mut [0; 10]).await.unwrap();
            server.write_all(&[b'r'; 10_000]).await.unwrap();
            drop(server);
        };
        let request = async {
            while client.write_all(&[b'x'; 16_384]).await.is_ok() {}
            let mut reply = Vec::new();
            let _ = client.read_to_end(&mut reply).await;
            reply.len()
        };
        tokio::join!(serve, request).1
    };
    let ((sent, result), reply) = tokio::join!(run(accepted, upstream), peers);
    assert!(result.is_err());
    assert_eq!((reply, sent.to_client), (10_000, 10_000));
}

#[tokio::test]
async fn last_bytes_of_a_dead_endpoint_are_delivered_without_waiting_for_more() {
    let (mut client, mut accepted, mut upstream, mut server) = chain().await;
    server.write_all(b"last words").await.unwrap();
    upstream.readable().await.unwrap();
    assert_eq!(liveness::give_up(&upstream).kind(), io::ErrorKind::TimedOut);
    {
        let ((from_client, to_client), (from_upstream, to_upstream)) = (accepted.split(), upstream.split());
        let mut request = Direction::new(from_client, to_upstream);
        let mut response = Direction::new(from_upstream, to_client);
        let delivery = linger::deliver(&mut response, &mut request);
        // Without give_up it would take 30 s.
        tokio::time::timeout(std::time::Duration::from_secs(15), delivery).await.unwrap();
    }
    drop(accepted);
    let mut received = String::new();
    client.read_to_string(&mut received).await.unwrap();
    assert_eq!(received, "last words");
}

#[tokio::test]
async fn idle_direction_releases_the_buffer_of_a_bulk_transfer() {
    const LENGTH: usize = 1_000_000;
    let (mut client, mut accepted, mut upstream, mut server) = chain().await;
    let ((_, to_client), (from_upstream, _)) = (accepted.split(), upstream.split());
    let mut response = Direction::new(from_upstream, to_client);
    for expected in [LENGTH, 2 * LENGTH] {
        let (sent, mut received) = (vec![7; LENGTH], vec![0; LENGTH]);
        let relayed = poll_fn(|cx| {
            let _ = response.poll(cx, false);
            if response.carried == expected as u64 { Poll::Ready(()) } else { Poll::Pending }
        });
        let ((), written, read) =
            tokio::join!(relayed, server.write_all(&sent), client.read_exact(&mut received));
        written.unwrap();
        read.unwrap();
        assert!(response.buffer.len() > SHARED_BUFFER);
        response.release_buffer();
        assert_eq!(response.buffer.capacity(), 0);
    }
}

#[tokio::test]
async fn bulk_data_arrives_complete_through_a_slow_reader_in_bounded_memory() {
    let (mut client, accepted, upstream, mut server) = chain().await;
    let data: Vec<u8> = (0..4_000_000_u32).map(|n| n.to_le_bytes()[(n % 3) as usize]).collect();
    let expected = data.clone();
    let peers = async {
        let send = async {
            client.write_all(&data).await.unwrap();
            client.shutdown().await.unwrap();
        };
        let receive = async {
            let mut received = Vec::new();
            let mut chunk = [0; 1000];
            loop {
                let read = server.read(&mut chunk).await.unwrap();
                if read == 0 {
                    break received;
                }
                received.extend_from_slice(&chunk[..read]);
                tokio::task::yield_now().await;
            }
        };
        let ((), received) = tokio::join!(send, receive);
        drop(server);
        received
    };
    let ((sent, result), received) = tokio::join!(run(accepted, upstream), peers);
    result.unwrap();
    assert!(received == expected, "{} of {} bytes", received.len(), expected.len());
    assert_eq!(sent.to_upstream, 4_000_000);
}
