//! Clauses about `delete`.

use std::time::Duration;

use futures::future::join_all;
use saasodoo_core::{
    BackendKind, CreateOptions, DeleteOptions, EnsureOutcome, ErrorKind, InstanceFilter, InstanceOrchestratorExt,
    InstanceStatus, PurgeToken,
};
use tokio::time::{Instant, sleep};

use super::clause::{clause, ensure};
use super::ctx::{process, refused, same, same_spec};
use super::{Clause, Ctx, Stop, Verdict};

pub(super) const CLAUSES: &[Clause] = &[
    clause!(
        "delete.retains_data",
        retains_data,
        "the answer names where the data is, and the data is there"
    ),
    clause!(
        "delete.twice_is_already_gone",
        twice,
        "the second answer is not an error"
    ),
    clause!(
        "delete.of_absent_is_already_gone",
        of_absent,
        "what never existed is already gone"
    ),
    clause!(
        "delete.purge_removes_the_data",
        purge,
        "with a token from plan, exactly what it lists"
    ),
    clause!(
        "delete.purge_of_retained_data",
        purge_of_retained,
        "data that was left behind can be planned and purged later"
    ),
    clause!(
        "delete.foreign_token_is_refused",
        foreign_token,
        "a token of another instance or backend deletes nothing"
    ),
    clause!(
        "delete.outdated_token_is_refused",
        outdated_token,
        "when the data has been replaced since the plan"
    ),
    clause!(
        "delete.of_running_stops_it_first",
        of_running,
        "afterwards nothing of it runs and nothing writes to its data"
    ),
    clause!(
        "delete.of_suspended_works",
        of_suspended,
        "a hold does not keep an instance from being deleted"
    ),
    clause!(
        "delete.of_failing_works",
        of_failing,
        "an instance whose image is missing can be deleted"
    ),
    clause!(
        "delete.concurrent_is_harmless",
        concurrent,
        "three deletions at the same moment all succeed"
    ),
    clause!(
        "delete.frees_the_host",
        frees_the_host,
        "another instance can take the host afterwards"
    ),
    clause!(
        "delete.does_not_touch_others",
        others,
        "another instance of the same customer and its data stay"
    ),
];

async fn retains_data(ctx: &Ctx) -> Verdict {
    let (spec, _) = ctx.running().await?;
    let location = ctx.mark(spec.id, "precious").await?;
    let deleted = ctx.orchestrator().delete(spec.id, DeleteOptions::retain()).await?;
    ensure!(
        deleted.existed,
        "expected the answer to say that it existed, got {deleted:?}"
    );
    ensure!(
        deleted.purged.is_empty(),
        "expected nothing purged, got {:?}",
        deleted.purged
    );
    same("where the data was left", &deleted.retained, &Some(location.clone()))?;
    ctx.absent(spec.id).await?;
    ctx.settle().await;
    ctx.marked(&location, "precious").await
}

async fn twice(ctx: &Ctx) -> Verdict {
    let (spec, _) = ctx.stopped().await?;
    let location = ctx.mark(spec.id, "precious").await?;
    let first = ctx.orchestrator().delete(spec.id, DeleteOptions::retain()).await?;
    ensure!(
        first.existed,
        "expected the first answer to say that it existed, got {first:?}"
    );
    let second = ctx.orchestrator().delete(spec.id, DeleteOptions::retain()).await?;
    ensure!(
        !second.existed,
        "expected the second answer to say that it was gone, got {second:?}"
    );
    ctx.marked(&location, "precious").await
}

async fn of_absent(ctx: &Ctx) -> Verdict {
    let spec = ctx.spec();
    let answer = ctx.orchestrator().delete(spec.id, DeleteOptions::retain()).await?;
    ensure!(
        !answer.existed,
        "expected the answer to say that it was gone, got {answer:?}"
    );
    ensure!(
        answer.purged.is_empty(),
        "expected nothing purged, got {:?}",
        answer.purged
    );
    Ok(())
}

async fn purge(ctx: &Ctx) -> Verdict {
    let (spec, _) = ctx.running().await?;
    let location = ctx.mark(spec.id, "to be deleted").await?;
    let token = ctx.purge_token(spec.id).await?;
    ensure!(!token.objects().is_empty(), "expected the token to list the data");
    let mut listed = token.objects().to_vec();
    let deleted = ctx.orchestrator().delete(spec.id, DeleteOptions::purge(token)).await?;
    let mut purged = deleted.purged;
    listed.sort();
    purged.sort();
    same("what was purged", &purged, &listed)?;
    same("what was retained", &deleted.retained, &None)?;
    ctx.nothing_of(spec.id).await?;
    same("the file in the data", &ctx.marker(&location).await?, &None)
}

async fn purge_of_retained(ctx: &Ctx) -> Verdict {
    let (spec, _) = ctx.stopped().await?;
    let location = ctx.mark(spec.id, "to be deleted later").await?;
    ctx.orchestrator().delete(spec.id, DeleteOptions::retain()).await?;
    ctx.marked(&location, "to be deleted later").await?;
    let token = ctx.purge_token(spec.id).await?;
    let deleted = ctx.orchestrator().delete(spec.id, DeleteOptions::purge(token)).await?;
    ensure!(
        !deleted.purged.is_empty(),
        "expected the data to be purged, got {deleted:?}"
    );
    ctx.nothing_of(spec.id).await?;
    same("the file in the data", &ctx.marker(&location).await?, &None)
}

async fn foreign_token(ctx: &Ctx) -> Verdict {
    let (spec, before) = ctx.running().await?;
    let location = ctx.mark(spec.id, "precious").await?;
    let (neighbour, _) = ctx.stopped().await?;
    let beside = ctx.mark(neighbour.id, "precious too").await?;
    let own = ctx.purge_token(spec.id).await?;
    let foreign = ctx.purge_token(neighbour.id).await?;
    let elsewhere = if own.backend() == BackendKind::Memory {
        BackendKind::Kubernetes
    } else {
        BackendKind::Memory
    };
    let forged = [
        ("a token of another instance", foreign.clone()),
        (
            "a token of another backend",
            PurgeToken::new(elsewhere, spec.id, own.objects().to_vec()),
        ),
        (
            "a token with the objects of another instance",
            PurgeToken::new(own.backend(), spec.id, foreign.objects().to_vec()),
        ),
    ];
    for (what, token) in forged {
        let answer = ctx.orchestrator().delete(spec.id, DeleteOptions::purge(token)).await;
        refused(what, answer, &[ErrorKind::Conflict])?;
    }
    ctx.settle().await;
    let after = ctx.get(spec.id).await?;
    same("the status", &after.status, &InstanceStatus::Running)?;
    same("the process", &process(&after), &process(&before))?;
    same_spec(&neighbour, &ctx.get(neighbour.id).await?)?;
    ctx.marked(&location, "precious").await?;
    ctx.marked(&beside, "precious too").await
}

async fn outdated_token(ctx: &Ctx) -> Verdict {
    let (spec, _) = ctx.stopped().await?;
    // Once there is data: a volume that is bound after the plan is not in its token, and rightly refused.
    ctx.mark(spec.id, "first life").await?;
    let outdated = ctx.purge_token(spec.id).await?;
    ctx.orchestrator()
        .delete(spec.id, DeleteOptions::purge(outdated.clone()))
        .await?;
    ctx.create_as(&spec, CreateOptions::new().stopped(), EnsureOutcome::Created)
        .await?;
    let location = ctx.mark(spec.id, "second life").await?;
    let answer = ctx.orchestrator().delete(spec.id, DeleteOptions::purge(outdated)).await;
    refused("an outdated token", answer, &[ErrorKind::Conflict])?;
    same_spec(&spec, &ctx.get(spec.id).await?)?;
    ctx.marked(&location, "second life").await
}

async fn of_running(ctx: &Ctx) -> Verdict {
    let (spec, _) = ctx.running().await?;
    let location = ctx.mark(spec.id, "precious").await?;
    // The stub appends to this file every second while it runs. Without it nobody can tell whether the process ended.
    let beats = || ctx.subject().read_file(&location, "heartbeat.log");
    let deadline = Instant::now() + ctx.budgets().settle;
    while beats().await?.is_none() {
        if Instant::now() >= deadline {
            return Err(Stop::skipped("the process writes no heartbeat.log"));
        }
        sleep(Duration::from_millis(200)).await;
    }
    ctx.orchestrator().delete(spec.id, DeleteOptions::retain()).await?;
    ctx.absent(spec.id).await?;
    let beat = beats().await?;
    ensure!(
        beat.is_some(),
        "expected the process' heartbeat.log to be kept with the data"
    );
    ctx.settle().await;
    let later = beats().await?;
    same("what the process wrote after the deletion was answered", &later, &beat)?;
    ctx.absent(spec.id).await?;
    ctx.marked(&location, "precious").await
}

async fn of_suspended(ctx: &Ctx) -> Verdict {
    let (spec, _) = ctx.stopped().await?;
    ctx.orchestrator().suspend(spec.id).await?;
    let answer = ctx.orchestrator().delete(spec.id, DeleteOptions::retain()).await?;
    ensure!(
        answer.existed,
        "expected the answer to say that it existed, got {answer:?}"
    );
    ctx.absent(spec.id).await
}

async fn of_failing(ctx: &Ctx) -> Verdict {
    let spec = ctx.spec().with_image(ctx.subject().missing_image());
    ctx.create(&spec).await?;
    ctx.until_status(spec.id, InstanceStatus::Error).await?;
    let answer = ctx.orchestrator().delete(spec.id, DeleteOptions::retain()).await?;
    ensure!(
        answer.existed,
        "expected the answer to say that it existed, got {answer:?}"
    );
    ctx.absent(spec.id).await
}

async fn concurrent(ctx: &Ctx) -> Verdict {
    let (spec, _) = ctx.running().await?;
    let location = ctx.mark(spec.id, "precious").await?;
    let orchestrator = ctx.orchestrator();
    let answers = join_all((0..3).map(|_| orchestrator.delete(spec.id, DeleteOptions::retain()))).await;
    let mut existed = 0;
    for answer in answers {
        existed += usize::from(
            answer
                .map_err(|error| Stop::from(error).within("one of three deletions"))?
                .existed,
        );
    }
    ensure!(
        existed >= 1,
        "expected one of three deletions to say that the instance existed"
    );
    ctx.absent(spec.id).await?;
    ctx.marked(&location, "precious").await
}

async fn frees_the_host(ctx: &Ctx) -> Verdict {
    let (first, _) = ctx.stopped().await?;
    let host = first.hosts(&ctx.subject().base_domain())?[0].clone();
    ctx.orchestrator().delete(first.id, DeleteOptions::retain()).await?;
    let label = host.as_str().split('.').next().unwrap_or_default();
    let second = ctx.spec().with_subdomain(label.parse()?);
    ctx.create_as(&second, CreateOptions::new().stopped(), EnsureOutcome::Created)
        .await?;
    let seen = ctx.get(second.id).await?;
    same("the default host", &seen.endpoints.hosts.first(), &Some(&host))
}

async fn others(ctx: &Ctx) -> Verdict {
    let (neighbour, before) = ctx.running().await?;
    let location = ctx.mark(neighbour.id, "precious").await?;
    let (spec, _) = ctx.running().await?;
    let token = ctx.purge_token(spec.id).await?;
    ctx.orchestrator().delete(spec.id, DeleteOptions::purge(token)).await?;
    ctx.settle().await;
    let after = ctx.get(neighbour.id).await?;
    same("the neighbour's status", &after.status, &InstanceStatus::Running)?;
    same("the neighbour's process", &process(&after), &process(&before))?;
    ctx.marked(&location, "precious").await?;
    let listed = ctx
        .orchestrator()
        .list_all(InstanceFilter::all().with_customer(ctx.customer()))
        .await?;
    same(
        "the customer's instances",
        &listed.iter().map(|i| i.id).collect::<Vec<_>>(),
        &vec![neighbour.id],
    )
}
