//! Clauses about requests that fail and responses that are lost in the middle of an operation: each request of it in
//! turn. Where the subject cannot cause that, they are skipped.

use saasodoo_core::{
    Bytes, CreateOptions, DataPolicy, DeleteOptions, EnsureOutcome, InstanceChange, InstanceOrchestratorExt,
    InstanceStatus, StorageLocation, UpdateOptions,
};

use super::clause::{clause, ensure};
use super::ctx::{same, same_spec};
use super::{Clause, Ctx, FaultGuard, Stop, Verdict};

pub(super) const CLAUSES: &[Clause] = &[
    clause!(
        "create.rollback_never_deletes_adopted_data",
        adoption,
        "whichever request of an adoption fails, the data is there, and a second create adopts it"
    )
    .exclusive(),
    clause!(
        "update.fails_whole_at_every_request",
        update,
        "whichever request of an update fails, the old values or the new ones are there, and a second update succeeds"
    )
    .exclusive(),
    clause!(
        "power.fails_whole_at_every_request",
        power,
        "whichever request of a start fails, a second start makes it run, with one process"
    )
    .exclusive(),
    clause!(
        "delete.never_loses_data_to_a_failure",
        deletion,
        "whichever request of a deletion fails, the data is there, and a second delete succeeds"
    )
    .exclusive(),
    clause!(
        "delete.lost_responses_are_made_up_for",
        lost_deletion,
        "whichever response of a deletion is lost, the second answer is no error and the data is there"
    )
    .exclusive(),
    clause!(
        "delete.purge_can_be_finished_after_a_failure",
        purge,
        "whichever request of a purge fails, another purge leaves nothing"
    )
    .exclusive(),
];

/// More requests than any operation may need.
const MOST: u32 = 60;

#[derive(Clone, Copy)]
enum Kind {
    Failed,
    Lost,
}

/// Arms the fault for the n-th request from now.
fn arm(ctx: &Ctx, kind: Kind, n: u32) -> Result<FaultGuard, Stop> {
    let (guard, what) = match kind {
        Kind::Failed => (ctx.subject().fail_nth_request(n), "make a request fail"),
        Kind::Lost => (ctx.subject().lose_nth_response(n), "lose a response"),
    };
    guard.ok_or_else(|| Stop::skipped(format!("the subject cannot {what}")))
}

/// Takes the fault away and says whether it struck. Without it the operation must have succeeded, and with it a
/// success is fine too: not every request is needed.
fn disarm<T>(when: &str, guard: FaultGuard, answer: &saasodoo_core::Result<T>) -> Result<bool, Stop> {
    let hit = guard.hit();
    drop(guard);
    if let Err(error) = answer {
        ensure!(hit, "{when}: it failed without the fault: {error}");
    }
    Ok(hit)
}

fn endless() -> Verdict {
    Err(Stop::failed(format!(
        "expected the operation to take fewer than {MOST} requests"
    )))
}

async fn retained(ctx: &Ctx) -> Result<(saasodoo_core::InstanceSpec, StorageLocation), Stop> {
    let (spec, _) = ctx.stopped().await?;
    let location = ctx.mark(spec.id, "precious").await?;
    ctx.orchestrator().delete(spec.id, DeleteOptions::retain()).await?;
    Ok((spec, location))
}

async fn adoption(ctx: &Ctx) -> Verdict {
    let options = CreateOptions::new().stopped().with_data(DataPolicy::AdoptRetained);
    for n in 1..=MOST {
        let when = format!("when request {n} of an adoption fails");
        let within = |stop: Stop| stop.within(&when);
        let (spec, location) = retained(ctx).await?;
        let guard = arm(ctx, Kind::Failed, n)?;
        let answer = ctx.orchestrator().create(&spec, options.clone()).await;
        let hit = disarm(&when, guard, &answer)?;
        ctx.settle().await;
        ctx.marked(&location, "precious").await.map_err(within)?;
        if answer.is_err() {
            ctx.absent(spec.id).await.map_err(within)?;
            ctx.create_as(&spec, options.clone(), EnsureOutcome::Adopted)
                .await
                .map_err(within)?;
        }
        let location = ctx.location(spec.id).await.map_err(within)?;
        ctx.marked(&location, "precious").await.map_err(within)?;
        if !hit {
            return Ok(());
        }
    }
    endless()
}

async fn update(ctx: &Ctx) -> Verdict {
    let (mut spec, _) = ctx.stopped().await?;
    for n in 1..=MOST {
        let when = format!("when request {n} of an update fails");
        let within = |stop: Stop| stop.within(&when);
        let mut route = spec.route.clone();
        route.subdomain = Some(format!("step-{n}-{}", spec.id.short()).parse()?);
        let change = InstanceChange::new()
            .memory(Bytes::new(spec.resources.memory.get() + (1 << 20)))
            .set_env("CONTRACT".parse()?, n.to_string())
            .route(route);
        let new = change.apply_to(&spec)?;
        let guard = arm(ctx, Kind::Failed, n)?;
        let answer = ctx.orchestrator().update(spec.id, &change, UpdateOptions::new()).await;
        let hit = disarm(&when, guard, &answer)?;
        if answer.is_err() {
            ctx.settle().await;
            let seen = ctx.get(spec.id).await.map_err(within)?;
            ensure!(
                same_spec(&spec, &seen).is_ok() || same_spec(&new, &seen).is_ok(),
                "{when}: expected all of the change or nothing of it, saw {:?}",
                spec.diff(&seen.spec)
            );
            let again = ctx.orchestrator().update(spec.id, &change, UpdateOptions::new()).await;
            again.map_err(|error| Stop::from(error).within(format!("{when}, the second call")))?;
        }
        let seen = ctx.get(spec.id).await.map_err(within)?;
        same_spec(&new, &seen).map_err(within)?;
        same("the status", &seen.status, &InstanceStatus::Stopped).map_err(within)?;
        spec = new;
        if !hit {
            return Ok(());
        }
    }
    endless()
}

async fn power(ctx: &Ctx) -> Verdict {
    let (spec, _) = ctx.stopped().await?;
    for n in 1..=MOST {
        let when = format!("when request {n} of a start fails");
        let within = |stop: Stop| stop.within(&when);
        let guard = arm(ctx, Kind::Failed, n)?;
        let answer = ctx.orchestrator().start(spec.id).await;
        let hit = disarm(&when, guard, &answer)?;
        if answer.is_err() {
            let again = ctx.orchestrator().start(spec.id).await;
            again.map_err(|error| Stop::from(error).within(format!("{when}, the second call")))?;
        }
        let seen = ctx.until_running(spec.id).await.map_err(within)?;
        same_spec(&spec, &seen).map_err(within)?;
        let wanted = seen.facts.units.iter().filter(|unit| unit.wanted).count();
        same("the units that shall run", &wanted, &1).map_err(within)?;
        if !hit {
            return Ok(());
        }
        ctx.orchestrator().stop(spec.id).await?;
        ctx.until_status(spec.id, InstanceStatus::Stopped).await?;
    }
    endless()
}

async fn deletion_with(ctx: &Ctx, kind: Kind, what: &str) -> Verdict {
    for n in 1..=MOST {
        let when = format!("when {what} {n} of a deletion");
        let within = |stop: Stop| stop.within(&when);
        let (spec, _) = ctx.stopped().await?;
        let location = ctx.mark(spec.id, "precious").await?;
        let guard = arm(ctx, kind, n)?;
        let answer = ctx.orchestrator().delete(spec.id, DeleteOptions::retain()).await;
        let hit = disarm(&when, guard, &answer)?;
        if answer.is_err() {
            let again = ctx.orchestrator().delete(spec.id, DeleteOptions::retain()).await;
            again.map_err(|error| Stop::from(error).within(format!("{when}, the second call")))?;
        }
        ctx.absent(spec.id).await.map_err(within)?;
        ctx.marked(&location, "precious").await.map_err(within)?;
        if !hit {
            return Ok(());
        }
    }
    endless()
}

async fn deletion(ctx: &Ctx) -> Verdict {
    deletion_with(ctx, Kind::Failed, "failing request").await
}

async fn lost_deletion(ctx: &Ctx) -> Verdict {
    deletion_with(ctx, Kind::Lost, "losing response").await
}

async fn purge(ctx: &Ctx) -> Verdict {
    for n in 1..=MOST {
        let when = format!("when request {n} of a purge fails");
        let within = |stop: Stop| stop.within(&when);
        let (spec, _) = ctx.stopped().await?;
        let location = ctx.mark(spec.id, "to be deleted").await?;
        let token = ctx.purge_token(spec.id).await?;
        let guard = arm(ctx, Kind::Failed, n)?;
        let answer = ctx.orchestrator().delete(spec.id, DeleteOptions::purge(token)).await;
        let hit = disarm(&when, guard, &answer)?;
        if answer.is_err() {
            let token = ctx.purge_plan(spec.id).await?.and_then(|plan| plan.purge_token);
            let options = token.map_or_else(DeleteOptions::retain, DeleteOptions::purge);
            let again = ctx.orchestrator().delete(spec.id, options).await;
            again.map_err(|error| Stop::from(error).within(format!("{when}, the second call")))?;
        }
        ctx.nothing_of(spec.id).await.map_err(within)?;
        same("the file in the data", &ctx.marker(&location).await?, &None).map_err(within)?;
        if !hit {
            return Ok(());
        }
    }
    endless()
}
