//! Connections that end, break, fall silent or lie, and what is made up for.

use std::sync::atomic::{AtomicBool, Ordering};

use super::*;

#[tokio::test(start_paused = true)]
async fn a_watch_that_ends_in_time_is_resumed_without_a_list() {
    let api = FakeApi::new();
    api.deployment(1, 0);
    let mut events = cache(&api).watch(InstanceFilter::all());
    until_synced(&mut events).await;
    let lists = api.lists();
    for round in 0..5 {
        api.close_watches();
        api.deployment(10 + round, 0);
        assert_eq!(applied(next(&mut events).await).id, id(10 + round));
    }
    assert_eq!(api.lists(), lists);
    // An idle hour: only watches, one in half a minute for each kind.
    let before = api.requests().len();
    pass(3600).await;
    assert_eq!(drain(&mut events), []);
    assert_eq!(api.lists(), lists);
    let watches = api.requests().len() - before;
    assert!((300..=400).contains(&watches), "{watches}");
}

#[tokio::test(start_paused = true)]
async fn a_broken_connection_is_resumed_without_a_list() {
    let api = FakeApi::new();
    api.deployment(1, 0);
    let mut events = cache(&api).watch(InstanceFilter::all());
    until_synced(&mut events).await;
    let lists = api.lists();
    api.break_watches();
    api.deployment(2, 0);
    assert_eq!(applied(next(&mut events).await).id, id(2));
    settle().await;
    assert_eq!((drain(&mut events), api.lists()), (vec![], lists));
}

#[tokio::test(start_paused = true)]
async fn an_outage_is_reported_and_made_up_for() {
    let api = FakeApi::new();
    for n in 0..4 {
        api.deployment(n, 0);
        api.claim(n, "1Gi");
    }
    let cache = cache(&api);
    let mut events = cache.watch(InstanceFilter::all());
    until_synced(&mut events).await;
    let before = now();
    assert!(cache.cached(id(1)).is_some());

    api.down(true);
    let stale = stale(next(&mut events).await);
    assert!(stale.since >= before && stale.since <= now(), "{stale:?}");
    assert!(stale.reason.contains("refused"), "{stale:?}");
    assert!(
        cache.cached(id(1)).is_none(),
        "nothing is answered from a cache that is out of touch"
    );
    assert_eq!(cache.health().map(|(state, _)| state), Some(HealthState::Degraded));
    api.remove_deployment(0);
    api.deployment(1, 1);
    api.remove_deployment(2);
    api.deployment(2, 1);
    api.deployment(9, 0);
    advance(Duration::from_secs(100)).await;
    settle().await;
    assert_eq!(drain(&mut events), [], "one outage is reported once");

    api.down(false);
    let missed = until_synced(&mut events).await;
    let mut seen: Vec<String> = missed
        .iter()
        .map(|event| match event {
            InstanceEvent::Applied(i) => format!("+{} {}", i.id.short(), i.facts.desired),
            InstanceEvent::Deleted(i) => format!("-{} {}", i.id.short(), i.facts.desired),
            other => format!("{other:?}"),
        })
        .collect();
    seen.sort();
    assert_eq!(
        seen,
        [
            "+00000001 1",
            "+00000002 1",
            "+00000009 0",
            "-00000000 0",
            "-00000002 0"
        ]
    );
    assert_eq!(cache.health().map(|(state, _)| state), Some(HealthState::Ok));
}

#[tokio::test(start_paused = true)]
async fn a_server_that_is_not_there_yet_is_stale_and_then_synced() {
    let api = FakeApi::new();
    api.deployment(1, 0);
    api.down(true);
    let mut events = cache(&api).watch(InstanceFilter::all());
    stale(next(&mut events).await);
    api.down(false);
    assert_eq!(until_synced(&mut events).await.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_lost_history_is_listed_again() {
    for in_an_event in [true, false] {
        let api = FakeApi::new();
        api.deployment(1, 0);
        let mut events = cache(&api).watch(InstanceFilter::all());
        until_synced(&mut events).await;
        api.gone_as_event(in_an_event);
        api.pause_watches(true);
        api.close_watches();
        api.deployment(2, 0);
        api.remove_deployment(1);
        api.compact();
        api.pause_watches(false);
        assert!(!stale(next(&mut events).await).reason.is_empty());
        let missed = until_synced(&mut events).await;
        assert_eq!(missed.len(), 2, "{missed:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_understood_is_listed_again() {
    let api = FakeApi::new();
    api.deployment(1, 0);
    let mut events = cache(&api).watch(InstanceFilter::all());
    until_synced(&mut events).await;
    for line in [
        "{\"type\":\"MODIFIED\",\"object\":[]}\n",
        "<html>\n",
        "{\"type\":\"ERROR\",\"object\":{\"kind\":\"Status\",\"status\":\"Failure\",\"message\":\"etcd\",\"reason\":\"InternalError\",\"code\":500}}\n",
    ] {
        api.send_raw("deployments", line);
        stale(next(&mut events).await);
        assert_eq!(until_synced(&mut events).await, [], "after {line}");
    }
}

#[tokio::test(start_paused = true)]
async fn silence_is_noticed() {
    let api = FakeApi::new();
    api.deployment(1, 0);
    let mut events = cache(&api).watch(InstanceFilter::all());
    until_synced(&mut events).await;
    let start = tokio::time::Instant::now();
    api.silent(true);
    stale(next(&mut events).await);
    let after = start.elapsed();
    assert!(after <= tuning().silence(), "{after:?}");
    api.deployment(2, 0);
    api.silent(false);
    assert_eq!(until_synced(&mut events).await.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_list_that_trickles_to_a_stop_is_given_up() {
    let api = FakeApi::new();
    api.deployment(1, 0);
    api.hang_bodies(true);
    let mut events = cache(&api).watch(InstanceFilter::all());
    assert!(stale(next(&mut events).await).reason.contains("nothing was heard"));
    api.hang_bodies(false);
    assert_eq!(until_synced(&mut events).await.len(), 1);
}

/// Panics once when it is told to.
struct Trapped(Arc<AtomicBool>);

impl Observe for Trapped {
    fn observe(
        &self,
        d: &DeploymentView,
        pods: &[&PodView],
        claim: Option<&ClaimView>,
        at: Timestamp,
    ) -> Option<Instance> {
        assert!(!self.0.swap(false, Ordering::SeqCst), "on purpose");
        observe(d, pods, claim, at)
    }

    fn claim_of<'a>(&self, deployment: &'a DeploymentView) -> Option<&'a str> {
        Small.claim_of(deployment)
    }
}

#[tokio::test(start_paused = true)]
async fn a_panic_restarts_the_watch() {
    let api = FakeApi::new();
    api.deployment(1, 0);
    let bad = Arc::new(AtomicBool::new(false));
    let mut events = Cache::with(api.client(), "ns", Trapped(Arc::clone(&bad)), tuning()).watch(InstanceFilter::all());
    until_synced(&mut events).await;
    bad.store(true, Ordering::SeqCst);
    api.title(1, "new");
    settle().await;
    assert!(stale(next(&mut events).await).reason.contains("panicked"));
    let missed = until_synced(&mut events).await;
    assert_eq!(applied(missed[0].clone()).spec.display_name, "new");
}
