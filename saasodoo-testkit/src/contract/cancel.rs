//! Clauses about cancellation: a mutation whose future is dropped is done or undone, never half.

use std::future::poll_fn;
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use futures::StreamExt;
use saasodoo_core::{
    Bytes, CreateOptions, DeleteOptions, EnsureOutcome, InstanceChange, InstanceFilter, InstanceOrchestratorExt,
    InstanceSpec, InstanceStatus, LogOptions, UpdateOptions,
};
use tokio::time::{Instant, sleep, timeout};

use super::clause::{clause, ensure};
use super::ctx::{describe, same, same_spec};
use super::{Clause, Ctx, Stop, Verdict};

pub(super) const CLAUSES: &[Clause] = &[
    clause!(
        "create.dropped_future_is_all_or_nothing",
        create,
        "dropped at any moment, everything or nothing is there in the end, and a second create succeeds"
    ),
    clause!(
        "update.dropped_future_is_all_or_nothing",
        update,
        "the old values or the new ones, never some of each, and a second update succeeds"
    ),
    clause!(
        "power.dropped_future_is_all_or_nothing",
        power,
        "it runs or it is stopped, and a second stop stops it"
    ),
    clause!(
        "delete.dropped_future_is_all_or_nothing",
        delete,
        "the instance is whole or gone, its data is there either way, and a second delete succeeds"
    ),
    clause!(
        "watch.dropped_stream_ends_quietly",
        streams,
        "streams dropped half-way disturb nothing"
    ),
];

/// When a future is dropped.
#[derive(Debug, Clone, Copy)]
enum Moment {
    /// After it was polled so often. 0: before anything.
    Polls(u32),
    /// After this time.
    After(Duration),
}

const MOMENTS: [Moment; 9] = [
    Moment::Polls(0),
    Moment::Polls(1),
    Moment::Polls(2),
    Moment::Polls(3),
    Moment::Polls(5),
    Moment::Polls(8),
    Moment::After(Duration::from_millis(2)),
    Moment::After(Duration::from_millis(20)),
    Moment::After(Duration::from_millis(150)),
];

/// Drives the future up to the moment and drops it. Its answer, when it was ready before.
async fn drop_at<F: Future + Send>(moment: Moment, future: F) -> Option<F::Output> {
    match moment {
        Moment::After(time) => timeout(time, future).await.ok(),
        Moment::Polls(polls) => {
            let mut future = pin!(future);
            let mut left = polls;
            poll_fn(move |cx| {
                if left == 0 {
                    return Poll::Ready(None);
                }
                left -= 1;
                match future.as_mut().poll(cx) {
                    Poll::Ready(output) => Poll::Ready(Some(output)),
                    // The last poll may never be followed by a wake-up that we want to wait for.
                    Poll::Pending if left == 0 => Poll::Ready(None),
                    Poll::Pending => Poll::Pending,
                }
            })
            .await
        }
    }
}

async fn create(ctx: &Ctx) -> Verdict {
    let mut specs: Vec<(Moment, InstanceSpec)> = Vec::new();
    for moment in MOMENTS {
        let spec = ctx.spec();
        let call = ctx.orchestrator().create(&spec, CreateOptions::new().stopped());
        if let Some(answer) = drop_at(moment, call).await {
            answer.map_err(|error| Stop::from(error).within(format!("{moment:?}")))?;
        }
        specs.push((moment, spec));
    }
    ctx.settle().await;
    for (moment, spec) in specs {
        let what = format!("create dropped at {moment:?}");
        let within = |stop: Stop| stop.within(&what);
        let expected = all_or_nothing(ctx, &spec).await.map_err(within)?;
        ctx.create_as(&spec, CreateOptions::new().stopped(), expected)
            .await
            .map_err(within)?;
        let seen = ctx
            .until_status(spec.id, InstanceStatus::Stopped)
            .await
            .map_err(within)?;
        same_spec(&spec, &seen).map_err(within)?;
    }
    // What was made so is as good as any other.
    let (spec, _) = ctx.stopped().await?;
    ctx.orchestrator().start(spec.id).await?;
    ctx.until_running(spec.id).await?;
    Ok(())
}

/// Waits until all of an instance or nothing of it is there, and says what a second creation must answer.
async fn all_or_nothing(ctx: &Ctx, spec: &InstanceSpec) -> Result<EnsureOutcome, Stop> {
    let deadline = Instant::now() + ctx.budgets().start;
    loop {
        let (outcome, verdict) = match ctx.orchestrator().get(spec.id).await {
            Ok(seen) => (EnsureOutcome::Unchanged, same_spec(spec, &seen)),
            Err(error) if error.is_not_found() => (EnsureOutcome::Created, ctx.nothing_of(spec.id).await),
            Err(error) => (EnsureOutcome::Created, Err(error.into())),
        };
        match verdict {
            Ok(()) => return Ok(outcome),
            Err(stop) if Instant::now() > deadline => return Err(stop),
            Err(_) => sleep(Duration::from_millis(500)).await,
        }
    }
}

async fn update(ctx: &Ctx) -> Verdict {
    let (mut spec, _) = ctx.stopped().await?;
    // The polls that a request takes are the same for each change: every second moment is enough.
    for (n, moment) in MOMENTS.into_iter().step_by(2).enumerate() {
        let what = format!("update dropped at {moment:?}");
        let change = InstanceChange::new()
            .memory(Bytes::new(spec.resources.memory.get() + (1 << 20)))
            .set_env("CONTRACT".parse()?, n.to_string());
        let new = change.apply_to(&spec)?;
        let call = ctx.orchestrator().update(spec.id, &change, UpdateOptions::new());
        if let Some(answer) = drop_at(moment, call).await {
            answer.map_err(|error| Stop::from(error).within(&what))?;
        } else {
            ctx.settle().await;
        }
        let seen = ctx.get(spec.id).await?;
        ensure!(
            same_spec(&spec, &seen).is_ok() || same_spec(&new, &seen).is_ok(),
            "{what}: expected all of the change or nothing of it, saw {:?}",
            spec.diff(&seen.spec)
        );
        ctx.orchestrator()
            .update(spec.id, &change, UpdateOptions::new())
            .await?;
        same_spec(&new, &ctx.get(spec.id).await?).map_err(|stop| stop.within(&what))?;
        spec = new;
    }
    Ok(())
}

async fn power(ctx: &Ctx) -> Verdict {
    let (spec, _) = ctx.running().await?;
    for moment in [
        Moment::Polls(1),
        Moment::Polls(2),
        Moment::After(Duration::from_millis(5)),
    ] {
        let what = format!("stop dropped at {moment:?}");
        if let Some(answer) = drop_at(moment, ctx.orchestrator().stop(spec.id)).await {
            answer.map_err(|error| Stop::from(error).within(&what))?;
        }
        ctx.settle().await;
        let seen = ctx.get(spec.id).await?;
        ensure!(
            matches!(
                seen.status,
                InstanceStatus::Running | InstanceStatus::Stopping | InstanceStatus::Stopped
            ),
            "{what}: expected it to run or to stop, saw {}",
            describe(&seen)
        );
        ctx.orchestrator().stop(spec.id).await?;
        ctx.until_status(spec.id, InstanceStatus::Stopped).await?;
        ctx.orchestrator().start(spec.id).await?;
        let seen = ctx.until_running(spec.id).await.map_err(|stop| stop.within(&what))?;
        same_spec(&spec, &seen)?;
    }
    Ok(())
}

async fn delete(ctx: &Ctx) -> Verdict {
    let mut left = Vec::new();
    for moment in MOMENTS {
        let (spec, _) = ctx.stopped().await?;
        let location = ctx.mark(spec.id, "precious").await?;
        let call = ctx.orchestrator().delete(spec.id, DeleteOptions::retain());
        if let Some(answer) = drop_at(moment, call).await {
            answer.map_err(|error| Stop::from(error).within(format!("{moment:?}")))?;
        }
        left.push((moment, spec, location));
    }
    ctx.settle().await;
    for (moment, spec, location) in left {
        let what = format!("delete dropped at {moment:?}");
        let within = |stop: Stop| stop.within(&what);
        match ctx.orchestrator().get(spec.id).await {
            Ok(seen) if seen.status == InstanceStatus::Terminated => {}
            Ok(seen) => same_spec(&spec, &seen).map_err(within)?,
            Err(error) if error.is_not_found() => {}
            Err(error) => return Err(Stop::from(error).within(&what)),
        }
        ctx.orchestrator()
            .delete(spec.id, DeleteOptions::retain())
            .await
            .map_err(|error| Stop::from(error).within(&what))?;
        ctx.absent(spec.id).await.map_err(within)?;
        ctx.marked(&location, "precious").await.map_err(within)?;
    }
    Ok(())
}

async fn streams(ctx: &Ctx) -> Verdict {
    let (spec, _) = ctx.running().await?;
    let orchestrator = ctx.orchestrator();
    for polls in 0..4 {
        let moment = Moment::Polls(polls);
        drop_at(moment, orchestrator.watch(ctx.own()).next()).await;
        drop_at(moment, orchestrator.list(InstanceFilter::all()).next()).await;
        drop_at(moment, orchestrator.logs(spec.id, LogOptions::all().follow()).next()).await;
        drop_at(moment, orchestrator.get(spec.id)).await;
    }
    sleep(Duration::from_millis(100)).await;
    let listed = orchestrator.list_all(ctx.own()).await?;
    same("the number of instances", &listed.len(), &1)?;
    same("the status", &ctx.get(spec.id).await?.status, &InstanceStatus::Running)
}
