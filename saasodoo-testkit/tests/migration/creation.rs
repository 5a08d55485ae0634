//! What is created on the target, by the migration and by others.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use saasodoo_core::migration::{Control, Event, Force, MemoryJournal, Mutation, Step};
use saasodoo_core::{
    CreateOptions, DataPolicy, DeleteOptions, ErrorKind, InstanceOrchestrator, InstanceOrchestratorExt, InstanceStatus,
    OperationKind, Power,
};
use saasodoo_testkit::memory::{Fault, FaultPlan};

use super::{migrate, one, quick};

/// How somebody else creates the tenant's instance.
fn on_the_same_data() -> CreateOptions {
    let data = "odoo_data_tenant-1_00000001".parse().expect("a path");
    CreateOptions::new().with_data(DataPolicy::AdoptDirectory(data))
}

/// What somebody else makes there while the answer to our own creation is lost is not ours, whatever it looks like.
#[tokio::test(start_paused = true)]
async fn what_others_create_while_an_answer_is_lost_is_not_taken_for_ours() {
    let (scenario, spec, _) = one().await;
    let (id, new) = (spec.id, scenario.new.clone());
    let theirs = on_the_same_data().stopped();
    // Ours fails, and nobody knows how.
    new.plan_faults(FaultPlan::new().on(OperationKind::Create, 1, Fault::Fail(ErrorKind::Timeout)));
    let migrator = scenario.migrator().config(quick()).build();
    let mut progress = migrator.progress();
    let other = tokio::spawn(async move {
        while let Some(progress) = progress.next().await {
            if matches!(
                progress.event,
                Event::Intends {
                    mutation: Mutation::Create,
                    ..
                }
            ) {
                return new.create(&spec, theirs).await.expect("made by somebody else");
            }
        }
        panic!("never created")
    });
    let record = migrate(&migrator, id).await;
    other.await.expect("made");
    assert_eq!(
        (record.step, record.target_ours, record.outages.len()),
        (Step::RolledBack, Some(false), 0)
    );
    let failure = record.failure.expect("a reason");
    assert!(
        failure.message.contains("somebody else has created"),
        "{}",
        failure.message
    );
    assert!(scenario.new.exists(id).await.expect("read"), "theirs stays");
    assert_eq!(scenario.old.status(id).await.expect("read"), InstanceStatus::Running);
}

/// The same with a process that dies after it has asked for the creation, and goes back when it is run again.
#[tokio::test(start_paused = true)]
async fn a_way_back_does_not_remove_what_others_created() {
    for ours in [false, true] {
        let (scenario, spec, _) = one().await;
        let (id, new) = (spec.id, scenario.new.clone());
        let theirs = on_the_same_data().stopped();
        // Made or not, no answer ever comes.
        let fault = if ours { Fault::HangAfter } else { Fault::Hang };
        new.plan_faults(FaultPlan::new().on(OperationKind::Create, 1, fault));
        let journal = Arc::new(MemoryJournal::new());
        let migrator = || scenario.migrator().config(quick()).journal(journal.clone()).build();
        let (dying, control) = (migrator(), Control::new());
        let migration = dying.migrate(id, Force::none(), &control);
        let killed = tokio::time::timeout(Duration::from_secs(5), migration).await;
        assert!(killed.is_err(), "{killed:?}");
        if !ours {
            new.create(&spec, theirs).await.expect("made by somebody else");
        }
        let record = migrator().rollback(id).await.expect("back");
        assert_eq!((record.step, record.outages.len()), (Step::RolledBack, 0));
        assert_eq!(new.exists(id).await.expect("read"), !ours);
        assert_eq!(scenario.old.status(id).await.expect("read"), InstanceStatus::Running);
    }
}

/// Somebody has deleted what the migration made there, and has made an instance of their own.
#[tokio::test(start_paused = true)]
async fn what_others_put_in_the_place_of_ours_stays() {
    let (scenario, spec, _) = one().await;
    let (id, new) = (spec.id, scenario.new.clone());
    let migrator = scenario.migrator().config(quick()).build();
    migrate(&migrator, id).await;
    new.set_power(id, Power::Stop).await.expect("stopped");
    tokio::time::sleep(Duration::from_secs(60)).await;
    new.delete(id, DeleteOptions::retain()).await.expect("deleted");
    let theirs = on_the_same_data();
    new.create(&spec, theirs).await.expect("made by somebody else");
    tokio::time::sleep(Duration::from_secs(60)).await;
    let record = migrator.rollback(id).await.expect("back");
    assert_eq!(record.step, Step::RolledBack);
    assert_eq!(scenario.old.status(id).await.expect("read"), InstanceStatus::Running);
    // It cannot write beside the source, and is there.
    assert_eq!(new.status(id).await.expect("there"), InstanceStatus::Paused);
    assert_eq!(new.violations(), []);
}
