//! How long a tenant is down beyond the time that the platforms take.

use std::sync::Arc;
use std::time::Duration;

use saasodoo_core::migration::{Clock, Control, Force, KnownSecrets, Migrator, Step};
use saasodoo_core::{BackendKind, CreateOptions, ErrorKind, InstanceOrchestrator, InstanceOrchestratorExt};
use saasodoo_core::{InstanceStatus, OperationKind};
use saasodoo_testkit::explorer::Scenario;
use saasodoo_testkit::fixtures;
use saasodoo_testkit::memory::{Fault, FaultPlan, MemoryOrchestrator, Trouble};

use super::{ROOT, migrate};

/// What the migration adds to the time that the platforms take: calls and looks, one after the other where the fence
/// wants it, and no more of them than it wants.
#[tokio::test(start_paused = true)]
async fn little_is_added_to_the_downtime() {
    let platform = MemoryOrchestrator::builder()
        .data_root(ROOT)
        .latency(Duration::from_millis(100))
        .stop_time(Duration::from_secs(3));
    let old = platform.clone().posing_as(BackendKind::Swarm).build();
    let new = platform
        .posing_as(BackendKind::Kubernetes)
        .start_time(Duration::from_secs(8))
        .sharing_data_with(&old)
        .build();
    let spec = fixtures::fleet(1).remove(0);
    old.create(&spec, CreateOptions::new()).await.expect("made");
    tokio::time::sleep(Duration::from_secs(60)).await;
    let migrator = Migrator::builder(Arc::new(old.clone()), Arc::new(new))
        .data_root(ROOT)
        .secrets(Arc::new(KnownSecrets::of([spec.clone()])))
        .clock(Clock::tokio(jiff::Timestamp::now()))
        .build();
    let record = migrate(&migrator, spec.id).await;
    assert_eq!(record.step, Step::Committed, "{:?}", record.failure);
    let added = record.downtime(migrator.now()) - Duration::from_secs(3 + 8);
    assert!(added < Duration::from_millis(2500), "{added:?}");
    assert_eq!(old.violations(), []);
}

/// A pod whose claim is not bound is not scheduled. A controller that is late with the binding costs the tenant nothing.
#[tokio::test(start_paused = true)]
async fn nobody_is_stopped_before_the_storage_of_the_target_is_ready() {
    let scenario = Scenario::with_fleet(1).await.expect("a tenant");
    let (id, new) = (scenario.specs[0].id, scenario.new.clone());
    new.cause(id, Trouble::StoragePending);
    let migrator = scenario.migrator().build();
    let control = Control::new();
    let (moved, ()) = tokio::join!(migrator.migrate(id, Force::none(), &control), async {
        tokio::time::sleep(Duration::from_secs(20)).await;
        assert_eq!(scenario.old.status(id).await.expect("read"), InstanceStatus::Running);
        assert_eq!(new.status(id).await.expect("made"), InstanceStatus::Paused);
        new.clear(id);
    });
    let record = moved.expect("moved");
    assert_eq!(record.step, Step::Committed);
    let downtime = record.downtime(migrator.now());
    assert!(downtime < Duration::from_secs(10), "{downtime:?}");
}

#[tokio::test(start_paused = true)]
async fn storage_that_does_not_become_ready_takes_nobody_down() {
    let scenario = Scenario::with_fleet(1).await.expect("a tenant");
    let id = scenario.specs[0].id;
    scenario.new.cause(id, Trouble::StoragePending);
    let migrator = scenario.migrator().build();
    let record = migrate(&migrator, id).await;
    assert_eq!((record.step, record.outages.len()), (Step::RolledBack, 0));
    let failure = record.failure.expect("a reason");
    assert_eq!((failure.step, failure.kind), (Step::HoldTarget, ErrorKind::Timeout));
    assert!(failure.message.contains("storage is pending"), "{}", failure.message);
    assert!(!scenario.new.exists(id).await.expect("read"));
    assert_eq!(scenario.old.status(id).await.expect("read"), InstanceStatus::Running);
}

#[tokio::test(start_paused = true)]
async fn who_waits_for_storage_hears_the_operator() {
    let scenario = Scenario::with_fleet(1).await.expect("a tenant");
    let id = scenario.specs[0].id;
    scenario.new.cause(id, Trouble::StoragePending);
    let (migrator, control) = (scenario.migrator().build(), Control::new());
    for (step, order) in [
        (Step::HoldTarget, Control::pause as fn(&Control)),
        (Step::RolledBack, Control::abort),
    ] {
        let began = tokio::time::Instant::now();
        let (moved, ()) = tokio::join!(migrator.migrate(id, Force::none(), &control), async {
            tokio::time::sleep(Duration::from_secs(5)).await;
            order(&control);
        });
        assert_eq!(moved.expect("it answers").step, step);
        assert!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());
        control.resume();
    }
    assert_eq!(scenario.old.status(id).await.expect("read"), InstanceStatus::Running);
}

/// Storage that was ready when the target was held, and is not when the source is to be stopped.
#[tokio::test(start_paused = true)]
async fn storage_that_is_lost_before_the_stop_takes_nobody_down() {
    let scenario = Scenario::with_fleet(1).await.expect("a tenant");
    let (id, new) = (scenario.specs[0].id, scenario.new.clone());
    let migrator = scenario.migrator().build();
    let mut progress = migrator.progress();
    let losing = tokio::spawn(async move {
        use futures::StreamExt;
        let stopping = saasodoo_core::migration::Event::StepBegan { step: Step::StopSource };
        while let Some(progress) = progress.next().await {
            if progress.event == stopping {
                // Seen by the look that follows.
                new.cause(id, Trouble::StoragePending);
                return;
            }
        }
    });
    // The look waits for a moment, so that the other task runs.
    scenario.new.plan_faults((1..100).fold(FaultPlan::new(), |plan, nth| {
        plan.on(OperationKind::Get, nth, Fault::Delay(Duration::from_millis(10)))
    }));
    let record = migrate(&migrator, id).await;
    losing.await.expect("the trouble was made");
    assert_eq!((record.step, record.outages.len()), (Step::RolledBack, 0));
    let failure = record.failure.expect("a reason");
    assert_eq!(
        (failure.step, failure.kind),
        (Step::StopSource, ErrorKind::StorageMissing)
    );
    assert_eq!(scenario.old.status(id).await.expect("read"), InstanceStatus::Running);
}
