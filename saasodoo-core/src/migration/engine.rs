//! The machine that takes one instance through the table.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use futures::stream::BoxStream;
use jiff::Timestamp;
use tokio::sync::{broadcast, watch};
use uuid::Uuid;

use super::builder::{MigrationConfig, MigratorBuilder};
use super::downtimes::Downtimes;
use super::hooks::{Clock, DataLocator, PreflightCheck, Probe, RouteSwitch, SecretSource};
use super::run::{Run, Stop};
use super::table::{Signal, Step, transition};
use super::{Entry, Event, Force, Journal, Record, Side, Tenancy};
use crate::{DynOrchestrator, Error, ErrorKind, InstanceId, OperationKind, Result, Retry};

/// Something that happened in a migration, as it happens.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Progress {
    /// The instance.
    pub instance: InstanceId,
    /// The step it is in now.
    pub step: Step,
    /// What happened.
    pub event: Event,
    /// When.
    pub at: Timestamp,
}

/// What an operator asks of a migration that runs. Clones control the same one.
#[derive(Debug, Clone)]
pub struct Control(watch::Sender<Order>);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    Go,
    Pause,
    Abort,
}

impl Control {
    /// Go on.
    #[must_use]
    pub fn new() -> Self {
        Self(watch::Sender::new(Order::Go))
    }

    /// Stop at the next step in which the tenant is up.
    pub fn pause(&self) {
        self.0.send_replace(Order::Pause);
    }

    /// Take a pause back.
    pub fn resume(&self) {
        self.0.send_replace(Order::Go);
    }

    /// Give up at the next step: the tenant goes back to the source.
    pub fn abort(&self) {
        self.0.send_replace(Order::Abort);
    }

    pub(super) fn order(&self) -> Order {
        *self.0.borrow()
    }
}

impl Default for Control {
    fn default() -> Self {
        Self::new()
    }
}

/// Moves instances from one platform to another on the same data, one writer at any time, and back.
///
/// Everything it does is in the [journal](Journal) before it is done. A migration can be dropped or killed at any
/// point: call [`resume`](Self::resume) with the same journal, from this or another process, and it goes on.
///
/// In one process one call at a time works on an instance, whichever clone it is made on: a second one is a `Conflict` at
/// once. A move under way is given up by its [`Control`], and not by a [`rollback`](Self::rollback) beside it.
///
/// ```
/// use std::sync::Arc;
/// use saasodoo_core::migration::{Control, FileJournal, Force, Migrator, Step};
/// use saasodoo_core::{DynOrchestrator, InstanceId, Result};
///
/// async fn move_one(swarm: DynOrchestrator, kubernetes: DynOrchestrator, id: InstanceId) -> Result<()> {
///     let migrator = Migrator::builder(swarm, kubernetes)
///         .journal(Arc::new(FileJournal::open("journal.jsonl")?))
///         .data_root("/mnt/cephfs/odoo_instances")
///         .build();
///     let record = migrator.migrate(id, Force::none(), &Control::new()).await?;
///     if record.step == Step::RolledBack {
///         println!("it is back where it was: {:?}", record.failure);
///     }
///     Ok(())
/// }
/// ```
#[derive(Clone)]
pub struct Migrator {
    pub(super) inner: Arc<Inner>,
}

pub(super) struct Inner {
    pub(super) source: DynOrchestrator,
    pub(super) target: DynOrchestrator,
    pub(super) source_identity: String,
    pub(super) target_identity: String,
    pub(super) journal: Arc<dyn Journal>,
    pub(super) locator: Arc<dyn DataLocator>,
    pub(super) secrets: Arc<dyn SecretSource>,
    pub(super) probe: Arc<dyn Probe>,
    pub(super) route: Arc<dyn RouteSwitch>,
    pub(super) checks: Vec<Arc<dyn PreflightCheck>>,
    pub(super) config: MigrationConfig,
    pub(super) clock: Clock,
    pub(super) downtimes: Downtimes,
    pub(super) progress: broadcast::Sender<Progress>,
    #[cfg(debug_assertions)]
    pub(super) fence_is_broken: bool,
}

impl Inner {
    pub(super) fn side(&self, side: Side) -> &DynOrchestrator {
        match side {
            Side::Source => &self.source,
            Side::Target => &self.target,
        }
    }

    /// Which platform a side is.
    pub(super) fn identity(&self, side: Side) -> &str {
        match side {
            Side::Source => &self.source_identity,
            Side::Target => &self.target_identity,
        }
    }

    pub(super) fn announce(&self, record: &Record, entry: &Entry) {
        // Nobody listening is fine.
        let _ = self.progress.send(Progress {
            instance: record.instance,
            step: record.step,
            event: entry.event.clone(),
            at: entry.at,
        });
    }

    #[cfg(debug_assertions)]
    pub(super) fn fence_is_broken(&self) -> bool {
        self.fence_is_broken
    }

    #[cfg(not(debug_assertions))]
    #[allow(clippy::unused_self)]
    pub(super) fn fence_is_broken(&self) -> bool {
        false
    }
}

/// What works on which instance in this process: the journal, the instance and the name of the call.
static AT_WORK: Mutex<Vec<(usize, InstanceId, &'static str)>> = Mutex::new(Vec::new());

/// One call that works on an instance. A journal tells two processes apart, and not two calls of one process, so there is
/// one at a time. It ends with the call, however that ends.
struct AtWork {
    journal: usize,
    id: InstanceId,
}

impl Drop for AtWork {
    fn drop(&mut self) {
        let mut at_work = AT_WORK.lock().unwrap_or_else(PoisonError::into_inner);
        at_work.retain(|(journal, id, _)| (*journal, *id) != (self.journal, self.id));
    }
}

impl fmt::Debug for Migrator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Migrator")
            .field("source", &self.inner.source)
            .field("target", &self.inner.target)
            .field("journal", &self.inner.journal)
            .field("config", &self.inner.config)
            .finish_non_exhaustive()
    }
}

impl Migrator {
    /// A migrator from `source` to `target`; swapped, it moves tenants the other way.
    #[must_use]
    pub fn builder(source: DynOrchestrator, target: DynOrchestrator) -> MigratorBuilder {
        MigratorBuilder::new(source, target)
    }

    /// How long it waits for what.
    #[must_use]
    pub fn config(&self) -> &MigrationConfig {
        &self.inner.config
    }

    /// The journal.
    #[must_use]
    pub fn journal(&self) -> &Arc<dyn Journal> {
        &self.inner.journal
    }

    /// What a side is called in the journal: see [`MigratorBuilder::identities`](super::MigratorBuilder::identities).
    #[must_use]
    pub fn identity(&self, side: Side) -> &str {
        self.inner.identity(side)
    }

    /// Now, by its clock.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        self.inner.clock.now()
    }

    /// What happens in all migrations of this migrator from now on. A receiver that is too slow misses the oldest.
    pub fn progress(&self) -> BoxStream<'static, Progress> {
        let receiver = self.inner.progress.subscribe();
        Box::pin(futures::stream::unfold(receiver, |mut receiver| async move {
            loop {
                match receiver.recv().await {
                    Ok(progress) => return Some((progress, receiver)),
                    Err(broadcast::error::RecvError::Lagged(_)) => {}
                    Err(broadcast::error::RecvError::Closed) => return None,
                }
            }
        }))
    }

    /// What is known about an instance's last migration.
    ///
    /// # Errors
    /// Those of the journal.
    pub async fn status(&self, id: InstanceId) -> Result<Option<Record>> {
        self.inner.journal.load(id).await
    }

    /// Begins to work on an instance, if no other call of a migrator with the same journal does.
    fn work_on(&self, id: InstanceId, call: &'static str) -> Result<AtWork> {
        let journal = Arc::as_ptr(&self.inner.journal).cast::<()>().addr();
        let mut at_work = AT_WORK.lock().unwrap_or_else(PoisonError::into_inner);
        let same = |(of, other, _): &&(usize, InstanceId, &'static str)| *of == journal && other.matches(id);
        if let Some((_, _, other)) = at_work.iter().find(same) {
            let message = format!("a {other} works on it in this process, so a {call} cannot begin");
            return Err(Error::conflict(["migration"], message)
                .with_instance(id)
                .with_operation(OperationKind::Migrate)
                .with_retry(Retry::After(None))
                .with_advice("try again when that has ended; a move is given up by its control"));
        }
        at_work.push((journal, id, call));
        Ok(AtWork { journal, id })
    }

    /// Moves the instance: begins, or goes on with what was begun. Answers when the migration has come to rest
    /// ([`Committed`](Step::Committed) or over) or was paused. One that is over is answered as it is; see
    /// [`retry`](Self::retry).
    ///
    /// # Errors
    /// When it can go neither forward nor back, because a platform or the journal does not answer or a fence cannot be
    /// seen. Everything is written down: call it again when the reason is gone. `InvalidInput` for an id of eight digits,
    /// and `Configuration` when it was begun between other platforms: nothing was done then.
    pub async fn migrate(&self, id: InstanceId, force: Force, control: &Control) -> Result<Record> {
        let _at_work = self.work_on(id, "migrate")?;
        match self.status(id).await? {
            Some(record) => self.drive(record, force, control).await,
            None => self.begin(id, None, force, control).await,
        }
    }

    /// Begins again after a migration that is over.
    ///
    /// # Errors
    /// `NotAllowed` while one is under way; as [`migrate`](Self::migrate).
    pub async fn retry(&self, id: InstanceId, force: Force, control: &Control) -> Result<Record> {
        let _at_work = self.work_on(id, "retry")?;
        match self.status(id).await? {
            Some(record) if !record.step.is_over() => Err(not_allowed(
                &record,
                "cannot begin again while the last migration is not over",
            )),
            last => self.begin(id, last, force, control).await,
        }
    }

    /// Goes on with what was begun.
    ///
    /// # Errors
    /// `NotFound` when nothing was begun; as [`migrate`](Self::migrate).
    pub async fn resume(&self, id: InstanceId, control: &Control) -> Result<Record> {
        self.resume_with(id, Force::none(), control).await
    }

    /// Goes on with what was begun, and accepts what stands in the way in this call.
    ///
    /// # Errors
    /// As [`resume`](Self::resume).
    pub async fn resume_with(&self, id: InstanceId, force: Force, control: &Control) -> Result<Record> {
        let _at_work = self.work_on(id, "resume")?;
        let record = self.known(id).await?;
        self.drive(record, force, control).await
    }

    /// Takes the tenant back to the source: gives up a migration under way, or undoes a committed one as long as the
    /// source is kept.
    ///
    /// A committed tenant gets back the power state that it has now on the target. What else was changed on the target
    /// since the commit is not on the source.
    ///
    /// # Errors
    /// `NotFound` when nothing was begun. `NotAllowed` when the window is over or the removal of the source has begun:
    /// migrate the other way then. `Conflict` with
    /// the fields that were changed on the target since the commit and are not so on the source. As
    /// [`migrate`](Self::migrate).
    pub async fn rollback(&self, id: InstanceId) -> Result<Record> {
        self.rollback_with(id, Force::none()).await
    }

    /// Takes the tenant back to the source, and accepts what stands in the way in this call.
    ///
    /// # Errors
    /// As [`rollback`](Self::rollback).
    pub async fn rollback_with(&self, id: InstanceId, force: Force) -> Result<Record> {
        let _at_work = self.work_on(id, "rollback")?;
        let record = self.known(id).await?;
        self.same_platforms(&record, force)?;
        let committed = record.step == Step::Committed;
        if committed || (record.step == Step::RemoveSource && !record.source_deleted) {
            if committed && self.window_ends(&record).is_none_or(|end| self.now() >= end) {
                return Err(
                    not_allowed(&record, "the rollback window is over").with_advice("migrate it the other way instead")
                );
            }
            let mut run = Run::new(&self.inner, record, force);
            // While the tenant is still up on the target: what speaks against it costs nothing yet.
            let tenancy = run.before_rollback().await.map_err(Stop::into_error)?;
            self.take_back(&mut run, tenancy).await.map_err(Stop::into_error)?;
            return self.drive(run.record, force, &Control::new()).await;
        }
        if matches!(record.step, Step::RemoveSource | Step::Finished) {
            return Err(not_allowed(&record, "the removal of the source has begun")
                .with_advice("run finish until it is removed, then migrate it the other way"));
        }
        let control = Control::new();
        control.abort();
        self.drive(record, force, &control).await
    }

    async fn take_back(&self, run: &mut Run<'_>, tenancy: Tenancy) -> Result<(), Stop> {
        if run.inventory()?.tenancy != tenancy {
            run.log(Event::TakenBack { tenancy }).await?;
        }
        run.leave(Signal::Rollback, String::new(), None).await
    }

    /// Removes the source of a committed migration; its data stays. Before the end of the rollback window only when
    /// `early` is set.
    ///
    /// # Errors
    /// `NotFound` when nothing was begun; `NotAllowed` before its time, or while the target is not well; `Conflict` when somebody has opened the source
    /// since the commit; `MissingPrerequisite` when the target does not have it any more; as [`migrate`](Self::migrate).
    pub async fn finish(&self, id: InstanceId, early: bool) -> Result<Record> {
        self.finish_with(id, early, Force::none()).await
    }

    /// Removes the source of a committed migration, and accepts what stands in the way in this call: a target that was
    /// deleted since the commit, as a tenant's end.
    ///
    /// # Errors
    /// As [`finish`](Self::finish).
    pub async fn finish_with(&self, id: InstanceId, early: bool, force: Force) -> Result<Record> {
        let _at_work = self.work_on(id, "finish")?;
        let record = self.known(id).await?;
        if record.step != Step::Committed {
            return if matches!(record.step, Step::RemoveSource | Step::Finished) {
                self.drive(record, force, &Control::new()).await
            } else {
                Err(not_allowed(&record, "it is not committed"))
            };
        }
        if !early && self.window_ends(&record).is_some_and(|end| self.now() < end) {
            return Err(not_allowed(&record, "the rollback window is still open"));
        }
        self.same_platforms(&record, force)?;
        let mut run = Run::new(&self.inner, record, force);
        // While it can still be taken back.
        run.source_is_unused().await.map_err(Stop::into_error)?;
        run.target_is_well().await.map_err(Stop::into_error)?;
        run.leave(Signal::Finish, String::new(), None)
            .await
            .map_err(Stop::into_error)?;
        self.drive(run.record, force, &Control::new()).await
    }

    /// Until when a committed migration can be undone: what was written down at the commit, and by the configuration for
    /// a journal that does not keep it.
    #[must_use]
    pub fn window_ends(&self, record: &Record) -> Option<Timestamp> {
        if record.window_until.is_some() {
            return record.window_until;
        }
        let window =
            jiff::SignedDuration::try_from(self.inner.config.rollback_window).unwrap_or(jiff::SignedDuration::MAX);
        record
            .committed_at
            .map(|at| at.checked_add(window).unwrap_or(Timestamp::MAX))
    }

    async fn known(&self, id: InstanceId) -> Result<Record> {
        self.status(id).await?.ok_or_else(|| {
            Error::new(ErrorKind::NotFound, "the journal knows of no migration of it")
                .with_instance(id)
                .with_operation(OperationKind::Migrate)
        })
    }

    async fn begin(&self, id: InstanceId, last: Option<Record>, force: Force, control: &Control) -> Result<Record> {
        if id.is_legacy() {
            return Err(
                Error::invalid("id", "eight digits do not identify an instance for good")
                    .with_operation(OperationKind::Migrate)
                    .with_advice("give the whole UUID, as the instance's row in the database has it"),
            );
        }
        let entry = Entry {
            instance: id,
            run: Uuid::new_v4(),
            seq: 0,
            at: self.now(),
            event: Event::Began {
                source: self.inner.source.backend(),
                target: self.inner.target.backend(),
                source_identity: Some(self.inner.source_identity.clone()),
                target_identity: Some(self.inner.target_identity.clone()),
                force: force.lasting(),
            },
        };
        let record = Record::begin(&entry)?.after(last.as_ref());
        self.inner.journal.append(&entry, &record).await?;
        self.inner.announce(&record, &entry);
        self.drive(record, force, control).await
    }

    /// Refuses a migration that was begun between other platforms.
    fn same_platforms(&self, record: &Record, force: Force) -> Result<()> {
        let kinds = (self.inner.source.backend(), self.inner.target.backend());
        if (record.source, record.target) != kinds {
            return Err(Error::new(
                ErrorKind::Configuration,
                format!(
                    "the journal is about a migration from {} to {}, not from {} to {}",
                    record.source, record.target, kinds.0, kinds.1
                ),
            )
            .with_instance(record.instance)
            .with_operation(OperationKind::Migrate)
            .with_field("journal"));
        }
        for (side, began) in [
            (Side::Source, &record.source_identity),
            (Side::Target, &record.target_identity),
        ] {
            let here = self.inner.identity(side);
            if let Some(began) = began
                && began != here
                && !force.accepts_platform(side)
            {
                return Err(Error::new(
                    ErrorKind::Configuration,
                    format!("the {side} was {began:?} when this migration began, and is {here:?} now"),
                )
                .with_instance(record.instance)
                .with_operation(OperationKind::Migrate)
                .with_field(format!("{side}.identity"))
                .with_advice(
                    "give it the same cluster, namespace and daemon as before; if it is the same platform under another \
                     name, accept that explicitly",
                ));
            }
        }
        Ok(())
    }

    /// Runs step after step until the migration rests.
    async fn drive(&self, record: Record, force: Force, control: &Control) -> Result<Record> {
        if record.step.is_over() {
            return Ok(record);
        }
        self.same_platforms(&record, force)?;
        let was_at_rest = record.step.is_rest();
        let mut run = Run::new(&self.inner, record, force);
        let mut aborted = false;
        while !run.record.step.is_rest() {
            let step = run.record.step;
            match control.order() {
                Order::Abort if !aborted && transition(&run.record, Signal::Abort).is_some() => {
                    aborted = true;
                    run.leave(Signal::Abort, "given up by the operator".to_owned(), None)
                        .await
                        .map_err(Stop::into_error)?;
                    continue;
                }
                Order::Pause if run.record.can_pause() => return Ok(run.record),
                _ => {}
            }
            run.log(Event::StepBegan { step }).await.map_err(Stop::into_error)?;
            let outcome = run.step(step, control).await;
            let left = match outcome {
                Ok(note) => run.leave(Signal::Done, note, None).await,
                Err(Stop::Abort) => {
                    aborted = true;
                    run.leave(Signal::Abort, "given up by the operator".to_owned(), None)
                        .await
                }
                Err(Stop::Pause) => return Ok(run.record),
                Err(Stop::Halt(error)) => return Err(run.halt(error).await),
                Err(Stop::Fail(error)) if transition(&run.record, Signal::Failed).is_none() => {
                    let error = error.with_advice(format!(
                        "step {step} can be neither done nor skipped; the journal is at it: resume when the reason is gone"
                    ));
                    return Err(run.halt(error).await);
                }
                Err(Stop::Fail(error)) => {
                    let failure = run.failure(&error);
                    run.leave(Signal::Failed, error.to_string(), Some(failure)).await
                }
            };
            left.map_err(Stop::into_error)?;
        }
        if run.record.step == Step::Committed {
            if !was_at_rest {
                self.inner.downtimes.add(&run.record, self.now());
            }
            run.keep_committed().await.map_err(Stop::into_error)?;
        }
        Ok(run.record)
    }
}

fn not_allowed(record: &Record, why: &str) -> Error {
    Error::new(ErrorKind::NotAllowed, format!("{why}; it is at {}", record.step))
        .with_instance(record.instance)
        .with_operation(OperationKind::Migrate)
}
