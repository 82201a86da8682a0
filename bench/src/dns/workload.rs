//! The queried names, and the configuration that serves them in the format of each server.

use std::fmt::Write as _;
use std::net::Ipv4Addr;
use std::path::Path;

use anyhow::Result;
use fastrand::Rng;

/// Services of the cluster.
pub(super) const SERVICES: usize = 10_000;

/// Services of a namespace, and so documents of a manifest.
const PER_NAMESPACE: usize = 100;

/// External names.
const EXTERNAL: usize = 10_000;

/// Serial, then refresh, retry, expire and negative TTL in seconds, as CoreDNS sets them.
const SOA_NUMBERS: &str = "1 7200 1800 86400 5";

/// Queries with their expected answers.
#[derive(Clone, Debug)]
pub(super) struct Queries {
    /// Messages with an id of zero.
    pub(super) messages: Vec<Vec<u8>>,
    /// The expected response code.
    pub(super) rcode: u8,
}

impl Queries {
    /// Queries for the virtual IPs of all Services.
    pub(super) fn services() -> Self {
        Self::shuffled((0..SERVICES).map(|number| query(&service(number))), 0)
    }

    /// Queries of a search list for external names (`ndots:5`): the names do not exist.
    pub(super) fn missing() -> Self {
        let name = |number: usize| format!("host-{number}.example.org.{}", domain(number));
        Self::shuffled((0..SERVICES).map(|number| query(&name(number))), 3)
    }

    /// Queries for external names, which the server forwards the first time.
    pub(super) fn external() -> Self {
        Self::shuffled((0..EXTERNAL).map(|number| query(&format!("host-{number}.example.org"))), 0)
    }

    /// A single query for A, which has an answer.
    pub(super) fn one(name: &str) -> Self {
        Self { messages: vec![query(name)], rcode: 0 }
    }

    /// A single query for TXT.
    #[cfg(test)]
    pub(super) fn one_text(name: &str) -> Self {
        let mut one = Self::one(name);
        for message in &mut one.messages {
            let end = message.len();
            message[end - 4..].copy_from_slice(&[0, 16, 0, 1]);
        }
        one
    }

    /// Shuffles with a fixed seed: the order is the same in every run and not the order of the zone.
    fn shuffled(messages: impl Iterator<Item = Vec<u8>>, rcode: u8) -> Self {
        let mut messages: Vec<_> = messages.collect();
        Rng::with_seed(53).shuffle(&mut messages);
        Self { messages, rcode }
    }

    /// Returns whether a message is the correct answer to query `number` with that id.
    pub(super) fn is_answered_by(&self, number: usize, id: u16, message: &[u8]) -> bool {
        let Some(query) = self.messages.get(number) else { return false };
        let Some((header, rest)) = message.split_first_chunk::<12>() else { return false };
        let answers = header[6] != 0 || header[7] != 0;
        header[..2] == id.to_be_bytes()
            && header[2] & 0x80 != 0
            && header[3] & 0xf == self.rcode
            && answers == (self.rcode == 0)
            && rest.starts_with(&query[12..])
    }
}

/// Encodes a query for A records with recursion desired and without EDNS, as glibc and dnsperf do.
pub(super) fn query(name: &str) -> Vec<u8> {
    let mut message = vec![0, 0, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        message.push(u8::try_from(label.len()).unwrap_or(0));
        message.extend(label.as_bytes());
    }
    message.extend([0, 0, 1, 0, 1]);
    message
}

fn domain(number: usize) -> String {
    format!("namespace-{}.svc.cluster.local", number / PER_NAMESPACE)
}

fn service(number: usize) -> String {
    format!("service-{number}.{}", domain(number))
}

fn address(number: usize) -> Ipv4Addr {
    // From 10.96.1.0 on.
    Ipv4Addr::from(0x0a60_0100 + u32::try_from(number).unwrap_or(0))
}

/// Writes a manifest for each namespace.
pub(super) fn write_manifests(directory: &Path) -> Result<()> {
    for namespace in 0..SERVICES / PER_NAMESPACE {
        let mut text = String::new();
        for number in namespace * PER_NAMESPACE..(namespace + 1) * PER_NAMESPACE {
            writeln!(
                text,
                "---\napiVersion: v1\nkind: Service\n\
                 metadata: {{name: service-{number}, namespace: namespace-{namespace}}}\n\
                 spec: {{clusterIP: {}, ports: [{{name: http, port: 80}}]}}",
                address(number)
            )?;
        }
        std::fs::write(directory.join(format!("namespace-{namespace}.yaml")), text)?;
    }
    Ok(())
}

/// Returns the Services as a zone.
pub(super) fn cluster_zone() -> String {
    let mut zone = head("cluster.local.", 5);
    for number in 0..SERVICES {
        let (name, address) = (service(number), address(number));
        zone += &format!("{name}. A {address}\n_http._tcp.{name}. SRV 0 100 80 {name}.\n");
    }
    zone
}

/// Returns the external names as a zone.
pub(super) fn external_zone() -> String {
    let mut zone = head("example.org.", 3600);
    for number in 0..EXTERNAL {
        zone += &format!("host-{number} A 198.51.100.{}\n", number % 250 + 1);
    }
    zone
}

fn head(origin: &str, ttl: u32) -> String {
    format!(
        "$ORIGIN {origin}\n$TTL {ttl}\n@ SOA ns.dns.{origin} hostmaster.{origin} {SOA_NUMBERS}\n\
         @ NS ns.dns.{origin}\nns.dns A 10.53.0.1\n"
    )
}

/// Returns the queries in the format of dnsperf.
pub(super) fn dnsperf_lines(queries: &Queries) -> String {
    queries.messages.iter().map(|message| format!("{} A\n", name_of(message))).collect()
}

fn name_of(message: &[u8]) -> String {
    let (mut name, mut rest) = (String::new(), &message[12..]);
    while let Some((&length, behind)) = rest.split_first().filter(|(length, _)| **length > 0) {
        let (label, next) = behind.split_at(usize::from(length));
        name += &String::from_utf8_lossy(label);
        name.push('.');
        rest = next;
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_correct_answer_to_the_query_counts() {
        let queries = Queries::services();
        let mut answer = queries.messages[7].clone();
        answer[1] = 9;
        answer[2] |= 0x84;
        answer[7] = 1;
        assert!(queries.is_answered_by(7, 9, &answer));
        assert!(!queries.is_answered_by(8, 9, &answer), "another question");
        assert!(!queries.is_answered_by(7, 8, &answer), "another id");
        assert!(!Queries::missing().is_answered_by(7, 9, &answer), "another question and code");
        answer[7] = 0;
        assert!(!queries.is_answered_by(7, 9, &answer), "no record");
        answer[3] |= 2;
        assert!(!queries.is_answered_by(7, 9, &answer), "SERVFAIL");
        assert!(!queries.is_answered_by(7, 9, &[]));
    }

    #[test]
    fn names_are_the_same_for_every_server() {
        let lines = dnsperf_lines(&Queries::services());
        let zone = cluster_zone();
        assert_eq!(lines.lines().count(), SERVICES);
        for line in lines.lines().take(50) {
            assert!(zone.contains(&format!("\n{line} ")), "{line}");
        }
    }
}
