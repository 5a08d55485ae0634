//! The steps back to the source, and the removal of what is not needed any more.

use super::forward::{AT_ONCE, adopt, bounded, brief};
use super::inventory::digest;
use super::preflight;
use super::run::{Presence, Run, StepResult, Stop, ends_after, may_pass};
use super::{Event, Mutation, Side, Tenancy};
use crate::dual::Comparator;
use crate::{DeleteOptions, Error, ErrorKind, Instance, InstanceStatus, OperationKind, Power};

/// How often a source that somebody else stops is started again before people have to talk to each other.
const STARTS: u32 = 3;

/// The fields in which the target differs from the source.
fn differences(source: Option<&Instance>, target: &Instance) -> Vec<String> {
    let verdicts = Comparator::mirrored().verdicts(source, Some(target));
    let fields = verdicts.into_iter().filter(|field| field.is_divergence());
    fields.map(|field| field.field).collect()
}

/// The power state of a tenant that lives on the target.
fn tenancy_now(source: Option<&Instance>, target: &Instance) -> Tenancy {
    if target.facts.desired > 0 {
        Tenancy::Running
    } else if source.is_some_and(|source| source.facts.desired > 0) {
        // Taken back by hand.
        Tenancy::Running
    } else if target.facts.hold.is_some() {
        Tenancy::Suspended
    } else {
        Tenancy::Stopped
    }
}

impl Run<'_> {
    /// What speaks against taking a committed tenant back, and the power state that it has now.
    pub(super) async fn before_rollback(&mut self) -> StepResult<Tenancy> {
        let inventory = self.inventory()?;
        let source = match self.look(Side::Source).await? {
            Presence::Present(source) => Some(source),
            Presence::Absent => {
                self.must_not_be_absent(Side::Source)?;
                None
            }
        };
        let target = match self.look(Side::Target).await? {
            Presence::Present(target) => target,
            Presence::Absent => {
                self.must_not_be_absent(Side::Target)?;
                return Ok(inventory.tenancy);
            }
        };
        self.must_not_be_held(Side::Target, &target)?;
        let lost = match &self.record.target_digest {
            _ if !self.record.parity.is_empty() => {
                self.changed_since_commit(&inventory.observed, source.as_deref(), &target)
            }
            Some(then) if *then == digest(&target.spec) => Vec::new(),
            // Which of the differences between both sides was not there at the commit is not known.
            Some(_) => differences(source.as_deref(), &target),
            None => {
                self.note(
                    "this journal does not keep what the target was at the commit: what was changed since is not known",
                )
                .await?;
                Vec::new()
            }
        };
        if !lost.is_empty() && !self.force.lose_changes {
            let message = format!(
                "changed on the target since the commit, and not so on the source: {}",
                lost.join(", ")
            );
            return Err(Stop::Halt(
                Error::conflict(lost, message)
                    .with_instance(self.id())
                    .with_operation(OperationKind::Migrate)
                    .with_advice(
                        "make the same changes on the suspended source, or accept explicitly that they are lost; the \
                         tenant stays on the target",
                    ),
            ));
        }
        Ok(tenancy_now(source.as_deref(), &target))
    }

    /// Since visitors were sent to the target the tenant has led its daily life there: who has stopped, suspended or
    /// started it meanwhile finds that on the source. Only before the target was suspended on the way back.
    async fn learn_tenancy(&mut self) -> StepResult<()> {
        // Down, it was not left to anybody else yet.
        if !self.record.routed || self.record.target_closed || self.record.is_down() {
            return Ok(());
        }
        let Presence::Present(target) = self.look(Side::Target).await? else {
            return Ok(());
        };
        // Nothing but the target stands in the way of stopping one that runs.
        let source = match target.facts.desired {
            0 => self.look(Side::Source).await?,
            _ => Presence::Absent,
        };
        let source = match &source {
            Presence::Present(source) => Some(&**source),
            Presence::Absent => None,
        };
        let tenancy = tenancy_now(source, &target);
        if self.inventory()?.tenancy != tenancy {
            self.log(Event::TakenBack { tenancy }).await?;
        }
        Ok(())
    }

    /// The fields of the spec that are not on the target what they were at the commit, and are on the source something
    /// else.
    fn changed_since_commit(&self, before: &Instance, source: Option<&Instance>, target: &Instance) -> Vec<String> {
        let comparator = Comparator::mirrored();
        let differs = |from: &Instance| comparator.verdicts(Some(from), Some(target));
        let same_on_source: Vec<String> = source.map_or_else(Vec::new, |source| {
            let verdicts = differs(source).into_iter().filter(|field| !field.is_divergence());
            verdicts.map(|field| field.field).collect()
        });
        differs(before)
            .into_iter()
            .filter(|field| field.is_divergence() && !same_on_source.contains(&field.field))
            .filter(|field| {
                let committed = self.record.parity.iter().find(|known| known.field == field.field);
                committed.is_none_or(|known| !known.is_divergence() || known.secondary != field.secondary)
            })
            .map(|field| field.field)
            .collect()
    }

    pub(super) async fn stop_target(&mut self) -> StepResult {
        // A hold of our own is a suspension.
        if let Presence::Present(target) = self.look(Side::Target).await? {
            self.must_not_be_held(Side::Target, &target)?;
        }
        // Where it was never switched, the move was announced before the source was stopped and goes on.
        if self.record.routed {
            self.announce_stop(Side::Target).await?;
            self.learn_tenancy().await?;
        }
        let proof = self.take_down(Side::Target).await?;
        Ok(if proof.present {
            "suspended, and nothing of it lives".to_owned()
        } else {
            "it is not there, and nothing of it lives".to_owned()
        })
    }

    pub(super) async fn start_source(&mut self) -> StepResult {
        self.wait_out(&[
            (Side::Target, Mutation::Resume),
            (Side::Target, Mutation::Start),
            (Side::Source, Mutation::Suspend),
            (Side::Source, Mutation::Delete),
        ])
        .await?;
        self.open_source().await
    }

    /// Gives the source back the power state it had. Before every change the target is seen closed, and closed again
    /// when somebody has opened it: the way back goes to the source.
    async fn open_source(&mut self) -> StepResult {
        let inventory = self.inventory()?;
        // From the end of the first fence on, which has a budget of its own.
        let mut deadline = None;
        let mut answered = 0;
        loop {
            let source = match self.look(Side::Source).await? {
                Presence::Present(source) => source,
                Presence::Absent => {
                    // Sees the process of the deleted objects end first.
                    self.suspend_and_see(Side::Source).await?;
                    self.suspend_and_see(Side::Target).await?;
                    let deadline = *deadline.get_or_insert_with(|| ends_after(self.m.config.retry));
                    self.note("the source's objects are gone, and are made again on the same data")
                        .await?;
                    let spec = match preflight::complete(self.m, &inventory).await {
                        Err(error) if may_pass(&error) => {
                            self.breathe(deadline, &format!("the secrets cannot be had: {}", brief(&error)))
                                .await?;
                            continue;
                        }
                        spec => spec?,
                    };
                    let options = adopt(&inventory);
                    let answer = self
                        .mutate(Side::Source, Mutation::Create, |o, _| async move {
                            o.create(&spec, options).await
                        })
                        .await?;
                    match answer {
                        Ok(_) if answered < AT_ONCE => {
                            answered += 1;
                            continue;
                        }
                        Ok(_) => {}
                        Err(error) if may_pass(&error) => {}
                        Err(error) => return Err(Stop::Fail(error)),
                    }
                    self.breathe(deadline, "the source cannot be made again").await?;
                    continue;
                }
            };
            self.must_not_be_held(Side::Source, &source)?;
            self.suspend_and_see(Side::Target).await?;
            let deadline = *deadline.get_or_insert_with(|| ends_after(self.m.config.retry));
            let held = source.facts.hold.is_some();
            let power = match inventory.tenancy {
                Tenancy::Suspended if held => return Ok("suspended, as it was".to_owned()),
                Tenancy::Suspended => Power::Suspend,
                Tenancy::Stopped if !held => return Ok("stopped, as it was".to_owned()),
                Tenancy::Running if source.facts.desired > 0 => return Ok("started".to_owned()),
                Tenancy::Running if !held => Power::Start,
                Tenancy::Stopped | Tenancy::Running => Power::Resume,
            };
            match self.power(Side::Source, power).await? {
                Ok(_) if answered < AT_ONCE => {
                    answered += 1;
                    continue;
                }
                Ok(_) => {}
                Err(error) if may_pass(&error) || error.is_not_found() => {}
                Err(error) => return Err(Stop::Fail(error)),
            }
            self.breathe(deadline, "the source does not take the start").await?;
        }
    }

    pub(super) async fn await_source(&mut self) -> StepResult {
        if self.inventory()?.tenancy != Tenancy::Running {
            return Ok("not to be started".to_owned());
        }
        let deadline = ends_after(self.m.config.ready);
        let mut starts = 0;
        loop {
            if let Err(Stop::Fail(opened)) = self.still_closed(Side::Target).await {
                self.note(opened.to_string()).await?;
                self.suspend_and_see(Side::Target).await?;
            }
            match self.look(Side::Source).await? {
                Presence::Present(source) if source.facts.desired > 0 => {
                    let accepted = self.record.force.unhealthy_source || self.force.unhealthy_source;
                    let well = source.status == InstanceStatus::Running
                        || (accepted && source.status == InstanceStatus::Error);
                    if well {
                        if self.record.routed {
                            return Ok("it runs again; visitors are sent to it next".to_owned());
                        }
                        self.log(Event::Up).await?;
                        let down = self.record.downtime(self.now());
                        return Ok(format!("it runs again; the tenant was down for {down:.1?}"));
                    }
                    let why = source
                        .cause
                        .as_ref()
                        .map_or_else(String::new, |cause| format!(": {cause}"));
                    self.breathe(deadline, &format!("the source is {}{why}", source.status))
                        .await?;
                }
                _ => {
                    starts += 1;
                    if starts > STARTS {
                        return Err(Stop::Fail(
                            self.interference(Side::Source, "stops the instance again and again"),
                        ));
                    }
                    self.note("somebody has stopped the source again").await?;
                    self.open_source().await?;
                }
            }
        }
    }

    pub(super) async fn restore_route(&mut self) -> StepResult {
        if !self.record.routed {
            return Ok("it was never switched".to_owned());
        }
        let source = match self.look(Side::Source).await? {
            Presence::Present(source) => source,
            Presence::Absent => {
                self.must_not_be_absent(Side::Source)?;
                self.open_source().await?;
                self.look_present(Side::Source).await?
            }
        };
        self.route(&source, Side::Source).await?;
        self.log(Event::Routing { to: Side::Source }).await?;
        if self.record.is_down() {
            self.log(Event::Up).await?;
        }
        let down = self.record.downtime(self.now());
        Ok(format!("visitors go to the source; the tenant was down for {down:.1?}"))
    }

    pub(super) async fn remove_target(&mut self) -> StepResult {
        // Every way back comes by here, whether or not the source was ever stopped.
        self.announce_return().await?;
        self.wait_out(&[
            (Side::Target, Mutation::Create),
            (Side::Target, Mutation::Resume),
            (Side::Target, Mutation::Start),
        ])
        .await?;
        // The answer to our creation may have been lost, and somebody may have put another one in the place of ours.
        let may_be_ours = self.record.target_ours.unwrap_or(self.record.create_tried);
        let ours = may_be_ours
            && match self.look(Side::Target).await? {
                Presence::Present(target) => self.has_made(&target),
                Presence::Absent => false,
            };
        if !ours {
            return Ok("nothing that this migration has made is there".to_owned());
        }
        self.remove(Side::Target).await?;
        Ok("removed; the data stays".to_owned())
    }

    async fn announce_return(&mut self) -> StepResult<()> {
        let deadline = ends_after(self.m.config.retry);
        loop {
            match bounded(self.m.config.call, self.m.route.stays(self.id())).await {
                Ok(()) => return Ok(()),
                Err(error) => {
                    self.breathe(deadline, &format!("the return is not announced: {}", brief(&error)))
                        .await?;
                }
            }
        }
    }

    /// Sees that nobody has taken the tenant back by hand: what is open is not ours to remove.
    pub(super) async fn source_is_unused(&self) -> StepResult<()> {
        if let Presence::Present(source) = self.look(Side::Source).await? {
            self.must_not_be_held(Side::Source, &source)?;
            let facts = &source.facts;
            if facts.desired > 0 || facts.any_live() || (facts.hold.is_none() && !facts.deleting) {
                return Err(Stop::Fail(
                    self.interference(Side::Source, "has opened the instance since the commit")
                        .with_advice("roll it back if the tenant lives there again, or suspend it there"),
                ));
            }
        }
        Ok(())
    }

    /// Sees that the tenant does not need the way back just now.
    pub(super) async fn target_is_well(&self) -> StepResult<()> {
        let target = match self.look(Side::Target).await? {
            Presence::Present(target) => target,
            // Deleted through the service, as the operator has seen: that is the end of a tenant's life.
            Presence::Absent => return self.must_not_be_absent(Side::Target),
        };
        // One that was stopped since the commit is fine: that is a tenant's daily life.
        if target.facts.desired > 0 && target.status != InstanceStatus::Running {
            return Err(Stop::Fail(
                self.error(
                    ErrorKind::NotAllowed,
                    format!("the target is {}: the way back is not removed now", target.status),
                )
                .with_advice("see to the target first"),
            ));
        }
        Ok(())
    }

    pub(super) async fn remove_source(&mut self) -> StepResult {
        self.source_is_unused().await?;
        self.target_is_well().await?;
        self.remove(Side::Source).await?;
        Ok("removed; the data stays".to_owned())
    }

    /// Deletes one side's objects without the data, after seeing that nothing of it lives.
    async fn remove(&mut self, side: Side) -> StepResult<()> {
        // From the end of the first fence on, which has a budget of its own.
        let mut deadline = None;
        let mut answered = false;
        loop {
            match self.look(side).await? {
                Presence::Absent => return Ok(()),
                // Ours is gone, and somebody has made another one since.
                Presence::Present(target) if side == Side::Target && !self.has_made(&target) => return Ok(()),
                Presence::Present(instance) => self.must_not_be_held(side, &instance)?,
            }
            let seen = match side {
                // Suspended since the start of the migration: whoever has opened it did so on purpose.
                Side::Source => self.confirm_fence(side).await?,
                Side::Target => self.suspend_and_see(side).await?,
            };
            if !seen.present {
                return Ok(());
            }
            let deadline = *deadline.get_or_insert_with(|| ends_after(self.m.config.retry));
            let answer = self
                .mutate(side, Mutation::Delete, |o, id| async move {
                    o.delete(id, DeleteOptions::retain()).await
                })
                .await?;
            match answer {
                Ok(_) if !answered => {
                    answered = true;
                    continue;
                }
                Ok(_) => {}
                Err(error) if may_pass(&error) => {}
                Err(error) => return Err(Stop::Fail(error)),
            }
            self.breathe(deadline, &format!("the {side}'s objects are not removed"))
                .await?;
        }
    }
}
