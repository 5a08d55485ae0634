//! Who may change a tenant that is being moved, and what is known about it after a restart.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use futures::StreamExt;
use futures::stream::BoxStream;
use saasodoo_core::dual::{
    DivergenceKind, DualRun, JournalPlacement, MemoryPlacement, MemorySink, Place, Placement, PlacementStore, Policy,
};
use saasodoo_core::migration::{
    Control, FileJournal, Force, MemoryJournal, PlacementSwitch, Probe, RootedData, RouteSwitch, Side, Step,
};
use saasodoo_core::{
    BackendKind, Bytes, CreateOptions, DataPolicy, DeleteOptions, EnsureOutcome, Error, ErrorKind, Instance,
    InstanceChange, InstanceEvent, InstanceFilter, InstanceId, InstanceOrchestrator, InstanceOrchestratorExt,
    InstanceSpec, InstanceStatus, Operation, Power, Result, Retry, UpdateOptions,
};
use saasodoo_testkit::explorer::Scenario;
use saasodoo_testkit::fixtures;
use saasodoo_testkit::memory::MemoryOrchestrator;

const ROOT: &str = "/mnt/cephfs/odoo_instances";

async fn pass(seconds: u64) {
    tokio::time::sleep(Duration::from_secs(seconds)).await;
}

fn dual(scenario: &Scenario, placement: Arc<dyn PlacementStore>) -> DualRun {
    DualRun::builder(Arc::new(scenario.old.clone()), Arc::new(scenario.new.clone()))
        .placement(placement)
        .build()
}

/// Billing does its work in the middle of the migration; then says whether Odoo answers.
#[derive(Debug)]
struct Billing {
    dual: DualRun,
    spec: InstanceSpec,
    answers: bool,
    errors: Mutex<Vec<Error>>,
}

#[async_trait]
impl Probe for Billing {
    async fn probe(&self, instance: &Instance) -> Result<()> {
        let (dual, id) = (&self.dual, instance.id);
        let change = InstanceChange::new().memory(Bytes::from_gib(4));
        let refused = [
            dual.set_power(id, Power::Resume).await.err(),
            dual.set_power(id, Power::Start).await.err(),
            dual.update(id, &change, UpdateOptions::new()).await.err(),
            dual.delete(id, DeleteOptions::retain()).await.err(),
            dual.create(&self.spec, CreateOptions::new()).await.err(),
            dual.plan(&Operation::SetPower(id, Power::Start)).await.err(),
        ];
        let refused = refused.map(|error| error.expect("refused"));
        self.errors.lock().expect("unpoisoned").extend(refused);
        // It is read where it came from.
        assert_eq!(dual.get(id).await.expect("readable").backend, BackendKind::Swarm);
        let listed = dual.list_all(InstanceFilter::all()).await.expect("listed");
        assert_eq!(listed.len(), 1);
        if self.answers {
            Ok(())
        } else {
            Err(Error::new(ErrorKind::Unavailable, "502 Bad Gateway"))
        }
    }
}

/// By the route hook, and by the journal itself.
#[tokio::test(start_paused = true)]
async fn a_tenant_that_is_being_moved_is_changed_by_the_migration_only() {
    for (by_journal, answers) in [(false, true), (false, false), (true, true), (true, false)] {
        let scenario = Scenario::with_fleet(1).await.expect("a tenant");
        let spec = scenario.specs[0].clone();
        let journal = Arc::new(MemoryJournal::new());
        let from_journal = JournalPlacement::open(journal.clone(), BackendKind::Swarm)
            .await
            .expect("readable");
        let from_journal = Arc::new(from_journal);
        let memory = Arc::new(MemoryPlacement::new());
        let placement: Arc<dyn PlacementStore> = if by_journal {
            from_journal.clone()
        } else {
            memory.clone()
        };
        let dual = dual(&scenario, placement.clone());
        let billing = Arc::new(Billing {
            dual: dual.clone(),
            spec: spec.clone(),
            answers,
            errors: Mutex::default(),
        });
        let mut migrator = scenario.migrator().probe(billing.clone());
        migrator = if by_journal {
            migrator.journal(from_journal)
        } else {
            migrator.route(Arc::new(PlacementSwitch::new(memory, Place::Primary)))
        };
        let migrator = migrator.build();
        let record = migrator
            .migrate(spec.id, Force::none(), &Control::new())
            .await
            .expect("it ends");
        let errors = std::mem::take(&mut *billing.errors.lock().expect("unpoisoned"));
        assert!(errors.len() >= 6);
        for error in &errors {
            assert_eq!(error.kind(), ErrorKind::NotAllowed, "{error}");
            assert!(matches!(error.retry(), Retry::After(Some(_))), "{error:?}");
            assert!(error.message().contains("migrated"), "{error}");
        }
        let (step, home, kind) = if answers {
            (Step::Committed, Place::Secondary, BackendKind::Kubernetes)
        } else {
            (Step::RolledBack, Place::Primary, BackendKind::Swarm)
        };
        assert_eq!(record.step, step);
        assert_eq!(placement.get(spec.id).await.expect("known"), Some(Placement::At(home)));
        // Afterwards billing gets its way, where the tenant lives.
        dual.set_power(spec.id, Power::Suspend).await.expect("suspended");
        dual.set_power(spec.id, Power::Resume).await.expect("resumed");
        dual.start(spec.id).await.expect("started");
        pass(60).await;
        let now = dual.get(spec.id).await.expect("there");
        assert_eq!((now.backend, now.status), (kind, InstanceStatus::Running));
        if answers {
            // The way back from a commit is closed to others, too.
            migrator.rollback(spec.id).await.expect("back");
            assert_eq!(
                placement.get(spec.id).await.expect("known"),
                Some(Placement::At(Place::Primary))
            );
            dual.restart(spec.id).await.expect("restarted");
        }
        assert_eq!(scenario.old.violations(), []);
    }
}

#[derive(Debug)]
struct NoStop;

#[async_trait]
impl RouteSwitch for NoStop {
    async fn switch(&self, _instance: &Instance, _to: Side) -> Result<()> {
        Ok(())
    }

    async fn before_stop(&self, _id: InstanceId, _from: Side) -> Result<()> {
        Err(Error::new(ErrorKind::Unavailable, "the database is asleep"))
    }
}

#[tokio::test(start_paused = true)]
async fn a_move_that_cannot_be_announced_stops_nobody_and_is_taken_back() {
    let scenario = Scenario::with_fleet(1).await.expect("a tenant");
    let id = scenario.ids()[0];
    let placement = Arc::new(MemoryPlacement::new());
    let switch: Arc<dyn RouteSwitch> = Arc::new(PlacementSwitch::new(placement.clone(), Place::Primary));
    let route: Vec<Arc<dyn RouteSwitch>> = vec![switch, Arc::new(NoStop)];
    let migrator = scenario.migrator().route(Arc::new(route)).build();
    let record = migrator
        .migrate(id, Force::none(), &Control::new())
        .await
        .expect("it ends");
    assert_eq!(record.step, Step::RolledBack);
    assert!(!record.source_touched && record.outages.is_empty());
    let dual = dual(&scenario, placement);
    dual.restart(id).await.expect("it may be changed again");
}

fn file(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{}.jsonl", InstanceId::random().short()))
}

async fn reopened(path: &PathBuf) -> Arc<JournalPlacement> {
    // An append that was on its way when its migration was dropped holds the file until it is through.
    let mut journal = FileJournal::open(path);
    for _ in 0..1000 {
        if journal.is_ok() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
        journal = FileJournal::open(path);
    }
    let journal = Arc::new(journal.expect("a journal"));
    let placement = JournalPlacement::open(journal, BackendKind::Swarm).await;
    Arc::new(placement.expect("readable"))
}

#[tokio::test(start_paused = true)]
async fn a_restart_forgets_no_placement() {
    let scenario = Scenario::with_fleet(2).await.expect("tenants");
    let (moved, stays) = (scenario.ids()[0], scenario.ids()[1]);
    let path = file("restart");
    {
        let placement = reopened(&path).await;
        let migrator = scenario.migrator().journal(placement.clone()).build();
        let mut changes = placement.changes();
        let record = migrator
            .migrate(moved, Force::none(), &Control::new())
            .await
            .expect("moved");
        assert_eq!(record.step, Step::Committed);
        let mut seen = Vec::new();
        while let Ok(Some((id, change))) = tokio::time::timeout(Duration::from_secs(1), changes.next()).await {
            assert_eq!(id, moved);
            seen.push(change);
        }
        let from = Place::Primary;
        assert_eq!(
            seen,
            [
                Placement::At(Place::Primary),
                Placement::Moving { from },
                Placement::At(Place::Secondary)
            ]
        );
    }
    let placement = reopened(&path).await;
    assert!(placement.secondary_is_used().await.expect("known"));
    let dual = dual(&scenario, placement.clone());
    dual.resume(moved).await.expect("resumed");
    dual.start(moved).await.expect("started");
    dual.restart(stays).await.expect("restarted");
    assert_eq!(scenario.old.status(moved).await.expect("kept"), InstanceStatus::Paused);
    assert_eq!(scenario.old.violations(), []);
    // Only the journal says who lives where.
    let error = placement.set(stays, Place::Secondary).await.expect_err("not in it");
    assert_eq!(error.kind(), ErrorKind::NotAllowed);
    std::fs::remove_file(path).expect("removed");
}

/// Who begins a migration of a tenant that is not on the source learns nothing about where it lives.
#[tokio::test(start_paused = true)]
async fn a_migration_that_finds_nothing_moves_nobody() {
    let scenario = Scenario::with_fleet(1).await.expect("a tenant");
    let (id, unknown) = (scenario.ids()[0], InstanceId::random());
    let journal = Arc::new(MemoryJournal::new());
    let placement = JournalPlacement::open(journal, BackendKind::Swarm).await;
    let placement = Arc::new(placement.expect("readable"));
    let migrator = scenario.migrator().journal(placement.clone()).build();
    let control = Control::new();
    migrator.migrate(id, Force::none(), &control).await.expect("moved");
    migrator.finish(id, true).await.expect("finished");
    for (id, placed) in [(id, Some(Placement::At(Place::Secondary))), (unknown, None)] {
        let record = migrator.retry(id, Force::none(), &control).await.expect("a look");
        assert_eq!(record.step, Step::RolledBack);
        assert_eq!(placement.get(id).await.expect("known"), placed);
    }
}

/// A migration that begins again, and finds that it cannot, moves nobody after a restart either.
#[tokio::test(start_paused = true)]
async fn a_retry_after_the_end_forgets_no_placement() {
    let scenario = Scenario::with_fleet(1).await.expect("a tenant");
    let (spec, id) = (&scenario.specs[0], scenario.ids()[0]);
    let path = file("retry");
    let control = Control::new();
    {
        let placement = reopened(&path).await;
        let migrator = scenario.migrator().journal(placement.clone()).build();
        migrator.migrate(id, Force::none(), &control).await.expect("moved");
        migrator.finish(id, true).await.expect("finished");
    }
    // Not on the source; then there again, made by somebody, while the tenant lives on the target.
    for there in [false, false, true] {
        if there {
            let adopted = DataPolicy::AdoptDirectory(
                format!("odoo_data_{}_{}", spec.database_name, id.short())
                    .parse()
                    .expect("a path"),
            );
            let options = CreateOptions::new().with_data(adopted).stopped();
            scenario.old.create(spec, options).await.expect("made");
        }
        let placement = reopened(&path).await;
        let migrator = scenario.migrator().journal(placement.clone()).build();
        let record = migrator.retry(id, Force::none(), &control).await.expect("a look");
        assert_eq!((record.step, record.inventory.is_some()), (Step::RolledBack, there));
        let expected = Some(Placement::At(Place::Secondary));
        assert_eq!(placement.get(id).await.expect("known"), expected);
        drop((placement, migrator));
        let placement = reopened(&path).await;
        assert_eq!(placement.get(id).await.expect("known"), expected, "after a restart");
    }
    std::fs::remove_file(path).expect("removed");
}

/// A journal that ends in the middle: what a killed process leaves.
#[tokio::test(start_paused = true)]
async fn a_migration_that_was_killed_half_way_is_still_a_move_after_a_restart() {
    let scenario = Scenario::with_fleet(1).await.expect("a tenant");
    let id = scenario.ids()[0];
    let path = file("killed");
    {
        let placement = reopened(&path).await;
        let migrator = scenario.migrator().journal(placement.clone()).build();
        let control = Control::new();
        let work = migrator.migrate(id, Force::none(), &control);
        let mut changes = placement.changes();
        tokio::select! {
            _ = work => panic!("nobody killed it"),
            () = async { while !changes.next().await.expect("endless").1.is_moving() {} } => {}
        }
    }
    let placement = reopened(&path).await;
    let dual = dual(&scenario, placement.clone());
    let error = dual.start(id).await.expect_err("refused");
    assert_eq!(error.kind(), ErrorKind::NotAllowed);
    let migrator = scenario.migrator().journal(placement).build();
    migrator.resume(id, &Control::new()).await.expect("it goes on");
    dual.start(id).await.expect("started where it lives");
    assert_eq!(scenario.old.violations(), []);
    std::fs::remove_file(path).expect("removed");
}

#[tokio::test(start_paused = true)]
async fn a_mirror_touches_nothing_that_runs_on_the_other_side() {
    let scenario = Scenario::with_fleet(1).await.expect("a tenant");
    let spec = scenario.specs[0].clone();
    let migrator = scenario.migrator().build();
    migrator
        .migrate(spec.id, Force::none(), &Control::new())
        .await
        .expect("moved");
    // As after a restart with a placement that was kept in memory only.
    let sink = Arc::new(MemorySink::new());
    let dual = DualRun::builder(Arc::new(scenario.old.clone()), Arc::new(scenario.new.clone()))
        .policy(Policy::Mirror)
        .sink(sink.clone())
        .data_locator(Arc::new(RootedData::under(ROOT)))
        .build();
    let change = InstanceChange::new().memory(Bytes::from_gib(4));
    dual.update(spec.id, &change, UpdateOptions::new())
        .await
        .expect("updated");
    dual.create(&spec, CreateOptions::new()).await.expect_err("it is taken");
    dual.delete(spec.id, DeleteOptions::retain()).await.expect("deleted");
    pass(60).await;
    let live = scenario.new.get(spec.id).await.expect("there");
    assert_eq!((live.status, live.facts.hold), (InstanceStatus::Running, None));
    assert_eq!(live.spec.resources.memory, spec.resources.memory);
    let reasons: Vec<String> = sink
        .divergences()
        .into_iter()
        .filter_map(|divergence| match divergence.kind {
            DivergenceKind::NotMirrored { reason } => Some(reason),
            _ => None,
        })
        .collect();
    assert_eq!(reasons.len(), 2, "{reasons:?}");
    assert!(
        reasons.iter().all(|reason| reason.contains("no stopped copy")),
        "{reasons:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_write_that_still_waits_is_not_repeated_into_a_migration() {
    let old = MemoryOrchestrator::builder().posing_as(BackendKind::Swarm).build();
    let new = MemoryOrchestrator::builder()
        .posing_as(BackendKind::Kubernetes)
        .sharing_data_with(&old)
        .latency(Duration::from_millis(100))
        .build();
    let placement = Arc::new(MemoryPlacement::new());
    let dual = DualRun::builder(Arc::new(old), Arc::new(new.clone()))
        .policy(Policy::Mirror)
        .placement(placement.clone())
        .data_locator(Arc::new(RootedData::under(ROOT)))
        .build();
    let spec = fixtures::spec("acme");
    dual.create(&spec, CreateOptions::new()).await.expect("created");
    let change = InstanceChange::new().memory(Bytes::from_gib(4));
    dual.update(spec.id, &change, UpdateOptions::new())
        .await
        .expect("updated");
    placement.begin_move(spec.id, Place::Primary).await.expect("recorded");
    pass(10).await;
    let counts = dual.counts();
    assert_eq!(counts.mirrored + counts.not_mirrored, 2);
    assert!(counts.not_mirrored >= 1, "{counts:?}");
    let copy = new.get(spec.id).await.ok();
    assert!(copy.is_none_or(|copy| copy.spec.resources.memory == spec.resources.memory));
}

#[tokio::test(start_paused = true)]
async fn creating_a_migrated_tenant_again_changes_nothing() {
    let scenario = Scenario::with_fleet(1).await.expect("a tenant");
    let spec = scenario.specs[0].clone();
    let placement = Arc::new(MemoryPlacement::new());
    let migrator = scenario
        .migrator()
        .route(Arc::new(PlacementSwitch::new(placement.clone(), Place::Primary)))
        .build();
    migrator
        .migrate(spec.id, Force::none(), &Control::new())
        .await
        .expect("moved");
    let dual = dual(&scenario, placement);
    let ensured = dual.create(&spec, CreateOptions::new()).await.expect("there already");
    assert_eq!(ensured.outcome, EnsureOutcome::Unchanged);
    assert_eq!(ensured.instance.backend, BackendKind::Kubernetes);
    // What the migration kept is the last of it now, and a new, empty tenant must not take its place.
    scenario
        .new
        .delete(spec.id, DeleteOptions::retain())
        .await
        .expect("deleted");
    pass(60).await;
    let error = dual.create(&spec, CreateOptions::new()).await.expect_err("kept");
    assert_eq!(error.kind(), ErrorKind::Conflict);
}

/// Cannot be read while `asleep`.
#[derive(Debug, Default)]
struct Sleepy {
    inner: MemoryPlacement,
    asleep: AtomicBool,
}

#[async_trait]
impl PlacementStore for Sleepy {
    async fn get(&self, id: InstanceId) -> Result<Option<Placement>> {
        if self.asleep.load(Ordering::SeqCst) {
            return Err(Error::new(ErrorKind::Unavailable, "the database is asleep"));
        }
        self.inner.get(id).await
    }

    async fn set(&self, id: InstanceId, place: Place) -> Result<()> {
        self.inner.set(id, place).await
    }

    async fn begin_move(&self, id: InstanceId, from: Place) -> Result<()> {
        self.inner.begin_move(id, from).await
    }

    async fn secondary_is_used(&self) -> Result<bool> {
        self.inner.secondary_is_used().await
    }

    fn changes(&self) -> BoxStream<'static, (InstanceId, Placement)> {
        self.inner.changes()
    }
}

#[tokio::test(start_paused = true)]
async fn a_watch_waits_for_a_placement_that_cannot_be_read() {
    let scenario = Scenario::with_fleet(1).await.expect("a tenant");
    let id = scenario.ids()[0];
    scenario.migrate(Default::default()).await.expect("moved");
    let placement = Arc::new(Sleepy::default());
    placement.set(id, Place::Secondary).await.expect("recorded");
    let dual = dual(&scenario, placement.clone());
    let mut watch = dual.watch(InstanceFilter::all());
    while !matches!(watch.next().await, Some(InstanceEvent::Synced)) {}
    placement.asleep.store(true, Ordering::SeqCst);
    // One on each side, and one of them is not to be shown.
    scenario
        .old
        .edit_by_hand(id, |spec| spec.resources.memory = Bytes::from_gib(5))
        .expect("there");
    scenario
        .new
        .edit_by_hand(id, |spec| spec.resources.memory = Bytes::from_gib(6))
        .expect("there");
    let event = tokio::time::timeout(Duration::from_secs(30), watch.next()).await;
    let Ok(Some(InstanceEvent::Stale(staleness))) = event else {
        panic!("{event:?}");
    };
    assert!(staleness.reason.contains("asleep"), "{staleness:?}");
    tokio::time::timeout(Duration::from_secs(30), watch.next())
        .await
        .expect_err("nothing is known");
    placement.asleep.store(false, Ordering::SeqCst);
    let (mut synced, mut seen) = (false, Vec::new());
    while let Ok(Some(event)) = tokio::time::timeout(Duration::from_secs(5), watch.next()).await {
        match event {
            InstanceEvent::Applied(instance) => seen.push((instance.backend, instance.spec.resources.memory)),
            InstanceEvent::Synced => synced = true,
            other => panic!("{other:?}"),
        }
    }
    assert!(synced);
    assert_eq!(
        seen.last(),
        Some(&(BackendKind::Kubernetes, Bytes::from_gib(6))),
        "{seen:?}"
    );
    assert!(
        seen.iter().all(|(backend, _)| *backend == BackendKind::Kubernetes),
        "{seen:?}"
    );
}

#[tokio::test]
async fn an_instance_is_known_by_its_first_eight_digits() {
    let placement = MemoryPlacement::new();
    let (whole, other) = (InstanceId::random(), InstanceId::random());
    let legacy: InstanceId = whole.short().to_string().parse().expect("eight digits");
    placement.set(legacy, Place::Secondary).await.expect("recorded");
    assert_eq!(
        placement.get(whole).await.expect("known"),
        Some(Placement::At(Place::Secondary))
    );
    placement.begin_move(whole, Place::Secondary).await.expect("recorded");
    let from = Place::Secondary;
    assert_eq!(
        placement.get(legacy).await.expect("known"),
        Some(Placement::Moving { from })
    );
    assert!(placement.secondary_is_used().await.expect("known"));
    placement.set(whole, Place::Primary).await.expect("recorded");
    assert!(!placement.secondary_is_used().await.expect("known"));
    assert_eq!(placement.get(other).await.expect("known"), None);
}
