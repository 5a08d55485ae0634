//! What a dual run finds, repeats and shows, and what it does not wait for.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use saasodoo_core::dual::{
    Comparator, Divergence, DivergenceKind, DivergenceSink, DualRun, DualRunBuilder, IgnoreRule, JsonLinesSink,
    MemoryPlacement, MemorySink, Place, PlacementStore, Policy,
};
use saasodoo_core::migration::{Control, Force, PlacementSwitch, RootedData, Step, WaveOptions};
use saasodoo_core::{
    BackendKind, Bytes, CreateOptions, DeleteOptions, ErrorKind, HealthState, InstanceChange, InstanceEvent,
    InstanceFilter, InstanceOrchestrator, InstanceOrchestratorExt, InstanceStatus, OperationKind, Power, UpdateOptions,
};
use saasodoo_testkit::explorer::{Scenario, assert_no_divergence};
use saasodoo_testkit::fixtures;
use saasodoo_testkit::memory::{Fault, FaultPlan, MemoryOrchestrator, PlannedFault, Trouble};
use tokio::time::Instant;

const ROOT: &str = "/mnt/cephfs/odoo_instances";
const SETTLE: Duration = Duration::from_secs(30);

struct Pair {
    primary: MemoryOrchestrator,
    secondary: MemoryOrchestrator,
    sink: Arc<MemorySink>,
    placement: Arc<MemoryPlacement>,
}

impl Pair {
    fn new() -> Self {
        let primary = MemoryOrchestrator::builder().posing_as(BackendKind::Swarm).build();
        let secondary = MemoryOrchestrator::builder()
            .posing_as(BackendKind::Kubernetes)
            .sharing_data_with(&primary)
            .build();
        Self {
            primary,
            secondary,
            sink: Arc::default(),
            placement: Arc::default(),
        }
    }

    fn dual(&self, policy: Policy) -> DualRunBuilder {
        DualRun::builder(Arc::new(self.primary.clone()), Arc::new(self.secondary.clone()))
            .policy(policy)
            .sink(self.sink.clone())
            .placement(self.placement.clone())
            .data_locator(Arc::new(RootedData::under(ROOT)))
            .settle(SETTLE, 3)
    }

    fn fields(&self) -> Vec<(String, Option<String>, Option<String>)> {
        self.sink
            .divergences()
            .into_iter()
            .filter_map(|divergence| match divergence.kind {
                DivergenceKind::Field {
                    field,
                    primary,
                    secondary,
                } => Some((field, primary, secondary)),
                _ => None,
            })
            .collect()
    }
}

async fn pass(seconds: u64) {
    tokio::time::sleep(Duration::from_secs(seconds)).await;
}

fn every_call(fault: Fault) -> FaultPlan {
    FaultPlan::new().with(PlannedFault {
        operation: None,
        instance: None,
        first: 1,
        last: None,
        fault,
    })
}

fn some(text: &str) -> Option<String> {
    Some(text.to_owned())
}

/// Runs on both sides, on data of its own on each, so that both can be up.
async fn twins(pair: &Pair, name: &str) -> saasodoo_core::InstanceSpec {
    let spec = fixtures::spec(name);
    for side in [&pair.primary, &pair.secondary] {
        side.create_and_wait(&spec, Duration::from_secs(60))
            .await
            .expect("created");
    }
    spec
}

#[tokio::test(start_paused = true)]
async fn a_planted_difference_is_named_with_both_values_and_only_after_the_settle_window() {
    let pair = Pair::new();
    let dual = pair.dual(Policy::Observe).build();
    let (image, limit, state) = (
        twins(&pair, "a").await,
        twins(&pair, "b").await,
        twins(&pair, "c").await,
    );
    pair.secondary
        .edit_by_hand(image.id, |spec| {
            spec.image = "saasodoo/odoo-stub:18".parse().expect("an image")
        })
        .expect("there");
    pair.secondary
        .edit_by_hand(limit.id, |spec| spec.resources.memory = Bytes::from_gib(3))
        .expect("there");
    pair.secondary.stop(state.id).await.expect("stopped");
    pass(5).await;
    for spec in [&image, &limit, &state] {
        dual.get(spec.id).await.expect("there");
    }
    pass(SETTLE.as_secs() - 1).await;
    assert_eq!(pair.fields(), [], "nothing is reported before the window is over");
    pass(2).await;
    let mut found = pair.fields();
    found.sort();
    assert_eq!(
        found,
        [
            (
                "image".to_owned(),
                some("saasodoo/odoo-stub:17"),
                some("saasodoo/odoo-stub:18")
            ),
            ("odoo_version".to_owned(), some("17"), some("18")),
            ("replicas.desired".to_owned(), some("1"), some("0")),
            ("replicas.ready".to_owned(), some("1"), some("0")),
            ("resources.memory".to_owned(), some("2Gi"), some("3Gi")),
            ("status".to_owned(), some("running"), some("stopped")),
        ]
    );
    let counts = dual.counts();
    assert_eq!((counts.comparisons, counts.diverged, counts.settled), (3, 6, 0));
    assert!(counts.matched > 30 && counts.ignored == 0, "{counts:?}");
    assert!(pair.sink.divergences().iter().all(|divergence| divergence.samples == 3));
}

#[tokio::test(start_paused = true)]
async fn what_goes_away_within_the_window_is_no_divergence() {
    let pair = Pair::new();
    let dual = pair.dual(Policy::Observe).build();
    let spec = twins(&pair, "acme").await;
    pair.secondary.restart(spec.id).await.expect("restarts");
    dual.get(spec.id).await.expect("there");
    pass(60).await;
    assert_eq!(pair.fields(), []);
    let counts = dual.counts();
    assert!(counts.settled > 0 && counts.diverged == 0, "{counts:?}");
    // Each field once: what settled did not match too.
    let (here, there) = (pair.primary.get(spec.id).await, pair.secondary.get(spec.id).await);
    let fields = Comparator::strict()
        .verdicts(here.as_ref().ok(), there.as_ref().ok())
        .len();
    let counted = counts.matched + counts.ignored + counts.diverged + counts.settled + counts.unsettled;
    assert!(
        counted >= fields as u64 && counts.matched < fields as u64,
        "{fields} {counts:?}"
    );
}

/// Neither a match nor a divergence: the last word is not spoken.
#[tokio::test(start_paused = true)]
async fn what_comes_within_the_window_is_counted_as_unsettled() {
    let pair = Pair::new();
    let dual = pair.dual(Policy::Observe).build();
    let spec = twins(&pair, "acme").await;
    let memory = |gib: u32| {
        pair.secondary
            .edit_by_hand(spec.id, |spec| spec.resources.memory = Bytes::from_gib(gib))
            .expect("there");
    };
    memory(3);
    dual.get(spec.id).await.expect("there");
    pass(20).await;
    memory(4);
    pair.secondary
        .edit_by_hand(spec.id, |spec| {
            spec.image = "saasodoo/odoo-stub:18".parse().expect("an image")
        })
        .expect("there");
    pass(40).await;
    let counts = dual.counts();
    assert_eq!(pair.fields(), []);
    assert_eq!((counts.comparisons, counts.diverged, counts.settled), (1, 0, 0));
    assert!(counts.unsettled >= 1, "{counts:?}");
    // The next comparison says it.
    dual.get(spec.id).await.expect("there");
    pass(60).await;
    assert!(pair.fields().iter().any(|(field, ..)| field == "resources.memory"));
    let compared = dual.sweep(InstanceFilter::all());
    let (compared, ()) = tokio::join!(compared, async {
        pass(20).await;
        memory(5);
    });
    let compared = compared.expect("compared");
    let unsettled: Vec<&str> = compared.unsettled().map(|(_, field)| field.field.as_str()).collect();
    assert_eq!(unsettled, ["resources.memory"]);
    assert!(
        compared
            .divergences()
            .all(|(_, field)| field.field != "resources.memory")
    );
}

/// One writer: the side on which the tenant does not live is held. That is no news, and everything else still is.
#[tokio::test(start_paused = true)]
async fn observing_a_migrated_tenant_reports_what_is_not_due_to_the_hold() {
    let scenario = Scenario::with_fleet(1).await.expect("a tenant");
    let id = scenario.ids()[0];
    let placement = Arc::new(MemoryPlacement::new());
    let migrator = scenario
        .migrator()
        .route(Arc::new(PlacementSwitch::new(placement.clone(), Place::Primary)))
        .build();
    migrator
        .migrate(id, Force::none(), &Control::new())
        .await
        .expect("moved");
    let sink = Arc::new(MemorySink::new());
    let dual = DualRun::builder(Arc::new(scenario.old.clone()), Arc::new(scenario.new.clone()))
        .policy(Policy::Observe)
        .placement(placement)
        .sink(sink.clone())
        .settle(SETTLE, 3)
        .build();
    dual.get(id).await.expect("there");
    pass(60).await;
    assert_eq!(sink.divergences(), []);
    let counts = dual.counts();
    assert!(counts.ignored > 0 && counts.diverged == 0, "{counts:?}");
    scenario
        .old
        .edit_by_hand(id, |spec| spec.resources.memory = Bytes::from_gib(7))
        .expect("there");
    dual.get(id).await.expect("there");
    pass(60).await;
    assert_eq!(sink.divergences().len(), 1, "{:?}", sink.divergences());
    // Each of these rules says why.
    assert!(
        Comparator::observed()
            .rules()
            .iter()
            .all(|rule| !rule.reason.is_empty())
    );
}

#[derive(Debug)]
struct Fragile;

#[async_trait::async_trait]
impl DivergenceSink for Fragile {
    async fn record(&self, divergence: Divergence) {
        panic!("{divergence}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_sink_that_panics_stops_neither_comparisons_nor_the_mirror() {
    let pair = Pair::new();
    pair.secondary
        .plan_faults(FaultPlan::new().on(OperationKind::Create, 1, Fault::Fail(ErrorKind::QuotaExceeded)));
    let dual = pair.dual(Policy::Mirror).sink(Arc::new(Fragile)).build();
    let spec = fixtures::spec("acme");
    dual.create(&spec, CreateOptions::new()).await.expect("created");
    pass(10).await;
    assert_eq!(dual.counts().not_mirrored, 1);
    for comparisons in 1..=2 {
        // On one side only: reported, and the sink panics.
        dual.get(spec.id).await.expect("there");
        pass(60).await;
        assert_eq!(dual.counts().comparisons, comparisons);
    }
    // The lane still works.
    dual.create(&spec, CreateOptions::new()).await.expect("there already");
    pass(10).await;
    assert_eq!(dual.counts().mirrored, 1);
    assert!(pair.secondary.exists(spec.id).await.expect("read"));
}

#[tokio::test(start_paused = true)]
async fn a_sink_of_json_lines_is_read_back() {
    let pair = Pair::new();
    let dual = pair.dual(Policy::Observe).build();
    let spec = fixtures::spec("acme");
    pair.primary.create(&spec, CreateOptions::new()).await.expect("created");
    dual.get(spec.id).await.expect("there");
    pass(60).await;
    let found = pair.sink.divergences().remove(0);
    let name = format!("divergences-{}.jsonl", spec.id.short());
    let path = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    // Opened again, it goes on where it ended.
    for _ in 0..2 {
        let sink = JsonLinesSink::open(&path).expect("a file");
        sink.record(found.clone()).await;
    }
    let text = std::fs::read_to_string(&path).expect("readable");
    let lines: Vec<Divergence> = text
        .lines()
        .map(|line| serde_json::from_str(line).expect("a divergence"))
        .collect();
    assert_eq!(lines, [found.clone(), found]);
    let kind = DivergenceKind::Field {
        field: "present".to_owned(),
        primary: some("yes"),
        secondary: some("no"),
    };
    assert_eq!((&lines[0].kind, lines[0].instance), (&kind, spec.id));
    std::fs::remove_file(path).expect("removed");
    let error = JsonLinesSink::open("/proc/no/such/directory").expect_err("no such directory");
    assert_eq!(error.kind(), ErrorKind::Configuration);
}

#[tokio::test(start_paused = true)]
async fn an_ignored_difference_is_counted_apart_with_its_reason() {
    let pair = Pair::new();
    let comparator = Comparator::strict().ignoring(IgnoreRule::new("resources.*", "the new nodes are larger"));
    let dual = pair.dual(Policy::Observe).comparator(comparator).build();
    let spec = twins(&pair, "acme").await;
    pair.secondary
        .edit_by_hand(spec.id, |spec| spec.resources.memory = Bytes::from_gib(3))
        .expect("there");
    dual.get(spec.id).await.expect("there");
    pass(60).await;
    let counts = dual.counts();
    assert_eq!((counts.ignored, counts.diverged), (1, 0), "{counts:?}");
    assert_eq!(pair.fields(), []);
}

#[tokio::test(start_paused = true)]
async fn an_instance_on_one_side_only_is_one_divergence() {
    let pair = Pair::new();
    let dual = pair.dual(Policy::Observe).build();
    let spec = fixtures::spec("acme");
    dual.create_and_wait(&spec, Duration::from_secs(60))
        .await
        .expect("created");
    pass(60).await;
    assert!(
        pair.fields()
            .iter()
            .all(|field| *field == ("present".to_owned(), some("yes"), some("no")))
    );
    assert!(!pair.fields().is_empty());
}

#[tokio::test(start_paused = true)]
async fn no_read_waits_for_a_secondary_that_hangs_fails_or_panics() {
    for fault in [Fault::Hang, Fault::Fail(ErrorKind::Unavailable), Fault::Panic] {
        let pair = Pair::new();
        pair.secondary.plan_faults(every_call(fault.clone()));
        let dual = pair.dual(Policy::Observe).queue(8).build();
        let spec = fixtures::spec("acme");
        let began = Instant::now();
        dual.create(&spec, CreateOptions::new()).await.expect("created");
        assert!(
            began.elapsed() <= Duration::from_secs(2),
            "{fault:?}: {:?}",
            began.elapsed()
        );
        let began = Instant::now();
        for _ in 0..100 {
            dual.get(spec.id).await.expect("there");
        }
        dual.set_power(spec.id, Power::Stop).await.expect("stopped");
        let listed = dual.list_all(InstanceFilter::all()).await.expect("listed");
        let first = dual.watch(InstanceFilter::all()).next().await.expect("an event");
        assert!(matches!(first, InstanceEvent::Applied(_)), "{first:?}");
        assert_eq!(listed.len(), 1);
        assert_eq!(began.elapsed(), Duration::ZERO, "{fault:?}");
        let health = dual.health().await;
        assert!(health.is_ready() && health.state() == HealthState::Degraded, "{health}");
        pass(120).await;
        let counts = dual.counts();
        assert_eq!(
            counts.diverged, 0,
            "an unanswered question is no difference: {counts:?}"
        );
        assert!(counts.failed > 0 && counts.dropped + counts.coalesced > 0, "{counts:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_mirrored_copy_is_kept_in_step_and_never_runs() {
    let pair = Pair::new();
    let dual = pair.dual(Policy::Mirror).build();
    let spec = fixtures::spec("acme");
    dual.create_and_wait(&spec, Duration::from_secs(60))
        .await
        .expect("created");
    let change = InstanceChange::new().memory(Bytes::from_gib(4));
    dual.update(spec.id, &change, UpdateOptions::new())
        .await
        .expect("updated");
    for power in [
        Power::Stop,
        Power::Start,
        Power::Restart,
        Power::Suspend,
        Power::Resume,
        Power::Start,
    ] {
        dual.set_power(spec.id, power).await.expect("done");
        pass(10).await;
    }
    let copy = pair.secondary.get(spec.id).await.expect("a copy");
    assert_eq!(copy.status, InstanceStatus::Paused, "held");
    assert_eq!(copy.spec.resources.memory, Bytes::from_gib(4));
    assert_eq!(
        pair.secondary.start(spec.id).await.expect_err("held").kind(),
        ErrorKind::NotAllowed
    );
    assert_eq!(dual.status(spec.id).await.expect("there"), InstanceStatus::Running);
    pass(60).await;
    let counts = dual.counts();
    assert_eq!(
        (counts.mirrored, counts.not_mirrored, counts.diverged),
        (2, 0, 0),
        "{counts:?}"
    );
    assert!(counts.ignored > 0, "{counts:?}");
    assert_eq!(pair.primary.violations(), []);
    dual.delete(spec.id, DeleteOptions::retain()).await.expect("deleted");
    pass(10).await;
    assert!(!pair.secondary.exists(spec.id).await.expect("read"));
}

#[tokio::test(start_paused = true)]
async fn a_write_that_is_not_repeated_is_reported() {
    let pair = Pair::new();
    pair.secondary
        .plan_faults(FaultPlan::new().always(OperationKind::Create, Fault::Fail(ErrorKind::QuotaExceeded)));
    let dual = pair.dual(Policy::Mirror).build();
    let spec = fixtures::spec("acme");
    dual.create(&spec, CreateOptions::new()).await.expect("created");
    pass(5).await;
    let divergences = pair.sink.divergences();
    assert!(
        matches!(&divergences[..], [one] if one.instance == spec.id
            && matches!(&one.kind, DivergenceKind::NotMirrored { reason } if reason.contains("quota"))),
        "{divergences:?}"
    );
    assert_eq!(dual.counts().not_mirrored, 1);
}

#[tokio::test(start_paused = true)]
async fn a_half_migrated_fleet_is_served_as_one() {
    let scenario = Scenario::with_fleet(4).await.expect("a fleet");
    let placement = Arc::new(MemoryPlacement::new());
    let dual = DualRun::builder(Arc::new(scenario.old.clone()), Arc::new(scenario.new.clone()))
        .placement(placement.clone())
        .build();
    let mut watch = dual.watch(InstanceFilter::all());
    let mut seen = Vec::new();
    while let Some(event) = watch.next().await {
        match event {
            InstanceEvent::Applied(instance) => seen.push(instance.backend),
            InstanceEvent::Synced => break,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(seen, [BackendKind::Swarm; 4]);
    let ids = scenario.ids();
    let migrator = scenario
        .migrator()
        .route(Arc::new(PlacementSwitch::new(placement.clone(), Place::Primary)))
        .build();
    for id in &ids[..2] {
        let record = migrator
            .migrate(*id, Force::none(), &Control::new())
            .await
            .expect("moved");
        assert_eq!(record.step, Step::Committed);
    }
    let listed = dual.list_all(InstanceFilter::all()).await.expect("listed");
    assert_eq!(listed.len(), 4);
    assert!(listed.iter().all(|instance| instance.status == InstanceStatus::Running));
    for (index, id) in ids.iter().enumerate() {
        let backend = if index < 2 {
            BackendKind::Kubernetes
        } else {
            BackendKind::Swarm
        };
        assert_eq!(dual.get(*id).await.expect("there").backend, backend);
    }
    // The watch shows the move, and what the old side says about those who have left is not shown.
    let mut moved = 0;
    while let Ok(Some(event)) = tokio::time::timeout(Duration::from_secs(5), watch.next()).await {
        if let InstanceEvent::Applied(instance) = event
            && instance.backend == BackendKind::Kubernetes
        {
            assert!(ids[..2].contains(&instance.id));
            moved += 1;
        }
    }
    assert!(moved >= 2, "{moved}");
    dual.restart(ids[0]).await.expect("restarted where it lives");
    assert_eq!(scenario.old.status(ids[0]).await.expect("kept"), InstanceStatus::Paused);
    // Taken back, it is served from the old side again.
    migrator.rollback(ids[0]).await.expect("back");
    assert_eq!(dual.get(ids[0]).await.expect("there").backend, BackendKind::Swarm);
}

#[tokio::test(start_paused = true)]
async fn a_creation_looks_at_both_sides() {
    let pair = Pair::new();
    let dual = pair.dual(Policy::PrimaryOnly).build();
    let there = fixtures::spec("acme");
    pair.secondary
        .create(&there, CreateOptions::new())
        .await
        .expect("created");
    let error = dual
        .create(&there, CreateOptions::new())
        .await
        .expect_err("the id is taken");
    assert_eq!(
        (error.kind(), error.conflicts()),
        (ErrorKind::Conflict, &["id".to_owned()][..])
    );
    let mut same_host = fixtures::spec("other");
    same_host.route.subdomain = Some("acme".parse().expect("a subdomain"));
    let error = dual
        .create(&same_host, CreateOptions::new())
        .await
        .expect_err("the host is taken");
    assert_eq!(error.kind(), ErrorKind::Conflict);
    assert!(!pair.primary.exists(same_host.id).await.expect("read"));
    // With tenants over there an unanswered question is no "no"; while there are none it is noted.
    pair.secondary.plan_faults(every_call(Fault::Hang));
    dual.create(&fixtures::spec("first"), CreateOptions::new())
        .await
        .expect("created");
    pass(1).await;
    assert!(matches!(pair.sink.divergences()[..], [ref one] if matches!(one.kind, DivergenceKind::NotChecked { .. })));
    pair.placement.set(there.id, Place::Secondary).await.expect("recorded");
    let error = dual
        .create(&fixtures::spec("second"), CreateOptions::new())
        .await
        .expect_err("nobody answers");
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(!dual.health().await.is_ready());
}

#[tokio::test(start_paused = true)]
async fn both_sides_latencies_are_measured() {
    let pair = Pair::new();
    let dual = pair.dual(Policy::Observe).build();
    let spec = twins(&pair, "acme").await;
    for _ in 0..10 {
        dual.get(spec.id).await.expect("there");
        pass(40).await;
    }
    let latencies = dual.latencies();
    for place in [Place::Primary, Place::Secondary] {
        let of_get = latencies
            .iter()
            .find(|l| l.place == place && l.operation == OperationKind::Get);
        assert_eq!(
            of_get.map(|latency| (latency.calls, latency.errors)),
            Some((10, 0)),
            "{latencies:?}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn fleets_are_compared_whole() {
    let pair = Pair::new();
    let dual = pair.dual(Policy::Observe).build();
    for name in ["a", "b", "c"] {
        twins(&pair, name).await;
    }
    assert_no_divergence(&pair.primary, &pair.secondary, &Comparator::strict(), SETTLE).await;
    let alone = fixtures::spec("alone");
    pair.primary
        .create(&alone, CreateOptions::new())
        .await
        .expect("created");
    let compared = dual.sweep(InstanceFilter::all()).await.expect("compared");
    let found: Vec<_> = compared
        .divergences()
        .map(|(id, field)| (id, field.field.clone()))
        .collect();
    assert_eq!(found, [(alone.id, "present".to_owned())]);
}

#[tokio::test(start_paused = true)]
async fn a_scenario_tells_who_was_hurt() {
    let scenario = Scenario::with_fleet(3).await.expect("a fleet");
    scenario
        .new
        .cause(scenario.ids()[1], Trouble::CrashLoop { exit_code: 3 });
    let report = scenario.migrate(WaveOptions::default()).await.expect("a wave");
    report.assert_nobody_was_hurt();
    assert_eq!(report.summary.committed.len(), 2);
    let why = &report.summary.rolled_back[&scenario.ids()[1]];
    assert!(why.contains("await_target") && why.contains("exit code 3"), "{why}");
}

/// On a running clock: how long a read takes directly and through a dual run whose secondary is broken, by turns in
/// the same run. The paused clock says more above; this says that no hidden work is in the way.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a quiet machine (measures)"]
async fn the_primarys_latency_is_measured() {
    const ROUNDS: usize = 400;
    for fault in [Fault::Hang, Fault::Fail(ErrorKind::Unavailable), Fault::Panic] {
        let primary = MemoryOrchestrator::builder().latency(Duration::from_millis(2)).build();
        let secondary = MemoryOrchestrator::builder().faults(every_call(fault.clone())).build();
        let spec = fixtures::spec("acme");
        primary
            .create_and_wait(&spec, Duration::from_secs(30))
            .await
            .expect("created");
        let dual = DualRun::builder(Arc::new(primary.clone()), Arc::new(secondary))
            .policy(Policy::Observe)
            .build();
        let (mut direct, mut through) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            for (orchestrator, times) in [
                (&primary as &dyn InstanceOrchestrator, &mut direct),
                (&dual, &mut through),
            ] {
                let began = std::time::Instant::now();
                orchestrator.get(spec.id).await.expect("there");
                times.push(began.elapsed());
            }
        }
        direct.sort_unstable();
        through.sort_unstable();
        let (direct, through) = (direct[ROUNDS / 2], through[ROUNDS / 2]);
        println!("secondary {fault:?}: median {direct:?} directly, {through:?} through the dual run");
        // Printed for the reader, who compares; what fails here is a read that waits for the secondary's deadline.
        assert!(
            through < Duration::from_secs(1),
            "{fault:?}: {through:?} against {direct:?}"
        );
    }
}
