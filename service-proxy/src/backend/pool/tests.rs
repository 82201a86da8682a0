use std::collections::HashMap;

use super::*;

const CLIENT: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 22, 1, 1));

fn pool(count: u8, kind: BalancerKind) -> Pool {
    let endpoint = |number| Arc::new(Endpoint::new(SocketAddr::from(([10, 22, 0, number], 8080))));
    Pool::new((1..=count).map(endpoint).collect(), kind)
}

fn first(pool: &Pool, client: IpAddr) -> SocketAddr {
    pool.endpoints_to_try(client).next().unwrap().address
}

fn clients() -> impl Iterator<Item = IpAddr> {
    (0..4000_u16).map(|n| IpAddr::from([10, 23, n.to_be_bytes()[0], n.to_be_bytes()[1]]))
}

#[test]
fn every_balancer_uses_all_endpoints_evenly_and_tries_distinct_ones() {
    for kind in
        [BalancerKind::Random, BalancerKind::RoundRobin, BalancerKind::LeastConnections, BalancerKind::Maglev]
    {
        let pool = pool(4, kind);
        let mut count: HashMap<SocketAddr, u32> = HashMap::new();
        for client in clients() {
            let tried: Vec<_> = pool.endpoints_to_try(client).map(|endpoint| endpoint.address).collect();
            let distinct: std::collections::HashSet<_> = tried.iter().collect();
            assert_eq!((tried.len(), distinct.len()), (4, 4), "{kind:?}");
            *count.entry(tried[0]).or_default() += 1;
        }
        assert!(count.len() == 4 && count.values().all(|n| (800..1200).contains(n)), "{kind:?}: {count:?}");
    }
}

#[test]
fn round_robin_takes_turns() {
    let pool = pool(3, BalancerKind::RoundRobin);
    let seen: Vec<_> = (0..6).map(|_| first(&pool, CLIENT)).collect();
    assert_eq!(seen[..3], seen[3..]);
    assert!(seen[0] != seen[1] && seen[1] != seen[2] && seen[0] != seen[2], "{seen:?}");
}

#[test]
fn maglev_keeps_the_endpoint_of_a_client_and_moves_few_when_an_endpoint_is_removed() {
    let (before, after) = (pool(10, BalancerKind::Maglev), pool(9, BalancerKind::Maglev));
    let removed: SocketAddr = "10.22.0.10:8080".parse().unwrap();
    let (mut moved, mut total) = (0, 0);
    for client in clients() {
        let was = first(&before, client);
        assert_eq!(was, first(&before, client));
        if was != removed {
            total += 1;
            moved += u32::from(was != first(&after, client));
        }
    }
    assert!(moved * 20 < total, "{moved} of {total} clients moved without need");
}

#[test]
fn least_connections_prefers_the_idle_endpoint() {
    let pool = pool(2, BalancerKind::LeastConnections);
    let (busy, idle) = (&pool.endpoints()[0], &pool.endpoints()[1]);
    let _held: Vec<_> = (0..5).map(|_| busy.succeeded()).collect();
    // It wins except for the microseconds by which the busy one is older.
    let chosen = (0..4000).filter(|_| first(&pool, CLIENT) == idle.address).count();
    assert!(chosen > 3000, "{chosen} of 4000 went to the idle endpoint");
}

#[test]
fn failing_endpoints_are_ejected_but_at_most_half() {
    let pool = pool(4, BalancerKind::Random);
    for endpoint in &pool.endpoints()[..3] {
        for _ in 0..3 {
            pool.failed(endpoint);
        }
    }
    let ejected: Vec<bool> = pool.endpoints().iter().map(|endpoint| endpoint.is_ejected()).collect();
    assert_eq!(ejected, [true, true, false, false]);
    for _ in 0..100 {
        let tried: Vec<_> = pool.endpoints_to_try(CLIENT).map(|endpoint| endpoint.is_ejected()).collect();
        assert_eq!(tried, [false, false, true, true], "the healthy ones come first");
    }
}
