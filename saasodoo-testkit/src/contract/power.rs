//! Clauses about `set_power`.

use saasodoo_core::{CreateOptions, EnsureOutcome, ErrorKind, InstanceOrchestratorExt, InstanceStatus, Power};

use super::clause::{clause, ensure};
use super::ctx::{process, refused, same, same_spec};
use super::{Clause, Ctx, Verdict};

pub(super) const CLAUSES: &[Clause] = &[
    clause!(
        "power.stop_then_start",
        stop_then_start,
        "a stopped instance becomes stopped, a started one running, with the same data"
    ),
    clause!(
        "power.repeated_is_harmless",
        repeated,
        "stopping a stopped or starting a running instance changes nothing"
    ),
    clause!(
        "power.restart_replaces_the_process",
        restart_replaces,
        "another unit or process answers afterwards"
    ),
    clause!(
        "power.restart_keeps_data",
        restart_keeps_data,
        "the same data in the same place"
    ),
    clause!(
        "power.restart_of_stopped_is_refused",
        restart_of_stopped,
        "NotAllowed, and it stays stopped"
    ),
    clause!(
        "power.suspend_refuses_start",
        suspend_refuses_start,
        "NotAllowed, the status is paused, and a resume makes it stopped"
    ),
    clause!(
        "power.suspend_stops_the_running",
        suspend_stops,
        "a running instance is stopped by it, with its data kept"
    ),
    clause!(
        "power.suspended_refuses_restart",
        suspended_refuses_restart,
        "a hold is not gone around by a restart"
    ),
    clause!(
        "power.resume_of_running_is_harmless",
        resume_of_running,
        "an instance without a hold goes on as it is"
    ),
    clause!(
        "power.repeated_suspend_is_harmless",
        repeated_suspend,
        "a suspended instance stays paused"
    ),
    clause!("power.absent_is_not_found", absent, "for every action"),
    clause!(
        "power.stop_then_start_at_once",
        at_once,
        "a start while the stop is under way wins in the end"
    ),
    clause!(
        "power.stop_while_starting",
        while_starting,
        "an instance that does not answer yet can be stopped"
    ),
    clause!(
        "power.does_not_change_the_spec",
        keeps_the_spec,
        "a stop, a start and a restart leave the spec as it was"
    ),
    clause!(
        "power.does_not_touch_others",
        others,
        "another instance of the same customer goes on"
    ),
];

async fn stop_then_start(ctx: &Ctx) -> Verdict {
    let (spec, _) = ctx.running().await?;
    let location = ctx.mark(spec.id, "kept").await?;
    let answered = ctx.orchestrator().stop(spec.id).await?;
    same("the id in the answer", &answered.id, &spec.id)?;
    let stopped = ctx.until_status(spec.id, InstanceStatus::Stopped).await?;
    same(
        "the replicas",
        &(stopped.replicas.desired, stopped.replicas.ready),
        &(0, 0),
    )?;
    ensure!(
        !stopped.facts.any_live(),
        "expected no live unit, saw {:?}",
        stopped.facts.units
    );
    ctx.marked(&location, "kept").await?;
    ctx.orchestrator().start(spec.id).await?;
    let seen = ctx.until_running(spec.id).await?;
    same_spec(&spec, &seen)?;
    same("where the data is", &ctx.location(spec.id).await?, &location)?;
    ctx.marked(&location, "kept").await
}

async fn repeated(ctx: &Ctx) -> Verdict {
    let (spec, before) = ctx.running().await?;
    ctx.orchestrator().start(spec.id).await?;
    ctx.settle().await;
    let after = ctx.get(spec.id).await?;
    same("the status", &after.status, &InstanceStatus::Running)?;
    same("the process", &process(&after), &process(&before))?;
    ctx.orchestrator().stop(spec.id).await?;
    ctx.until_status(spec.id, InstanceStatus::Stopped).await?;
    ctx.settle().await;
    let before = ctx.get(spec.id).await?;
    ctx.orchestrator().stop(spec.id).await?;
    ctx.settle().await;
    let after = ctx.get(spec.id).await?;
    same("the status", &after.status, &InstanceStatus::Stopped)?;
    same("the revision", &after.provenance.revision, &before.provenance.revision)
}

async fn restart_replaces(ctx: &Ctx) -> Verdict {
    let (spec, before) = ctx.running().await?;
    ctx.orchestrator().restart(spec.id).await?;
    let old = process(&before);
    let seen = ctx
        .until(spec.id, "another process to run", ctx.budgets().start, |instance| {
            instance.status == InstanceStatus::Running && process(instance) != old
        })
        .await?;
    let wanted = seen.facts.units.iter().filter(|unit| unit.wanted).count();
    same("the units that shall run", &wanted, &1)
}

async fn restart_keeps_data(ctx: &Ctx) -> Verdict {
    let (spec, before) = ctx.running().await?;
    let location = ctx.mark(spec.id, "kept").await?;
    ctx.orchestrator().restart(spec.id).await?;
    let old = process(&before);
    ctx.until(spec.id, "another process to run", ctx.budgets().start, |instance| {
        instance.status == InstanceStatus::Running && process(instance) != old
    })
    .await?;
    same("where the data is", &ctx.location(spec.id).await?, &location)?;
    ctx.marked(&location, "kept").await
}

async fn restart_of_stopped(ctx: &Ctx) -> Verdict {
    let (spec, before) = ctx.resting().await?;
    let answer = ctx.orchestrator().restart(spec.id).await;
    refused("restart of a stopped instance", answer, &[ErrorKind::NotAllowed])?;
    ctx.settle().await;
    let after = ctx.get(spec.id).await?;
    same("the status", &after.status, &InstanceStatus::Stopped)?;
    same("the revision", &after.provenance.revision, &before.provenance.revision)
}

async fn suspend_refuses_start(ctx: &Ctx) -> Verdict {
    let (spec, _) = ctx.stopped().await?;
    ctx.orchestrator().suspend(spec.id).await?;
    ctx.until_status(spec.id, InstanceStatus::Paused).await?;
    let answer = ctx.orchestrator().start(spec.id).await;
    refused("start of a suspended instance", answer, &[ErrorKind::NotAllowed])?;
    ctx.settle().await;
    let seen = ctx.get(spec.id).await?;
    same("the status", &seen.status, &InstanceStatus::Paused)?;
    ensure!(
        !seen.facts.any_live(),
        "expected nothing to run, saw {:?}",
        seen.facts.units
    );
    ctx.orchestrator().resume(spec.id).await?;
    ctx.until_status(spec.id, InstanceStatus::Stopped).await?;
    ctx.orchestrator().start(spec.id).await?;
    ctx.until_running(spec.id).await?;
    Ok(())
}

async fn suspend_stops(ctx: &Ctx) -> Verdict {
    let (spec, _) = ctx.running().await?;
    let location = ctx.mark(spec.id, "kept").await?;
    ctx.orchestrator().suspend(spec.id).await?;
    let seen = ctx.until_status(spec.id, InstanceStatus::Paused).await?;
    ensure!(
        !seen.facts.any_live(),
        "expected nothing to run, saw {:?}",
        seen.facts.units
    );
    ctx.marked(&location, "kept").await?;
    ctx.orchestrator().resume(spec.id).await?;
    ctx.settle().await;
    same(
        "the status after the resume",
        &ctx.get(spec.id).await?.status,
        &InstanceStatus::Stopped,
    )
}

async fn suspended_refuses_restart(ctx: &Ctx) -> Verdict {
    let (spec, _) = ctx.stopped().await?;
    ctx.orchestrator().suspend(spec.id).await?;
    ctx.until_status(spec.id, InstanceStatus::Paused).await?;
    let answer = ctx.orchestrator().restart(spec.id).await;
    refused("restart of a suspended instance", answer, &[ErrorKind::NotAllowed])?;
    ctx.settle().await;
    same("the status", &ctx.get(spec.id).await?.status, &InstanceStatus::Paused)
}

async fn resume_of_running(ctx: &Ctx) -> Verdict {
    let (spec, before) = ctx.running().await?;
    ctx.orchestrator().resume(spec.id).await?;
    ctx.settle().await;
    let after = ctx.get(spec.id).await?;
    same("the status", &after.status, &InstanceStatus::Running)?;
    same("the process", &process(&after), &process(&before))
}

async fn repeated_suspend(ctx: &Ctx) -> Verdict {
    let (spec, _) = ctx.stopped().await?;
    ctx.orchestrator().suspend(spec.id).await?;
    let before = ctx.until_status(spec.id, InstanceStatus::Paused).await?;
    ctx.orchestrator().suspend(spec.id).await?;
    // A stop does not take the hold away either.
    ctx.orchestrator().stop(spec.id).await?;
    ctx.settle().await;
    let after = ctx.get(spec.id).await?;
    same("the status", &after.status, &InstanceStatus::Paused)?;
    same("the desired units", &after.replicas.desired, &before.replicas.desired)
}

async fn absent(ctx: &Ctx) -> Verdict {
    let spec = ctx.spec();
    for power in [Power::Start, Power::Stop, Power::Restart, Power::Suspend, Power::Resume] {
        let answer = ctx.orchestrator().set_power(spec.id, power).await;
        refused(
            &format!("{power} of an absent instance"),
            answer,
            &[ErrorKind::NotFound],
        )?;
    }
    ctx.nothing_of(spec.id).await
}

async fn at_once(ctx: &Ctx) -> Verdict {
    let (spec, _) = ctx.running().await?;
    ctx.orchestrator().stop(spec.id).await?;
    ctx.orchestrator().start(spec.id).await?;
    ctx.settle().await;
    let seen = ctx.until_running(spec.id).await?;
    let wanted = seen.facts.units.iter().filter(|unit| unit.wanted).count();
    same("the units that shall run", &wanted, &1)
}

async fn while_starting(ctx: &Ctx) -> Verdict {
    let spec = ctx.spec().with_env("SLOW".parse()?, "120");
    ctx.create_as(&spec, CreateOptions::new(), EnsureOutcome::Created)
        .await?;
    ctx.orchestrator().stop(spec.id).await?;
    ctx.until_status(spec.id, InstanceStatus::Stopped).await?;
    ctx.settle().await;
    same(
        "the status later",
        &ctx.get(spec.id).await?.status,
        &InstanceStatus::Stopped,
    )
}

async fn keeps_the_spec(ctx: &Ctx) -> Verdict {
    let (spec, _) = ctx.running().await?;
    ctx.orchestrator().restart(spec.id).await?;
    same_spec(&spec, &ctx.get(spec.id).await?)?;
    ctx.orchestrator().stop(spec.id).await?;
    same_spec(&spec, &ctx.get(spec.id).await?)?;
    ctx.until_status(spec.id, InstanceStatus::Stopped).await?;
    ctx.orchestrator().start(spec.id).await?;
    same_spec(&spec, &ctx.get(spec.id).await?)
}

async fn others(ctx: &Ctx) -> Verdict {
    let (neighbour, before) = ctx.running().await?;
    let (spec, _) = ctx.running().await?;
    ctx.orchestrator().restart(spec.id).await?;
    ctx.orchestrator().stop(spec.id).await?;
    ctx.until_status(spec.id, InstanceStatus::Stopped).await?;
    let after = ctx.get(neighbour.id).await?;
    same("the neighbour's status", &after.status, &InstanceStatus::Running)?;
    same("the neighbour's process", &process(&after), &process(&before))
}
