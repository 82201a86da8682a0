//! Resolves names as a pod's resolver does: the search list, both families, one server.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use hickory_proto::op::{Edns, Message, Query, ResponseCode};
use hickory_proto::rr::rdata::opt::{EdnsCode, EdnsOption};
use hickory_proto::rr::{Name, RData, RecordType};

use super::step::{Outcome, Step};

/// Deadline of a query. Resolvers wait 5 s; the node's own server answers much sooner.
const DEADLINE: Duration = Duration::from_secs(3);

/// A name with this many dots is tried as is first (`ndots` in the pods' resolv.conf).
const NDOTS: usize = 5;

/// RFC 8914.
const EXTENDED_ERROR: u16 = 15;

/// The answers for one name.
pub(super) struct Found {
    pub(super) addresses: Vec<IpAddr>,
    pub(super) steps: Vec<Step>,
}

/// Returns the names that a resolver queries, in order.
pub(super) fn candidates(name: &str, namespace: &str, domain: &str) -> Vec<String> {
    if name.ends_with('.') {
        return vec![name.to_owned()];
    }
    let searched = [format!("{namespace}.svc.{domain}"), format!("svc.{domain}"), domain.to_owned()];
    let mut names: Vec<String> = searched.iter().map(|suffix| format!("{name}.{suffix}.")).collect();
    let itself = format!("{name}.");
    if name.matches('.').count() >= NDOTS || name.ends_with(&format!(".{domain}")) {
        names.insert(0, itself);
    } else {
        names.push(itself);
    }
    names
}

/// Queries addresses of both families.
///
/// # Errors
/// When the server does not answer.
pub(super) fn addresses(server: SocketAddr, name: &str) -> io::Result<Found> {
    let mut found = Found { addresses: Vec::new(), steps: Vec::new() };
    for kind in [RecordType::A, RecordType::AAAA] {
        let start = Instant::now();
        let answer = query(server, name, kind)?;
        let taken = start.elapsed();
        let data: Vec<String> = answer.answers.iter().map(|record| record.data.to_string()).collect();
        found.addresses.extend(answer.answers.iter().filter_map(|record| match &record.data {
            RData::A(address) => Some(IpAddr::V4(address.0)),
            RData::AAAA(address) => Some(IpAddr::V6(address.0)),
            _ => None,
        }));
        let code = answer.metadata.response_code;
        let (outcome, text) = match (code, data.is_empty()) {
            (ResponseCode::NoError, false) => (Outcome::Fine, data.join(", ")),
            (ResponseCode::NoError, true) => (Outcome::Note, "no such record".to_owned()),
            (ResponseCode::NXDomain, _) => (Outcome::Note, "no such name".to_owned()),
            _ => (Outcome::Failed, format!("{code}{}", reason(&answer))),
        };
        found.steps.push(Step::new("name", outcome, format!("{name} {kind}: {text}")).took(taken));
        if code == ResponseCode::NXDomain {
            break;
        }
    }
    Ok(found)
}

fn query(server: SocketAddr, name: &str, kind: RecordType) -> io::Result<Message> {
    let name = Name::from_ascii(name).map_err(io::Error::other)?;
    let mut query = Message::query();
    query.metadata.recursion_desired = true;
    query.add_query(Query::query(name, kind));
    query.edns = Some(Edns::new());
    let any: IpAddr =
        if server.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { std::net::Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0))?;
    // A connected socket reports ICMP errors at once and drops datagrams of other senders.
    socket.connect(server)?;
    socket.set_read_timeout(Some(DEADLINE))?;
    socket.send(&query.to_vec().map_err(io::Error::other)?)?;
    let mut buffer = [0; 4096];
    loop {
        let length = socket.recv(&mut buffer)?;
        let answer = Message::from_vec(&buffer[..length]).map_err(io::Error::other)?;
        if answer.metadata.id == query.metadata.id {
            return Ok(answer);
        }
    }
}

/// Returns the text of an Extended DNS Error, if there is one.
fn reason(answer: &Message) -> String {
    let option = answer.edns.as_ref().and_then(|edns| edns.option(EdnsCode::Unknown(EXTENDED_ERROR)));
    match option {
        Some(EdnsOption::Unknown(_, data)) if data.len() > 2 => {
            format!(": {}", String::from_utf8_lossy(&data[2..]))
        }
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn search_list_is_applied_as_in_a_pod() {
        assert_eq!(
            candidates("web", "shop", "cluster.local"),
            ["web.shop.svc.cluster.local.", "web.svc.cluster.local.", "web.cluster.local.", "web."]
        );
        assert_eq!(
            candidates("web.shop.svc.cluster.local", "x", "cluster.local")[0],
            "web.shop.svc.cluster.local."
        );
        assert_eq!(candidates("example.com.", "x", "cluster.local"), ["example.com."]);
    }
}
