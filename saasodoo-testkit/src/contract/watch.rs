//! Clauses about `watch`.

use std::time::Duration;

use futures::StreamExt;
use futures::stream::BoxStream;
use saasodoo_core::{
    CreateOptions, CustomerId, DeleteOptions, EnsureOutcome, Instance, InstanceChange, InstanceEvent, InstanceFilter,
    InstanceId, InstanceOrchestratorExt, InstanceStatus, Retry, UpdateOptions,
};
use tokio::time::{Instant, timeout_at};

use super::clause::{clause, ensure};
use super::ctx::{describe, same, same_spec};
use super::{Clause, Ctx, Stop, Verdict};

pub(super) const CLAUSES: &[Clause] = &[
    clause!(
        "watch.snapshot_then_synced",
        snapshot_then_synced,
        "first what exists, then Synced once"
    ),
    clause!(
        "watch.of_nothing_is_synced",
        of_nothing,
        "an empty snapshot is told by Synced alone"
    ),
    clause!(
        "watch.reports_changes",
        reports_changes,
        "create, power, update and delete, in an order that is possible"
    ),
    clause!(
        "watch.reports_delete",
        reports_delete,
        "with the last observation, once, and nothing after it"
    ),
    clause!(
        "watch.reports_failure_with_cause",
        reports_failure,
        "a crash loop arrives as error with its cause"
    ),
    clause!("watch.filters", filters, "only what matches is reported"),
    clause!(
        "watch.leaving_the_filter_is_deleted",
        leaving_the_filter,
        "an instance that does not match any more is reported as Deleted, and comes back as Applied"
    ),
    clause!(
        "watch.every_subscriber_gets_everything",
        every_subscriber,
        "also one that subscribes later, by its snapshot"
    ),
    clause!(
        "watch.two_subscribers",
        two_subscribers,
        "one that goes away does not disturb the other"
    ),
    clause!(
        "watch.survives_slow_reader",
        slow_reader,
        "one that reads late gets a picture that ends as it is, and does not hold up the other"
    ),
    clause!(
        "watch.agrees_with_get",
        agrees_with_get,
        "what it reported last is what get says once all is quiet"
    ),
    clause!(
        "watch.survives_server_restart",
        server_restart,
        "it reports being stale, loses no change and is Synced again"
    )
    .exclusive(),
];

/// A watch, with what it has delivered so far.
struct Watched {
    stream: BoxStream<'static, InstanceEvent>,
    seen: Vec<InstanceEvent>,
}

impl Watched {
    fn new(ctx: &Ctx, filter: InstanceFilter) -> Self {
        Self {
            stream: ctx.orchestrator().watch(filter),
            seen: Vec::new(),
        }
    }

    /// A watch that has delivered its snapshot.
    async fn synced(ctx: &Ctx, filter: InstanceFilter) -> Result<Self, Stop> {
        let mut watched = Self::new(ctx, filter);
        watched
            .until("Synced", ctx.budgets().start, |event| {
                matches!(event, InstanceEvent::Synced)
            })
            .await?;
        Ok(watched)
    }

    /// Waits for an event that has not been delivered before this call.
    async fn until(
        &mut self,
        what: &str,
        budget: Duration,
        fits: impl Fn(&InstanceEvent) -> bool + Send,
    ) -> Result<InstanceEvent, Stop> {
        let deadline = Instant::now() + budget;
        let from = self.seen.len();
        loop {
            match timeout_at(deadline, self.stream.next()).await {
                Ok(Some(event)) => {
                    self.seen.push(event.clone());
                    if fits(&event) {
                        return Ok(event);
                    }
                }
                Ok(None) => return Err(Stop::failed(format!("expected {what}, but the watch ended"))),
                Err(_) => {
                    let seen: Vec<String> = self.seen[from..].iter().map(in_short).collect();
                    return Err(Stop::failed(format!(
                        "expected the watch to deliver {what} within {budget:?}, saw [{}]",
                        seen.join(", ")
                    )));
                }
            }
        }
    }

    /// Waits until an instance is reported with this status.
    async fn status(&mut self, ctx: &Ctx, id: InstanceId, status: InstanceStatus) -> Result<Instance, Stop> {
        let budget = if status == InstanceStatus::Error {
            ctx.budgets().failure
        } else {
            ctx.budgets().start + ctx.budgets().stop
        };
        let event = self
            .until(
                &format!("{id} {status}"),
                budget,
                |event| matches!(event, InstanceEvent::Applied(i) if i.id == id && i.status == status),
            )
            .await?;
        match event {
            InstanceEvent::Applied(instance) => Ok(*instance),
            other => Err(Stop::failed(format!("expected Applied, got {}", in_short(&other)))),
        }
    }

    async fn deleted(&mut self, ctx: &Ctx, id: InstanceId) -> Result<Instance, Stop> {
        let budget = ctx.budgets().stop + ctx.budgets().settle;
        let event = self
            .until(
                &format!("the deletion of {id}"),
                budget,
                |event| matches!(event, InstanceEvent::Deleted(i) if i.id == id),
            )
            .await?;
        match event {
            InstanceEvent::Deleted(instance) => Ok(*instance),
            other => Err(Stop::failed(format!("expected Deleted, got {}", in_short(&other)))),
        }
    }

    /// Takes everything that arrives until nothing more happens. The watch must not end.
    async fn drain(&mut self, ctx: &Ctx) -> Verdict {
        let deadline = Instant::now() + ctx.budgets().settle;
        loop {
            match timeout_at(deadline, self.stream.next()).await {
                Ok(Some(event)) => self.seen.push(event),
                Ok(None) => return Err(Stop::failed("expected the watch to go on, but it ended")),
                Err(_) => return Ok(()),
            }
        }
    }

    /// The last thing that was said about an instance: its observation, or nothing when it was deleted.
    fn last(&self, id: InstanceId) -> Option<&Instance> {
        let about = self.seen.iter().rev().find_map(|event| match event {
            InstanceEvent::Applied(instance) if instance.id == id => Some(Some(&**instance)),
            InstanceEvent::Deleted(instance) if instance.id == id => Some(None),
            _ => None,
        });
        about.flatten()
    }

    fn mentions(&self, id: InstanceId) -> bool {
        self.seen.iter().any(|event| match event {
            InstanceEvent::Applied(instance) | InstanceEvent::Deleted(instance) => instance.id == id,
            _ => false,
        })
    }
}

fn in_short(event: &InstanceEvent) -> String {
    match event {
        InstanceEvent::Applied(instance) => format!("Applied {}", describe(instance)),
        InstanceEvent::Deleted(instance) => format!("Deleted {}", instance.id),
        InstanceEvent::Synced => "Synced".to_owned(),
        InstanceEvent::Stale(staleness) => format!("Stale ({})", staleness.reason),
        other => format!("{other:?}"),
    }
}

async fn snapshot_then_synced(ctx: &Ctx) -> Verdict {
    let (first, _) = ctx.stopped().await?;
    let (second, _) = ctx.stopped().await?;
    let mut watched = Watched::synced(ctx, ctx.own()).await?;
    for spec in [&first, &second] {
        let seen = watched
            .last(spec.id)
            .ok_or_else(|| Stop::failed(format!("expected {} in the snapshot before Synced", spec.id)))?;
        same_spec(spec, seen)?;
    }
    watched.drain(ctx).await?;
    let synced = watched
        .seen
        .iter()
        .filter(|event| matches!(event, InstanceEvent::Synced))
        .count();
    let stale = watched
        .seen
        .iter()
        .filter(|event| matches!(event, InstanceEvent::Stale(_)))
        .count();
    same(
        "how often Synced came, beside once for each Stale",
        &synced,
        &(1 + stale),
    )
}

async fn of_nothing(ctx: &Ctx) -> Verdict {
    let watched = Watched::synced(ctx, InstanceFilter::all().with_customer(CustomerId::random())).await?;
    same("the events before Synced", &(watched.seen.len() - 1), &0)
}

async fn reports_changes(ctx: &Ctx) -> Verdict {
    let orchestrator = ctx.orchestrator();
    let spec = ctx.spec();
    let mut watched = Watched::synced(ctx, ctx.own()).await?;
    ctx.create(&spec).await?;
    let running = watched.status(ctx, spec.id, InstanceStatus::Running).await?;
    same_spec(&spec, &running)?;
    let before = watched.seen.iter().find_map(|event| match event {
        InstanceEvent::Applied(instance) => Some(instance.status),
        _ => None,
    });
    ensure!(
        before != Some(InstanceStatus::Running),
        "expected an observation before it runs, saw none"
    );

    let change = InstanceChange::new().set_env("CONTRACT".parse()?, "watched");
    orchestrator.update(spec.id, &change, UpdateOptions::new()).await?;
    let changed = change.apply_to(&spec)?;
    watched
        .until(
            "the new value",
            ctx.budgets().start,
            |event| matches!(event, InstanceEvent::Applied(i) if i.id == spec.id && changed.diff(&i.spec).is_empty()),
        )
        .await?;
    ctx.until_running(spec.id).await?;

    orchestrator.stop(spec.id).await?;
    watched.status(ctx, spec.id, InstanceStatus::Stopped).await?;
    orchestrator.start(spec.id).await?;
    watched.status(ctx, spec.id, InstanceStatus::Running).await?;
    orchestrator.delete(spec.id, DeleteOptions::retain()).await?;
    watched.deleted(ctx, spec.id).await?;
    Ok(())
}

async fn reports_delete(ctx: &Ctx) -> Verdict {
    let (spec, _) = ctx.running().await?;
    let mut watched = Watched::synced(ctx, ctx.own()).await?;
    ctx.orchestrator().delete(spec.id, DeleteOptions::retain()).await?;
    let last = watched.deleted(ctx, spec.id).await?;
    same_spec(&spec, &last).map_err(|stop| stop.within("the last observation"))?;
    let so_far = watched.seen.len();
    watched.drain(ctx).await?;
    let after: Vec<String> = watched.seen[so_far..]
        .iter()
        .filter(|event| matches!(event, InstanceEvent::Applied(_) | InstanceEvent::Deleted(_)))
        .map(in_short)
        .collect();
    same("what was reported after the deletion", &after, &Vec::new())
}

async fn reports_failure(ctx: &Ctx) -> Verdict {
    let spec = ctx.spec().with_env("CRASH".parse()?, "3");
    let mut watched = Watched::synced(ctx, ctx.own()).await?;
    ctx.create(&spec).await?;
    let failed = watched.status(ctx, spec.id, InstanceStatus::Error).await?;
    same(
        "the cause",
        &failed.cause.as_ref().map(saasodoo_core::Cause::code),
        &Some("crash_loop"),
    )
}

async fn filters(ctx: &Ctx) -> Verdict {
    let other = ctx.spec().with_customer(CustomerId::random());
    let ours = ctx.spec();
    let mut by_customer = Watched::synced(ctx, InstanceFilter::all().with_customer(ctx.customer())).await?;
    let mut by_id = Watched::synced(ctx, InstanceFilter::id(ours.id)).await?;
    for spec in [&other, &ours] {
        ctx.create_as(spec, CreateOptions::new().stopped(), EnsureOutcome::Created)
            .await?;
    }
    for watched in [&mut by_customer, &mut by_id] {
        watched.status(ctx, ours.id, InstanceStatus::Stopped).await?;
        watched.drain(ctx).await?;
        ensure!(
            !watched.mentions(other.id),
            "expected nothing about an instance that does not match"
        );
    }
    Ok(())
}

async fn leaving_the_filter(ctx: &Ctx) -> Verdict {
    let (spec, _) = ctx.running().await?;
    let running = InstanceFilter::id(spec.id).with_status(InstanceStatus::Running);
    let mut watched = Watched::synced(ctx, running).await?;
    ensure!(
        watched.last(spec.id).is_some(),
        "expected the running instance in the snapshot"
    );
    ctx.orchestrator().stop(spec.id).await?;
    watched.deleted(ctx, spec.id).await?;
    ctx.until_status(spec.id, InstanceStatus::Stopped).await?;
    ctx.orchestrator().start(spec.id).await?;
    watched.status(ctx, spec.id, InstanceStatus::Running).await?;
    Ok(())
}

async fn every_subscriber(ctx: &Ctx) -> Verdict {
    let spec = ctx.spec();
    let mut early = Watched::synced(ctx, ctx.own()).await?;
    let mut second = Watched::synced(ctx, ctx.own()).await?;
    ctx.create(&spec).await?;
    early.status(ctx, spec.id, InstanceStatus::Running).await?;
    second.status(ctx, spec.id, InstanceStatus::Running).await?;
    let mut late = Watched::synced(ctx, ctx.own()).await?;
    ensure!(
        late.last(spec.id).is_some(),
        "expected the instance in the snapshot of a late subscriber"
    );
    ctx.orchestrator().stop(spec.id).await?;
    for watched in [&mut early, &mut second, &mut late] {
        watched.status(ctx, spec.id, InstanceStatus::Stopped).await?;
    }
    ctx.orchestrator().delete(spec.id, DeleteOptions::retain()).await?;
    for watched in [&mut early, &mut second, &mut late] {
        watched.deleted(ctx, spec.id).await?;
    }
    Ok(())
}

async fn two_subscribers(ctx: &Ctx) -> Verdict {
    let spec = ctx.spec();
    let leaves = Watched::synced(ctx, ctx.own()).await?;
    let mut stays = Watched::synced(ctx, ctx.own()).await?;
    ctx.create_as(&spec, CreateOptions::new().stopped(), EnsureOutcome::Created)
        .await?;
    drop(leaves);
    stays.status(ctx, spec.id, InstanceStatus::Stopped).await?;
    ctx.orchestrator().delete(spec.id, DeleteOptions::retain()).await?;
    stays.deleted(ctx, spec.id).await?;
    Ok(())
}

async fn slow_reader(ctx: &Ctx) -> Verdict {
    let (spec, _) = ctx.stopped().await?;
    let (gone, _) = ctx.stopped().await?;
    let mut slow = Watched::synced(ctx, ctx.own()).await?;
    let mut quick = Watched::synced(ctx, ctx.own()).await?;
    let mut expected = spec.clone();
    for n in 0..100 {
        let change = InstanceChange::new().set_env("CONTRACT".parse()?, n.to_string());
        expected = change.apply_to(&expected)?;
        ctx.orchestrator()
            .update(spec.id, &change, UpdateOptions::new())
            .await?;
    }
    ctx.orchestrator().delete(gone.id, DeleteOptions::retain()).await?;
    let fits = |event: &InstanceEvent| matches!(event, InstanceEvent::Applied(i) if i.id == spec.id && expected.diff(&i.spec).is_empty());
    quick
        .until("the last change to the quick reader", ctx.budgets().start, fits)
        .await?;
    slow.until("the last change to the slow reader", ctx.budgets().start, fits)
        .await?;
    slow.drain(ctx).await?;
    let last = slow
        .last(spec.id)
        .ok_or_else(|| Stop::failed("the instance is gone from the slow reader's picture"))?;
    same_spec(&expected, last).map_err(|stop| stop.within("the slow reader's picture"))?;
    ensure!(
        slow.last(gone.id).is_none(),
        "expected the slow reader to be told of the deletion"
    );
    Ok(())
}

async fn agrees_with_get(ctx: &Ctx) -> Verdict {
    let (spec, _) = ctx.running().await?;
    let mut watched = Watched::synced(ctx, ctx.own()).await?;
    ctx.orchestrator().stop(spec.id).await?;
    ctx.until_status(spec.id, InstanceStatus::Stopped).await?;
    let got = ctx.quiet(spec.id).await?;
    watched.drain(ctx).await?;
    let last = watched
        .last(spec.id)
        .ok_or_else(|| Stop::failed("the watch has nothing about the instance"))?;
    same_spec(&got.spec, last)?;
    same("the status", &last.status, &got.status)?;
    same("the name", &last.name, &got.name)?;
    same("the hosts", &last.endpoints.hosts, &got.endpoints.hosts)?;
    same("the revision", &last.provenance.revision, &got.provenance.revision)
}

async fn server_restart(ctx: &Ctx) -> Verdict {
    let (spec, _) = ctx.running().await?;
    let mut watched = Watched::synced(ctx, ctx.own()).await?;
    let before = InstanceChange::new().set_env("CONTRACT".parse()?, "before");
    ctx.orchestrator()
        .update(spec.id, &before, UpdateOptions::new())
        .await?;
    // A change as early as the server takes it, while the watch may still be out of touch.
    let during = InstanceChange::new().set_env("CONTRACT".parse()?, "during");
    let changed = during.apply_to(&spec)?;
    let change_it = async {
        let deadline = Instant::now() + ctx.budgets().failure;
        // Until the server is going down: what it takes before is no change of an outage.
        tokio::time::sleep(Duration::from_secs(1)).await;
        loop {
            match ctx.orchestrator().update(spec.id, &during, UpdateOptions::new()).await {
                Ok(_) => return Ok(()),
                Err(error) if matches!(error.retry(), Retry::Never) || Instant::now() >= deadline => return Err(error),
                Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        }
    };
    let (restarted, during) = tokio::join!(ctx.subject().restart_server(), change_it);
    if !restarted? {
        return Err(Stop::skipped("the subject cannot restart the server"));
    }
    during?;
    watched
        .until("Stale", ctx.budgets().failure, |event| {
            matches!(event, InstanceEvent::Stale(_))
        })
        .await?;
    watched
        .until("Synced again", ctx.budgets().failure, |event| {
            matches!(event, InstanceEvent::Synced)
        })
        .await?;
    // Made up for with the snapshot, or delivered right after it.
    let made_up = |seen: &Instance| changed.diff(&seen.spec).is_empty();
    if !watched.last(spec.id).is_some_and(made_up) {
        watched
            .until(
                "what was changed during the outage",
                ctx.budgets().failure,
                |event| matches!(event, InstanceEvent::Applied(i) if i.id == spec.id && made_up(i)),
            )
            .await?;
    }
    let change = InstanceChange::new()
        .set_env("CONTRACT".parse()?, "after")
        .memory(saasodoo_core::Bytes::new(spec.resources.memory.get() * 2));
    ctx.orchestrator()
        .update(spec.id, &change, UpdateOptions::new())
        .await?;
    let expected = change.apply_to(&spec)?;
    watched
        .until(
            "what was changed afterwards",
            ctx.budgets().failure,
            |event| matches!(event, InstanceEvent::Applied(i) if i.id == spec.id && expected.diff(&i.spec).is_empty()),
        )
        .await?;
    ctx.until_running(spec.id).await?;
    Ok(())
}
