//! The steps back to the source, and the removal of what is not needed any more.

use tokio::time::Instant;

use super::forward::{adopt, bounded};
use super::preflight;
use super::run::{Presence, Run, StepResult, Stop, may_pass};
use super::{Event, Mutation, Side, Tenancy};
use crate::{DeleteOptions, ErrorKind, InstanceStatus, Power};

/// How often a source that somebody else stops is started again before people have to talk to each other.
const STARTS: u32 = 3;

impl Run<'_> {
    pub(super) async fn stop_target(&mut self) -> StepResult {
        // Where it was never switched, the move was announced before the source was stopped and goes on.
        if self.record.routed {
            self.announce_stop(Side::Target).await?;
        }
        if self.inventory()?.tenancy == Tenancy::Running {
            self.log(Event::Down).await?;
        }
        let proof = self.suspend_and_see(Side::Target).await?;
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
        let deadline = Instant::now() + self.m.config.retry;
        loop {
            let source = match self.look(Side::Source).await? {
                Presence::Present(source) => source,
                Presence::Absent => {
                    // Sees the process of the deleted objects end first.
                    self.suspend_and_see(Side::Source).await?;
                    self.suspend_and_see(Side::Target).await?;
                    self.note("the source's objects are gone, and are made again on the same data")
                        .await?;
                    let spec = preflight::complete(self.m, &inventory).await?;
                    let options = adopt(&inventory);
                    let answer = self
                        .mutate(Side::Source, Mutation::Create, |o, _| async move {
                            o.create(&spec, options).await
                        })
                        .await?;
                    match answer {
                        Ok(_) => {}
                        Err(error) if may_pass(&error) => {}
                        Err(error) => return Err(Stop::Fail(error)),
                    }
                    self.breathe(deadline, "the source cannot be made again").await?;
                    continue;
                }
            };
            self.suspend_and_see(Side::Target).await?;
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
                Ok(_) => continue,
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
        let deadline = Instant::now() + self.m.config.ready;
        let mut starts = 0;
        loop {
            if let Err(Stop::Fail(opened)) = self.still_closed(Side::Target).await {
                self.note(opened.to_string()).await?;
                self.suspend_and_see(Side::Target).await?;
            }
            match self.look(Side::Source).await? {
                Presence::Present(source) if source.facts.desired > 0 => {
                    let well = source.status == InstanceStatus::Running
                        || (self.record.force.unhealthy_source && source.status == InstanceStatus::Error);
                    if well {
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
        let Presence::Present(source) = self.look(Side::Source).await? else {
            return Err(Stop::Fail(self.interference(Side::Source, "has deleted the instance")));
        };
        self.route(&source, Side::Source).await?;
        self.log(Event::Routing { to: Side::Source }).await?;
        Ok("visitors go to the source".to_owned())
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
        let ours = self.record.target_ours.unwrap_or(self.record.create_tried);
        if !ours {
            return Ok("this migration made nothing there".to_owned());
        }
        self.remove(Side::Target).await?;
        Ok("removed; the data stays".to_owned())
    }

    async fn announce_return(&mut self) -> StepResult<()> {
        let deadline = Instant::now() + self.m.config.retry;
        loop {
            match bounded(self.m.config.call, self.m.route.stays(self.id())).await {
                Ok(()) => return Ok(()),
                Err(error) => {
                    self.breathe(deadline, &format!("the return is not announced: {error}"))
                        .await?;
                }
            }
        }
    }

    pub(super) async fn remove_source(&mut self) -> StepResult {
        let target = self.look_present(Side::Target).await?;
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
        self.remove(Side::Source).await?;
        Ok("removed; the data stays".to_owned())
    }

    /// Deletes one side's objects without the data, after seeing that nothing of it lives.
    async fn remove(&mut self, side: Side) -> StepResult<()> {
        let deadline = Instant::now() + self.m.config.retry;
        loop {
            if matches!(self.look(side).await?, Presence::Absent) {
                return Ok(());
            }
            if !self.suspend_and_see(side).await?.present {
                return Ok(());
            }
            let answer = self
                .mutate(side, Mutation::Delete, |o, id| async move {
                    o.delete(id, DeleteOptions::retain()).await
                })
                .await?;
            match answer {
                Ok(_) => continue,
                Err(error) if may_pass(&error) => {}
                Err(error) => return Err(Stop::Fail(error)),
            }
            self.breathe(deadline, &format!("the {side}'s objects are not removed"))
                .await?;
        }
    }
}
