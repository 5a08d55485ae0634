//! Clauses about `plan`.

use saasodoo_core::{
    Bytes, CreateOptions, DataPolicy, DeleteOptions, EnsureOutcome, ErrorKind, InstanceChange, InstanceId,
    InstanceOrchestratorExt, InstanceStatus, Operation, Plan, Power, UpdateOptions,
};

use super::clause::{clause, ensure};
use super::ctx::{process, refused, same, same_spec};
use super::{Clause, Ctx, Stop, Verdict};

pub(super) const CLAUSES: &[Clause] = &[
    clause!(
        "plan.has_no_side_effects",
        no_side_effects,
        "whatever is planned, the instance stays as it was"
    ),
    clause!(
        "plan.names_the_fields",
        names_the_fields,
        "those that update would change, and whether the tenant's process is replaced"
    ),
    clause!("plan.purge_lists_what_dies", purge_lists, "and carries the token"),
    clause!(
        "plan.of_nothing_is_empty",
        of_nothing,
        "an operation that would answer Unchanged has an empty plan"
    ),
    clause!(
        "plan.create_lists_the_objects",
        create_lists,
        "what would be made; and nothing is made"
    ),
    clause!(
        "plan.create_gives_its_errors",
        create_errors,
        "another spec, a bad spec, nothing to adopt"
    ),
    clause!(
        "plan.delete_carries_no_token",
        delete_plan,
        "a deletion that keeps the data lists objects and no data"
    ),
    clause!(
        "plan.power_tells_the_interruption",
        power_plan,
        "a stop and a restart interrupt the tenant"
    ),
    clause!(
        "plan.of_stopped_restarts_nothing",
        of_stopped,
        "a change of a stopped instance interrupts nobody"
    ),
    clause!("plan.absent_is_not_found", absent, "for update and power"),
    clause!(
        "plan.refuses_what_update_refuses",
        update_errors,
        "a smaller storage, a bad value"
    ),
    clause!(
        "plan.is_what_happens",
        is_what_happens,
        "the fields it names are those that differ afterwards"
    ),
];

async fn plan(ctx: &Ctx, operation: Operation) -> Result<Plan, Stop> {
    let plan = ctx
        .orchestrator()
        .plan(&operation)
        .await
        .map_err(|error| Stop::from(error).within("plan"))?;
    same("the instance of the plan", &plan.instance, &operation.instance())?;
    Ok(plan)
}

fn update(id: InstanceId, change: InstanceChange) -> Operation {
    Operation::Update(id, Box::new(change))
}

async fn no_side_effects(ctx: &Ctx) -> Verdict {
    let (spec, _) = ctx.running().await?;
    let (stopped, before_stopped) = ctx.resting().await?;
    let location = ctx.mark(spec.id, "planned over").await?;
    let before = ctx.quiet(spec.id).await?;
    let fresh = ctx.spec();
    let change = InstanceChange::new()
        .image(ctx.subject().other_image())
        .memory(Bytes::new(spec.resources.memory.get() * 2));
    let mut operations = vec![
        Operation::Create(Box::new(fresh.clone()), CreateOptions::new()),
        Operation::Create(Box::new(spec.clone()), CreateOptions::new()),
        Operation::Create(
            Box::new(spec.clone().with_env("CONTRACT".parse()?, "other")),
            CreateOptions::new(),
        ),
        update(spec.id, change.clone()),
        update(stopped.id, change),
        Operation::Delete(spec.id),
        Operation::Purge(spec.id),
        Operation::Delete(stopped.id),
        Operation::Purge(stopped.id),
    ];
    for power in [Power::Start, Power::Stop, Power::Restart, Power::Suspend, Power::Resume] {
        operations.push(Operation::SetPower(spec.id, power));
        operations.push(Operation::SetPower(stopped.id, power));
    }
    for operation in &operations {
        // Some of these are refused, and that is an answer too: what counts is that nothing happens.
        let _ = ctx.orchestrator().plan(operation).await;
    }
    ctx.settle().await;
    ctx.nothing_of(fresh.id).await?;
    let after = ctx.get(spec.id).await?;
    same_spec(&spec, &after)?;
    same("the status", &after.status, &InstanceStatus::Running)?;
    same("the process", &process(&after), &process(&before))?;
    same("the revision", &after.provenance.revision, &before.provenance.revision)?;
    let after = ctx.get(stopped.id).await?;
    same_spec(&stopped, &after)?;
    same("the status of the stopped one", &after.status, &InstanceStatus::Stopped)?;
    same(
        "the revision of the stopped one",
        &after.provenance.revision,
        &before_stopped.provenance.revision,
    )?;
    ctx.marked(&location, "planned over").await
}

async fn names_the_fields(ctx: &Ctx) -> Verdict {
    let (spec, _) = ctx.running().await?;
    let other = ctx.subject().other_image();
    let change = InstanceChange::new()
        .image(other.clone())
        .memory(Bytes::new(spec.resources.memory.get() * 2));
    let planned = plan(ctx, update(spec.id, change)).await?;
    for field in ["image", "resources.memory"] {
        ensure!(
            planned.changes.iter().any(|change| change.field == field),
            "expected the plan to name {field}, saw {planned}"
        );
    }
    let image = planned.changes.iter().find(|change| change.field == "image");
    same(
        "the image before",
        &image.and_then(|c| c.from.clone()),
        &Some(spec.image.to_string()),
    )?;
    same(
        "the image after",
        &image.and_then(|c| c.to.clone()),
        &Some(other.to_string()),
    )?;
    ensure!(
        planned.restarts,
        "expected the plan to say that the process is replaced, saw {planned}"
    );
    ensure!(
        planned.purge_token.is_none(),
        "expected no token in the plan of an update"
    );
    Ok(())
}

async fn purge_lists(ctx: &Ctx) -> Verdict {
    let (spec, _) = ctx.stopped().await?;
    ctx.mark(spec.id, "precious").await?;
    let planned = plan(ctx, Operation::Purge(spec.id)).await?;
    let token = planned
        .purge_token
        .as_ref()
        .ok_or_else(|| Stop::failed(format!("expected a token, saw {planned}")))?;
    same("the instance of the token", &token.instance(), &spec.id)?;
    ensure!(!token.objects().is_empty(), "expected the token to list the data");
    for object in token.objects() {
        ensure!(
            !object.uid.is_empty() && !object.name.is_empty(),
            "expected an exact object, saw {object}"
        );
    }
    ensure!(!planned.is_empty(), "expected a plan that is not empty, saw {planned}");
    Ok(())
}

async fn of_nothing(ctx: &Ctx) -> Verdict {
    let (spec, _) = ctx.running().await?;
    let (stopped, _) = ctx.stopped().await?;
    let same_values = InstanceChange::new()
        .memory(spec.resources.memory)
        .image(spec.image.clone());
    for operation in [
        Operation::Create(Box::new(spec.clone()), CreateOptions::new()),
        update(spec.id, same_values),
        update(spec.id, InstanceChange::new()),
        Operation::SetPower(spec.id, Power::Start),
        Operation::SetPower(spec.id, Power::Resume),
        Operation::SetPower(stopped.id, Power::Stop),
    ] {
        let planned = plan(ctx, operation.clone()).await?;
        ensure!(
            planned.is_empty(),
            "expected an empty plan for {operation:?}, saw {planned}"
        );
    }
    Ok(())
}

async fn create_lists(ctx: &Ctx) -> Verdict {
    let spec = ctx.spec();
    let planned = plan(ctx, Operation::Create(Box::new(spec.clone()), CreateOptions::new())).await?;
    ensure!(
        !planned.creates.is_empty(),
        "expected objects that would be created, saw {planned}"
    );
    ensure!(
        planned.deletes.is_empty() && !planned.restarts,
        "expected nothing else, saw {planned}"
    );
    ctx.nothing_of(spec.id).await?;
    ctx.create_as(&spec, CreateOptions::new().stopped(), EnsureOutcome::Created)
        .await?;
    Ok(())
}

async fn create_errors(ctx: &Ctx) -> Verdict {
    let (spec, _) = ctx.stopped().await?;
    let orchestrator = ctx.orchestrator();
    let other = spec.clone().with_env("CONTRACT".parse()?, "other");
    let answer = orchestrator
        .plan(&Operation::Create(Box::new(other), CreateOptions::new().stopped()))
        .await;
    refused("plan of a creation with another spec", answer, &[ErrorKind::Conflict])?;
    let mut bad = ctx.spec();
    bad.storage = Bytes::ZERO;
    let answer = orchestrator
        .plan(&Operation::Create(Box::new(bad), CreateOptions::new()))
        .await;
    refused("plan of a creation with a bad spec", answer, &[ErrorKind::InvalidInput])?;
    let options = CreateOptions::new().with_data(DataPolicy::AdoptRetained);
    let answer = orchestrator
        .plan(&Operation::Create(Box::new(ctx.spec()), options))
        .await;
    refused(
        "plan of adopting what is not there",
        answer,
        &[ErrorKind::StorageMissing, ErrorKind::Conflict, ErrorKind::NotFound],
    )?;
    Ok(())
}

async fn delete_plan(ctx: &Ctx) -> Verdict {
    let (spec, _) = ctx.running().await?;
    let keeps = plan(ctx, Operation::Delete(spec.id)).await?;
    ensure!(keeps.purge_token.is_none(), "expected no token, saw {keeps}");
    ensure!(
        !keeps.deletes.is_empty(),
        "expected the objects that would be deleted, saw {keeps}"
    );
    ensure!(
        keeps.restarts,
        "expected it to say that the process is stopped, saw {keeps}"
    );
    let token = ctx.purge_token(spec.id).await?;
    for object in token.objects() {
        ensure!(
            !keeps.deletes.contains(object),
            "expected the data not to be listed, saw {object}"
        );
    }
    Ok(())
}

async fn power_plan(ctx: &Ctx) -> Verdict {
    let (spec, _) = ctx.running().await?;
    for power in [Power::Stop, Power::Restart, Power::Suspend] {
        let planned = plan(ctx, Operation::SetPower(spec.id, power)).await?;
        ensure!(
            planned.restarts,
            "expected {power} to interrupt the tenant, saw {planned}"
        );
    }
    let (stopped, _) = ctx.stopped().await?;
    let planned = plan(ctx, Operation::SetPower(stopped.id, Power::Start)).await?;
    ensure!(
        !planned.is_empty(),
        "expected a start to change something, saw {planned}"
    );
    let answer = ctx
        .orchestrator()
        .plan(&Operation::SetPower(stopped.id, Power::Restart))
        .await;
    refused(
        "plan of a restart of a stopped instance",
        answer,
        &[ErrorKind::NotAllowed],
    )?;
    ctx.orchestrator().suspend(stopped.id).await?;
    let answer = ctx
        .orchestrator()
        .plan(&Operation::SetPower(stopped.id, Power::Start))
        .await;
    refused(
        "plan of a start of a suspended instance",
        answer,
        &[ErrorKind::NotAllowed],
    )?;
    Ok(())
}

async fn of_stopped(ctx: &Ctx) -> Verdict {
    let (spec, _) = ctx.stopped().await?;
    let change = InstanceChange::new().image(ctx.subject().other_image());
    let planned = plan(ctx, update(spec.id, change)).await?;
    ensure!(
        !planned.changes.is_empty(),
        "expected the plan to name the image, saw {planned}"
    );
    ensure!(!planned.restarts, "expected nothing to be interrupted, saw {planned}");
    Ok(())
}

async fn absent(ctx: &Ctx) -> Verdict {
    let id = ctx.spec().id;
    for operation in [
        update(id, InstanceChange::new().memory(Bytes::from_gib(1))),
        Operation::SetPower(id, Power::Start),
        Operation::SetPower(id, Power::Stop),
    ] {
        let answer = ctx.orchestrator().plan(&operation).await;
        refused(&format!("plan of {operation:?}"), answer, &[ErrorKind::NotFound])?;
    }
    Ok(())
}

async fn update_errors(ctx: &Ctx) -> Verdict {
    let (spec, _) = ctx.stopped().await?;
    for change in [
        InstanceChange::new().storage(Bytes::new(spec.storage.get() / 2)),
        InstanceChange::new().memory(Bytes::new(1)),
        InstanceChange::new().set_env("ODOO_DATABASE_HOST".parse()?, "evil"),
    ] {
        let answer = ctx.orchestrator().plan(&update(spec.id, change.clone())).await;
        refused(&format!("plan of {change:?}"), answer, &[ErrorKind::InvalidInput])?;
    }
    Ok(())
}

async fn is_what_happens(ctx: &Ctx) -> Verdict {
    let (spec, _) = ctx.stopped().await?;
    let change = InstanceChange::new()
        .image(ctx.subject().other_image())
        .set_env("CONTRACT".parse()?, "planned");
    let planned = plan(ctx, update(spec.id, change.clone())).await?;
    let before = ctx.get(spec.id).await?;
    ctx.orchestrator()
        .update(spec.id, &change, UpdateOptions::new())
        .await?;
    let after = ctx.get(spec.id).await?;
    let mut named: Vec<String> = planned.changes.into_iter().map(|change| change.field).collect();
    let mut differing: Vec<String> = before
        .spec
        .diff(&after.spec)
        .into_iter()
        .map(|change| change.field)
        .collect();
    named.sort();
    differing.sort();
    same("the fields that the plan named", &named, &differing)?;
    let token = ctx.purge_token(spec.id).await?;
    let mut listed = token.objects().to_vec();
    let mut purged = ctx
        .orchestrator()
        .delete(spec.id, DeleteOptions::purge(token))
        .await?
        .purged;
    listed.sort();
    purged.sort();
    same("what was purged", &purged, &listed)
}
