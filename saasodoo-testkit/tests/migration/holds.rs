//! Holds for maintenance: whoever sets one wants nobody to start the tenant, and nobody to take the hold away.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use futures::StreamExt;
use saasodoo_core::migration::{Control, Event, Force, Migrator, RouteSwitch, Side, Step};
use saasodoo_core::{
    ErrorKind, Hold, Instance, InstanceId, InstanceOrchestrator, InstanceOrchestratorExt, InstanceStatus, Power, Result,
};
use saasodoo_testkit::explorer::Scenario;
use saasodoo_testkit::memory::MemoryOrchestrator;

use super::{migrate, quick};

async fn hold(memory: &MemoryOrchestrator, id: InstanceId) -> Option<Hold> {
    memory.get(id).await.expect("there").facts.hold
}

/// Holds the target for maintenance in the middle of the bake, with its process stopped or not.
fn hold_in_the_bake(migrator: &Migrator, new: &MemoryOrchestrator, id: InstanceId, stop: bool) {
    let (mut progress, new) = (migrator.progress(), new.clone());
    tokio::spawn(async move {
        while let Some(progress) = progress.next().await {
            if matches!(progress.event, Event::Baking { .. }) {
                tokio::time::sleep(Duration::from_secs(3)).await;
                if stop {
                    new.set_power(id, Power::Stop).await.expect("stopped");
                }
                new.hold_for_maintenance(id, true).expect("held");
                return;
            }
        }
    });
}

#[tokio::test(start_paused = true)]
async fn a_hold_during_the_bake_is_reported_and_stays() {
    for give_up in [false, true] {
        let scenario = Scenario::with_fleet(1).await.expect("a tenant");
        let (old, new, id) = (&scenario.old, &scenario.new, scenario.ids()[0]);
        let migrator = scenario.migrator().config(quick()).build();
        hold_in_the_bake(&migrator, new, id, false);
        let control = Control::new();
        let error = migrator
            .migrate(id, Force::none(), &control)
            .await
            .expect_err("it is held");
        assert_eq!(error.kind(), ErrorKind::Conflict);
        assert!(error.message().contains("maintenance"), "{error}");
        let record = migrator.status(id).await.expect("read").expect("known");
        assert_eq!(record.step, Step::Bake);
        if give_up {
            for _ in 0..2 {
                let error = migrator.rollback(id).await.expect_err("it is held");
                assert!(error.message().contains("maintenance"), "{error}");
            }
        }
        assert_eq!(hold(new, id).await, Some(Hold::Maintenance));
        assert_eq!(old.status(id).await.expect("read"), InstanceStatus::Paused);

        new.hold_for_maintenance(id, false).expect("free");
        let record = migrator.resume(id, &control).await.expect("it goes on");
        let (step, home) = if give_up {
            (Step::RolledBack, old)
        } else {
            (Step::Committed, new)
        };
        assert_eq!(record.step, step);
        assert_eq!(home.status(id).await.expect("read"), InstanceStatus::Running);
        assert_eq!(old.violations(), []);
    }
}

/// As the backends do it: the process is stopped first.
#[tokio::test(start_paused = true)]
async fn who_is_stopped_for_maintenance_during_the_bake_is_not_started_on_the_source() {
    let scenario = Scenario::with_fleet(1).await.expect("a tenant");
    let (old, new, id) = (&scenario.old, &scenario.new, scenario.ids()[0]);
    let migrator = scenario.migrator().config(quick()).build();
    hold_in_the_bake(&migrator, new, id, true);
    let control = Control::new();
    let error = migrator
        .migrate(id, Force::none(), &control)
        .await
        .expect_err("it is held");
    assert!(error.message().contains("maintenance"), "{error}");
    migrator.rollback(id).await.expect_err("it is held");
    assert_eq!(hold(new, id).await, Some(Hold::Maintenance));
    assert_eq!(old.status(id).await.expect("read"), InstanceStatus::Paused);
    // What the operator leaves behind is the tenant's power state.
    new.hold_for_maintenance(id, false).expect("free");
    let record = migrator.resume(id, &control).await.expect("back");
    assert_eq!(record.step, Step::RolledBack);
    assert_eq!(old.status(id).await.expect("read"), InstanceStatus::Stopped);
}

/// Holds the target once the tenant is back on the source.
#[derive(Debug)]
struct Late {
    new: MemoryOrchestrator,
    held: AtomicBool,
}

#[async_trait]
impl RouteSwitch for Late {
    async fn switch(&self, _instance: &Instance, _to: Side) -> Result<()> {
        Ok(())
    }

    async fn stays(&self, id: InstanceId) -> Result<()> {
        if !self.held.swap(true, Ordering::SeqCst) {
            self.new.hold_for_maintenance(id, true)?;
        }
        Ok(())
    }
}

#[tokio::test(start_paused = true)]
async fn objects_that_are_held_are_not_removed() {
    let scenario = Scenario::with_fleet(1).await.expect("a tenant");
    let (old, new, id) = (&scenario.old, &scenario.new, scenario.ids()[0]);
    let late = Arc::new(Late {
        new: new.clone(),
        held: AtomicBool::new(false),
    });
    let migrator = scenario.migrator().config(quick()).route(late).build();
    let control = Control::new();
    migrator.migrate(id, Force::none(), &control).await.expect("moved");
    let error = migrator.rollback(id).await.expect_err("it is held");
    assert!(error.message().contains("maintenance"), "{error}");
    assert_eq!(hold(new, id).await, Some(Hold::Maintenance));
    assert_eq!(old.status(id).await.expect("read"), InstanceStatus::Running);
    new.hold_for_maintenance(id, false).expect("free");
    let record = migrator.resume(id, &control).await.expect("back");
    assert_eq!(record.step, Step::RolledBack);
    assert!(!new.exists(id).await.expect("read"));
}

/// The source of a committed migration, too.
#[tokio::test(start_paused = true)]
async fn a_source_that_is_held_is_not_removed() {
    let scenario = Scenario::with_fleet(1).await.expect("a tenant");
    let (old, new, id) = (&scenario.old, &scenario.new, scenario.ids()[0]);
    let migrator = scenario.migrator().config(quick()).build();
    migrate(&migrator, id).await;
    old.hold_for_maintenance(id, true).expect("held");
    let error = migrator.finish(id, true).await.expect_err("it is held");
    assert!(error.message().contains("maintenance"), "{error}");
    // It can still be taken back: nothing was begun.
    let record = migrator.status(id).await.expect("read").expect("known");
    assert_eq!(record.step, Step::Committed);
    assert_eq!(hold(old, id).await, Some(Hold::Maintenance));
    assert_eq!(new.status(id).await.expect("read"), InstanceStatus::Running);
}
