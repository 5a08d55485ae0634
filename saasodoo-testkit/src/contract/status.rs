//! Clauses about the status: what misbehaves is told, and told apart.

use std::time::Duration;

use saasodoo_core::{
    Capability, Cause, EnsureOutcome, InstanceChange, InstanceOrchestratorExt, InstanceStatus, UnitPhase,
    UpdateOptions, derive,
};
use tokio::time::{Instant, sleep};

use super::clause::{clause, ensure};
use super::ctx::{describe, same};
use super::{Clause, Ctx, Verdict};

pub(super) const CLAUSES: &[Clause] = &[
    clause!(
        "status.crash_loop_is_error",
        crash_loop,
        "with the cause CrashLoop and the exit code"
    ),
    clause!(
        "status.crash_loop_does_not_flicker",
        no_flicker,
        "between two crashes it is never running"
    ),
    clause!(
        "status.missing_image_is_named",
        missing_image,
        "error with the cause ImagePull and the image"
    ),
    clause!(
        "status.unready_is_not_running",
        unready,
        "a process that does not answer is not running"
    )
    .requires(&[Capability::Readiness]),
    clause!(
        "status.out_of_memory_is_told",
        out_of_memory,
        "error with the cause OutOfMemory"
    ),
    clause!(
        "status.slow_start_is_no_error",
        slow_start,
        "an instance that takes its time is on the way, then running"
    ),
    clause!(
        "status.stopped_is_stopped_not_error",
        stopped_after_crash,
        "whatever failed before: with nothing desired it is stopped"
    ),
    clause!(
        "status.recovers_after_fix",
        recovers,
        "an update of the bad image makes it run, without a cause left"
    ),
    clause!(
        "status.recovers_from_crash_loop",
        recovers_from_crash,
        "so does taking away what made it crash"
    ),
    clause!(
        "status.restarts_when_started_again",
        start_again,
        "a crash loop that was stopped is tried again by a start"
    ),
    clause!(
        "status.comes_from_the_facts",
        from_the_facts,
        "the status and cause are those that derive gives"
    ),
];

async fn crash_loop(ctx: &Ctx) -> Verdict {
    let spec = ctx.spec().with_env("CRASH".parse()?, "7");
    ctx.create(&spec).await?;
    let seen = ctx
        .until(
            spec.id,
            "error with a crash loop and exit code 7",
            ctx.budgets().failure,
            |instance| {
                instance.status == InstanceStatus::Error
                    && matches!(instance.cause, Some(Cause::CrashLoop { last_exit: Some(7), .. }))
            },
        )
        .await?;
    same("the ready units", &seen.replicas.ready, &0)?;
    same("the desired units", &seen.replicas.desired, &1)
}

async fn no_flicker(ctx: &Ctx) -> Verdict {
    let spec = ctx.spec().with_env("CRASH".parse()?, "1");
    ctx.create(&spec).await?;
    ctx.until_status(spec.id, InstanceStatus::Error).await?;
    let end = Instant::now() + ctx.budgets().settle * 2;
    while Instant::now() < end {
        let seen = ctx.get(spec.id).await?;
        ensure!(
            seen.status != InstanceStatus::Running,
            "expected a crash loop never to be running, saw {}",
            describe(&seen)
        );
        sleep(Duration::from_millis(500)).await;
    }
    Ok(())
}

async fn missing_image(ctx: &Ctx) -> Verdict {
    let missing = ctx.subject().missing_image();
    let spec = ctx.spec().with_image(missing.clone());
    ctx.create(&spec).await?;
    ctx.until(
        spec.id,
        "error naming the missing image",
        ctx.budgets().failure,
        |instance| {
            instance.status == InstanceStatus::Error
                && matches!(&instance.cause, Some(Cause::ImagePull { image, .. }) if image.contains(missing.as_str()))
        },
    )
    .await?;
    Ok(())
}

async fn unready(ctx: &Ctx) -> Verdict {
    let spec = ctx.spec().with_env("UNREADY".parse()?, "1");
    ctx.create(&spec).await?;
    ctx.until(spec.id, "a process", ctx.budgets().start, |instance| {
        instance
            .facts
            .current()
            .is_some_and(|unit| unit.phase == UnitPhase::Running)
    })
    .await?;
    let end = Instant::now() + ctx.budgets().settle;
    while Instant::now() < end {
        let seen = ctx.get(spec.id).await?;
        ensure!(
            seen.status != InstanceStatus::Running && seen.replicas.ready == 0,
            "expected it not to be running, saw {}",
            describe(&seen)
        );
        sleep(Duration::from_millis(500)).await;
    }
    Ok(())
}

async fn out_of_memory(ctx: &Ctx) -> Verdict {
    let spec = ctx.spec();
    let mib = spec.resources.memory.get() / (1 << 20);
    let spec = spec.with_env("EAT_MB".parse()?, (mib * 4).to_string());
    ctx.create(&spec).await?;
    let certain = ctx
        .orchestrator()
        .capabilities()
        .supports(Capability::OutOfMemoryCertain);
    ctx.until(spec.id, "error with out of memory", ctx.budgets().failure, |instance| {
        instance.status == InstanceStatus::Error
            && matches!(instance.cause, Some(Cause::OutOfMemory { inferred, .. }) if inferred != certain)
    })
    .await?;
    Ok(())
}

async fn slow_start(ctx: &Ctx) -> Verdict {
    let spec = ctx.spec().with_env("SLOW".parse()?, "5");
    ctx.create(&spec).await?;
    let end = Instant::now() + ctx.budgets().start;
    loop {
        let seen = ctx.get(spec.id).await?;
        if seen.status == InstanceStatus::Running {
            return Ok(());
        }
        ensure!(
            seen.status.is_transitional(),
            "expected it to be on the way, saw {}",
            describe(&seen)
        );
        ensure!(Instant::now() < end, "expected it to run, saw {}", describe(&seen));
        sleep(Duration::from_millis(500)).await;
    }
}

async fn stopped_after_crash(ctx: &Ctx) -> Verdict {
    let spec = ctx.spec().with_env("CRASH".parse()?, "1");
    ctx.create(&spec).await?;
    ctx.until_status(spec.id, InstanceStatus::Error).await?;
    ctx.orchestrator().stop(spec.id).await?;
    let seen = ctx.until_status(spec.id, InstanceStatus::Stopped).await?;
    ensure!(
        seen.cause.is_none(),
        "expected no cause beside stopped, saw {:?}",
        seen.cause
    );
    ctx.settle().await;
    same(
        "the status later",
        &ctx.get(spec.id).await?.status,
        &InstanceStatus::Stopped,
    )
}

async fn recovers(ctx: &Ctx) -> Verdict {
    let good = ctx.subject().other_image();
    let spec = ctx.spec().with_image(ctx.subject().missing_image());
    ctx.create(&spec).await?;
    ctx.until_status(spec.id, InstanceStatus::Error).await?;
    let answer = ctx
        .orchestrator()
        .update(spec.id, &InstanceChange::new().image(good), UpdateOptions::new())
        .await?;
    same("the outcome of the update", &answer.outcome, &EnsureOutcome::Updated)?;
    let seen = ctx.until_running(spec.id).await?;
    ensure!(
        seen.cause.is_none(),
        "expected no cause beside running, saw {:?}",
        seen.cause
    );
    Ok(())
}

async fn recovers_from_crash(ctx: &Ctx) -> Verdict {
    let spec = ctx.spec().with_env("CRASH".parse()?, "1");
    ctx.create(&spec).await?;
    ctx.until_status(spec.id, InstanceStatus::Error).await?;
    let change = InstanceChange::new().unset_env("CRASH".parse()?);
    ctx.orchestrator()
        .update(spec.id, &change, UpdateOptions::new())
        .await?;
    ctx.until(spec.id, "running without a cause", ctx.budgets().failure, |instance| {
        instance.status == InstanceStatus::Running && instance.cause.is_none()
    })
    .await?;
    Ok(())
}

async fn start_again(ctx: &Ctx) -> Verdict {
    let spec = ctx.spec().with_env("CRASH".parse()?, "1");
    ctx.create(&spec).await?;
    ctx.until_status(spec.id, InstanceStatus::Error).await?;
    ctx.orchestrator().stop(spec.id).await?;
    ctx.until_status(spec.id, InstanceStatus::Stopped).await?;
    let change = InstanceChange::new().unset_env("CRASH".parse()?);
    ctx.orchestrator()
        .update(spec.id, &change, UpdateOptions::new())
        .await?;
    ctx.orchestrator().start(spec.id).await?;
    ctx.until(spec.id, "running", ctx.budgets().failure, |instance| {
        instance.status == InstanceStatus::Running
    })
    .await?;
    Ok(())
}

async fn from_the_facts(ctx: &Ctx) -> Verdict {
    let (running, _) = ctx.running().await?;
    let (stopped, _) = ctx.stopped().await?;
    let crashing = ctx.spec().with_env("CRASH".parse()?, "1");
    ctx.create(&crashing).await?;
    ctx.until_status(crashing.id, InstanceStatus::Error).await?;
    for id in [running.id, stopped.id, crashing.id] {
        let seen = ctx.get(id).await?;
        let (status, cause) = derive(&seen.facts);
        same("the status", &seen.status, &status)?;
        same("the cause", &seen.cause, &cause)?;
        let ready = seen.facts.units.iter().filter(|unit| unit.wanted && unit.ready).count();
        same(
            "the ready units",
            &usize::try_from(seen.replicas.ready).unwrap_or(usize::MAX),
            &ready,
        )?;
    }
    Ok(())
}
