//! The cache against an API server in the same process, under a clock that the tests move.

mod fake;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use futures::FutureExt as _;
use saasodoo_core::{
    BackendKind, Exit, Facts, InstanceSpec, InstanceStatus, ObjectName, Provenance, Staleness, Unit, UnitPhase,
};
use serde_json::json;
use tokio::time::{advance, timeout};

use super::*;
use crate::views::View as _;
use fake::{FakeApi, now};

fn id(n: u32) -> InstanceId {
    format!("{n:08x}-0000-4000-8000-000000000000").parse().expect("a UUID")
}

/// A small observation, so that these tests are about the cache only.
fn observe(
    deployment: &DeploymentView,
    pods: &[&PodView],
    claim: Option<&ClaimView>,
    at: Timestamp,
) -> Option<Instance> {
    let id = crate::names::id_of(deployment)?;
    let mut spec = InstanceSpec::new(id, "acme".parse().ok()?, "odoo:17".parse().ok()?);
    spec.display_name = deployment.annotation("title").unwrap_or_default().to_owned();
    let mut facts = Facts::new(u32::try_from(deployment.spec.replicas?).ok()?, at);
    for pod in pods {
        let mut unit = Unit::new(
            pod.name(),
            1,
            match pod.status.phase.as_str() {
                "Running" => UnitPhase::Running,
                "Pending" => UnitPhase::Pending,
                _ => UnitPhase::Unknown,
            },
        );
        if let Some(status) = pod.status.container("odoo") {
            unit.ready = status.ready;
            unit.restarts = u32::try_from(status.restart_count).ok()?;
            unit.started_at = status.state.running.as_ref().and_then(|running| running.started_at);
            unit.last_exit = status
                .last_state
                .terminated
                .as_ref()
                .map(|end| Exit::with_code(1, end.finished_at));
        }
        facts.units.push(unit);
    }
    let name = ObjectName::existing(deployment.name()).ok()?;
    let provenance = Provenance::live(deployment.version(), at);
    let mut instance = Instance::observed(BackendKind::Kubernetes, name, spec, facts, provenance);
    instance.storage.requested = claim.and_then(|c| c.spec.resources.requests.get("storage")?.parse().ok());
    Some(instance)
}

struct Small;

impl Observe for Small {
    fn observe(
        &self,
        d: &DeploymentView,
        pods: &[&PodView],
        claim: Option<&ClaimView>,
        at: Timestamp,
    ) -> Option<Instance> {
        observe(d, pods, claim, at)
    }

    fn claim_of<'a>(&self, deployment: &'a DeploymentView) -> Option<&'a str> {
        let volume = deployment.spec.template.spec.volumes.first()?;
        Some(volume.persistent_volume_claim.as_ref()?.claim_name.as_str())
    }
}

fn tuning() -> Tuning {
    Tuning {
        page_size: 2,
        now,
        ..Tuning::default()
    }
}

fn cache(api: &FakeApi) -> Cache {
    Cache::with(api.client(), "ns", Small, tuning())
}

type Events = BoxStream<'static, InstanceEvent>;

async fn next(events: &mut Events) -> InstanceEvent {
    timeout(Duration::from_secs(300), events.next())
        .await
        .expect("an event within five minutes")
        .expect("the stream never ends")
}

/// What there is to deliver now.
fn drain(events: &mut Events) -> Vec<InstanceEvent> {
    let mut drained = Vec::new();
    while let Some(Some(event)) = events.next().now_or_never() {
        drained.push(event);
    }
    drained
}

async fn settle() {
    for _ in 0..60 {
        tokio::task::yield_now().await;
    }
}

/// Lets time pass in steps: a jump would be a machine that was suspended.
async fn pass(seconds: u32) {
    for _ in 0..seconds {
        advance(Duration::from_secs(1)).await;
        settle().await;
    }
}

async fn until_synced(events: &mut Events) -> Vec<InstanceEvent> {
    let mut seen = Vec::new();
    loop {
        match next(events).await {
            InstanceEvent::Synced => return seen,
            event => seen.push(event),
        }
    }
}

fn applied(event: InstanceEvent) -> Instance {
    match event {
        InstanceEvent::Applied(instance) => *instance,
        other => panic!("not applied: {other:?}"),
    }
}

fn stale(event: InstanceEvent) -> Staleness {
    match event {
        InstanceEvent::Stale(stale) => stale,
        other => panic!("not stale: {other:?}"),
    }
}

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
async fn one_set_of_watches_serves_all_and_ends_with_the_last_owner() {
    let api = FakeApi::new();
    api.deployment(1, 0);
    let cache = cache(&api);
    settle().await;
    assert_eq!(api.requests(), Vec::<String>::new(), "lazy");
    let mut streams: Vec<Events> = (0..10).map(|_| cache.watch(InstanceFilter::all())).collect();
    for events in &mut streams {
        until_synced(events).await;
    }
    assert_eq!(api.open_watches(), 3);
    let weak = Arc::downgrade(&cache.0);
    drop(cache);
    settle().await;
    assert_eq!(api.open_watches(), 3, "a stream keeps the cache");
    drop(streams);
    settle().await;
    assert!(weak.upgrade().is_none());
    assert_eq!(api.open_watches(), 0);
    let requests = api.requests().len();
    advance(Duration::from_secs(600)).await;
    settle().await;
    assert_eq!(api.requests().len(), requests);
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

#[tokio::test(start_paused = true)]
async fn a_cached_answer_is_never_older_than_the_callers_writes() {
    let api = FakeApi::new();
    let version = api.deployment(1, 0);
    let cache = cache(&api);
    assert!(cache.cached(id(1)).is_none(), "not started");
    let mut events = cache.watch(InstanceFilter::all());
    until_synced(&mut events).await;
    let requests = api.requests().len();
    assert!(
        cache.cached(id(1)).is_none(),
        "that its claim is missing is for the server to say"
    );
    api.claim(1, "512Mi");
    next(&mut events).await;
    let seen = cache.cached(id(1)).expect("it is in step");
    assert_eq!(
        (seen.provenance.source, seen.provenance.revision.as_str()),
        (Source::Cache, version.as_str())
    );
    assert!(cache.cached(id(2)).is_none(), "absence is for the server to say");
    assert!(cache.cached("00000001".parse().expect("a short id")).is_some());
    assert_eq!(api.requests().len(), requests, "without a request");

    api.pause_watches(true);
    let version = api.title(1, "mine");
    cache.wrote(id(1), Kind::Deployment, &version);
    assert!(cache.cached(id(1)).is_none());
    api.pause_watches(false);
    assert_eq!(applied(next(&mut events).await).spec.display_name, "mine");
    assert!(cache.cached(id(1)).is_some_and(|i| i.spec.display_name == "mine"));

    api.claim(1, "1Gi");
    next(&mut events).await;
    api.pause_watches(true);
    let grown = api.claim(1, "2Gi");
    cache.wrote(id(1), Kind::Claim, &grown);
    let newer = api.title(9, "another");
    assert!(newer > grown && cache.cached(id(1)).is_none());
    api.pause_watches(false);
    next(&mut events).await;
    next(&mut events).await;
    assert!(cache.cached(id(1)).is_some());

    api.pause_watches(true);
    api.remove_deployment(1);
    cache.deleted(id(1));
    assert!(cache.cached(id(1)).is_none());
    api.pause_watches(false);
    assert!(matches!(next(&mut events).await, InstanceEvent::Deleted(_)));
    assert!(cache.cached(id(1)).is_none());
    api.deployment(1, 0);
    next(&mut events).await;
    assert!(cache.cached(id(1)).is_some(), "a new one of the same id");
    cache.deleted(id(1));
    assert!(cache.cached(id(1)).is_none(), "the deletion's event is on its way");
}

#[tokio::test(start_paused = true)]
async fn two_deployments_of_one_short_id_are_not_mixed_up() {
    let api = FakeApi::new();
    api.deployment(1, 0);
    api.claim(1, "1Gi");
    api.put(
        "deployments",
        "odoo-other-00000001",
        json!({
            "metadata": {"labels": {"app": "odoo", "managed-by": "saasodoo", "instance-id": "00000001"}},
            "spec": {"replicas": 0, "selector": {"matchLabels": {"app": "odoo", "instance-id": "00000001"}}}
        }),
    );
    let cache = cache(&api);
    let mut events = cache.watch(InstanceFilter::all());
    assert_eq!(until_synced(&mut events).await.len(), 2);
    assert!(cache.cached(id(1)).is_some(), "the whole UUID is unambiguous");
    assert!(
        cache
            .cached("00000001".parse().expect("short"))
            .is_some_and(|i| i.id.is_legacy()),
        "as is the exact label"
    );
    api.put(
        "deployments",
        "odoo-third-00000001",
        json!({
            "metadata": {"labels": {"app": "odoo", "managed-by": "saasodoo", "instance-id": "00000001"}},
            "spec": {"replicas": 0, "selector": {"matchLabels": {"app": "odoo", "instance-id": "00000001"}}}
        }),
    );
    next(&mut events).await;
    assert!(
        cache.cached("00000001".parse().expect("short")).is_none(),
        "a contradiction is for the live read to tell"
    );
}

#[tokio::test(start_paused = true)]
async fn a_status_that_changes_with_time_alone_is_reported() {
    let api = FakeApi::new();
    api.deployment(1, 1);
    let started = now().to_string();
    api.put(
        "pods",
        "p-1",
        json!({
            "metadata": {"labels": fake::labels(1)},
            "status": {"phase": "Running", "containerStatuses": [{
                "name": "odoo", "ready": true, "restartCount": 1,
                "state": {"running": {"startedAt": started}},
                "lastState": {"terminated": {"finishedAt": started}}
            }]}
        }),
    );
    let mut events = cache(&api).watch(InstanceFilter::all());
    let snapshot = until_synced(&mut events).await;
    assert_ne!(
        applied(snapshot[0].clone()).status,
        InstanceStatus::Running,
        "not settled"
    );
    let start = tokio::time::Instant::now();
    assert_eq!(applied(next(&mut events).await).status, InstanceStatus::Running);
    let after = start.elapsed().as_secs();
    assert!((9..=12).contains(&after), "{after}");
    pass(60).await;
    assert_eq!(drain(&mut events), []);
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

#[test]
fn outside_of_a_runtime_nothing_starts_and_nothing_panics() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let cache = {
        let _guard = runtime.enter();
        cache(&FakeApi::new())
    };
    assert!(!cache.start());
    assert_eq!(cache.health(), None);
    let mut events = cache.watch(InstanceFilter::all());
    assert_eq!(events.next().now_or_never(), None);
}

mod random {
    use super::*;
    use proptest::prelude::*;

    /// Something that happens to the server, its connections or the time.
    #[derive(Debug, Clone)]
    enum Step {
        Deployment(u32, i32),
        Title(u32, u8),
        RemoveDeployment(u32),
        Pod(u32, bool),
        RemovePod(u32),
        Claim(u32, u8),
        Close,
        Break,
        Down(bool),
        Silent(bool),
        Compact,
        Garbage,
        Wait(u16),
        Poll(u8),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let n = 0..6_u32;
        let step = prop_oneof![
            4 => (n.clone(), 0..2).prop_map(|(n, replicas)| Step::Deployment(n, replicas)),
            2 => (n.clone(), any::<u8>()).prop_map(|(n, title)| Step::Title(n, title)),
            2 => n.clone().prop_map(Step::RemoveDeployment),
            4 => (n.clone(), any::<bool>()).prop_map(|(n, ready)| Step::Pod(n, ready)),
            2 => n.clone().prop_map(Step::RemovePod),
            1 => (n, 1..9_u8).prop_map(|(n, size)| Step::Claim(n, size)),
            2 => Just(Step::Close),
            1 => Just(Step::Break),
            2 => any::<bool>().prop_map(Step::Down),
            1 => any::<bool>().prop_map(Step::Silent),
            1 => Just(Step::Compact),
            1 => Just(Step::Garbage),
            3 => (0..40_000_u16).prop_map(Step::Wait),
            3 => (0..8_u8).prop_map(Step::Poll),
        ];
        prop::collection::vec(step, 0..60)
    }

    /// A subscriber's picture, kept by the events alone.
    #[derive(Default)]
    struct Picture {
        instances: BTreeMap<String, (String, InstanceStatus)>,
        synced: bool,
    }

    impl Picture {
        fn take(&mut self, event: InstanceEvent) -> Result<(), TestCaseError> {
            match event {
                InstanceEvent::Applied(i) => {
                    self.instances
                        .insert(i.name.to_string(), (i.provenance.revision.clone(), i.status));
                }
                InstanceEvent::Deleted(i) => {
                    prop_assert!(
                        self.instances.remove(i.name.as_str()).is_some(),
                        "deleted and never applied"
                    );
                }
                InstanceEvent::Synced => {
                    prop_assert!(!self.synced, "synced twice");
                    self.synced = true;
                }
                InstanceEvent::Stale(_) => self.synced = false,
                other => panic!("unknown event {other:?}"),
            }
            Ok(())
        }
    }

    async fn run(steps: Vec<Step>) -> Result<(), TestCaseError> {
        let api = FakeApi::new();
        let cache = cache(&api);
        let (mut quick, mut slow) = (cache.watch(InstanceFilter::all()), cache.watch(InstanceFilter::all()));
        cache.start();
        let (mut seen, mut late) = (Picture::default(), Picture::default());
        for step in steps {
            match step {
                Step::Deployment(n, replicas) => drop(api.deployment(n, replicas)),
                Step::Title(n, title) => drop(api.title(n, &title.to_string())),
                Step::RemoveDeployment(n) => api.remove_deployment(n),
                Step::Pod(n, ready) => api.pod(n, "p", ready),
                Step::RemovePod(n) => api.remove_pod(n, "p"),
                Step::Claim(n, size) => drop(api.claim(n, &format!("{size}Gi"))),
                Step::Close => api.close_watches(),
                Step::Break => api.break_watches(),
                Step::Down(down) => api.down(down),
                Step::Silent(silent) => api.silent(silent),
                Step::Compact => api.compact(),
                Step::Garbage => api.send_raw("pods", "<html>\n"),
                Step::Wait(millis) => {
                    advance(Duration::from_millis(millis.into())).await;
                    settle().await;
                }
                Step::Poll(events) => {
                    for _ in 0..events {
                        tokio::task::yield_now().await;
                        if let Some(Some(event)) = quick.next().now_or_never() {
                            seen.take(event)?;
                        }
                    }
                }
            }
        }
        api.silent(false);
        api.down(false);
        pass(150).await;
        for (events, picture) in [(&mut quick, &mut seen), (&mut slow, &mut late)] {
            for event in drain(events) {
                picture.take(event)?;
            }
            prop_assert!(picture.synced);
        }
        let truth = api.list(&Small);
        prop_assert_eq!(&seen.instances, &truth);
        prop_assert_eq!(&late.instances, &truth);
        Ok(())
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 100, ..ProptestConfig::default() })]

        #[test]
        fn whatever_happens_the_picture_is_that_of_a_list(steps in steps()) {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_time()
                .start_paused(true)
                .build()
                .expect("a runtime");
            runtime.block_on(run(steps))?;
        }
    }
}
