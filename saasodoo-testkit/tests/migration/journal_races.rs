//! Two processes, or two calls of one process, on the journal of one tenant.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use saasodoo_core::migration::{Control, Entry, Event, Force, Journal, Migrator, Probe, Record, Signal, Step};
use saasodoo_core::{
    DeleteOptions, Error, ErrorKind, Instance, InstanceChange, InstanceId, InstanceOrchestrator,
    InstanceOrchestratorExt, InstanceStatus, OperationKind, Result, Retry, UpdateOptions,
};
use saasodoo_testkit::explorer::Scenario;
use saasodoo_testkit::memory::{Fault, FaultPlan};
use tokio::time::timeout;

use super::{migrate, on_objects, one, pass, quick};

/// Both platforms take 100 ms for each call, so that two calls get in each other's way.
fn slow(scenario: &Scenario) {
    for side in [&scenario.old, &scenario.new] {
        let operations = [
            OperationKind::Get,
            OperationKind::Update,
            OperationKind::SetPower,
            OperationKind::Delete,
            OperationKind::Create,
        ];
        let delayed = |plan: FaultPlan, of| plan.always(of, Fault::Delay(Duration::from_millis(100)));
        side.plan_faults(operations.into_iter().fold(FaultPlan::new(), delayed));
    }
}

/// Who comes next brings it to its end, and the tenant runs on one side.
async fn ends_well(scenario: &Scenario, next: impl Fn() -> Migrator, what: &str) {
    for side in [&scenario.old, &scenario.new] {
        side.plan_faults(FaultPlan::new());
    }
    let id = scenario.specs[0].id;
    let mut said = Vec::new();
    for _ in 0..4 {
        match next().resume(id, &Control::new()).await {
            Ok(record) if record.step.is_rest() => break,
            Ok(record) => said.push(record.step.to_string()),
            Err(error) => said.push(error.to_string()),
        }
        pass(60).await;
    }
    pass(400).await;
    let up = |status: &Result<InstanceStatus>| status.as_ref().is_ok_and(|status| *status == InstanceStatus::Running);
    let (old, new) = (scenario.old.status(id).await, scenario.new.status(id).await);
    assert!(up(&old) != up(&new), "{what}: {said:?}; {old:?} and {new:?}");
    assert_eq!(scenario.old.violations(), [], "{what}");
}

fn is_conflict(answer: &Result<Record>) -> bool {
    answer.as_ref().is_err_and(|error| error.kind() == ErrorKind::Conflict)
}

fn show(answer: &Result<Record>) -> String {
    answer
        .as_ref()
        .map_or_else(Error::to_string, |record| record.step.to_string())
}

/// The source goes away with its labels while another process takes the tenant back to it.
#[tokio::test(start_paused = true)]
async fn a_finish_beside_a_rollback_of_another_process_takes_nobody_down() {
    for after in (0..60).map(|n| n * 50) {
        for rollback_first in [false, true] {
            let (scenario, spec, _) = one().await;
            let process = || on_objects(&scenario, quick());
            let (one, other) = (process(), process());
            migrate(&one, spec.id).await;
            slow(&scenario);
            let (finish, back) = if rollback_first { (after, 0) } else { (0, after) };
            let finish = async {
                tokio::time::sleep(Duration::from_millis(finish)).await;
                one.finish(spec.id, true).await
            };
            let back = async {
                tokio::time::sleep(Duration::from_millis(back)).await;
                other.rollback(spec.id).await
            };
            let (finish, back) = tokio::join!(finish, back);
            let what = format!("{after} ms, {rollback_first}: {} and {}", show(&finish), show(&back));
            ends_well(&scenario, process, &what).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_move_beside_a_rollback_of_another_process_takes_nobody_down() {
    for after in (0..100).map(|n| n * 240) {
        let (scenario, spec, _) = one().await;
        let process = || on_objects(&scenario, quick());
        let (one, other) = (process(), process());
        slow(&scenario);
        let control = Control::new();
        let back = async {
            tokio::time::sleep(Duration::from_millis(after)).await;
            other.rollback(spec.id).await
        };
        let (moved, back) = tokio::join!(one.migrate(spec.id, Force::none(), &control), back);
        let what = format!("{after} ms: {} and {}", show(&moved), show(&back));
        ends_well(&scenario, process, &what).await;
    }
}

/// A process that stands still before it writes this, while another one goes the other way.
#[derive(Debug)]
struct StandsStill {
    inner: Arc<dyn Journal>,
    before: Signal,
    other: Mutex<Option<Migrator>>,
    /// How long the other one lives.
    life: Duration,
}

#[async_trait]
impl Journal for StandsStill {
    async fn load(&self, instance: InstanceId) -> Result<Option<Record>> {
        self.inner.load(instance).await
    }

    async fn load_all(&self) -> Result<Vec<Record>> {
        self.inner.load_all().await
    }

    async fn append(&self, entry: &Entry, after: &Record) -> Result<()> {
        let now = match &entry.event {
            Event::StepEnded { step, signal, .. } => {
                *signal == self.before && matches!(step, Step::Bake | Step::Committed)
            }
            _ => false,
        };
        let other = self.other.lock().expect("no panic").take_if(|_| now);
        if let Some(other) = other {
            match self.before {
                Signal::Rollback => drop(timeout(self.life, other.finish(entry.instance, true)).await),
                _ => drop(timeout(self.life, other.rollback(entry.instance)).await),
            }
        }
        self.inner.append(entry, after).await
    }
}

/// What another process has ended leaves no labels, on whichever side: without them nothing goes on.
#[tokio::test(start_paused = true)]
async fn what_another_process_has_ended_is_not_gone_on_with() {
    for before in [Signal::Rollback, Signal::Done] {
        let (scenario, spec, _) = one().await;
        let process = || on_objects(&scenario, quick());
        if before == Signal::Rollback {
            migrate(&process(), spec.id).await;
        }
        let journal = StandsStill {
            inner: Arc::clone(process().journal()),
            before,
            other: Mutex::new(Some(process())),
            life: Duration::from_secs(600),
        };
        let still = scenario.migrator().config(quick()).journal(Arc::new(journal)).build();
        let (answer, home) = match before {
            Signal::Rollback => (still.rollback(spec.id).await, &scenario.new),
            _ => {
                let control = Control::new();
                (still.migrate(spec.id, Force::none(), &control).await, &scenario.old)
            }
        };
        assert!(is_conflict(&answer), "{}", show(&answer));
        pass(400).await;
        assert_eq!(home.status(spec.id).await.expect("read"), InstanceStatus::Running);
        assert_eq!(process().status(spec.id).await.expect("read"), None);
        assert_eq!(scenario.old.violations(), []);
    }
}

/// The tolerance for an answer that was lost is for the very same entry.
#[tokio::test(start_paused = true)]
async fn another_entry_of_the_same_number_is_refused() {
    let (scenario, spec, _) = one().await;
    let first = on_objects(&scenario, quick());
    migrate(&first, spec.id).await;
    slow(&scenario);
    let journal = StandsStill {
        inner: Arc::clone(first.journal()),
        before: Signal::Rollback,
        other: Mutex::new(Some(first.clone())),
        // It writes one entry.
        life: Duration::from_millis(550),
    };
    let still = scenario.migrator().config(quick()).journal(Arc::new(journal)).build();
    let answer = still.rollback(spec.id).await;
    assert!(is_conflict(&answer), "{}", show(&answer));
    let record = first.status(spec.id).await.expect("read").expect("known");
    assert_eq!((record.step, record.source_deleted), (Step::RemoveSource, false));
    ends_well(&scenario, || on_objects(&scenario, quick()), "then").await;
}

/// Two calls write under the same name, so a journal on labels cannot tell them apart.
#[tokio::test(start_paused = true)]
async fn one_call_at_a_time_works_on_an_instance() {
    for labels in [false, true] {
        let (scenario, spec, _) = one().await;
        let migrator = match labels {
            true => on_objects(&scenario, quick()),
            false => scenario.migrator().config(quick()).build(),
        };
        let (control, clone) = (Control::new(), migrator.clone());
        let beside = async {
            pass(1).await;
            let refused = [
                clone.rollback(spec.id).await,
                clone.finish(spec.id, true).await,
                clone.resume(spec.id, &Control::new()).await,
                clone.retry(spec.id, Force::none(), &Control::new()).await,
                clone.migrate(spec.id, Force::none(), &Control::new()).await,
            ];
            for answer in refused {
                let error = answer.expect_err("one at a time");
                assert_eq!((error.kind(), error.retry()), (ErrorKind::Conflict, Retry::After(None)));
                assert!(error.message().starts_with("a migrate works on it"), "{error}");
            }
        };
        let (moved, ()) = tokio::join!(migrator.migrate(spec.id, Force::none(), &control), beside);
        assert_eq!(moved.expect("moved").step, Step::Committed);

        slow(&scenario);
        let (finish, back) = tokio::join!(migrator.finish(spec.id, true), clone.rollback(spec.id));
        assert_eq!(finish.as_ref().expect("finished").step, Step::Finished);
        assert!(is_conflict(&back), "{}", show(&back));
        assert_eq!(
            scenario.new.status(spec.id).await.expect("read"),
            InstanceStatus::Running
        );
    }
}

#[derive(Debug)]
struct Panics;

#[async_trait]
impl Probe for Panics {
    async fn probe(&self, _: &Instance) -> Result<()> {
        panic!("a bug in a hook")
    }
}

#[tokio::test(start_paused = true)]
async fn a_call_that_was_dropped_or_has_panicked_holds_nobody_up() {
    let (scenario, spec, _) = one().await;
    let migrator = scenario.migrator().config(quick()).probe(Arc::new(Panics)).build();
    let control = Control::new();
    let cut = timeout(
        Duration::from_millis(100),
        migrator.migrate(spec.id, Force::none(), &control),
    );
    cut.await.expect_err("cut off");
    let (clone, id) = (migrator.clone(), spec.id);
    let task = tokio::spawn(async move { clone.resume(id, &Control::new()).await });
    assert!(task.await.is_err_and(|error| error.is_panic()));
    let record = migrator.rollback(spec.id).await.expect("nothing works on it");
    assert_eq!(record.step, Step::RolledBack);
}

/// An answer of the platform that was lost is no reason to stop, and no other entry passes for it.
#[tokio::test(start_paused = true)]
async fn a_lost_answer_of_the_labels_is_no_conflict() {
    for nth in 1..12 {
        let (scenario, spec, _) = one().await;
        let lost = FaultPlan::new().on(OperationKind::Update, nth, Fault::LoseResponse);
        scenario.old.plan_faults(lost);
        let record = migrate(&on_objects(&scenario, quick()), spec.id).await;
        assert_eq!(record.step, Step::Committed, "{nth}: {:?}", record.failure);
    }
}

/// The process dies when the source is deleted: the next one finds on the target that this was the migration's doing.
#[tokio::test(start_paused = true)]
async fn a_removal_that_was_cut_off_is_known_on_the_target() {
    let (scenario, spec, _) = one().await;
    migrate(&on_objects(&scenario, quick()), spec.id).await;
    let dying = on_objects(&scenario, quick());
    scenario
        .old
        .plan_faults(FaultPlan::new().on(OperationKind::Delete, 1, Fault::HangAfter));
    let cut = timeout(Duration::from_secs(10), dying.finish(spec.id, true)).await;
    cut.expect_err("it hangs");
    let next = on_objects(&scenario, quick());
    let record = next.status(spec.id).await.expect("read").expect("known");
    assert_eq!((record.step, record.source_deleted), (Step::RemoveSource, true));
    next.rollback(spec.id)
        .await
        .expect_err("there is nothing to go back to");
    let record = next.finish(spec.id, true).await.expect("finished");
    assert_eq!(record.step, Step::Finished);
    let home = scenario.new.get(spec.id).await.expect("home");
    assert_eq!((home.status, home.spec.diff(&spec)), (InstanceStatus::Running, vec![]));
}

/// Without its labels a process does not know whether another one has ended the migration, and changes nothing.
#[tokio::test(start_paused = true)]
async fn without_labels_nothing_goes_on() {
    for deleted in [false, true] {
        let (scenario, spec, _) = one().await;
        let migrator = on_objects(&scenario, quick());
        let (old, id) = (scenario.old.clone(), spec.id);
        let control = Control::new();
        let meanwhile = async {
            while scenario.new.status(id).await.ok() != Some(InstanceStatus::Running) {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            if deleted {
                old.delete(id, DeleteOptions::retain()).await.expect("deleted");
            } else {
                let labels = old.get(id).await.expect("there").spec.labels;
                let ours = labels
                    .into_keys()
                    .filter(|key| key.as_str().starts_with("migration.saasodoo.io/"));
                let change = ours.fold(InstanceChange::new(), InstanceChange::unset_label);
                old.update(id, &change, UpdateOptions::new()).await.expect("updated");
            }
        };
        let (moved, ()) = tokio::join!(migrator.migrate(id, Force::none(), &control), meanwhile);
        // Who sees first that the source itself is gone says that.
        assert!(is_conflict(&moved) || (deleted && moved.is_err()), "{}", show(&moved));
        assert_eq!(scenario.new.status(id).await.expect("read"), InstanceStatus::Running);
        assert_eq!(migrator.status(id).await.expect("read"), None);
    }
}
