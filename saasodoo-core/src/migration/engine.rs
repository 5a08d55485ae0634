//! The machine that takes one instance through the table.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures::stream::BoxStream;
use jiff::Timestamp;
use tokio::sync::{broadcast, watch};
use uuid::Uuid;

use super::downtimes::Downtimes;
use super::hooks::{
    Clock, DataLocator, NoProbe, NoRoute, NoSecrets, PreflightCheck, Probe, RootedData, RouteSwitch, SecretSource,
};
use super::run::{Run, Stop};
use super::table::{Signal, Step, transition};
use super::{Entry, Event, Force, Journal, Record, Side, Tenancy};
use crate::{DynOrchestrator, Error, ErrorKind, InstanceId, OperationKind, Result};

/// How long a migration waits for what.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct MigrationConfig {
    /// One call to a platform. Not less than the backends' own deadline for an operation. Default: 130 s.
    pub call: Duration,
    /// How long after a change was asked for it may still happen when its answer was lost. Not less than
    /// [`call`](Self::call) and the backends' own deadline for undoing; for an instance that may take longer to stop it is
    /// its grace and 60 s. Default: 200 s.
    pub doubt: Duration,
    /// How long a call that fails for a reason that may pass is repeated. Default: 60 s.
    pub retry: Duration,
    /// The pause between two looks. Default: 500 ms.
    pub poll: Duration,
    /// The same while the tenant is down: each look that comes late is downtime. While a target starts it grows to
    /// [`poll`](Self::poll), a twentieth of the time that the start has taken: looks are work for those who start it.
    /// Default: 200 ms.
    pub poll_down: Duration,
    /// Seeing the last unit of a side end; an instance that may take longer to stop has its grace and 30 s. Default: 180 s.
    pub stop: Duration,
    /// Seeing the target's storage ready, while the tenant is still up. Kubernetes tries a binding that failed again after
    /// 15 s. Default: 120 s.
    pub storage: Duration,
    /// Seeing a side ready. Default: 420 s, as the system in production allows.
    pub ready: Duration,
    /// The probe, all attempts together. Default: 60 s.
    pub probe: Duration,
    /// One attempt of it: one that hangs leaves time for the next. Default: 10 s.
    pub probe_attempt: Duration,
    /// How long both sides are watched before the commit. Default: 120 s.
    pub bake: Duration,
    /// The pause between two looks while baking. Default: 2 s.
    pub bake_poll: Duration,
    /// How long after the commit the source is kept. Default: 72 h.
    pub rollback_window: Duration,
    /// What a plan says about the tenant's downtime before any was measured. Default: 45 s.
    pub expected_downtime: Duration,
    /// Takes an instance that is on the target already, when it is stopped, has the same spec and stands on the same
    /// data: what a mirroring [`DualRun`](crate::dual::DualRun) leaves there. Default: refuse.
    pub use_mirrored_copy: bool,
}

impl Default for MigrationConfig {
    fn default() -> Self {
        Self {
            call: Duration::from_secs(130),
            doubt: Duration::from_secs(200),
            retry: Duration::from_secs(60),
            poll: Duration::from_millis(500),
            poll_down: Duration::from_millis(200),
            stop: Duration::from_secs(180),
            storage: Duration::from_secs(120),
            ready: Duration::from_secs(420),
            probe: Duration::from_secs(60),
            probe_attempt: Duration::from_secs(10),
            bake: Duration::from_secs(120),
            bake_poll: Duration::from_secs(2),
            rollback_window: Duration::from_secs(72 * 3600),
            expected_downtime: Duration::from_secs(45),
            use_mirrored_copy: false,
        }
    }
}

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
    source_identity: String,
    target_identity: String,
    pub(super) journal: Arc<dyn Journal>,
    pub(super) locator: Arc<dyn DataLocator>,
    pub(super) secrets: Arc<dyn SecretSource>,
    pub(super) probe: Arc<dyn Probe>,
    pub(super) route: Arc<dyn RouteSwitch>,
    pub(super) checks: Vec<Arc<dyn PreflightCheck>>,
    pub(super) config: MigrationConfig,
    pub(super) clock: Clock,
    pub(super) downtimes: Downtimes,
    progress: broadcast::Sender<Progress>,
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

/// Builds a [`Migrator`].
#[derive(Debug)]
pub struct MigratorBuilder {
    source: DynOrchestrator,
    target: DynOrchestrator,
    identities: Option<(String, String)>,
    journal: Arc<dyn Journal>,
    locator: Arc<dyn DataLocator>,
    secrets: Arc<dyn SecretSource>,
    probe: Arc<dyn Probe>,
    route: Arc<dyn RouteSwitch>,
    checks: Vec<Arc<dyn PreflightCheck>>,
    config: MigrationConfig,
    clock: Clock,
    #[cfg(debug_assertions)]
    fence_is_broken: bool,
}

impl MigratorBuilder {
    /// Keeps the journal there. Without one it is in memory, which is good for nothing but tests and dry runs.
    #[must_use]
    pub fn journal(mut self, journal: Arc<dyn Journal>) -> Self {
        self.journal = journal;
        self
    }

    /// Says which platforms these are, such as the API server with the namespace and the daemon's address. They are
    /// written down with each migration, and one that was begun between others does not go on here: an instance that
    /// is not found on another platform is not gone. Default: what the orchestrators display.
    #[must_use]
    pub fn identities(mut self, source: impl Into<String>, target: impl Into<String>) -> Self {
        self.identities = Some((source.into(), target.into()));
        self
    }

    /// The directory under which both platforms see the tenants' data.
    #[must_use]
    pub fn data_root(self, root: impl Into<String>) -> Self {
        self.data_locator(Arc::new(RootedData::under(root)))
    }

    /// Finds data in another way.
    #[must_use]
    pub fn data_locator(mut self, locator: Arc<dyn DataLocator>) -> Self {
        self.locator = locator;
        self
    }

    /// Completes specs with secrets from here.
    #[must_use]
    pub fn secrets(mut self, secrets: Arc<dyn SecretSource>) -> Self {
        self.secrets = secrets;
        self
    }

    /// Probes the tenant's Odoo before visitors are sent there.
    #[must_use]
    pub fn probe(mut self, probe: Arc<dyn Probe>) -> Self {
        self.probe = probe;
        self
    }

    /// Switches routes that lie outside the platforms.
    #[must_use]
    pub fn route(mut self, route: Arc<dyn RouteSwitch>) -> Self {
        self.route = route;
        self
    }

    /// Adds a check to the preflight.
    #[must_use]
    pub fn preflight_check(mut self, check: Arc<dyn PreflightCheck>) -> Self {
        self.checks.push(check);
        self
    }

    /// Waits as long as this says.
    #[must_use]
    pub fn config(mut self, config: MigrationConfig) -> Self {
        self.config = config;
        self
    }

    /// Takes the time from here.
    #[must_use]
    pub fn clock(mut self, clock: Clock) -> Self {
        self.clock = clock;
        self
    }

    /// Leaves the fence out, so that the crash explorer can show that it would notice. Only in builds with debug
    /// assertions.
    #[doc(hidden)]
    #[cfg(debug_assertions)]
    #[must_use]
    pub fn with_a_broken_fence(mut self) -> Self {
        self.fence_is_broken = true;
        self
    }

    /// The migrator.
    #[must_use]
    pub fn build(self) -> Migrator {
        let (source_identity, target_identity) = self
            .identities
            .unwrap_or_else(|| (self.source.to_string(), self.target.to_string()));
        Migrator {
            inner: Arc::new(Inner {
                source: self.source,
                target: self.target,
                source_identity,
                target_identity,
                journal: self.journal,
                locator: self.locator,
                secrets: self.secrets,
                probe: self.probe,
                route: self.route,
                checks: self.checks,
                config: self.config,
                clock: self.clock,
                downtimes: Downtimes::default(),
                progress: broadcast::Sender::new(1024),
                #[cfg(debug_assertions)]
                fence_is_broken: self.fence_is_broken,
            }),
        }
    }
}

impl Migrator {
    /// A migrator from `source` to `target`; swapped, it moves tenants the other way.
    #[must_use]
    pub fn builder(source: DynOrchestrator, target: DynOrchestrator) -> MigratorBuilder {
        MigratorBuilder {
            source,
            target,
            identities: None,
            journal: Arc::new(super::MemoryJournal::new()),
            locator: Arc::new(RootedData::under("")),
            secrets: Arc::new(NoSecrets),
            probe: Arc::new(NoProbe),
            route: Arc::new(NoRoute),
            checks: Vec::new(),
            config: MigrationConfig::default(),
            clock: Clock::system(),
            #[cfg(debug_assertions)]
            fence_is_broken: false,
        }
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

    /// Moves the instance: begins, or goes on with what was begun. Answers when the migration has come to rest
    /// ([`Committed`](Step::Committed) or over) or was paused. One that is over is answered as it is; see
    /// [`retry`](Self::retry).
    ///
    /// # Errors
    /// When it can go neither forward nor back, because a platform or the journal does not answer or a fence cannot be
    /// seen. Everything is written down: call it again when the reason is gone.
    pub async fn migrate(&self, id: InstanceId, force: Force, control: &Control) -> Result<Record> {
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
    /// `NotAllowed` when the window is over or the source was removed: migrate the other way then. `Conflict` with
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
            return Err(not_allowed(&record, "the source is not there any more")
                .with_advice("migrate it the other way instead"));
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
    /// `NotAllowed` before its time, or while the target is not well; `Conflict` when somebody has opened the source
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
