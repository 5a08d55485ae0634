//! What the steps share: writing down, looking, changing, and the fence.

use std::future::Future;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use tokio::time::Instant;

use super::engine::{Control, Inner, Order};
use super::table::{Signal, Step};
use super::{Entry, Event, Failure, FenceProof, Force, Inventory, Mutation, Record, Side, Tenancy};
use crate::{
    DynOrchestrator, Error, ErrorKind, Hold, Instance, InstanceId, OperationKind, Power, Result, Retry, Source,
    UnitPhase,
};

/// Why a step ends without being done.
#[derive(Debug)]
pub(super) enum Stop {
    /// It cannot be done: go back.
    Fail(Error),
    /// Neither forward nor back: somebody has to look.
    Halt(Error),
    /// The operator wants a pause.
    Pause,
    /// The operator gives up.
    Abort,
}

impl Stop {
    pub(super) fn into_error(self) -> Error {
        match self {
            Self::Fail(error) | Self::Halt(error) => error,
            Self::Pause | Self::Abort => Error::new(ErrorKind::Unexpected, "an order outside a step"),
        }
    }
}

/// No budget is longer: the clock has an end.
const LONGEST: Duration = Duration::from_secs(10 * 366 * 86_400);

/// The end of a budget that begins now.
pub(super) fn ends_after(budget: Duration) -> Instant {
    Instant::now() + budget.min(LONGEST)
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        Self::Fail(error)
    }
}

pub(super) type StepResult<T = String> = Result<T, Stop>;

/// What a platform says about the instance.
#[derive(Debug)]
pub(super) enum Presence {
    /// The server says that it does not exist.
    Absent,
    /// It exists.
    Present(Box<Instance>),
}

/// One process' work on one migration.
pub(super) struct Run<'a> {
    pub(super) m: &'a Inner,
    pub(super) record: Record,
    /// What the operator accepts in this very call.
    pub(super) force: Force,
}

impl<'a> Run<'a> {
    pub(super) fn new(m: &'a Inner, record: Record, mut force: Force) -> Self {
        // Nobody can have seen that something is gone which is not there yet.
        force.absent_source &= record.must_have(Side::Source);
        force.absent_target &= record.must_have(Side::Target);
        Self { m, record, force }
    }

    pub(super) fn id(&self) -> InstanceId {
        self.record.instance
    }

    pub(super) fn now(&self) -> Timestamp {
        self.m.clock.now()
    }

    pub(super) fn after(&self, duration: Duration) -> Timestamp {
        let duration = SignedDuration::try_from(duration).unwrap_or(SignedDuration::MAX);
        self.now().checked_add(duration).unwrap_or(Timestamp::MAX)
    }

    pub(super) fn inventory(&self) -> StepResult<Inventory> {
        self.record
            .inventory
            .clone()
            .ok_or_else(|| Stop::Halt(self.error(ErrorKind::Unexpected, "the journal holds no inventory of it")))
    }

    pub(super) fn error(&self, kind: ErrorKind, message: impl Into<String>) -> Error {
        Error::new(kind, message)
            .with_instance(self.id())
            .with_operation(OperationKind::Migrate)
    }

    /// Somebody else has their hands on one of the sides.
    pub(super) fn interference(&self, side: Side, what: &str) -> Error {
        self.error(
            ErrorKind::Conflict,
            format!("somebody else {what} on the {side} ({})", self.m.side(side).backend()),
        )
        .with_advice("find out who, and migrate it when they are done")
    }

    /// A side does not have what it must have. What says so may be another platform than the one where it runs, so this
    /// is no proof that it does not run.
    pub(super) fn gone(&self, side: Side) -> Error {
        self.error(
            ErrorKind::MissingPrerequisite,
            format!(
                "the {side} ({}) does not have the instance any more, and this migration has not deleted it there",
                self.m.identity(side)
            ),
        )
        .with_backend(self.m.side(side).backend())
        .with_advice(
            "check that this is the cluster, namespace or daemon that was meant before; if somebody has really deleted \
             it, see that nothing of it is left, and accept its absence explicitly",
        )
    }

    /// Absence that this call must not act upon.
    pub(super) fn must_not_be_absent(&self, side: Side) -> StepResult<()> {
        if self.record.must_have(side) && !self.force.accepts_absent(side) {
            return Err(Stop::Halt(self.gone(side)));
        }
        Ok(())
    }

    /// Who holds a side for maintenance wants nobody to start it, on whatever side: neither forward nor back until the hold
    /// is taken away. Going back would start the tenant on the other side and take the hold away with the objects.
    pub(super) fn must_not_be_held(&self, side: Side, instance: &Instance) -> StepResult<()> {
        if instance.facts.hold != Some(Hold::Maintenance) {
            return Ok(());
        }
        Err(Stop::Halt(
            self.error(
                ErrorKind::Conflict,
                format!(
                    "somebody holds the instance for maintenance on the {side} ({})",
                    self.m.side(side).backend()
                ),
            )
            .with_advice("nothing is started or removed before that; when the hold is taken away, run it again"),
        ))
    }

    /// Writes an entry down before anything else happens. Without a journal nothing goes on.
    pub(super) async fn log(&mut self, event: Event) -> StepResult<()> {
        let entry = Entry {
            instance: self.id(),
            run: self.record.run,
            seq: self.record.next_seq,
            at: self.now(),
            event,
        };
        let mut after = self.record.clone();
        after.apply(&entry).map_err(Stop::Halt)?;
        self.m.journal.append(&entry, &after).await.map_err(Stop::Halt)?;
        self.record = after;
        self.m.announce(&self.record, &entry);
        Ok(())
    }

    pub(super) async fn note(&mut self, note: impl Into<String>) -> StepResult<()> {
        self.log(Event::Noted { note: note.into() }).await
    }

    pub(super) fn failure(&self, error: &Error) -> Failure {
        Failure {
            step: self.record.step,
            kind: error.kind(),
            message: error.to_string(),
            at: self.now(),
        }
    }

    /// Gives up. Who watches, and who comes later, finds the reason in the journal, if that can be written.
    pub(super) async fn halt(&mut self, error: Error) -> Error {
        let failure = self.failure(&error);
        if let Err(Stop::Halt(unwritten) | Stop::Fail(unwritten)) = self.log(Event::Halted(failure)).await {
            tracing::error!(instance = %self.id(), error = %unwritten, "the journal does not have why the migration gave up");
        }
        error
    }

    /// Leaves the present step.
    pub(super) async fn leave(&mut self, signal: Signal, note: String, failure: Option<Failure>) -> StepResult<()> {
        let step = self.record.step;
        self.log(Event::StepEnded {
            step,
            signal,
            note,
            failure,
        })
        .await
    }

    pub(super) async fn step(&mut self, step: Step, control: &Control) -> StepResult {
        match step {
            Step::Inventory => self.take_inventory().await,
            Step::Preflight => self.preflight().await,
            Step::Plan => self.plan().await,
            Step::CreateTarget => self.create_target().await,
            Step::HoldTarget => self.hold_target(control).await,
            Step::StopSource => self.stop_source().await,
            Step::Fence => self.record_fence(Side::Source).await,
            Step::StartTarget => self.start_target().await,
            Step::AwaitTarget => self.await_target().await,
            Step::ProbeTarget => self.probe_target().await,
            Step::SwitchRoute => self.switch_route().await,
            Step::Bake => self.bake(control).await,
            Step::Commit => self.commit().await,
            Step::StopTarget => self.stop_target().await,
            Step::FenceTarget => self.record_fence(Side::Target).await,
            Step::StartSource => self.start_source().await,
            Step::AwaitSource => self.await_source().await,
            Step::RestoreRoute => self.restore_route().await,
            Step::RemoveTarget => self.remove_target().await,
            Step::RemoveSource => self.remove_source().await,
            Step::Committed | Step::Finished | Step::RolledBack => Ok(String::new()),
        }
    }

    /// A pause, or the order of the operator.
    pub(super) fn obey(&self, control: &Control) -> StepResult<()> {
        match control.order() {
            Order::Go => Ok(()),
            Order::Pause => Err(Stop::Pause),
            Order::Abort => Err(Stop::Abort),
        }
    }

    /// Reads one side. What may pass is tried again for a while; an error is never absence.
    pub(super) async fn look(&self, side: Side) -> StepResult<Presence> {
        let deadline = ends_after(self.m.config.retry);
        loop {
            match self.look_once(side).await {
                Err(error) if may_pass(&error) && Instant::now() < deadline => {
                    self.rest().await;
                }
                other => return Ok(other?),
            }
        }
    }

    pub(super) async fn look_once(&self, side: Side) -> Result<Presence> {
        match self.within(side, |o, id| async move { o.get(id).await }).await {
            Ok(instance) => Ok(Presence::Present(Box::new(instance))),
            Err(error) if error.is_not_found() => Ok(Presence::Absent),
            Err(error) => Err(error),
        }
    }

    /// Reads one side where the instance must be.
    pub(super) async fn look_present(&self, side: Side) -> StepResult<Box<Instance>> {
        match self.look(side).await? {
            Presence::Present(instance) => Ok(instance),
            Presence::Absent => Err(Stop::Fail(self.interference(side, "has deleted the instance"))),
        }
    }

    /// A call with our own deadline.
    pub(super) async fn within<T, F, Fut>(&self, side: Side, call: F) -> Result<T>
    where
        F: FnOnce(DynOrchestrator, InstanceId) -> Fut + Send,
        Fut: Future<Output = Result<T>> + Send,
    {
        let orchestrator = self.m.side(side).clone();
        let backend = orchestrator.backend();
        let budget = self.m.config.call;
        match tokio::time::timeout(budget, call(orchestrator, self.id())).await {
            Ok(answer) => answer,
            Err(_) => Err(self
                .error(
                    ErrorKind::Timeout,
                    format!("the {side} did not answer within {budget:?}"),
                )
                .with_backend(backend)),
        }
    }

    /// Changes one side: written down before, and again when the outcome is known.
    pub(super) async fn mutate<T, F, Fut>(&mut self, side: Side, mutation: Mutation, call: F) -> StepResult<Result<T>>
    where
        F: FnOnce(DynOrchestrator, InstanceId) -> Fut + Send,
        Fut: Future<Output = Result<T>> + Send,
        T: Send,
    {
        let until = self.after(self.doubt());
        self.log(Event::Intends { side, mutation, until }).await?;
        let answer = self.within(side, call).await;
        let known = match &answer {
            Ok(_) => true,
            Err(error) => error.retry() != Retry::OutcomeUnknown,
        };
        if known {
            self.log(Event::Settled { side, mutation }).await?;
        }
        Ok(answer)
    }

    pub(super) async fn power(&mut self, side: Side, power: Power) -> StepResult<Result<Instance>> {
        let mutation = match power {
            Power::Start | Power::Restart => Mutation::Start,
            Power::Resume => Mutation::Resume,
            Power::Stop | Power::Suspend => Mutation::Suspend,
        };
        self.mutate(side, mutation, |o, id| async move { o.set_power(id, power).await })
            .await
    }

    /// Waits until none of these changes can happen any more. Only changes whose answer was lost are waited for.
    pub(super) async fn wait_out(&mut self, of: &[(Side, Mutation)]) -> StepResult<()> {
        let Some(until) = self.record.in_doubt(of) else {
            return Ok(());
        };
        let left = until.duration_since(self.now());
        if let Ok(left) = Duration::try_from(left)
            && !left.is_zero()
        {
            // It was asked for in the past, whatever the clock of that machine said.
            let left = left.min(self.doubt());
            self.note(format!(
                "waits {left:.0?}: the answer to an earlier change was lost, and it may still happen"
            ))
            .await?;
            tokio::time::sleep(left).await;
        }
        Ok(())
    }

    /// Suspends a side and sees that nothing of it lives. Repeats what somebody else undoes until the time is up.
    pub(super) async fn suspend_and_see(&mut self, side: Side) -> StepResult<FenceProof> {
        self.close(side, false).await
    }

    /// The same with the side that the tenant is up on: from the suspension on it is down.
    pub(super) async fn take_down(&mut self, side: Side) -> StepResult<FenceProof> {
        self.close(side, true).await
    }

    async fn mark_down(&mut self, serving: bool) -> StepResult<()> {
        if serving && !self.record.is_down() && self.inventory()?.tenancy == Tenancy::Running {
            self.log(Event::Down).await?;
        }
        Ok(())
    }

    async fn close(&mut self, side: Side, serving: bool) -> StepResult<FenceProof> {
        let budget = self.stop_budget();
        let deadline = ends_after(budget);
        let mut absent_since = None;
        loop {
            let open = match self.look(side).await? {
                Presence::Absent => match self.absent_for_good(side, &mut absent_since)? {
                    Some(proof) => {
                        self.mark_down(serving).await?;
                        return Ok(proof);
                    }
                    None => "its objects are gone, and its process may not be yet".to_owned(),
                },
                Presence::Present(instance) => {
                    absent_since = None;
                    if serving && side == Side::Source && !self.record.source_touched {
                        self.same_power_as_inventoried(&instance)?;
                    }
                    match closed(&instance) {
                        Ok(()) => {
                            self.mark_down(serving).await?;
                            return Ok(proof(side, &instance));
                        }
                        Err(open) => {
                            if instance.facts.desired > 0 || instance.facts.hold.is_none() {
                                self.mark_down(serving).await?;
                                if instance.facts.hold == Some(Hold::Maintenance) {
                                    // Two writers are worse than a hold that has to be set again.
                                    self.note(format!(
                                        "the {side} was held for maintenance and ran: it is suspended, and the hold is lost"
                                    ))
                                    .await?;
                                }
                                self.suspend(side).await?;
                            }
                            if self.m.fence_is_broken() {
                                return Ok(proof(side, &instance));
                            }
                            open
                        }
                    }
                }
            };
            self.pause_until(deadline, budget, side, &open).await?;
        }
    }

    async fn suspend(&mut self, side: Side) -> StepResult<()> {
        match self.power(side, Power::Suspend).await? {
            Ok(_) => Ok(()),
            // Looked at again, and tried again.
            Err(error) if may_pass(&error) || error.is_not_found() => Ok(()),
            Err(error) => Err(Stop::Fail(error)),
        }
    }

    /// Sees that a side that was closed is still so. Changes nothing: somebody who opened it did so on purpose.
    pub(super) async fn confirm_fence(&mut self, side: Side) -> StepResult<FenceProof> {
        let budget = self.stop_budget();
        let deadline = ends_after(budget);
        let mut absent_since = None;
        loop {
            let open = match self.look(side).await? {
                Presence::Absent => match self.absent_for_good(side, &mut absent_since)? {
                    Some(proof) => return Ok(proof),
                    None => "its objects are gone, and its process may not be yet".to_owned(),
                },
                Presence::Present(instance) => {
                    absent_since = None;
                    if self.m.fence_is_broken() {
                        return Ok(proof(side, &instance));
                    }
                    if instance.facts.desired > 0 {
                        return Err(Stop::Fail(self.interference(side, "has started the instance")));
                    }
                    if instance.facts.hold.is_none() && !instance.facts.deleting {
                        return Err(Stop::Fail(self.interference(side, "has taken the hold away")));
                    }
                    match closed(&instance) {
                        Ok(()) => return Ok(proof(side, &instance)),
                        Err(open) => open,
                    }
                }
            };
            self.pause_until(deadline, budget, side, &open).await?;
        }
    }

    /// The time in which a process may end: its grace, and then what the platform makes of it.
    fn grace(&self) -> Duration {
        let inventory = self.record.inventory.as_ref();
        inventory.map_or(Duration::from_secs(60), |inventory| {
            inventory.spec.scheduling.stop_grace()
        })
    }

    /// How long a side may take to be closed. Not less than its process may take to end, whatever is configured.
    fn stop_budget(&self) -> Duration {
        self.m.config.stop.max(self.grace() + Duration::from_secs(30))
    }

    /// How long a change may still happen after it was asked for. A start waits for the process before it to end, and does
    /// so in the background when nobody waits for its answer any more.
    fn doubt(&self) -> Duration {
        self.m.config.doubt.max(self.grace() + Duration::from_secs(60))
    }

    async fn pause_until(&self, deadline: Instant, budget: Duration, side: Side, open: &str) -> StepResult<()> {
        if Instant::now() >= deadline {
            return Err(Stop::Fail(
                self.error(
                    ErrorKind::Timeout,
                    format!("the {side} was not seen unable to write within {budget:?}: {open}"),
                )
                .with_retry(Retry::After(None))
                .with_backend(self.m.side(side).backend())
                .with_advice(
                    "nothing is started on the other side before that; make sure that the node is off, and remove the \
                     pod or the task from the platform",
                ),
            ));
        }
        self.rest().await;
        Ok(())
    }

    /// The pause between two looks.
    pub(super) async fn rest(&self) {
        let config = &self.m.config;
        let pause = if self.record.is_down() {
            config.poll_down
        } else {
            config.poll
        };
        tokio::time::sleep(pause).await;
    }

    /// One look at both sides at once: that the source is still closed, and what the target says.
    pub(super) async fn look_at_both(&self) -> StepResult<Box<Instance>> {
        let both = tokio::try_join!(self.still_closed(Side::Source), self.look_present(Side::Target));
        both.map(|((), target)| target)
    }

    /// Absence is no fence where the instance must be. Where it need not be, or where the operator has accepted that it
    /// is not, objects that somebody deleted behind our back may leave a process that is still ending: absence counts
    /// after the time that the platform gives a process to end.
    fn absent_for_good(&self, side: Side, since: &mut Option<Instant>) -> StepResult<Option<FenceProof>> {
        self.must_not_be_absent(side)?;
        let since = *since.get_or_insert_with(Instant::now);
        Ok(
            (since.elapsed() >= self.grace() + Duration::from_secs(5)).then(|| FenceProof {
                side,
                present: false,
                desired: 0,
                revision: None,
                at: self.now(),
            }),
        )
    }

    pub(super) async fn record_fence(&mut self, side: Side) -> StepResult {
        let proof = match side {
            Side::Source => {
                let proof = self.confirm_fence(side).await?;
                self.same_spec_behind_the_fence().await?;
                proof
            }
            Side::Target => self.suspend_and_see(side).await?,
        };
        self.log(Event::Fenced(proof)).await?;
        Ok(format!("the {side} cannot write"))
    }

    /// One look at a side that must stay closed while the other one is up. A failed read is no news.
    pub(super) async fn still_closed(&self, side: Side) -> StepResult<()> {
        match self.look_once(side).await {
            Ok(Presence::Present(instance)) if instance.facts.desired > 0 || instance.facts.hold.is_none() => {
                if self.m.fence_is_broken() {
                    return Ok(());
                }
                Err(Stop::Fail(self.interference(side, "has opened the instance")))
            }
            Ok(Presence::Present(_)) => Ok(()),
            Ok(Presence::Absent) => self.must_not_be_absent(side),
            // Not the platform is in the way but the instance: its main object is gone, and a process of it lives.
            Err(error) if may_pass(&error) && error.kind() != ErrorKind::Conflict => Ok(()),
            Err(error) => Err(Stop::Fail(error)),
        }
    }

    /// A committed migration keeps its source closed for as long as the tenant runs on the target. With the target at
    /// nothing an open source is a tenant that somebody has taken back by hand, and is left alone.
    pub(super) async fn keep_committed(&mut self) -> StepResult<()> {
        if let Ok(Presence::Present(source)) = self.look_once(Side::Source).await
            && closed(&source).is_err()
            && let Ok(Presence::Present(target)) = self.look_once(Side::Target).await
            && target.facts.desired > 0
        {
            self.note("the source was opened after the commit, and is suspended again")
                .await?;
            self.suspend_and_see(Side::Source).await?;
        }
        Ok(())
    }
}

/// True for errors that may go away by themselves, or whose outcome a look will tell.
pub(super) fn may_pass(error: &Error) -> bool {
    !matches!(error.retry(), Retry::Never)
}

/// Whether an instance can not write: nothing desired, held, nothing alive, nothing under way, and all that read from
/// the server itself. The error says what is open.
pub(super) fn closed(instance: &Instance) -> Result<(), String> {
    let facts = &instance.facts;
    if instance.provenance.source != Source::Live {
        return Err("the answer came from a cache; give the migration an orchestrator without one".to_owned());
    }
    if facts.desired > 0 {
        return Err("it shall run".to_owned());
    }
    if facts.hold.is_none() && !facts.deleting {
        return Err("it is not held".to_owned());
    }
    if facts.lagging {
        return Err("the platform has not acted on the last change yet".to_owned());
    }
    match facts.units.iter().find(|unit| unit.is_live()) {
        Some(unit) => {
            let node = unit.node.as_deref().unwrap_or("an unknown node");
            let phase = match unit.phase {
                UnitPhase::Lost => "is on a node that does not answer",
                UnitPhase::Unknown => "is in a state this library does not know",
                _ => "still lives",
            };
            Err(format!("unit {} on {node} {phase}", unit.id))
        }
        None => Ok(()),
    }
}

fn proof(side: Side, instance: &Instance) -> FenceProof {
    FenceProof {
        side,
        present: true,
        desired: instance.facts.desired,
        revision: Some(instance.provenance.revision.clone()),
        at: instance.provenance.observed_at,
    }
}
