//! The steps towards the target.

use std::time::Duration;

use tokio::time::Instant;

use super::engine::Control;
use super::inventory::digest;
use super::preflight;
use super::run::{Presence, Run, StepResult, Stop, ends_after, may_pass};
use super::{Event, Inventory, Mutation, Side, Tenancy};
use crate::dual::{Comparator, FieldVerdict};
use crate::{
    Cause, CreateOptions, DataPolicy, Error, ErrorKind, HealthState, Hold, Instance, InstanceSpec, InstanceStatus,
    Operation, Power, Result, StorageState,
};

/// So many bad looks in a row, and it is no blip.
const BAD_LOOKS: u32 = 3;

/// A target that will not run for so long will not run.
const HOPELESS: Duration = Duration::from_secs(5);

/// The longest pause between two calls of a route hook that fails.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// So many changes follow each other at once while a tenant is down; who takes them and does not do them is given time.
pub(super) const AT_ONCE: u32 = 2;

impl Run<'_> {
    /// Reads everything from the source that the way there, and the way back, need.
    pub(super) async fn take_inventory(&mut self) -> StepResult {
        let instance = match self.look(Side::Source).await? {
            Presence::Present(instance) => instance,
            Presence::Absent => {
                return Err(Stop::Fail(self.error(
                    ErrorKind::NotFound,
                    format!("there is no such instance on the source ({})", self.m.source.backend()),
                )));
            }
        };
        let inventory = inventory_of(&instance, self.id(), self.m)?;
        let note = format!("{} on {}, data in {}", instance.name, instance.backend, inventory.data);
        self.log(Event::Inventoried(Box::new(inventory))).await?;
        Ok(note)
    }

    pub(super) async fn preflight(&mut self) -> StepResult {
        let inventory = self.inventory()?;
        let (mut checks, found) = tokio::join!(
            preflight::platforms(self.m),
            preflight::checks(self.m, &inventory, self.record.force)
        );
        checks.extend(found.checks);
        let failed: Vec<String> = checks
            .iter()
            .filter(|check| check.state == HealthState::Failed)
            .map(|check| format!("{}: {}", check.name, check.detail))
            .collect();
        if !failed.is_empty() {
            return Err(Stop::Fail(
                self.error(ErrorKind::MissingPrerequisite, failed.join("; "))
                    .with_advice("nothing was changed; put it right and retry"),
            ));
        }
        for check in checks.iter().filter(|check| check.state == HealthState::Degraded) {
            self.note(format!("preflight: {}: {}", check.name, check.detail))
                .await?;
        }
        Ok(format!("{} checks", checks.len()))
    }

    pub(super) async fn plan(&mut self) -> StepResult {
        let inventory = self.inventory()?;
        let plan = preflight::plan(self.m, &inventory, None).await?;
        let lines = plan.len();
        self.log(Event::Planned { plan }).await?;
        Ok(format!("{lines} lines"))
    }

    pub(super) async fn create_target(&mut self) -> StepResult {
        let inventory = self.inventory()?;
        // Of the migration before this one: it would hit what is made now.
        self.wait_out(&[(Side::Target, Mutation::Delete)]).await?;
        let deadline = ends_after(self.m.config.retry);
        let mut created = false;
        loop {
            match self.look(Side::Target).await? {
                Presence::Present(instance) => return self.take_target(&inventory, &instance).await,
                Presence::Absent if self.record.target_ours.is_some() => {
                    return Err(Stop::Fail(self.interference(Side::Target, "has deleted the instance")));
                }
                Presence::Absent => {}
            }
            let spec = match preflight::complete(self.m, &inventory).await {
                Err(error) if may_pass(&error) => {
                    self.breathe(deadline, &format!("the secrets cannot be had: {}", brief(&error)))
                        .await?;
                    continue;
                }
                spec => spec?,
            };
            let options = adopt(&inventory).with_token(self.record.run);
            let answer = self
                .mutate(Side::Target, Mutation::Create, |o, _| async move {
                    o.create(&spec, options).await
                })
                .await?;
            match answer {
                Ok(_) if !created => created = true,
                // Somebody deletes it.
                Ok(_) => {
                    self.breathe(deadline, "the target does not show what it has created")
                        .await?
                }
                Err(error) if may_pass(&error) && Instant::now() < deadline => {
                    tokio::time::sleep(self.m.config.poll).await;
                }
                Err(error) => return Err(Stop::Fail(error)),
            }
        }
    }

    /// True for objects that this migration has created.
    pub(super) fn has_made(&self, instance: &Instance) -> bool {
        instance.provenance.token == Some(self.record.run)
    }

    async fn take_target(&mut self, inventory: &Inventory, instance: &Instance) -> StepResult {
        let mut ours = self.record.target_ours;
        if ours.is_none() {
            let made = self.has_made(instance);
            self.log(Event::TargetCreated { ours: made }).await?;
            if !made && !self.m.config.use_mirrored_copy {
                return Err(Stop::Fail(self.interference(Side::Target, "has created the instance")));
            }
            ours = Some(made);
        }
        if instance.facts.desired > 0 {
            return Err(Stop::Fail(self.interference(Side::Target, "has started the instance")));
        }
        // A target that does not say where its data is may stand on other data.
        let found = self.m.locator.locate(instance).map_err(Stop::Fail)?;
        if found != inventory.data {
            return Err(Stop::Fail(
                self.error(
                    ErrorKind::StorageMissing,
                    format!("the target stands on {found} and not on {}", inventory.data),
                )
                .with_advice("both platforms must be configured with the same data root"),
            ));
        }
        Ok(match ours {
            Some(true) => "created, stopped, on the same data".to_owned(),
            _ => "a stopped copy on the same data was there".to_owned(),
        })
    }

    pub(super) async fn hold_target(&mut self, control: &Control) -> StepResult {
        let deadline = ends_after(self.m.config.retry);
        loop {
            let instance = self.look_present(Side::Target).await?;
            self.must_not_be_held(Side::Target, &instance)?;
            if instance.facts.desired > 0 {
                return Err(Stop::Fail(self.interference(Side::Target, "has started the instance")));
            }
            // Only what a resume takes away again.
            if instance.facts.hold == Some(Hold::Suspended) {
                return self.await_storage(*instance, control).await;
            }
            match self.power(Side::Target, Power::Suspend).await? {
                Ok(_) => {}
                Err(error) if may_pass(&error) => {}
                Err(error) => return Err(Stop::Fail(error)),
            }
            self.breathe(deadline, "the target is not held yet").await?;
        }
    }

    /// While the tenant is still up: a pod whose claim is not bound is not scheduled, and binding is work of a controller
    /// that tries again after 15 s when two of its workers got in each other's way.
    async fn await_storage(&mut self, mut target: Instance, control: &Control) -> StepResult {
        let began = Instant::now();
        while !has_storage(&target) {
            self.obey(control)?;
            if began.elapsed() >= self.m.config.storage {
                let what = format!("the target's storage is {}", target.storage.state);
                return Err(Stop::Fail(self.error(ErrorKind::Timeout, what).with_advice(
                    "the tenant was not stopped; see why the claim is not bound to its volume, and retry",
                )));
            }
            self.rest().await;
            target = *self.look_present(Side::Target).await?;
            self.must_not_be_held(Side::Target, &target)?;
            if target.facts.desired > 0 || target.facts.hold.is_none() {
                return Err(Stop::Fail(self.interference(Side::Target, "has opened the instance")));
            }
        }
        Ok(match began.elapsed().as_secs() {
            0 => "held, and its storage is ready".to_owned(),
            seconds => format!("held, and its storage was ready after {seconds} s"),
        })
    }

    pub(super) async fn stop_source(&mut self) -> StepResult {
        // While the tenant is still up: a late suspension would hit the target once it runs.
        self.wait_out(&[(Side::Target, Mutation::Suspend)]).await?;
        let target = self.look_present(Side::Target).await?;
        // While the tenant is still up, if it is: the target could not be started.
        self.must_not_be_held(Side::Target, &target)?;
        if target.facts.desired > 0 || target.facts.hold.is_none() {
            return Err(Stop::Fail(self.interference(Side::Target, "has opened the instance")));
        }
        if !self.record.source_touched && !has_storage(&target) {
            let what = format!("the target's storage was ready and is {} now", target.storage.state);
            return Err(Stop::Fail(self.error(ErrorKind::StorageMissing, what)));
        }
        // Before the last look, so that what was changed until now is seen.
        self.announce_stop(Side::Source).await?;
        if !self.record.source_touched || self.is_still_up().await? {
            self.same_as_inventoried().await?;
        }
        let proof = self.take_down(Side::Source).await?;
        Ok(if proof.present {
            "suspended, and nothing of it lives".to_owned()
        } else {
            "somebody has deleted it, and nothing of it lives".to_owned()
        })
    }

    /// The order to stop was written down, and the process died before it was given: the tenant has lived on meanwhile, for
    /// however long.
    async fn is_still_up(&self) -> StepResult<bool> {
        Ok(match self.look(Side::Source).await? {
            Presence::Present(source) => source.facts.desired > 0 && source.facts.hold.is_none(),
            Presence::Absent => false,
        })
    }

    pub(super) async fn start_target(&mut self) -> StepResult {
        let tenancy = self.inventory()?.tenancy;
        self.wait_out(&[
            (Side::Target, Mutation::Suspend),
            (Side::Source, Mutation::Resume),
            (Side::Source, Mutation::Start),
        ])
        .await?;
        let deadline = ends_after(self.m.config.retry);
        let mut answered = 0;
        let mut target = self.look_present(Side::Target).await?;
        loop {
            self.must_not_be_held(Side::Target, &target)?;
            // Before each change, so that as little as possible lies between the look and the change.
            self.confirm_fence(Side::Source).await?;
            let held = target.facts.hold.is_some();
            let power = match tenancy {
                Tenancy::Suspended if held => return Ok("stays suspended, as it was".to_owned()),
                Tenancy::Suspended => Power::Suspend,
                Tenancy::Stopped if !held => return Ok("stays stopped, as it was".to_owned()),
                Tenancy::Running if target.facts.desired > 0 => return Ok("started".to_owned()),
                Tenancy::Running if !held => Power::Start,
                Tenancy::Stopped | Tenancy::Running => Power::Resume,
            };
            match self.power(Side::Target, power).await? {
                // What happens to it from here on the next step sees, on both sides.
                Ok(there) if power == Power::Start && there.facts.desired > 0 => return Ok("started".to_owned()),
                // The answer tells as much as another look.
                Ok(there) if answered < AT_ONCE => {
                    answered += 1;
                    *target = there;
                    continue;
                }
                Ok(_) => {}
                Err(error) if may_pass(&error) => {}
                Err(error) => return Err(Stop::Fail(error)),
            }
            self.breathe(deadline, "the target does not take the start").await?;
            target = self.look_present(Side::Target).await?;
        }
    }

    pub(super) async fn await_target(&mut self) -> StepResult {
        if self.inventory()?.tenancy != Tenancy::Running {
            self.still_closed(Side::Source).await?;
            return Ok("not to be started".to_owned());
        }
        let began = Instant::now();
        let deadline = ends_after(self.m.config.ready);
        let mut hopeless: Option<Instant> = None;
        loop {
            let target = self.look_at_both().await?;
            self.must_not_be_held(Side::Target, &target)?;
            if target.facts.desired == 0 {
                return Err(Stop::Fail(self.interference(Side::Target, "has stopped the instance")));
            }
            if target.status == InstanceStatus::Running {
                return Ok("ready".to_owned());
            }
            let terminal =
                target.status == InstanceStatus::Error && target.cause.as_ref().is_some_and(Cause::is_terminal);
            hopeless = terminal.then(|| hopeless.unwrap_or_else(Instant::now));
            let why = target
                .cause
                .as_ref()
                .map_or_else(String::new, |cause| format!(": {cause}"));
            if hopeless.is_some_and(|since| since.elapsed() >= HOPELESS) {
                return Err(Stop::Fail(
                    self.error(ErrorKind::NotAllowed, format!("the target will not run{why}")),
                ));
            }
            self.in_time(deadline, &format!("the target is {}{why}", target.status))?;
            let (least, most) = (self.m.config.poll_down, self.m.config.poll);
            tokio::time::sleep((began.elapsed() / 20).clamp(least, most.max(least))).await;
        }
    }

    pub(super) async fn probe_target(&mut self) -> StepResult {
        if self.inventory()?.tenancy != Tenancy::Running {
            return Ok("nothing runs that could be asked".to_owned());
        }
        let deadline = ends_after(self.m.config.probe);
        loop {
            let target = self.look_at_both().await?;
            self.must_not_be_held(Side::Target, &target)?;
            let attempt = self.m.config.probe_attempt.min(self.m.config.probe);
            match bounded(attempt, self.m.probe.probe(&target)).await {
                Ok(()) if self.m.probe.asks() => return Ok("it answers".to_owned()),
                Ok(()) => return Ok("the platform calls it ready, and nothing else was asked".to_owned()),
                // Nothing that a look later would change.
                Err(error) if error.kind() == ErrorKind::Configuration => return Err(Stop::Fail(error)),
                Err(error) => {
                    let why = format!("the probe fails: {}", brief(&error));
                    self.breathe(deadline, &why).await?;
                }
            }
        }
    }

    pub(super) async fn switch_route(&mut self) -> StepResult {
        let target = self.look_at_both().await?;
        self.must_not_be_held(Side::Target, &target)?;
        self.log(Event::Routing { to: Side::Target }).await?;
        self.route(&target, Side::Target).await?;
        self.log(Event::Up).await?;
        let down = self.record.downtime(self.now());
        let visitors = if self.m.route.sends() {
            "visitors go to the target; "
        } else {
            ""
        };
        Ok(format!("{visitors}the tenant was down for {down:.1?}"))
    }

    pub(super) async fn route(&mut self, instance: &Instance, to: Side) -> StepResult<()> {
        let deadline = ends_after(self.m.config.retry);
        let mut pause = self.m.config.poll_down;
        loop {
            match bounded(self.m.config.call, self.m.route.switch(instance, to)).await {
                Ok(()) => return Ok(()),
                Err(error) if may_pass(&error) => {
                    let why = format!("the route is not switched to the {to}: {}", brief(&error));
                    self.in_time(deadline, &why)?;
                    // What lies outside is asked less and less often: a DNS service that counts its callers is needed
                    // for the way back, too.
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(LONGEST_PAUSE.max(self.m.config.poll_down));
                }
                Err(error) => return Err(Stop::Fail(error)),
            }
        }
    }

    /// From now on a dual run leaves the instance alone.
    pub(super) async fn announce_stop(&mut self, from: Side) -> StepResult<()> {
        let deadline = ends_after(self.m.config.retry);
        loop {
            match bounded(self.m.config.call, self.m.route.before_stop(self.id(), from)).await {
                Ok(()) => return Ok(()),
                Err(error) => {
                    self.breathe(deadline, &format!("the move is not announced: {}", brief(&error)))
                        .await?;
                }
            }
        }
    }

    pub(super) async fn bake(&mut self, control: &Control) -> StepResult {
        let running = self.inventory()?.tenancy == Tenancy::Running;
        let until = match self.record.bake_until {
            Some(until) => until,
            None => {
                let bake = if running { self.m.config.bake } else { Duration::ZERO };
                let until = self.after(bake);
                self.log(Event::Baking { until }).await?;
                until
            }
        };
        let mut bad = 0;
        loop {
            self.obey(control)?;
            self.still_closed(Side::Source).await?;
            match self.look(Side::Target).await {
                // The way back would start a tenant that somebody has deleted, perhaps for good.
                Ok(Presence::Absent) => {
                    self.must_not_be_absent(Side::Target)?;
                    return Ok("it was deleted on the target, as the operator has seen".to_owned());
                }
                Ok(Presence::Present(target)) if target.facts.hold == Some(Hold::Maintenance) => {
                    return self.must_not_be_held(Side::Target, &target).map(|()| String::new());
                }
                Ok(Presence::Present(target)) if running && target.facts.desired == 0 => {
                    return Err(Stop::Fail(self.interference(Side::Target, "has stopped the instance")));
                }
                Ok(Presence::Present(target)) if running && target.status != InstanceStatus::Running => {
                    bad += 1;
                    if bad >= BAD_LOOKS {
                        let why = target
                            .cause
                            .as_ref()
                            .map_or_else(String::new, |cause| format!(": {cause}"));
                        return Err(Stop::Fail(self.error(
                            ErrorKind::NotAllowed,
                            format!("the target does not stay up: it is {}{why}", target.status),
                        )));
                    }
                }
                Ok(Presence::Present(_)) => bad = 0,
                // A platform that cannot be read says nothing about the tenant, and cannot be left either.
                Err(Stop::Fail(error)) if may_pass(&error) => return Err(Stop::Halt(error)),
                Err(other) => return Err(other),
            }
            if bad == 0 && self.now() >= until {
                return Ok("it stayed up".to_owned());
            }
            tokio::time::sleep(self.m.config.bake_poll).await;
        }
    }

    pub(super) async fn commit(&mut self) -> StepResult {
        let inventory = self.inventory()?;
        // A platform that cannot be read now is no reason to take a tenant down that is well.
        let halt = |stop| match stop {
            Stop::Fail(error) if may_pass(&error) => Stop::Halt(error),
            other => other,
        };
        self.confirm_fence(Side::Source).await.map_err(halt)?;
        let target = match self.look(Side::Target).await.map_err(halt)? {
            Presence::Present(target) => target,
            Presence::Absent => {
                self.must_not_be_absent(Side::Target)?;
                let until = self.after(self.m.config.rollback_window);
                self.log(Event::Window { until }).await?;
                return Ok("it was deleted on the target: the source is kept suspended until finish".to_owned());
            }
        };
        self.must_not_be_held(Side::Target, &target)?;
        self.note_what_changed_behind_the_fence(&target).await.map_err(halt)?;
        if inventory.tenancy == Tenancy::Running && target.facts.desired == 0 {
            return Err(Stop::Fail(self.interference(Side::Target, "has stopped the instance")));
        }
        let comparator = Comparator::across_platforms();
        let parity = comparator.verdicts(Some(&inventory.observed), Some(&target));
        let diverged = parity.iter().filter(|field| field.is_divergence()).count();
        let target = Some(digest(&target.spec));
        self.log(Event::Compared { parity, target }).await?;
        let until = self.after(self.m.config.rollback_window);
        self.log(Event::Window { until }).await?;
        Ok(format!("{diverged} fields differ"))
    }

    /// Waits a moment, or fails when the time is up.
    pub(super) async fn breathe(&self, deadline: Instant, why: &str) -> StepResult<()> {
        self.in_time(deadline, why)?;
        self.rest().await;
        Ok(())
    }

    fn in_time(&self, deadline: Instant, why: &str) -> StepResult<()> {
        if Instant::now() >= deadline {
            return Err(Stop::Fail(self.error(ErrorKind::Timeout, why)));
        }
        Ok(())
    }
}

/// What a hook says, without what the error around it says anyway.
pub(super) fn brief(error: &Error) -> String {
    match error.advice() {
        Some(advice) => format!("{}; {advice}", error.message()),
        None => error.message().to_owned(),
    }
}

/// A call of a hook with a deadline.
pub(super) async fn bounded<T>(budget: Duration, call: impl Future<Output = Result<T>> + Send) -> Result<T> {
    tokio::time::timeout(budget, call).await.unwrap_or_else(|_| {
        Err(crate::Error::new(
            ErrorKind::Timeout,
            format!("no answer within {budget:?}"),
        ))
    })
}

/// What is not observed is no reason to wait: not every platform tells.
fn has_storage(target: &Instance) -> bool {
    !matches!(target.storage.state, StorageState::Pending | StorageState::Missing)
}

/// Created stopped on the data that the source stands on.
pub(super) fn adopt(inventory: &Inventory) -> CreateOptions {
    CreateOptions::new()
        .with_data(DataPolicy::AdoptDirectory(inventory.data.clone()))
        .stopped()
}

/// The operation that creating the target is.
pub(super) fn creation(inventory: &Inventory, spec: InstanceSpec) -> Operation {
    Operation::Create(Box::new(spec), adopt(inventory))
}

/// What the source says about itself.
pub(super) fn inventory_of(instance: &Instance, id: crate::InstanceId, m: &super::engine::Inner) -> Result<Inventory> {
    let data = m.locator.locate(instance)?;
    let tenancy = tenancy_of(instance);
    let mut spec = instance.spec.clone();
    // Objects of the guide's client carry eight digits only; the caller knows the whole id.
    spec.id = id;
    spec.labels.retain(|key, _| !super::journal_objects::is_ours(key));
    Ok(Inventory::new(instance.clone(), spec, data, tenancy))
}

/// The power state that somebody has given an instance.
pub(super) fn tenancy_of(instance: &Instance) -> Tenancy {
    match instance.facts.hold {
        Some(Hold::Suspended) => Tenancy::Suspended,
        _ if instance.facts.desired > 0 => Tenancy::Running,
        _ => Tenancy::Stopped,
    }
}

/// True when a parity table holds a difference that no rule explains.
pub(super) fn has_divergence(parity: &[FieldVerdict]) -> bool {
    parity.iter().any(FieldVerdict::is_divergence)
}
