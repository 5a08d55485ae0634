//! What others do to the tenant meanwhile is neither lost nor undone.

use std::sync::atomic::{AtomicBool, Ordering};

use futures::StreamExt as _;
use saasodoo_core::migration::{DataLocator, Event, Side, Step, Wave, WaveOptions};
use saasodoo_core::{
    BackendKind, Bytes, CreateOptions, DataPath, DataPolicy, DeleteOptions, Error, ErrorKind, Instance, InstanceChange,
    InstanceOrchestratorExt as _, InstanceStatus, OperationKind, Result, UpdateOptions,
};
use saasodoo_testkit::memory::{Fault, FaultPlan, Trouble};

use super::*;

/// When the event is written down, once.
async fn when(migrator: &Migrator, wanted: fn(&Event) -> bool) {
    let mut progress = migrator.progress();
    while let Some(seen) = progress.next().await {
        if wanted(&seen.event) {
            return;
        }
    }
}

/// Somebody asked for it before the move was announced, and a slow platform makes it at any later moment.
#[tokio::test(start_paused = true)]
async fn a_change_that_was_under_way_is_never_lost_in_silence() {
    let mut noticed = 0;
    for delay in (0..160).map(|n| n * 100) {
        let (scenario, spec, _) = one().await;
        let slow = Fault::Delay(Duration::from_millis(delay));
        scenario
            .old
            .plan_faults(FaultPlan::new().on(OperationKind::Update, 1, slow));
        let (migrator, old, id) = (
            scenario.migrator().config(quick()).build(),
            scenario.old.clone(),
            spec.id,
        );
        let change = InstanceChange::new().memory(Bytes::from_gib(4));
        let writer = tokio::spawn(async move { old.update(id, &change, UpdateOptions::new()).await });
        tokio::time::sleep(Duration::from_millis(1)).await;
        let rest = migrator.migrate(id, Force::none(), &Control::new()).await;
        writer.await.expect("no panic").expect("made");
        let record = rest.as_ref().expect("it comes to rest");
        let home = match record.step {
            Step::Committed => &scenario.new,
            _ => &scenario.old,
        };
        let kept = home.get(id).await.expect("there").spec.resources.memory == Bytes::from_gib(4);
        let told = record
            .notes
            .iter()
            .any(|note| note.contains("changed on the source since the move began") && note.contains("memory"));
        // What comes after the commit is the source's own, and the way back has it.
        let late = record.step == Step::Committed && delay > 12_000;
        assert!(kept || told || late, "after {delay} ms: {rest:?}");
        noticed += u32::from(told);
        assert_eq!(scenario.old.violations(), vec![]);
    }
    assert!(noticed > 0, "none came between the fence and the commit");
}

/// The tenant is up on the target, and is not taken down for it.
#[tokio::test(start_paused = true)]
async fn a_change_behind_the_fence_is_written_down_unless_the_target_has_it() {
    for on_both in [false, true] {
        let (scenario, spec, _) = one().await;
        let migrator = scenario.migrator().config(quick()).build();
        let change = InstanceChange::new().memory(Bytes::from_gib(4));
        let (old, new, id) = (scenario.old.clone(), scenario.new.clone(), spec.id);
        let baking = migrator.clone();
        let service = tokio::spawn(async move {
            when(&baking, |event| matches!(event, Event::Baking { .. })).await;
            if on_both {
                let made = new.update(id, &change, UpdateOptions::new()).await;
                made.expect("changed");
            }
            old.update(id, &change, UpdateOptions::new()).await
        });
        let record = migrate(&migrator, id).await;
        service.await.expect("no panic").expect("changed");
        assert_eq!(record.step, Step::Committed);
        let note = "changed on the source since the move began, and not so on the target: resources.memory";
        let told = record.notes.iter().any(|told| told.starts_with(note));
        assert_eq!(told, !on_both, "{:?}", record.notes);
    }
}

/// Finds the data on either side, until it is told that the source's is somewhere else.
#[derive(Debug)]
struct Elsewhere(Arc<AtomicBool>, RootedData);

impl DataLocator for Elsewhere {
    fn locate(&self, instance: &Instance) -> Result<DataPath> {
        if self.0.load(Ordering::SeqCst) && instance.backend == BackendKind::Swarm {
            return Err(Error::new(ErrorKind::StorageMissing, "the data is somewhere else"));
        }
        self.1.locate(instance)
    }
}

/// Somebody has edited the suspended source by hand: that takes nobody down who is well on the target.
#[tokio::test(start_paused = true)]
async fn a_source_that_cannot_be_understood_any_more_is_written_down_at_the_commit() {
    let (scenario, spec, _) = one().await;
    let elsewhere = Arc::new(AtomicBool::new(false));
    let locator = Elsewhere(elsewhere.clone(), RootedData::under(ROOT));
    let migrator = scenario
        .migrator()
        .config(quick())
        .data_locator(Arc::new(locator))
        .build();
    let baking = migrator.clone();
    tokio::spawn(async move {
        when(&baking, |event| matches!(event, Event::Baking { .. })).await;
        elsewhere.store(true, Ordering::SeqCst);
    });
    let record = migrate(&migrator, spec.id).await;
    assert_eq!(record.step, Step::Committed, "{:?}", record.failure);
    let note = "the source cannot be compared: the data is somewhere else";
    assert!(
        record.notes.iter().any(|told| told.starts_with(note)),
        "{:?}",
        record.notes
    );
}

/// The way back would start a tenant that somebody has deleted for good.
#[tokio::test(start_paused = true)]
async fn a_tenant_that_is_deleted_during_the_bake_is_not_started_again() {
    let (scenario, spec, _) = one().await;
    let migrator = scenario.migrator().config(quick()).build();
    let (new, id, baking) = (scenario.new.clone(), spec.id, migrator.clone());
    let customer = tokio::spawn(async move {
        when(&baking, |event| matches!(event, Event::Baking { .. })).await;
        new.delete(id, DeleteOptions::retain()).await
    });
    let error = migrator.migrate(id, Force::none(), &Control::new()).await;
    let error = error.expect_err("somebody has to look");
    customer.await.expect("no panic").expect("deleted");
    assert!(
        error.message().contains("does not have the instance any more"),
        "{error}"
    );
    let at = migrator.status(id).await.expect("read").expect("known").step;
    assert_eq!(at, Step::Bake);

    let gone = || Force::none().accept_absent(Side::Target);
    let record = migrator
        .resume_with(id, gone(), &Control::new())
        .await
        .expect("its end");
    assert_eq!(record.step, Step::Committed);
    let source = scenario.old.status(id).await.expect("read");
    assert_eq!(source, InstanceStatus::Paused);
    let finished = migrator.finish_with(id, true, gone()).await.expect("finished");
    assert_eq!(finished.step, Step::Finished);
    assert!(!scenario.old.exists(id).await.expect("read"));
}

/// And it can be taken back, when the deletion was a mistake.
#[tokio::test(start_paused = true)]
async fn a_tenant_that_was_deleted_by_mistake_during_the_bake_is_taken_back() {
    let (scenario, spec, _) = one().await;
    let migrator = scenario.migrator().config(quick()).build();
    let (new, id, baking) = (scenario.new.clone(), spec.id, migrator.clone());
    tokio::spawn(async move {
        when(&baking, |event| matches!(event, Event::Baking { .. })).await;
        new.delete(id, DeleteOptions::retain()).await
    });
    let halted = migrator.migrate(id, Force::none(), &Control::new()).await;
    halted.expect_err("somebody has to look");
    let force = Force::none().accept_absent(Side::Target);
    let record = migrator.rollback_with(id, force).await.expect("back");
    assert_eq!(record.step, Step::RolledBack);
    let source = scenario.old.status(id).await.expect("read");
    assert_eq!(source, InstanceStatus::Running);
}

/// Between our deletion and the look after it.
#[tokio::test(start_paused = true)]
async fn what_others_make_right_after_our_deletion_stays() {
    let (scenario, spec, _) = one().await;
    let migrator = scenario.migrator().config(quick()).build();
    assert_eq!(migrate(&migrator, spec.id).await.step, Step::Committed);
    // The answer to the deletion is late, and somebody is faster than our next look.
    let late = FaultPlan::new().on(OperationKind::Delete, 1, Fault::LoseResponse);
    scenario.new.plan_faults(late);
    let (new, theirs) = (scenario.new.clone(), spec.clone().with_display_name("somebody else's"));
    let other = tokio::spawn(async move {
        while new.exists(theirs.id).await.expect("read") {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let data = DataPolicy::AdoptDirectory("odoo_data_tenant-1_00000001".parse().expect("a path"));
        new.create(&theirs, CreateOptions::new().with_data(data).stopped())
            .await
    });
    let record = migrator.rollback(spec.id).await.expect("back");
    other.await.expect("no panic").expect("made");
    assert_eq!(record.step, Step::RolledBack);
    assert!(scenario.new.exists(spec.id).await.expect("read"), "it was deleted");
}

#[tokio::test(start_paused = true)]
async fn an_operator_can_accept_a_source_that_is_not_well() {
    let (scenario, spec, _) = one().await;
    scenario.new.cause(spec.id, Trouble::Unready);
    let migrator = scenario.migrator().config(quick()).build();
    let (old, id, starting) = (scenario.old.clone(), spec.id, migrator.clone());
    tokio::spawn(async move {
        when(&starting, |event| {
            matches!(
                event,
                Event::StepBegan {
                    step: Step::StartSource
                }
            )
        })
        .await;
        old.cause(id, Trouble::CrashLoop { exit_code: 1 });
    });
    let error = migrator.migrate(id, Force::none(), &Control::new()).await;
    let error = error.expect_err("neither side comes up");
    assert!(error.message().contains("the source is error"), "{error}");
    let force = Force::none().unhealthy_source();
    let record = migrator
        .resume_with(id, force, &Control::new())
        .await
        .expect("accepted");
    assert_eq!(record.step, Step::RolledBack);
}

/// The operator took them back: that says nothing about those that were not begun.
#[tokio::test(start_paused = true)]
async fn what_the_operator_takes_back_is_no_failure_of_the_wave() {
    let scenario = Scenario::with_fleet(12).await.expect("tenants");
    let ids: Vec<InstanceId> = scenario.specs.iter().map(|spec| spec.id).collect();
    let migrator = scenario.migrator().config(quick()).build();
    let control = Control::new();
    let (orders, baking) = (control.clone(), migrator.clone());
    tokio::spawn(async move {
        when(&baking, |event| matches!(event, Event::Baking { .. })).await;
        orders.abort();
    });
    let mut options = WaveOptions::default();
    options.concurrency = 6;
    let summary = Wave::new(&migrator, options)
        .run(&ids, &control)
        .await
        .expect("a summary");
    assert_eq!(
        (summary.rolled_back.len(), summary.not_begun.len()),
        (6, 6),
        "{summary}"
    );
    assert!(
        !summary.stopped && !summary.to_string().contains("stopped"),
        "{summary}"
    );
}
