//! What a migration must not do when somebody else, or the wrong platform, has a hand in it.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::StreamExt;
use saasodoo_core::migration::{
    Clock, Control, DataLocator, Event, Force, KnownSecrets, MemoryJournal, Migrator, Mutation, RootedData,
    RouteSwitch, Side, Step, Wave, WaveOptions,
};
use saasodoo_core::{
    CreateOptions, ErrorKind, Instance, InstanceChange, InstanceOrchestrator, InstanceOrchestratorExt, InstanceStatus,
    OperationKind, Power, Result, StorageLocation, UpdateOptions,
};
use saasodoo_testkit::explorer::Scenario;
use saasodoo_testkit::fixtures;
use saasodoo_testkit::memory::{Fault, FaultPlan, MemoryOrchestrator, Trouble};

use super::{ROOT, migrate, on_objects, one, pass, quick};

/// What answers on another cluster or in another namespace is no proof that nothing runs.
#[tokio::test(start_paused = true)]
async fn absence_is_no_fence() {
    let (scenario, spec, _) = one().await;
    let migrator = scenario.migrator().config(quick()).build();
    migrate(&migrator, spec.id).await;
    let elsewhere = MemoryOrchestrator::builder()
        .posing_as(saasodoo_core::BackendKind::Kubernetes)
        .sharing_data_with(&scenario.old)
        .build();
    let between = |target: &MemoryOrchestrator| {
        Migrator::builder(Arc::new(scenario.old.clone()), Arc::new(target.clone()))
            .journal(Arc::clone(&scenario.journal))
            .data_root(ROOT)
            .secrets(Arc::new(KnownSecrets::of([spec.clone()])))
            .clock(Clock::tokio(jiff::Timestamp::now()))
            .config(quick())
    };
    let lost = between(&elsewhere).build();
    let error = lost.rollback(spec.id).await.expect_err("it may run elsewhere");
    assert_eq!(error.kind(), ErrorKind::MissingPrerequisite, "{error}");
    let named = between(&elsewhere).identities("swarm a", "cluster b").build();
    let error = named.rollback(spec.id).await.expect_err("another platform");
    assert_eq!(error.kind(), ErrorKind::Configuration, "{error}");
    // An operator's word that it is the same one is no word that it may be gone there.
    let renamed = Force::none()
        .accept_platform(Side::Source)
        .accept_platform(Side::Target);
    let error = named
        .rollback_with(spec.id, renamed)
        .await
        .expect_err("it may run elsewhere");
    assert_eq!(error.kind(), ErrorKind::MissingPrerequisite, "{error}");
    let up = InstanceStatus::Running;
    assert_eq!(scenario.new.status(spec.id).await.expect("read"), up);
    assert_eq!(
        scenario.old.status(spec.id).await.expect("read"),
        InstanceStatus::Paused
    );

    // Half-way back, too.
    scenario.new.cause(spec.id, Trouble::NodeLost);
    migrator.rollback(spec.id).await.expect_err("the node is lost");
    let error = lost.resume(spec.id, &Control::new()).await.expect_err("elsewhere");
    assert_eq!(error.kind(), ErrorKind::MissingPrerequisite, "{error}");
    scenario.new.clear(spec.id);
    pass(10).await;

    // Really deleted, as an operator has seen.
    scenario
        .new
        .delete(spec.id, saasodoo_core::DeleteOptions::retain())
        .await
        .expect("deleted");
    let error = migrator.resume(spec.id, &Control::new()).await.expect_err("gone");
    assert_eq!(error.kind(), ErrorKind::MissingPrerequisite, "{error}");
    let wrong_side = Force::none().accept_absent(Side::Source);
    migrator
        .resume_with(spec.id, wrong_side, &Control::new())
        .await
        .expect_err("it is the target that is gone");
    let force = Force::none().accept_absent(Side::Target);
    let record = migrator
        .resume_with(spec.id, force, &Control::new())
        .await
        .expect("back");
    assert_eq!(record.step, Step::RolledBack);
    assert_eq!(scenario.old.status(spec.id).await.expect("read"), up);
    assert_eq!(scenario.old.violations(), []);
}

#[tokio::test(start_paused = true)]
async fn a_rollback_loses_no_change() {
    for on_labels in [false, true] {
        let (scenario, spec, _) = one().await;
        let migrator = match on_labels {
            true => on_objects(&scenario, quick()),
            false => scenario.migrator().config(quick()).build(),
        };
        migrate(&migrator, spec.id).await;
        let change = InstanceChange::new().image("saasodoo/odoo-stub:18".parse().expect("an image"));
        let changed = scenario.new.update(spec.id, &change, UpdateOptions::new()).await;
        changed.expect("updated");
        pass(30).await;
        let error = migrator.rollback(spec.id).await.expect_err("18 would come back as 17");
        assert_eq!(
            (error.kind(), error.conflicts()),
            (
                ErrorKind::Conflict,
                &["image".to_owned(), "odoo_version".to_owned()][..]
            )
        );
        assert_eq!(
            scenario.new.status(spec.id).await.expect("read"),
            InstanceStatus::Running
        );
        // The same on the source, which is suspended, and nothing is lost.
        let changed = scenario.old.update(spec.id, &change, UpdateOptions::new()).await;
        changed.expect("updated");
        let record = migrator.rollback(spec.id).await.expect("back");
        assert_eq!(record.step, Step::RolledBack);
        let home = scenario.old.get(spec.id).await.expect("home");
        assert_eq!(
            (home.status, home.spec.image.tag()),
            (InstanceStatus::Running, Some("18"))
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_rollback_starts_nobody_who_was_stopped() {
    for (power, status) in [
        (Power::Stop, InstanceStatus::Stopped),
        (Power::Suspend, InstanceStatus::Paused),
    ] {
        let (scenario, spec, _) = one().await;
        let migrator = scenario.migrator().config(quick()).build();
        migrate(&migrator, spec.id).await;
        scenario.new.set_power(spec.id, power).await.expect("done");
        pass(30).await;
        scenario.old.forget_calls();
        let record = migrator.rollback(spec.id).await.expect("back");
        assert_eq!((record.step, record.outages.len()), (Step::RolledBack, 1));
        assert_eq!(scenario.old.status(spec.id).await.expect("read"), status);
        let started = scenario.old.calls().iter().any(|call| call.power == Some(Power::Start));
        assert!(!started);
    }
}

#[tokio::test(start_paused = true)]
async fn a_tenant_taken_back_by_hand_is_left_alone() {
    let (scenario, spec, _) = one().await;
    let migrator = scenario.migrator().config(quick()).build();
    migrate(&migrator, spec.id).await;
    scenario.new.suspend(spec.id).await.expect("suspended");
    pass(30).await;
    scenario.old.resume(spec.id).await.expect("resumed");
    scenario.old.start(spec.id).await.expect("started");
    pass(30).await;
    let error = migrator.finish(spec.id, true).await.expect_err("it lives there");
    assert_eq!(error.kind(), ErrorKind::Conflict, "{error}");
    let record = migrate(&migrator, spec.id).await;
    assert_eq!(record.step, Step::Committed);
    let up = InstanceStatus::Running;
    assert_eq!(scenario.old.status(spec.id).await.expect("read"), up);
    let record = migrator.rollback(spec.id).await.expect("as it is");
    assert_eq!(record.step, Step::RolledBack);
    assert_eq!(scenario.old.status(spec.id).await.expect("read"), up);
    assert_eq!(scenario.old.violations(), []);
}

/// The end of a tenant's life, and a bad moment of its target, leave nobody stuck between the window and the removal.
#[tokio::test(start_paused = true)]
async fn a_removal_of_the_source_is_no_trap() {
    let (scenario, spec, _) = one().await;
    let migrator = scenario.migrator().config(quick()).build();
    let control = Control::new();
    migrator.migrate(spec.id, Force::none(), &control).await.expect("moved");
    scenario.new.cause(spec.id, Trouble::CrashLoop { exit_code: 1 });
    pass(60).await;
    let error = migrator.finish(spec.id, true).await.expect_err("it is not well");
    assert_eq!(error.kind(), ErrorKind::NotAllowed, "{error}");
    let record = migrator.status(spec.id).await.expect("read").expect("known");
    assert_eq!(record.step, Step::Committed);
    scenario.new.clear(spec.id);
    pass(60).await;

    // The first read is the last one that succeeds: the removal has begun, and nothing was deleted.
    let fails = |plan: FaultPlan, nth| plan.on(OperationKind::Get, nth, Fault::Fail(ErrorKind::Unavailable));
    scenario.old.plan_faults((2..1000).fold(FaultPlan::new(), fails));
    migrator.finish(spec.id, true).await.expect_err("it cannot be seen");
    scenario.old.plan_faults(FaultPlan::new());
    let record = migrator.status(spec.id).await.expect("read").expect("known");
    assert_eq!((record.step, record.source_deleted), (Step::RemoveSource, false));
    scenario.new.cause(spec.id, Trouble::CrashLoop { exit_code: 1 });
    pass(60).await;
    migrator.finish(spec.id, true).await.expect_err("it is not well");
    let record = migrator.rollback(spec.id).await.expect("the source is there");
    assert_eq!(record.step, Step::RolledBack);
    let up = InstanceStatus::Running;
    assert_eq!(scenario.old.status(spec.id).await.expect("read"), up);
    assert_eq!(scenario.old.violations(), []);

    // Deleted through the service.
    let (scenario, spec, _) = one().await;
    let migrator = scenario.migrator().config(quick()).build();
    migrator.migrate(spec.id, Force::none(), &control).await.expect("moved");
    let retain = saasodoo_core::DeleteOptions::retain();
    scenario.new.delete(spec.id, retain).await.expect("deleted");
    pass(60).await;
    let error = migrator.finish(spec.id, true).await.expect_err("it is gone");
    assert_eq!(error.kind(), ErrorKind::MissingPrerequisite, "{error}");
    let force = Force::none().accept_absent(Side::Target);
    let record = migrator.finish_with(spec.id, true, force).await.expect("finished");
    assert_eq!(record.step, Step::Finished);
    let error = scenario.old.get(spec.id).await.expect_err("removed");
    assert!(error.is_not_found(), "{error}");
    migrator
        .rollback(spec.id)
        .await
        .expect_err("there is nothing to go back to");
    assert_eq!(scenario.old.violations(), []);
}

/// What billing and customers do on the target once visitors are sent there holds on the source as well.
#[tokio::test(start_paused = true)]
async fn who_is_stopped_during_the_bake_is_not_started_on_the_way_back() {
    for journal_on_objects in [false, true] {
        for (power, status) in [
            (Power::Stop, InstanceStatus::Stopped),
            (Power::Suspend, InstanceStatus::Paused),
        ] {
            let (scenario, spec, _) = one().await;
            let migrator = if journal_on_objects {
                on_objects(&scenario, quick())
            } else {
                scenario.migrator().config(quick()).build()
            };
            let (mut progress, new, id) = (migrator.progress(), scenario.new.clone(), spec.id);
            tokio::spawn(async move {
                while let Some(progress) = progress.next().await {
                    if matches!(progress.event, Event::Baking { .. }) {
                        pass(3).await;
                        new.set_power(id, power).await.expect("done");
                    }
                }
            });
            scenario.old.forget_calls();
            let record = migrate(&migrator, spec.id).await;
            assert_eq!(record.step, Step::RolledBack);
            assert_eq!(scenario.old.status(spec.id).await.expect("read"), status);
            let started = scenario.old.calls().iter().any(|call| call.power == Some(Power::Start));
            assert!(!started);
            assert_eq!(scenario.old.violations(), []);
        }
    }
}

/// What the migration itself has suspended on its way back is not the tenant's power state.
#[tokio::test(start_paused = true)]
async fn a_way_back_that_was_cut_off_starts_who_ran() {
    for journal_on_objects in [false, true] {
        let (scenario, spec, _) = one().await;
        let migrator = if journal_on_objects {
            on_objects(&scenario, quick())
        } else {
            scenario.migrator().config(quick()).build()
        };
        let control = Control::new();
        migrator.migrate(spec.id, Force::none(), &control).await.expect("moved");
        scenario.new.cause(spec.id, Trouble::NodeLost);
        migrator.rollback(spec.id).await.expect_err("the node is lost");
        scenario.new.clear(spec.id);
        pass(60).await;
        let record = migrator.resume(spec.id, &control).await.expect("back");
        assert_eq!(record.step, Step::RolledBack);
        let status = scenario.old.status(spec.id).await.expect("read");
        assert_eq!(status, InstanceStatus::Running);
    }
}

/// Labels keep a digest of what the target was at the commit, and not how both sides differed.
#[tokio::test(start_paused = true)]
async fn a_difference_of_before_the_commit_does_not_refuse_a_rollback() {
    let (scenario, spec, _) = one().await;
    let migrator = on_objects(&scenario, quick());
    let (mut progress, new, id) = (migrator.progress(), scenario.new.clone(), spec.id);
    tokio::spawn(async move {
        while let Some(progress) = progress.next().await {
            if matches!(progress.event, Event::Baking { .. }) {
                let change =
                    InstanceChange::new().set_label("tier".parse().expect("a key"), "gold".parse().expect("a value"));
                new.update(id, &change, UpdateOptions::new()).await.expect("updated");
            }
        }
    });
    let moved = migrator.migrate(id, Force::none(), &Control::new()).await;
    assert_eq!(moved.expect("moved").step, Step::Committed);
    let record = migrator.rollback(id).await.expect("back");
    assert_eq!(record.step, Step::RolledBack);
}

/// What is accepted before it can have been seen is not accepted.
#[tokio::test(start_paused = true)]
async fn absence_is_not_accepted_in_advance() {
    let (scenario, spec, _) = one().await;
    let migrator = scenario.migrator().config(quick()).build();
    let (mut progress, new, id) = (migrator.progress(), scenario.new.clone(), spec.id);
    tokio::spawn(async move {
        while let Some(progress) = progress.next().await {
            if matches!(progress.event, Event::Baking { .. }) {
                let retain = saasodoo_core::DeleteOptions::retain();
                new.delete(id, retain).await.expect("deleted");
            }
        }
    });
    let force = Force::none().accept_absent(Side::Target);
    let control = Control::new();
    let error = migrator.migrate(spec.id, force, &control).await;
    let error = error.expect_err("it was there and is gone");
    assert_eq!(error.kind(), ErrorKind::MissingPrerequisite, "{error}");
    let record = migrator.resume_with(spec.id, force, &control).await;
    assert_eq!(record.expect("seen").step, Step::Committed);
}

/// The same platform under another name, as the operator says for each call.
#[tokio::test(start_paused = true)]
async fn a_platform_that_was_renamed_is_accepted_side_by_side() {
    let (scenario, spec, _) = one().await;
    let control = Control::new();
    let named = |target: &str| scenario.migrator().config(quick()).identities("swarm", target).build();
    let moved = named("one").migrate(spec.id, Force::none(), &control).await;
    assert_eq!(moved.expect("moved").step, Step::Committed);
    let other = named("two");
    for force in [Force::none(), Force::none().accept_platform(Side::Source)] {
        let error = other.rollback_with(spec.id, force).await.expect_err("not accepted");
        assert_eq!(error.kind(), ErrorKind::Configuration, "{error}");
        assert_eq!(error.field(), Some("target.identity"), "{error}");
        let error = other.finish_with(spec.id, true, force).await.expect_err("not accepted");
        assert_eq!(error.kind(), ErrorKind::Configuration, "{error}");
    }
    let force = Force::none().accept_platform(Side::Target);
    let record = other.rollback_with(spec.id, force).await.expect("back");
    assert_eq!(record.step, Step::RolledBack);
}

/// Absence counts after the grace of the process, however long that is.
#[tokio::test(start_paused = true)]
async fn who_may_take_long_to_stop_is_waited_for() {
    let mut specs = fixtures::fleet(1);
    specs[0].scheduling.stop_grace_seconds = 300;
    let scenario = Scenario::with_specs(specs).await.expect("a tenant");
    let id = scenario.ids()[0];
    let migrator = scenario.migrator().config(quick()).build();
    let control = Control::new();
    migrator.migrate(id, Force::none(), &control).await.expect("moved");
    let retain = saasodoo_core::DeleteOptions::retain();
    scenario.new.delete(id, retain).await.expect("deleted");
    pass(60).await;
    let force = Force::none().accept_absent(Side::Target);
    let record = migrator.rollback_with(id, force).await.expect("back");
    assert_eq!(record.step, Step::RolledBack);
    let status = scenario.old.status(id).await.expect("read");
    assert_eq!(status, InstanceStatus::Running);
}

/// Another process goes on, with a journal that keeps what was read at first or with one that keeps its digest.
#[tokio::test(start_paused = true)]
async fn a_change_while_no_process_runs_is_not_lost() {
    for (on_labels, held) in [(false, false), (true, false), (true, true)] {
        let (scenario, spec, _) = one().await;
        let (old, id) = (&scenario.old, spec.id);
        let file = Arc::new(MemoryJournal::new());
        let migrator = || match on_labels {
            true => on_objects(&scenario, quick()),
            false => scenario.migrator().config(quick()).journal(file.clone()).build(),
        };
        let (first, control) = (migrator(), Control::new());
        let (mut progress, pause) = (first.progress(), control.clone());
        tokio::spawn(async move {
            while let Some(progress) = progress.next().await {
                if progress.event == (Event::StepBegan { step: Step::HoldTarget }) {
                    pause.pause();
                }
            }
        });
        let record = first.migrate(id, Force::none(), &control).await.expect("paused");
        assert_eq!((record.step, record.source_touched), (Step::StopSource, false));
        let image: saasodoo_core::ImageRef = "saasodoo/odoo-stub:18".parse().expect("an image");
        if held {
            old.hold_for_maintenance(id, true).expect("held");
        } else {
            let change = InstanceChange::new().image(image.clone());
            old.update(id, &change, UpdateOptions::new()).await.expect("updated");
        }
        pass(60).await;
        let record = migrator().resume(id, &Control::new()).await.expect("it ends");
        assert_eq!((record.step, record.outages.len()), (Step::RolledBack, 0));
        let instance = old.get(id).await.expect("there");
        assert_eq!(instance.status == InstanceStatus::Running, !held, "{}", instance.status);
        assert_eq!((instance.facts.desired, instance.spec.image == image), (1, !held));
        assert!(!scenario.new.exists(id).await.expect("read"));
    }
}

/// The order to stop was written down and never given: what the tenant did since then is not lost.
#[tokio::test(start_paused = true)]
async fn a_change_after_a_stop_that_was_never_asked_for_is_not_lost() {
    for changed in [false, true] {
        let (scenario, spec, _) = one().await;
        let (old, new, id) = (&scenario.old, &scenario.new, spec.id);
        let migrator = scenario.migrator().config(quick()).build();
        let control = Control::new();
        old.plan_faults(FaultPlan::new().on(OperationKind::SetPower, 1, Fault::Hang));
        let mut progress = migrator.progress();
        let asked = async {
            while let Some(progress) = progress.next().await {
                if matches!(progress.event, Event::Down) {
                    return pass(1).await;
                }
            }
        };
        tokio::select! {
            _ = migrator.migrate(id, Force::none(), &control) => panic!("nobody killed it"),
            () = asked => {}
        }
        old.plan_faults(FaultPlan::new());
        let record = migrator.status(id).await.expect("read").expect("known");
        assert_eq!((record.step, record.source_touched), (Step::StopSource, true));
        pass(3600).await;
        let memory = saasodoo_core::Bytes::from_gib(3);
        if changed {
            let change = InstanceChange::new().memory(memory);
            old.update(id, &change, UpdateOptions::new()).await.expect("updated");
            pass(60).await;
        }
        let record = migrator.resume(id, &control).await.expect("it ends");
        let (step, home) = if changed {
            (Step::RolledBack, old)
        } else {
            (Step::Committed, new)
        };
        assert_eq!(record.step, step, "{:?}", record.failure);
        let instance = home.get(id).await.expect("there");
        assert_eq!(instance.status, InstanceStatus::Running);
        assert_eq!(instance.spec.resources.memory == memory, changed);
        assert_eq!(old.violations(), []);
    }
}

/// A deletion of the migration before, whose answer was lost, does not hit what the next one makes.
#[tokio::test(start_paused = true)]
async fn a_retry_waits_for_what_the_migration_before_may_still_do() {
    let (scenario, spec, _) = one().await;
    let (old, new, id) = (&scenario.old, &scenario.new, spec.id);
    let migrator = scenario.migrator().config(quick()).build();
    let control = Control::new();
    migrator.migrate(id, Force::none(), &control).await.expect("moved");
    new.plan_faults(FaultPlan::new().on(OperationKind::Delete, 1, Fault::Hang));
    let late = new.clone();
    let late = tokio::spawn(async move {
        pass(190).await;
        let retain = saasodoo_core::DeleteOptions::retain();
        late.delete(id, retain).await.map(drop)
    });
    migrator.rollback(id).await.expect_err("no answer");
    let record = migrator.resume(id, &control).await.expect("back");
    assert_eq!(record.step, Step::RolledBack);
    assert!(!late.is_finished(), "it is still on its way");
    let record = migrator.retry(id, Force::none(), &control).await.expect("moved");
    assert_eq!(record.step, Step::Committed, "{:?}", record.failure);
    let _ = late.await.expect("arrived");
    assert_eq!(new.status(id).await.expect("there"), InstanceStatus::Running);
    assert_eq!(old.violations(), []);
}

/// A start waits for the process before it, in the background when nobody waits for its answer any more.
#[tokio::test(start_paused = true)]
async fn a_lost_answer_is_in_doubt_for_as_long_as_a_process_may_take_to_stop() {
    for (grace, doubt) in [(10, 200), (300, 360)] {
        let mut specs = fixtures::fleet(1);
        specs[0].scheduling.stop_grace_seconds = grace;
        let scenario = Scenario::with_specs(specs).await.expect("a tenant");
        let journal = Arc::new(MemoryJournal::new());
        let migrator = scenario.migrator().config(quick()).journal(journal.clone()).build();
        let control = Control::new();
        migrator
            .migrate(scenario.ids()[0], Force::none(), &control)
            .await
            .expect("moved");
        let starts: Vec<i64> = journal
            .entries()
            .iter()
            .filter_map(|entry| match entry.event {
                Event::Intends {
                    mutation: Mutation::Start,
                    until,
                    ..
                } => Some(until.duration_since(entry.at).as_secs()),
                _ => None,
            })
            .collect();
        assert_eq!(starts, [doubt]);
    }
}

/// The fence before it takes longer than a call may be repeated.
#[tokio::test(start_paused = true)]
async fn a_source_that_is_made_again_is_no_failure() {
    let (scenario, spec, _) = one().await;
    let mut config = quick();
    config.retry = Duration::from_secs(2);
    let migrator = scenario.migrator().config(config).build();
    let control = Control::new();
    migrator.migrate(spec.id, Force::none(), &control).await.expect("moved");
    let retain = saasodoo_core::DeleteOptions::retain();
    scenario.old.delete(spec.id, retain).await.expect("deleted");
    pass(60).await;
    let force = Force::none().accept_absent(Side::Source);
    let record = migrator.rollback_with(spec.id, force).await.expect("back");
    assert_eq!(record.step, Step::RolledBack);
    let begun = record
        .history
        .iter()
        .filter(|run| run.step == Step::StartSource)
        .count();
    assert_eq!(begun, 1);
    let status = scenario.old.status(spec.id).await.expect("read");
    assert_eq!(status, InstanceStatus::Running);
}

/// An orphan's process lives, whatever it is that answers the question about the instance.
#[tokio::test(start_paused = true)]
async fn an_orphan_of_the_source_is_no_closed_source() {
    let (scenario, spec, _) = one().await;
    let migrator = scenario.migrator().config(quick()).build();
    let (mut progress, old, id) = (migrator.progress(), scenario.old.clone(), spec.id);
    tokio::spawn(async move {
        while let Some(progress) = progress.next().await {
            // Between two looks.
            if matches!(progress.event, Event::Baking { .. }) {
                old.resume(id).await.expect("resumed");
                old.start(id).await.expect("started");
                tokio::time::sleep(Duration::from_millis(1500)).await;
                old.orphan(id).expect("orphaned");
            }
        }
    });
    let control = Control::new();
    let error = migrator.migrate(id, Force::none(), &control).await;
    let error = error.expect_err("it is gone from the source");
    assert_eq!(error.kind(), ErrorKind::MissingPrerequisite, "{error}");
    let record = migrator.status(id).await.expect("read").expect("known");
    let failure = record.failure.expect("it went back");
    assert_eq!((failure.step, failure.kind), (Step::Bake, ErrorKind::Conflict));
    let status = scenario.new.status(id).await.expect("read");
    assert_eq!(status, InstanceStatus::Paused);
    let force = Force::none().accept_absent(Side::Source);
    let record = migrator.resume_with(id, force, &control).await.expect("back");
    assert_eq!(record.step, Step::RolledBack);
    let status = scenario.old.status(id).await.expect("read");
    assert_eq!(status, InstanceStatus::Running);
}

/// Makes reads of the memory fail, from this one after the beginning of a step on.
fn unreadable_from(migrator: &Migrator, memory: &MemoryOrchestrator, step: Step, first: u32) {
    let (mut progress, memory) = (migrator.progress(), memory.clone());
    tokio::spawn(async move {
        while let Some(progress) = progress.next().await {
            if progress.event == (Event::StepBegan { step }) {
                let fails =
                    |plan: FaultPlan, nth| plan.on(OperationKind::Get, nth, Fault::Fail(ErrorKind::Unavailable));
                memory.plan_faults((first..1000).fold(FaultPlan::new(), fails));
            }
        }
    });
}

#[tokio::test(start_paused = true)]
async fn a_source_that_cannot_be_read_at_the_commit_takes_nobody_down() {
    let (scenario, spec, _) = one().await;
    let migrator = scenario.migrator().config(quick()).build();
    // The bake takes a failed read of the source for no news; the commit does not.
    unreadable_from(&migrator, &scenario.old, Step::Bake, 1);
    migrator
        .migrate(spec.id, Force::none(), &Control::new())
        .await
        .expect_err("it cannot be seen");
    let record = migrator.status(spec.id).await.expect("read").expect("known");
    assert_eq!((record.step, record.is_down()), (Step::Commit, false));
    assert_eq!(
        scenario.new.status(spec.id).await.expect("read"),
        InstanceStatus::Running
    );
    scenario.old.plan_faults(FaultPlan::new());
    let record = scenario.migrator().config(quick()).build();
    let record = record.resume(spec.id, &Control::new()).await.expect("goes on");
    assert_eq!(record.step, Step::Committed);
}

/// A tenant that was never asked to stop was never down.
#[tokio::test(start_paused = true)]
async fn an_outage_begins_with_the_suspension() {
    let (scenario, spec, _) = one().await;
    let migrator = scenario.migrator().config(quick()).build();
    // Between the comparison with the inventory and the suspension.
    unreadable_from(&migrator, &scenario.old, Step::HoldTarget, 2);
    let record = migrate(&migrator, spec.id).await;
    assert_eq!(record.failure.map(|failure| failure.step), Some(Step::StopSource));
    assert_eq!((record.step, record.outages.len()), (Step::RolledBack, 0));
}

/// Sends visitors slowly.
#[derive(Debug)]
struct SlowRoute;

#[async_trait]
impl RouteSwitch for SlowRoute {
    async fn switch(&self, _instance: &Instance, _to: Side) -> Result<()> {
        tokio::time::sleep(Duration::from_secs(20)).await;
        Ok(())
    }
}

/// Until visitors are sent to the source they find nobody.
#[tokio::test(start_paused = true)]
async fn on_the_way_back_an_outage_ends_with_the_route() {
    let (scenario, spec, _) = one().await;
    let migrator = scenario.migrator().config(quick()).route(Arc::new(SlowRoute)).build();
    let control = Control::new();
    migrator.migrate(spec.id, Force::none(), &control).await.expect("moved");
    let record = migrator.rollback(spec.id).await.expect("back");
    let ready = record.history.iter().find(|run| run.step == Step::AwaitSource);
    let ready = ready.and_then(|run| run.ended).expect("it was ready");
    let up = record.outages.last().and_then(|outage| outage.to).expect("it is up");
    assert!(up.duration_since(ready).as_secs() >= 20, "{:?}", record.outages);
}

#[tokio::test(start_paused = true)]
async fn what_was_at_rest_before_says_nothing_about_a_wave() {
    let scenario = Scenario::with_fleet(20).await.expect("a fleet");
    let ids = scenario.ids();
    let migrator = scenario.migrator().config(quick()).build();
    let mut options = WaveOptions::default();
    options.concurrency = 1;
    options.least_sample = 3;
    options.stop_at_failure_rate = 0.5;
    let first = Wave::new(&migrator, options.clone())
        .run(&ids[..10], &Control::new())
        .await;
    assert_eq!(first.expect("a wave").committed.len(), 10);
    for id in &ids[10..] {
        scenario.new.cause(*id, Trouble::CrashLoop { exit_code: 1 });
    }
    let summary = Wave::new(&migrator, options)
        .run(&ids, &Control::new())
        .await
        .expect("a wave");
    assert!(summary.stopped, "{summary}");
    assert_eq!(
        (summary.rolled_back.len(), summary.not_begun.len()),
        (3, 7),
        "{summary}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_dry_run_finds_names_and_directories_that_are_taken() {
    let scenario = Scenario::with_fleet(2).await.expect("a fleet");
    let tenant = scenario.old.get(scenario.specs[0].id).await.expect("there");
    let location = tenant.storage.location.expect("a location").to_string();
    let directory = location.rsplit('/').next().expect("a name").parse().expect("a path");
    let adopting = CreateOptions::new()
        .with_data(saasodoo_core::DataPolicy::AdoptDirectory(directory))
        .stopped();
    let squatter = fixtures::spec("squatter");
    scenario.new.create(&squatter, adopting).await.expect("created");
    let plan = scenario
        .migrator()
        .build()
        .dry_run(&scenario.ids(), Force::none(), 2)
        .await;
    let plan = plan.expect("a plan");
    let [clash] = &plan.clashes[..] else { panic!("{plan}") };
    assert_eq!(clash.what, "data");
    assert_eq!(clash.instances.len(), 2);
    assert!(clash.instances.contains(&squatter.id) && clash.instances.contains(&scenario.specs[0].id));
}

/// Who cannot be understood may have the same name, and is no reason to say nothing about the others.
#[tokio::test(start_paused = true)]
async fn a_dry_run_goes_on_past_what_cannot_be_read() {
    let scenario = Scenario::with_fleet(2).await.expect("a fleet");
    let migrator = scenario.migrator().build();
    let list = |kind| FaultPlan::new().always(OperationKind::List, Fault::Fail(kind));
    scenario.old.plan_faults(list(ErrorKind::Unexpected));
    let plan = migrator.dry_run(&scenario.ids(), Force::none(), 2).await;
    let plan = plan.expect("a plan");
    assert_eq!((plan.instances.len(), plan.unreadable.len()), (2, 1), "{plan}");
    assert!(!plan.is_clear() && plan.instances.iter().all(|plan| plan.is_clear()));
    assert!(plan.to_string().contains("NOT READ: "), "{plan}");
    // Nobody answers at all: that is no plan.
    scenario.old.plan_faults(list(ErrorKind::Unavailable));
    let error = migrator.dry_run(&scenario.ids(), Force::none(), 2).await;
    assert_eq!(error.expect_err("unavailable").kind(), ErrorKind::Unavailable);
}

/// A label that somebody has removed leaves a migration of which not enough is known, and not none.
#[tokio::test(start_paused = true)]
async fn torn_labels_are_no_empty_journal() {
    let (scenario, spec, _) = one().await;
    let migrator = on_objects(&scenario, quick());
    migrate(&migrator, spec.id).await;
    let torn = InstanceChange::new().unset_label("migration.saasodoo.io/run".parse().expect("a key"));
    let done = scenario.old.update(spec.id, &torn, UpdateOptions::new()).await;
    done.expect("updated");
    let error = on_objects(&scenario, quick()).status(spec.id).await.expect_err("torn");
    assert_eq!(error.kind(), ErrorKind::Unexpected, "{error}");
}

/// A claim that was made by adopting a directory says which; of any other one it is not known.
#[tokio::test(start_paused = true)]
async fn a_claim_says_on_which_directory_it_stands() {
    let (scenario, spec, _) = one().await;
    let mut instance = scenario.old.get(spec.id).await.expect("there");
    let locator = RootedData::under(ROOT).also_under("/volumes/odoo");
    let mut on = |directory: Option<&str>| {
        instance.storage.location = Some(StorageLocation::Claim {
            namespace: "tenants".to_owned(),
            name: "data".to_owned(),
            volume: None,
            directory: directory.map(ToOwned::to_owned),
        });
        locator.locate(&instance).map(|path| path.to_string())
    };
    let absolute = format!("{ROOT}/odoo_data_acme");
    for directory in [absolute.as_str(), "/volumes/odoo/odoo_data_acme", "odoo_data_acme"] {
        assert_eq!(on(Some(directory)).expect("located"), "odoo_data_acme");
    }
    for nowhere in [Some("/elsewhere/odoo_data_acme"), Some("../odoo_data_acme"), None] {
        on(nowhere).expect_err("not under the root");
    }
}
