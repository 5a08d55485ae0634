//! What subscribers are told.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;

#[tokio::test(start_paused = true)]
async fn a_snapshot_in_pages_and_then_synced() {
    let api = FakeApi::new();
    for n in 0..5 {
        api.deployment(n, 1);
        api.pod(n, "p", true);
    }
    let mut events = cache(&api).watch(InstanceFilter::all());
    let snapshot = until_synced(&mut events).await;
    assert_eq!(snapshot.len(), 5);
    for event in snapshot {
        let instance = applied(event);
        assert_eq!(instance.status, InstanceStatus::Running, "joined with its pod");
        assert_eq!(instance.provenance.source, Source::Cache);
    }
    let requests = api.requests();
    let lists: Vec<_> = requests.iter().filter(|r| !r.contains("watch=true")).collect();
    assert_eq!(
        lists.len(),
        3 + 3 + 1,
        "five in pages of two, twice, and no claims: {requests:#?}"
    );
    assert!(
        requests
            .iter()
            .all(|r| r.contains("labelSelector=managed-by%3Dsaasodoo%2Capp%3Dodoo"))
    );
    assert!(
        requests.iter().all(|r| !r.contains("sendInitialEvents")),
        "no streaming lists"
    );
    assert!(lists.iter().all(|r| r.contains("limit=2")));
    assert_eq!(drain(&mut events), []);
}

#[tokio::test(start_paused = true)]
async fn changes_of_every_kind_arrive() {
    let api = FakeApi::new();
    let mut events = cache(&api).watch(InstanceFilter::all());
    assert_eq!(until_synced(&mut events).await, []);
    api.deployment(1, 1);
    assert_eq!(applied(next(&mut events).await).status, InstanceStatus::Starting);
    api.pod(1, "p", false);
    assert!(!applied(next(&mut events).await).facts.units.is_empty());
    api.pod(1, "p", true);
    assert_eq!(applied(next(&mut events).await).status, InstanceStatus::Running);
    api.claim(1, "5Gi");
    assert!(applied(next(&mut events).await).storage.requested.is_some());
    api.remove_pod(1, "p");
    assert_eq!(applied(next(&mut events).await).status, InstanceStatus::Starting);
    api.remove_deployment(1);
    let InstanceEvent::Deleted(last) = next(&mut events).await else {
        panic!("not deleted")
    };
    assert_eq!((last.id, last.facts.desired), (id(1), 1));
    api.pod(7, "stray", true);
    settle().await;
    assert_eq!(drain(&mut events), [], "a pod without a deployment is no instance");
}

#[tokio::test(start_paused = true)]
async fn a_pod_of_the_same_digits_and_another_selector_is_not_joined() {
    let api = FakeApi::new();
    api.deployment(1, 1);
    api.put(
        "pods",
        "stranger",
        json!({
            "metadata": {"labels": {"app": "odoo", "managed-by": "saasodoo", "instance-id": "00000001",
                "app.kubernetes.io/instance": "00000001-ffff-4000-8000-000000000000"}},
            "status": {"phase": "Running", "containerStatuses": [{"name": "odoo", "ready": true}]}
        }),
    );
    let mut events = cache(&api).watch(InstanceFilter::all());
    let snapshot = until_synced(&mut events).await;
    assert_eq!(snapshot.len(), 1);
    assert_eq!(applied(snapshot[0].clone()).facts.units, []);
}

#[tokio::test(start_paused = true)]
async fn a_slow_subscriber_gets_the_latest_and_holds_up_nobody() {
    let api = FakeApi::new();
    api.deployment(1, 0);
    api.deployment(2, 0);
    let cache = cache(&api);
    let mut quick = cache.watch(InstanceFilter::all());
    let mut slow = cache.watch(InstanceFilter::all());
    until_synced(&mut quick).await;
    until_synced(&mut slow).await;
    for round in 0..1000 {
        api.title(1, &round.to_string());
        assert_eq!(applied(next(&mut quick).await).spec.display_name, round.to_string());
    }
    api.remove_deployment(2);
    assert!(matches!(next(&mut quick).await, InstanceEvent::Deleted(_)));
    api.deployment(3, 0);
    assert_eq!(applied(next(&mut quick).await).id, id(3));
    let seen = drain(&mut slow);
    assert_eq!(seen.len(), 3, "{seen:?}");
    assert_eq!(applied(seen[0].clone()).spec.display_name, "999");
    assert!(matches!(&seen[1], InstanceEvent::Deleted(gone) if gone.id == id(2)));
    assert_eq!(applied(seen[2].clone()).id, id(3));
}

#[tokio::test(start_paused = true)]
async fn an_instance_that_leaves_the_filter_is_deleted_from_the_stream() {
    let api = FakeApi::new();
    api.deployment(1, 1);
    api.pod(1, "p", true);
    api.deployment(2, 0);
    let mut events = cache(&api).watch(InstanceFilter::all().with_status(InstanceStatus::Running));
    let snapshot = until_synced(&mut events).await;
    assert_eq!(snapshot.len(), 1);
    api.pod(1, "p", false);
    assert!(matches!(next(&mut events).await, InstanceEvent::Deleted(gone) if gone.id == id(1)));
    api.title(1, "unseen");
    settle().await;
    assert_eq!(drain(&mut events), []);
    api.pod(1, "p", true);
    assert_eq!(applied(next(&mut events).await).spec.display_name, "unseen");
    api.deployment(2, 1);
    api.remove_deployment(2);
    settle().await;
    assert_eq!(drain(&mut events), [], "what never matched is never mentioned");
}

#[tokio::test(start_paused = true)]
async fn a_long_snapshot_lets_others_run() {
    let api = FakeApi::new();
    for n in 0..500 {
        api.deployment(n, 0);
    }
    let mut events = cache(&api).watch(InstanceFilter::all());
    let turns = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&turns);
    until_synced(&mut cache(&api).watch(InstanceFilter::all())).await;
    let other = tokio::spawn(async move {
        loop {
            count.fetch_add(1, Ordering::SeqCst);
            tokio::task::yield_now().await;
        }
    });
    assert_eq!(until_synced(&mut events).await.len(), 500);
    assert!(turns.load(Ordering::SeqCst) > 5);
    other.abort();
}
