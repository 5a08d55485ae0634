//! What the plan, the journal and the progress tell.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use futures::StreamExt;
use saasodoo_core::migration::{Control, Event, Force, MemoryJournal, RouteSwitch, Side, Step};
use saasodoo_core::{Error, ErrorKind, Instance, InstanceOrchestratorExt, InstanceStatus, Result};

use super::{on_objects, one, pass, quick};

/// A hook whose program is not there, until somebody installs it.
#[derive(Debug, Default)]
struct Missing {
    installed: AtomicBool,
    calls: AtomicU32,
}

#[async_trait]
impl RouteSwitch for Missing {
    async fn switch(&self, _instance: &Instance, _to: Side) -> Result<()> {
        self.calls.fetch_add(1, Ordering::SeqCst);
        if self.installed.load(Ordering::SeqCst) {
            return Ok(());
        }
        Err(Error::new(ErrorKind::Configuration, "no such program"))
    }
}

/// What a retry cannot help is not retried, and who is left down is told of at once and until somebody goes on.
#[tokio::test(start_paused = true)]
async fn a_migration_that_gives_up_says_so() {
    let (scenario, spec, _) = one().await;
    let (id, hook) = (spec.id, Arc::new(Missing::default()));
    let migrator = scenario.migrator().config(quick()).route(hook.clone()).build();
    let mut progress = migrator.progress();
    let error = migrator
        .migrate(id, Force::none(), &Control::new())
        .await
        .expect_err("it cannot be routed to either side");
    assert_eq!(hook.calls.load(Ordering::SeqCst), 2, "once for each side");
    let record = migrator.status(id).await.expect("read").expect("known");
    let halted = record.halted.expect("a reason");
    assert_eq!(
        (halted.step, halted.kind),
        (Step::RestoreRoute, ErrorKind::Configuration)
    );
    assert_eq!(halted.message, error.to_string());
    drop(migrator);
    let told = loop {
        match progress.next().await.expect("it is told").event {
            Event::Halted(why) => break why,
            _ => continue,
        }
    };
    assert_eq!(told, halted);

    hook.installed.store(true, Ordering::SeqCst);
    let migrator = scenario.migrator().config(quick()).route(hook).build();
    let record = migrator.resume(id, &Control::new()).await.expect("back");
    assert_eq!((record.step, record.halted), (Step::RolledBack, None));
    let status = scenario.old.status(id).await.expect("read");
    assert_eq!(status, InstanceStatus::Running);
}

/// The window is what it was when the tenant was moved, whatever a later process is configured with.
#[tokio::test(start_paused = true)]
async fn the_window_is_that_of_the_commit() {
    for on_labels in [false, true] {
        let (scenario, spec, _) = one().await;
        let (id, journal) = (spec.id, Arc::new(MemoryJournal::new()));
        let with = |hours: u64| {
            let mut config = quick();
            config.rollback_window = Duration::from_secs(hours * 3600);
            match on_labels {
                true => on_objects(&scenario, config),
                false => scenario.migrator().config(config).journal(journal.clone()).build(),
            }
        };
        with(168)
            .migrate(id, Force::none(), &Control::new())
            .await
            .expect("moved");
        pass(100 * 3600).await;
        let later = with(1);
        assert!(later.finish_due().await.expect("read").is_empty());
        let early = later.finish(id, false).await.expect_err("the window is open");
        assert_eq!(early.kind(), ErrorKind::NotAllowed);
        pass(69 * 3600).await;
        let late = with(1000).rollback(id).await.expect_err("the window is over");
        assert_eq!(late.kind(), ErrorKind::NotAllowed);
        let finished = later.finish_due().await.expect("read");
        assert!(matches!(&finished[..], [(_, Ok(record))] if record.step == Step::Finished));
    }
}

#[tokio::test(start_paused = true)]
async fn nothing_is_claimed_of_hooks_that_are_not_there() {
    let (scenario, spec, _) = one().await;
    for hook in [None, Some(Arc::new(Missing::default()))] {
        let mut builder = scenario.migrator();
        let there = hook.is_some();
        if let Some(hook) = hook {
            builder = builder.route(hook);
        }
        let plan = builder.build().dry_run(&[spec.id], Force::none(), 1).await;
        let plan = plan.expect("planned").to_string();
        assert_eq!(plan.contains("are sent to kubernetes"), there, "{plan}");
        assert!(!plan.contains("probed"), "{plan}");
    }
}
