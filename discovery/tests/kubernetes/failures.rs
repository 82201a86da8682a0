//! A server that behaves wrongly as a whole.

use super::*;

/// The age and the problem of a source.
fn stale(snapshot: &Snapshot, resource: Resource) -> Option<(Duration, String)> {
    let source = snapshot.sources.get(resource.source())?;
    source.failure.as_ref().map(|failure| (source.staleness(), failure.problem.to_string()))
}

#[tokio::test]
async fn watch_without_events_makes_the_source_stale_and_is_reported() {
    let server = Server::start();
    put_good(&server, 1);
    let fixture = Fixture::start(&server);
    fixture.until("the good objects", |snapshot| has_all(snapshot, &[1])).await;
    server.change(|state| state.ends_watches = true);
    let is_stale = |snapshot: &Snapshot| {
        stale(snapshot, Resource::Services).is_some_and(|(_, why)| why.contains("without an event"))
    };
    fixture.until("the services to be stale", is_stale).await;
    // Each further watch is accepted and delivers nothing.
    let before = server.watches(Resource::Services);
    while server.watches(Resource::Services) < before + 3 {
        tokio::time::sleep(Duration::from_millis(20)).await;
        let snapshot = Arc::clone(&fixture.discovery.snapshots.borrow());
        assert!(is_stale(&snapshot) && has_all(&snapshot, &[1]), "{:?}", snapshot.health());
    }
    let (age, _) = stale(&fixture.discovery.snapshots.borrow(), Resource::Services).unwrap();
    assert!(age > Duration::from_secs(1), "{age:?}: its age counts from the last event");
    server.change(|state| state.ends_watches = false);
    put_good(&server, 2);
    fixture.until("a watch that works", |snapshot| has_all(snapshot, &[1, 2]) && !snapshot.is_stale()).await;
}

/// All sources are stale and stay stale during further requests. The last state stays.
async fn stays_stale(server: &Server, fixture: &Fixture, why: &str, numbers: &[u8]) {
    let is_stale = |snapshot: &Snapshot| {
        ALL.iter().all(|r| stale(snapshot, *r).is_some_and(|(_, text)| text.contains(why)))
    };
    fixture.until("all sources to be stale", is_stale).await;
    let before = server.state().requests.len();
    while server.state().requests.len() < before + 3 * ALL.len() {
        tokio::time::sleep(Duration::from_millis(20)).await;
        let snapshot = Arc::clone(&fixture.discovery.snapshots.borrow());
        let is_kept = numbers.is_empty() || has_all(&snapshot, numbers);
        assert!(is_stale(&snapshot) && is_kept, "{:?}", snapshot.health());
        assert_eq!(snapshot.synced, !numbers.is_empty());
    }
    let (age, _) = stale(&fixture.discovery.snapshots.borrow(), Resource::Services).unwrap();
    assert!(age > Duration::from_secs(1), "{age:?}: a response that is no list does not reset the age");
    // The text that `/readyz?verbose` shows.
    let (_, page) = fixture.discovery.snapshots.borrow().health();
    assert!(ALL.iter().all(|r| page.contains(r.source())) && page.contains(why), "{page}");
}

#[tokio::test]
async fn html_page_in_place_of_a_list_is_a_failure() {
    let server = Server::start();
    put_good(&server, 1);
    server.change(|state| state.shows_page = true);
    let fixture = Fixture::start(&server);
    stays_stale(&server, &fixture, "cannot be watched", &[]).await;
    server.change(|state| state.shows_page = false);
    fixture.until("the lists", |snapshot| has_all(snapshot, &[1]) && !snapshot.is_stale()).await;
    server.change(|state| state.shows_page = true);
    stays_stale(&server, &fixture, "cannot be watched", &[1]).await;
    server.change(|state| state.shows_page = false);
    put_good(&server, 2);
    fixture.until("what comes then", |snapshot| has_all(snapshot, &[1, 2]) && !snapshot.is_stale()).await;
}

#[tokio::test]
async fn list_that_ends_before_it_is_complete_is_a_failure() {
    let server = Server::start();
    put_good(&server, 1);
    server.change(|state| state.cuts_lists = true);
    let fixture = Fixture::start(&server);
    stays_stale(&server, &fixture, "before it was complete", &[]).await;
    server.change(|state| state.cuts_lists = false);
    fixture.until("the lists", |snapshot| has_all(snapshot, &[1]) && !snapshot.is_stale()).await;
    // A daemon that has to list again keeps its state meanwhile.
    server.change(|state| state.cuts_lists = true);
    expire(&server);
    stays_stale(&server, &fixture, "before it was complete", &[1]).await;
    server.change(|state| state.cuts_lists = false);
    put_good(&server, 2);
    fixture.until("what comes then", |snapshot| has_all(snapshot, &[1, 2]) && !snapshot.is_stale()).await;
}

/// Five requests, four pauses: at least 0.1 s, each twice as long as the one before.
#[tokio::test]
async fn undecodable_paged_list_is_requested_again_after_growing_pauses() {
    let server = Server::start();
    server.change(|state| state.refuses_streams = true);
    put_good(&server, 1);
    for resource in ALL {
        server.put(resource, "nonsense", "nonsense");
    }
    let started = tokio::time::Instant::now();
    let fixture = Fixture::start(&server);
    let lists = |resource: Resource| {
        let path = format!("/{}?", resource.plural());
        let state = server.state();
        state.requests.iter().filter(|line| line.contains(&path) && !line.contains("watch=true")).count()
    };
    while ALL.iter().any(|resource| lists(*resource) < 5) {
        assert!(started.elapsed() < TIMEOUT, "{:?}", ALL.map(lists));
        tokio::time::sleep(Duration::from_millis(5)).await;
        let is_early = ALL.iter().any(|resource| lists(*resource) >= 5)
            && started.elapsed() < Duration::from_millis(1500);
        assert!(!is_early, "{:?} after {:?}", ALL.map(lists), started.elapsed());
    }
    fixture.until("an failure", |s| ALL.iter().all(|resource| stale(s, *resource).is_some())).await;
    ALL.iter().for_each(|resource| server.delete(*resource, "nonsense"));
    fixture.until("the lists", |snapshot| has_all(snapshot, &[1]) && !snapshot.is_stale()).await;
}

#[tokio::test]
async fn server_that_comes_back_without_changes_is_watched_again() {
    let server = Server::start();
    put_good(&server, 1);
    let fixture = Fixture::start(&server);
    fixture.until("the good objects", |snapshot| has_all(snapshot, &[1])).await;
    server.change(|state| ALL.iter().for_each(|r| state.refuse(r.plural(), 500, "the store is away")));
    let is_stale = |snapshot: &Snapshot| {
        ALL.iter().all(|r| stale(snapshot, *r).is_some_and(|(_, why)| why.contains("500")))
    };
    fixture.until("all sources to be stale", is_stale).await;
    server.change(|state| state.refusals.clear());
    fixture
        .until("all sources to be watched", |snapshot| has_all(snapshot, &[1]) && !snapshot.is_stale())
        .await;
}

#[tokio::test]
async fn restored_history_is_listed_again() {
    let server = Server::start();
    put_good(&server, 1);
    let fixture = Fixture::start(&server);
    fixture.until("the good objects", |snapshot| has_all(snapshot, &[1])).await;
    server.restore(Resource::Services, "good-2", &good(Resource::Services, 2).to_string());
    let is_so =
        |s: &Snapshot| has(s, Resource::Services, 2) && ALL.iter().all(|r| !has(s, *r, 1)) && !s.is_stale();
    fixture.until("the other history", is_so).await;
    put_good(&server, 3);
    fixture.until("what comes then", |snapshot| has_all(snapshot, &[3])).await;
}

#[tokio::test]
async fn expired_version_is_listed_again() {
    let server = Server::start();
    put_good(&server, 1);
    let fixture = Fixture::start(&server);
    fixture.until("the good objects", |snapshot| has_all(snapshot, &[1])).await;
    expire(&server);
    put_good(&server, 2);
    fixture.until("what was missed", |snapshot| has_all(snapshot, &[1, 2]) && !snapshot.is_stale()).await;
}

#[tokio::test]
async fn server_without_service_cidrs_or_permission_for_them_affects_only_them() {
    for (code, message) in
        [(404, "the server could not find the requested resource"), (403, "servicecidrs is forbidden")]
    {
        let server = Server::start();
        server.change(|state| state.refuse(Resource::ServiceCidrs.plural(), code, message));
        put_good(&server, 1);
        let fixture = Fixture::start(&server);
        let others = [
            Resource::Services,
            Resource::EndpointSlices,
            Resource::Nodes,
            Resource::Namespaces,
            Resource::Pods,
        ];
        let is_so = |snapshot: &Snapshot| {
            others.iter().all(|resource| has(snapshot, *resource, 1)) && snapshot.synced
        };
        let snapshot = fixture.until("the others", is_so).await;
        assert!(!snapshot.is_stale() && errors(&snapshot).is_empty(), "{:?}", snapshot.health());
        assert_eq!(snapshot.service_cidrs.len(), 1, "that of the flags");
        // Without permission for another resource the daemon is not ready.
        server.change(|state| state.refuse("nodes", 403, "nodes is forbidden"));
        let again = discovery(&fixture.access, &Recorder::default());
        let snapshot =
            until(&again, "the refusal", |snapshot| stale(snapshot, Resource::Nodes).is_some()).await;
        assert!(!snapshot.synced);
    }
}

#[tokio::test]
async fn service_cidr_adds_a_range_while_it_exists() {
    let server = Server::start();
    let service = good(Resource::Services, 1).to_string().replace("10.96.0.1", "10.2.7.1");
    server.put(Resource::Services, "good-1", &service);
    let fixture = Fixture::start(&server);
    let is_outside = |snapshot: &Snapshot| {
        snapshot.problems.iter().any(|problem| problem.message.contains("outside the service ranges"))
    };
    fixture.until("a Service outside the ranges", |snapshot| snapshot.synced && is_outside(snapshot)).await;
    server.put(Resource::ServiceCidrs, "more", &good(Resource::ServiceCidrs, 7).to_string());
    fixture
        .until("its range", |snapshot| has(snapshot, Resource::ServiceCidrs, 7) && !is_outside(snapshot))
        .await;
    server.delete(Resource::ServiceCidrs, "more");
    fixture
        .until("its range to go", |snapshot| {
            !has(snapshot, Resource::ServiceCidrs, 7) && is_outside(snapshot)
        })
        .await;
}

/// Closes every watch like a server whose versions have expired.
fn expire(server: &Server) {
    for resource in ALL {
        let mut state = server.state();
        state.version += 1;
        let expired = "{\"type\":\"ERROR\",\"object\":{\"kind\":\"Status\",\"apiVersion\":\"v1\",\"status\":\"Failure\",\
                   \"message\":\"too old\",\"reason\":\"Expired\",\"code\":410}}";
        server.say(state, resource, expired.to_owned());
    }
}
