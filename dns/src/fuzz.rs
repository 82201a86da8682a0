//! Invariants for any input from the network. The targets in `fuzz/` call them with random bytes, the tests
//! with the files in `fuzz/corpus`.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, LazyLock};
use std::time::Instant;

use arc_swap::ArcSwap;
use clap::Parser as _;
use hickory_server::proto::op::Message;

use crate::forward::Forwarder;
use crate::message::{Header, NameBuf, Query, flag};
use crate::metrics::{Metrics, Protocol};
use crate::responder::{Options, Responder, Secret, Step};
use crate::run::Config;
use crate::zone::{Settings, Zone};

pub use crate::forward::fuzz::upstream;

/// Maximum size of our datagrams.
const MAX_DATAGRAM: usize = 1232;

/// A server with an empty cluster that is synced.
static SERVER: LazyLock<Responder> = LazyLock::new(|| {
    let arguments = ["portolan-dns", "--upstream", "192.0.2.1"];
    let config = Config::from(crate::Args::try_parse_from(arguments).expect("valid flags"));
    let settings = Settings {
        domain: NameBuf::from_text("cluster.local").expect("a name"),
        ttl: config.ttl,
        names: config.names.clone(),
        service_cidrs: config.discovery.service_cidrs.clone(),
        listen: config.listen.clone(),
    };
    let mut zone = Zone::empty(Arc::new(settings));
    zone.synced = true;
    let metrics = Arc::new(Metrics::new());
    let forwarder = Forwarder::new(config.forward, &config.listen, &metrics.registry);
    Responder {
        zone: ArcSwap::from_pointee(zone),
        forwarder: forwarder.expect("an upstream server of no network"),
        metrics,
        autopath: None,
        acl: None,
        log: None,
        dnstap: None,
        options: Options { nsid: b"fuzz".as_slice().into(), secret: Secret::new().expect("random bytes") },
    }
});

/// A message of a client, over UDP and over TCP: every reply must be well-formed and within its limit.
///
/// # Panics
/// If an invariant does not hold.
pub fn query(message: &[u8]) {
    let client = || Some(SocketAddr::from((Ipv4Addr::LOCALHOST, 5353)));
    for protocol in [Protocol::Udp, Protocol::Tcp, Protocol::Tls, Protocol::Https] {
        // The content of the buffer must stay.
        let (mut lower, mut out) = (Vec::new(), b"before".to_vec());
        let step = SERVER.answer_now(message, (protocol, &client), Instant::now(), &mut lower, &mut out);
        if step == Step::Deferred {
            assert_eq!(out, b"before");
            SERVER.shed(message, (protocol, &client), &mut out);
        }
        let reply = out.strip_prefix(b"before").expect("the buffer's own bytes");
        if step == Step::Silence {
            assert_eq!(reply, b"");
            continue;
        }
        let (query, header) =
            (Header::parse(message).expect("a header"), Header::parse(reply).expect("a header"));
        assert!(header.has(flag::QR) && header.id == query.id && header.opcode() == query.opcode());
        assert!(!query.has(flag::QR), "a response must not be answered");
        if header.questions == 1 {
            Message::from_vec(reply).expect("a whole message");
        }
        if protocol == Protocol::Udp {
            let payload =
                Query::parse(message).ok().and_then(|query| query.edns).map_or(512, |edns| edns.payload);
            let limit = usize::from(payload).clamp(512, MAX_DATAGRAM);
            assert!(reply.len() <= limit, "{} bytes for one who takes {limit}", reply.len());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    /// Every file that fuzzing has found interesting.
    #[test]
    fn inputs_found_by_fuzzing_satisfy_the_invariants() {
        let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus");
        for (name, target) in [("query", super::query as fn(&[u8])), ("upstream", super::upstream)] {
            let files: Vec<_> = std::fs::read_dir(corpus.join(name)).unwrap().map(Result::unwrap).collect();
            assert!(files.len() >= 8, "{name}: {} files", files.len());
            let mut random = fastrand::Rng::with_seed(53);
            for file in files {
                let message = std::fs::read(file.path()).unwrap();
                target(&message);
                // And mutations of it.
                for _ in 0..200 {
                    let mut near = message.clone();
                    for _ in 0..random.usize(1..4) {
                        let at = random.usize(..near.len());
                        near[at] = random.u8(..);
                    }
                    near.truncate(random.usize(..near.len() * 4));
                    target(&near);
                }
            }
        }
    }
}
