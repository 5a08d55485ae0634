//! What a service is told and shown while a tenant changes its place.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use futures::StreamExt;
use futures::stream::BoxStream;
use saasodoo_core::dual::{DualRun, JournalPlacement, MemoryPlacement, Place, Placement, PlacementStore};
use saasodoo_core::migration::{Control, Force, MemoryJournal, Migrator, PlacementSwitch, RouteSwitch, Side, Step};
use saasodoo_core::{
    BackendKind, Bytes, CreateOptions, DataPolicy, DeleteOptions, Error, ErrorKind, Instance, InstanceChange,
    InstanceEvent, InstanceFilter, InstanceId, InstanceOrchestrator, InstanceOrchestratorExt, InstanceStatus,
    OperationKind, Power, Result, Retry, UpdateOptions,
};
use saasodoo_testkit::memory::{Fault, FaultPlan};

use super::{Scenario, one, pass, quick};

fn dual(scenario: &Scenario, placement: Arc<dyn PlacementStore>) -> DualRun {
    DualRun::builder(Arc::new(scenario.old.clone()), Arc::new(scenario.new.clone()))
        .placement(placement)
        .build()
}

/// A dual run and a migrator that keeps its placements: by the journal, or by the route hook.
async fn with_migrator(scenario: &Scenario, by_journal: bool) -> (DualRun, Migrator) {
    let migrator = scenario.migrator().config(quick());
    if by_journal {
        let journal = JournalPlacement::open(Arc::new(MemoryJournal::new()), BackendKind::Swarm).await;
        let placement = Arc::new(journal.expect("readable"));
        (dual(scenario, placement.clone()), migrator.journal(placement).build())
    } else {
        let placement = Arc::new(MemoryPlacement::new());
        let switch = Arc::new(PlacementSwitch::new(placement.clone(), Place::Primary));
        (dual(scenario, placement), migrator.route(switch).build())
    }
}

#[derive(Debug, Clone, Copy)]
enum Write {
    Suspend,
    Update,
    Delete,
}

impl Write {
    async fn ask(self, dual: &DualRun, id: InstanceId) -> Result<()> {
        match self {
            Self::Suspend => dual.set_power(id, Power::Suspend).await.map(drop),
            Self::Update => {
                let change = InstanceChange::new().memory(Bytes::from_gib(4));
                dual.update(id, &change, UpdateOptions::new()).await.map(drop)
            }
            Self::Delete => dual.delete(id, DeleteOptions::retain()).await.map(drop),
        }
    }

    fn is_kept(self, now: &Result<Instance>) -> bool {
        match (self, now) {
            (Self::Suspend, Ok(now)) => now.status == InstanceStatus::Paused,
            (Self::Update, Ok(now)) => now.spec.resources.memory == Bytes::from_gib(4),
            (Self::Delete, now) => now.as_ref().is_err_and(Error::is_not_found),
            (_, Err(_)) => false,
        }
    }
}

/// The write is asked for before the move begins, and answered in the middle of it or after it.
#[tokio::test(start_paused = true)]
async fn a_write_under_way_when_a_move_begins_is_not_answered_with_ok_and_lost() {
    let mut conflicts = 0;
    for by_journal in [true, false] {
        for write in [Write::Suspend, Write::Update, Write::Delete] {
            for delay in (6..150).step_by(6).map(|tenths| Duration::from_millis(tenths * 100)) {
                let (scenario, spec, _) = one().await;
                let (dual, migrator) = with_migrator(&scenario, by_journal).await;
                let mut faults = FaultPlan::new();
                let operation = match write {
                    Write::Suspend => OperationKind::SetPower,
                    Write::Update => OperationKind::Update,
                    Write::Delete => OperationKind::Delete,
                };
                faults = faults.on(operation, 1, Fault::Delay(delay));
                scenario.old.plan_faults(faults);
                let (id, writer) = (spec.id, dual.clone());
                let writer = tokio::spawn(async move { write.ask(&writer, id).await });
                tokio::time::sleep(Duration::from_millis(1)).await;
                let moved = migrator.migrate(id, Force::none(), &Control::new()).await;
                let said = writer.await.expect("no panic");
                pass(60).await;
                let now = dual.get(id).await;
                assert!(
                    said.is_err() || write.is_kept(&now),
                    "{write:?} after {delay:?} is lost, journal {by_journal}: {:?}, {:?}",
                    moved.map(|record| record.step),
                    now.map(|now| (now.backend, now.status)),
                );
                if let Err(error) = said {
                    conflicts += 1;
                    assert_eq!(
                        (error.kind(), error.retry()),
                        (ErrorKind::Conflict, Retry::OutcomeUnknown)
                    );
                    let place = error.message().contains("primary") || error.message().contains("secondary");
                    assert!(place && error.message().contains("moved"), "{error}");
                }
            }
        }
    }
    assert!(conflicts > 50, "{conflicts}");
}

#[tokio::test(start_paused = true)]
async fn a_write_that_is_answered_after_the_commit_names_the_new_place() {
    let (scenario, spec, _) = one().await;
    let (dual, migrator) = with_migrator(&scenario, true).await;
    let late = Fault::Delay(Duration::from_secs(60));
    scenario
        .old
        .plan_faults(FaultPlan::new().on(OperationKind::SetPower, 1, late));
    let (id, writer) = (spec.id, dual.clone());
    let writer = tokio::spawn(async move { writer.set_power(id, Power::Suspend).await });
    tokio::time::sleep(Duration::from_millis(1)).await;
    let record = migrator
        .migrate(id, Force::none(), &Control::new())
        .await
        .expect("moved");
    assert_eq!(record.step, Step::Committed);
    let error = writer.await.expect("no panic").expect_err("it lives elsewhere");
    assert!(error.message().contains("lives on the secondary now"), "{error}");
    // Asked again, as the error says, it is done where the tenant lives.
    dual.set_power(id, Power::Suspend).await.expect("suspended");
    pass(60).await;
    assert_eq!(scenario.new.status(id).await.expect("there"), InstanceStatus::Paused);
}

#[tokio::test(start_paused = true)]
async fn a_write_that_is_answered_after_the_tenant_came_back_is_in_doubt_too() {
    let (scenario, spec, _) = one().await;
    let placement = Arc::new(MemoryPlacement::new());
    let dual = dual(&scenario, placement.clone());
    let late = Fault::Delay(Duration::from_secs(60));
    scenario
        .old
        .plan_faults(FaultPlan::new().on(OperationKind::SetPower, 1, late));
    let (suspended, ()) = tokio::join!(dual.set_power(spec.id, Power::Suspend), async {
        pass(1).await;
        placement.begin_move(spec.id, Place::Primary).await.expect("recorded");
        placement.set(spec.id, Place::Primary).await.expect("recorded");
    });
    assert_eq!(suspended.expect_err("in doubt").retry(), Retry::OutcomeUnknown);
    // Other tenants' moves, and what says nothing new, are no reason.
    let (resumed, ()) = tokio::join!(dual.set_power(spec.id, Power::Resume), async {
        placement.set(spec.id, Place::Primary).await.expect("recorded");
        placement
            .begin_move(InstanceId::random(), Place::Primary)
            .await
            .expect("recorded");
    });
    resumed.expect("resumed");
}

/// Billing suspends while visitors are being switched; then the switch fails.
#[derive(Debug)]
struct SuspendsAndFails(DualRun, Mutex<Option<Error>>);

#[async_trait]
impl RouteSwitch for SuspendsAndFails {
    async fn switch(&self, instance: &Instance, to: Side) -> Result<()> {
        if to == Side::Source {
            return Ok(());
        }
        let refused = self.0.set_power(instance.id, Power::Suspend).await.err();
        *self.1.lock().expect("unpoisoned") = refused;
        Err(Error::new(ErrorKind::Forbidden, "the DNS refuses"))
    }
}

#[tokio::test(start_paused = true)]
async fn nobody_changes_a_tenant_while_its_visitors_are_being_switched() {
    let (scenario, spec, _) = one().await;
    let journal = JournalPlacement::open(Arc::new(MemoryJournal::new()), BackendKind::Swarm).await;
    let placement = Arc::new(journal.expect("readable"));
    let dual = dual(&scenario, placement.clone());
    let route = Arc::new(SuspendsAndFails(dual.clone(), Mutex::default()));
    let migrator = scenario
        .migrator()
        .config(quick())
        .journal(placement)
        .route(route.clone())
        .build();
    let record = migrator
        .migrate(spec.id, Force::none(), &Control::new())
        .await
        .expect("it ends");
    assert_eq!(record.step, Step::RolledBack);
    let refused = route.1.lock().expect("unpoisoned").take().expect("refused");
    assert_eq!(refused.kind(), ErrorKind::NotAllowed, "{refused}");
    dual.set_power(spec.id, Power::Suspend)
        .await
        .expect("suspended afterwards");
    pass(60).await;
    assert_eq!(
        scenario.old.status(spec.id).await.expect("there"),
        InstanceStatus::Paused
    );
}

/// What a watch says until it is silent for a minute.
async fn until_silent(watch: &mut BoxStream<'static, InstanceEvent>) -> Vec<InstanceEvent> {
    let mut seen = Vec::new();
    while let Ok(Some(event)) = tokio::time::timeout(Duration::from_secs(60), watch.next()).await {
        seen.push(event);
    }
    seen
}

fn last_backend(events: &[InstanceEvent]) -> Option<BackendKind> {
    events.iter().rev().find_map(|event| match event {
        InstanceEvent::Applied(instance) => Some(instance.backend),
        _ => None,
    })
}

#[tokio::test(start_paused = true)]
async fn a_watch_says_when_a_tenant_moves_to_a_side_that_it_does_not_see() {
    let (scenario, spec, _) = one().await;
    scenario
        .new
        .plan_faults(FaultPlan::new().always(OperationKind::Watch, Fault::Hang));
    let placement = Arc::new(MemoryPlacement::new());
    let dual = dual(&scenario, placement.clone());
    let mut watch = dual.watch(InstanceFilter::all());
    let seen = until_silent(&mut watch).await;
    assert!(matches!(seen.last(), Some(InstanceEvent::Synced)), "{seen:?}");
    placement.set(spec.id, Place::Secondary).await.expect("recorded");
    let seen = until_silent(&mut watch).await;
    assert!(matches!(seen[..], [InstanceEvent::Stale(_)]), "{seen:?}");
    // Nobody is over there any more.
    placement.set(spec.id, Place::Primary).await.expect("recorded");
    let seen = until_silent(&mut watch).await;
    assert!(matches!(seen[..], [InstanceEvent::Synced]), "{seen:?}");
}

/// Neither side says anything new about a suspended tenant when it moves.
#[tokio::test(start_paused = true)]
async fn a_watch_follows_a_suspended_tenant_there_and_back() {
    for by_journal in [true, false] {
        let (scenario, spec, _) = one().await;
        scenario.old.suspend(spec.id).await.expect("suspended");
        pass(60).await;
        let (dual, migrator) = with_migrator(&scenario, by_journal).await;
        let mut watch = dual.watch(InstanceFilter::all());
        let mut seen = until_silent(&mut watch).await;
        assert_eq!(last_backend(&seen), Some(BackendKind::Swarm));
        let record = migrator.migrate(spec.id, Force::none(), &Control::new()).await;
        assert_eq!(record.expect("moved").step, Step::Committed);
        seen = until_silent(&mut watch).await;
        assert_eq!(last_backend(&seen), Some(BackendKind::Kubernetes));
        // Daily life on the target.
        let change = InstanceChange::new().memory(Bytes::from_gib(4));
        dual.update(spec.id, &change, UpdateOptions::new())
            .await
            .expect("changed");
        until_silent(&mut watch).await;
        let back = migrator.rollback_with(spec.id, Force::none().lose_changes()).await;
        assert_eq!(back.expect("back").step, Step::RolledBack);
        seen = until_silent(&mut watch).await;
        assert_eq!(last_backend(&seen), Some(BackendKind::Swarm), "{by_journal}: {seen:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_watch_shows_each_change_of_place_once() {
    let (scenario, spec, _) = one().await;
    let placement = Arc::new(MemoryPlacement::new());
    let dual = dual(&scenario, placement.clone());
    let data = DataPolicy::AdoptDirectory("odoo_data_tenant-1_00000001".parse().expect("a path"));
    scenario.old.suspend(spec.id).await.expect("suspended");
    pass(60).await;
    let options = CreateOptions::new().with_data(data).stopped();
    scenario.new.create(&spec, options).await.expect("made");
    let mut watch = dual.watch(InstanceFilter::all());
    until_silent(&mut watch).await;
    for (to, shown) in [
        (Place::Secondary, Some(BackendKind::Kubernetes)),
        (Place::Secondary, None),
        (Place::Primary, Some(BackendKind::Swarm)),
    ] {
        placement.set(spec.id, to).await.expect("recorded");
        let seen = until_silent(&mut watch).await;
        assert_eq!(
            (last_backend(&seen), seen.len()),
            (shown, usize::from(shown.is_some())),
            "{seen:?}"
        );
    }
    // More places change than a watcher can be behind.
    placement.set(spec.id, Place::Secondary).await.expect("recorded");
    for _ in 0..1100 {
        placement
            .set(InstanceId::random(), Place::Secondary)
            .await
            .expect("recorded");
    }
    let seen = until_silent(&mut watch).await;
    assert_eq!(last_backend(&seen), Some(BackendKind::Kubernetes), "{seen:?}");
}

/// Moved after the listing had begun, and before it came to the tenant.
#[tokio::test(start_paused = true)]
async fn a_listing_has_each_instance_once_when_a_tenant_moves_meanwhile() {
    for by_journal in [true, false] {
        for already_there in [false, true] {
            let scenario = Scenario::with_fleet(4).await.expect("tenants");
            let (dual, migrator) = with_migrator(&scenario, by_journal).await;
            let (control, ids) = (Control::new(), scenario.ids());
            if already_there {
                migrator.migrate(ids[1], Force::none(), &control).await.expect("moved");
            }
            let mut listed = dual.list(InstanceFilter::all());
            let first = listed.next().await.expect("one").expect("listed");
            assert_eq!(first.id, ids[0]);
            migrator.migrate(ids[0], Force::none(), &control).await.expect("moved");
            migrator.migrate(ids[3], Force::none(), &control).await.expect("moved");
            if already_there {
                migrator.rollback(ids[1]).await.expect("back");
            }
            let mut seen = vec![first.id];
            while let Some(item) = listed.next().await {
                let instance = item.expect("listed");
                assert_eq!(instance.backend == BackendKind::Kubernetes, instance.id == ids[3]);
                seen.push(instance.id);
            }
            seen.sort_unstable();
            assert_eq!(seen, ids, "journal {by_journal}, one there: {already_there}");
        }
    }
}

/// A store that tells of no changes.
#[derive(Debug, Default)]
struct Mute(MemoryPlacement);

#[async_trait]
impl PlacementStore for Mute {
    async fn get(&self, id: InstanceId) -> Result<Option<Placement>> {
        self.0.get(id).await
    }

    async fn set(&self, id: InstanceId, place: Place) -> Result<()> {
        self.0.set(id, place).await
    }

    async fn begin_move(&self, id: InstanceId, from: Place) -> Result<()> {
        self.0.begin_move(id, from).await
    }

    async fn secondary_is_used(&self) -> Result<bool> {
        self.0.secondary_is_used().await
    }
}

#[tokio::test(start_paused = true)]
async fn a_listing_needs_no_news_of_the_first_who_moves() {
    let scenario = Scenario::with_fleet(2).await.expect("tenants");
    let placement = Arc::new(Mute::default());
    let dual = dual(&scenario, placement.clone());
    let switch = Arc::new(PlacementSwitch::new(placement, Place::Primary));
    let migrator = scenario.migrator().config(quick()).route(switch).build();
    let mut listed = dual.list(InstanceFilter::all());
    let mut ids = vec![listed.next().await.expect("one").expect("listed").id];
    let last = scenario.ids()[1];
    migrator
        .migrate(last, Force::none(), &Control::new())
        .await
        .expect("moved");
    while let Some(item) = listed.next().await {
        ids.push(item.expect("listed").id);
    }
    assert_eq!(ids, scenario.ids());
}

#[tokio::test(start_paused = true)]
async fn a_listing_in_which_nobody_moves_asks_each_side_once() {
    let scenario = Scenario::with_fleet(3).await.expect("tenants");
    let (dual, migrator) = with_migrator(&scenario, true).await;
    let count = || [&scenario.old, &scenario.new].map(|side| side.count_calls(OperationKind::List));
    let before = count();
    assert_eq!(dual.list_all(InstanceFilter::all()).await.expect("listed").len(), 3);
    assert_eq!(count(), [before[0] + 1, before[1]]);
    let id = scenario.ids()[0];
    migrator
        .migrate(id, Force::none(), &Control::new())
        .await
        .expect("moved");
    let before = count();
    // Its held definition on the old side is paused, and is not asked for.
    let paused = InstanceFilter::all().with_status(InstanceStatus::Paused);
    for (filter, found) in [(InstanceFilter::all(), 3), (paused, 0)] {
        assert_eq!(dual.list_all(filter).await.expect("listed").len(), found);
    }
    assert_eq!(count(), [before[0] + 2, before[1] + 2]);
}
