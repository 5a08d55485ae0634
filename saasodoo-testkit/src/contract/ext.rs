//! Clauses about `InstanceOrchestratorExt`: that waiting and bulk operations work over this backend.

use std::time::Duration;

use saasodoo_core::{ErrorKind, InstanceOrchestratorExt, InstanceStatus, OperationKind};
use tokio::time::{Instant, sleep};

use super::clause::{clause, ensure};
use super::ctx::{describe, refused, same, same_spec};
use super::{Clause, Ctx, Stop, Verdict};

pub(super) const CLAUSES: &[Clause] = &[
    clause!(
        "ext.create_and_wait",
        create_and_wait,
        "answers with the running instance"
    ),
    clause!(
        "ext.exists_and_status",
        exists_and_status,
        "of what is there and of what is not"
    ),
    clause!(
        "ext.wait_times_out_with_the_status",
        times_out,
        "the message says what it was instead"
    ),
    clause!(
        "ext.hopeless_wait_returns_early",
        hopeless,
        "an error that waiting does not mend ends the wait with its cause"
    ),
    clause!("ext.wait_of_absent_is_not_found", wait_of_absent, "at once"),
    clause!(
        "ext.for_each_answers_in_order",
        for_each,
        "for each id, in the order given, errors included"
    ),
];

async fn create_and_wait(ctx: &Ctx) -> Verdict {
    let spec = ctx.spec();
    let seen = ctx.orchestrator().create_and_wait(&spec, ctx.budgets().start).await?;
    same("the status", &seen.status, &InstanceStatus::Running)?;
    same_spec(&spec, &seen)
}

async fn exists_and_status(ctx: &Ctx) -> Verdict {
    let orchestrator = ctx.orchestrator();
    let (spec, _) = ctx.stopped().await?;
    let absent = ctx.spec();
    same("whether it exists", &orchestrator.exists(spec.id).await?, &true)?;
    same(
        "its status",
        &orchestrator.status(spec.id).await?,
        &InstanceStatus::Stopped,
    )?;
    same(
        "whether what is not there exists",
        &orchestrator.exists(absent.id).await?,
        &false,
    )?;
    same(
        "the status of what is not there",
        &orchestrator.status(absent.id).await?,
        &InstanceStatus::ContainerMissing,
    )
}

async fn times_out(ctx: &Ctx) -> Verdict {
    let (spec, _) = ctx.stopped().await?;
    let budget = Duration::from_secs(2);
    let answer = ctx
        .orchestrator()
        .wait_until(spec.id, InstanceStatus::Running, budget)
        .await;
    let error = refused("waiting for a stopped instance to run", answer, &[ErrorKind::Timeout])?;
    ensure!(
        error.message().contains("stopped"),
        "expected the message to say that it is stopped, got {error}"
    );
    same(
        "the operation in the error",
        &error.operation(),
        &Some(OperationKind::Wait),
    )?;
    same("the instance in the error", &error.instance(), &Some(spec.id))
}

async fn hopeless(ctx: &Ctx) -> Verdict {
    let missing = ctx.subject().missing_image();
    let spec = ctx.spec().with_image(missing.clone());
    ctx.create(&spec).await?;
    let budget = ctx.budgets().failure * 2;
    let started = Instant::now();
    let answer = ctx
        .orchestrator()
        .wait_until(spec.id, InstanceStatus::Running, budget)
        .await;
    let error = refused("waiting for a missing image to run", answer, &[ErrorKind::NotAllowed])?;
    ensure!(
        started.elapsed() < budget,
        "expected an answer before the budget was used up"
    );
    ensure!(
        error.message().contains(missing.as_str()),
        "expected the message to name the image, got {error}"
    );
    Ok(())
}

async fn wait_of_absent(ctx: &Ctx) -> Verdict {
    let spec = ctx.spec();
    let answer = ctx
        .orchestrator()
        .wait_until(spec.id, InstanceStatus::Running, ctx.budgets().start)
        .await;
    refused("waiting for what is not there", answer, &[ErrorKind::NotFound])?;
    Ok(())
}

async fn for_each(ctx: &Ctx) -> Verdict {
    let (first, _) = ctx.running().await?;
    let absent = ctx.spec();
    let (second, _) = ctx.running().await?;
    let ids = vec![first.id, absent.id, second.id];
    let slow = first.id;
    let answers = ctx
        .orchestrator()
        .for_each(ids.clone(), 3, move |orchestrator, id| async move {
            if id == slow {
                sleep(Duration::from_millis(300)).await;
            }
            orchestrator.stop(id).await
        })
        .await;
    let order: Vec<_> = answers.iter().map(|(id, _)| *id).collect();
    same("the order of the answers", &order, &ids)?;
    for (id, answer) in answers {
        match answer {
            Ok(instance) if id != absent.id => same("the id in the answer", &instance.id, &id)?,
            Ok(instance) => return Err(Stop::failed(format!("expected not_found, got {}", describe(&instance)))),
            Err(error) if id == absent.id && error.is_not_found() => {}
            Err(error) => return Err(error.into()),
        }
    }
    ctx.until_status(first.id, InstanceStatus::Stopped).await?;
    ctx.until_status(second.id, InstanceStatus::Stopped).await?;
    Ok(())
}
