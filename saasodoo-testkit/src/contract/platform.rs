//! Clauses about the backend as a whole: health, capabilities, errors, and instances that look alike.

use futures::StreamExt;
use saasodoo_core::{
    Bytes, Capability, Cause, CreateOptions, DataPolicy, DeleteOptions, EnsureOutcome, ErrorKind, HealthState,
    Instance, InstanceChange, InstanceId, InstanceOrchestratorExt, InstanceSpec, InstanceStatus, LogOptions, Operation,
    OperationKind, Source, StorageState, UpdateOptions,
};

use super::clause::{clause, ensure};
use super::ctx::{cannot, process, refused, same, same_spec};
use super::{Clause, Ctx, Stop, Verdict};

pub(super) const CLAUSES: &[Clause] = &[
    clause!(
        "health.is_ready",
        is_ready,
        "on a platform that passes the other clauses"
    ),
    clause!(
        "health.says_what_it_looked_at",
        says_what,
        "each finding with its name and detail, and the server's version"
    ),
    clause!(
        "capabilities.are_constant",
        constant,
        "the same before and after an instance's life"
    ),
    clause!(
        "capabilities.off_answers_unsupported",
        off_answers_unsupported,
        "whatever is off and can be asked for"
    ),
    clause!(
        "capabilities.storage_growth",
        storage_growth,
        "on: the storage grows; off: Unsupported"
    ),
    clause!(
        "capabilities.storage_quota",
        storage_quota,
        "on: the size that is enforced is told"
    ),
    clause!(
        "capabilities.storage_usage",
        storage_usage,
        "on: what is in the data is told; off: nothing is claimed"
    ),
    clause!(
        "capabilities.adopt_directory",
        adopt_directory,
        "on: a directory is adopted, ready before the first start, and survives a purge; off: Unsupported"
    ),
    clause!(
        "capabilities.previous_logs",
        previous_logs,
        "on: asking is no Unsupported; off: it is"
    ),
    clause!(
        "capabilities.readiness",
        readiness,
        "on: a process that does not answer is not ready"
    ),
    clause!(
        "capabilities.out_of_memory_certain",
        memory_certain,
        "on: a kill for memory is certain; off: it is called inferred"
    ),
    clause!(
        "capabilities.tolerations",
        tolerations,
        "on: they are kept; off: Unsupported"
    ),
    clause!(
        "capabilities.priority_class",
        priority_class,
        "on: it is kept; off: Unsupported"
    ),
    clause!(
        "capabilities.route_change_without_restart",
        route_change,
        "on: the process goes on; off: the plan says that it is replaced"
    ),
    clause!(
        "capabilities.cached_get",
        cached_get,
        "on: get is answered from the cache in the end; off: live, always"
    ),
    clause!(
        "errors.name_operation_instance_and_backend",
        errors_say_where,
        "every error says what was attempted, on which instance, on which backend"
    ),
    clause!(
        "errors.show_no_secret",
        errors_show_no_secret,
        "no error shows a password or a value of the environment"
    ),
    clause!(
        "isolation.equal_short_ids",
        equal_short_ids,
        "two instances whose ids share eight digits are two: what is done to one leaves the other alone"
    ),
    clause!(
        "isolation.legacy_id_of_two_is_conflict",
        legacy_id_of_two,
        "eight digits that mean two instances operate neither"
    ),
    clause!(
        "isolation.similar_names",
        similar_names,
        "names of which one begins with the other are two"
    ),
];

async fn is_ready(ctx: &Ctx) -> Verdict {
    let health = ctx.orchestrator().health().await;
    ensure!(health.is_ready(), "expected a healthy platform, saw {health}");
    Ok(())
}

async fn says_what(ctx: &Ctx) -> Verdict {
    let health = ctx.orchestrator().health().await;
    same("the backend", &health.backend, &ctx.orchestrator().backend())?;
    ensure!(!health.checks.is_empty(), "expected at least one finding");
    for check in &health.checks {
        ensure!(!check.name.is_empty(), "expected a name, saw {check:?}");
        let told = check.state == HealthState::Ok || !check.detail.is_empty();
        ensure!(told, "expected a finding that is not well to say why, saw {check:?}");
    }
    ensure!(
        health.server_version.is_some(),
        "expected the server's version, saw {health}"
    );
    Ok(())
}

async fn constant(ctx: &Ctx) -> Verdict {
    let before = ctx.orchestrator().capabilities();
    let backend = ctx.orchestrator().backend();
    ctx.running().await?;
    same("the capabilities", &ctx.orchestrator().capabilities(), &before)?;
    same("the backend", &ctx.orchestrator().backend(), &backend)?;
    ensure!(
        !ctx.orchestrator().to_string().is_empty(),
        "expected the orchestrator to have a text for people"
    );
    Ok(())
}

fn on(ctx: &Ctx, capability: Capability) -> bool {
    ctx.orchestrator().capabilities().supports(capability)
}

async fn off_answers_unsupported(ctx: &Ctx) -> Verdict {
    let mut asked = Vec::new();
    for capability in Capability::ALL {
        if on(ctx, capability) {
            continue;
        }
        match cannot(ctx, capability).await {
            Err(Stop::Unsupported(_)) => asked.push(capability),
            Err(Stop::Skipped(_)) => {}
            Err(failed) => return Err(failed),
            Ok(()) => {
                return Err(Stop::failed(format!(
                    "asking for {capability:?} ended without an answer"
                )));
            }
        }
    }
    if asked.is_empty() {
        return Err(Stop::skipped("nothing that can be asked for is off"));
    }
    Ok(())
}

async fn storage_growth(ctx: &Ctx) -> Verdict {
    if !on(ctx, Capability::StorageGrowth) {
        return cannot(ctx, Capability::StorageGrowth).await;
    }
    let (spec, _) = ctx.stopped().await?;
    let larger = Bytes::new(spec.storage.get() * 2);
    let change = InstanceChange::new().storage(larger);
    let answer = ctx
        .orchestrator()
        .update(spec.id, &change, UpdateOptions::new())
        .await?;
    same("the outcome", &answer.outcome, &EnsureOutcome::Updated)?;
    same("the storage", &ctx.get(spec.id).await?.spec.storage, &larger)
}

async fn storage_quota(ctx: &Ctx) -> Verdict {
    if !on(ctx, Capability::StorageQuota) {
        return cannot(ctx, Capability::StorageQuota).await;
    }
    let (spec, _) = ctx.running().await?;
    ctx.until(spec.id, "the size that is enforced", ctx.budgets().settle, |instance| {
        instance.storage.capacity == Some(spec.storage)
    })
    .await?;
    Ok(())
}

async fn storage_usage(ctx: &Ctx) -> Verdict {
    let (spec, _) = ctx.running().await?;
    let content = "x".repeat(64 * 1024);
    let instance = ctx.get(spec.id).await?;
    ctx.subject().write_file(&instance, "ballast", &content).await?;
    if !on(ctx, Capability::StorageUsage) {
        ctx.settle().await;
        same(
            "the usage, which cannot be known",
            &ctx.get(spec.id).await?.storage.used,
            &None,
        )?;
        return Err(Stop::Unsupported(
            "StorageUsage is off, and no usage is told".to_owned(),
        ));
    }
    let budget = ctx.budgets().settle * 4;
    ctx.until(spec.id, "a usage of at least 64 KiB", budget, |instance| {
        instance.storage.used.is_some_and(|used| used >= Bytes::new(64 * 1024))
    })
    .await?;
    Ok(())
}

async fn adopt_directory(ctx: &Ctx) -> Verdict {
    if !on(ctx, Capability::AdoptDirectory) {
        return cannot(ctx, Capability::AdoptDirectory).await;
    }
    let path = ctx.directory().await?;
    let spec = ctx.spec();
    let options = CreateOptions::new().with_data(DataPolicy::AdoptDirectory(path.clone()));
    ctx.create_as(&spec, options.stopped(), EnsureOutcome::Adopted).await?;
    // A migration stops the source only then.
    let ready = |instance: &Instance| matches!(instance.storage.state, StorageState::Ready | StorageState::Growing);
    ctx.until(
        spec.id,
        "storage that is ready while it is stopped",
        ctx.budgets().start,
        ready,
    )
    .await?;
    ctx.orchestrator().start(spec.id).await?;
    ctx.until_running(spec.id).await?;
    let location = ctx.location(spec.id).await?;
    ctx.marked(&location, "adopt me").await?;
    // Not even with a token: this instance did not make it.
    let token = ctx.purge_plan(spec.id).await?.and_then(|plan| plan.purge_token);
    let options = token.map_or_else(DeleteOptions::retain, DeleteOptions::purge);
    ctx.orchestrator().delete(spec.id, options).await?;
    ctx.absent(spec.id).await?;
    let directory = ctx.subject().directory_location(&path).unwrap_or(location);
    ctx.marked(&directory, "adopt me").await?;
    // And what is not there cannot be adopted.
    let spec = ctx.spec();
    let options = CreateOptions::new().with_data(DataPolicy::AdoptDirectory("contract-none".parse()?));
    let answer = ctx.orchestrator().create(&spec, options).await;
    refused(
        "adopting a directory that is not there",
        answer,
        &[ErrorKind::StorageMissing, ErrorKind::NotFound, ErrorKind::InvalidInput],
    )?;
    ctx.nothing_of(spec.id).await
}

async fn previous_logs(ctx: &Ctx) -> Verdict {
    if !on(ctx, Capability::PreviousLogs) {
        return cannot(ctx, Capability::PreviousLogs).await;
    }
    let (spec, _) = ctx.running().await?;
    let first = ctx
        .orchestrator()
        .logs(spec.id, LogOptions::tail(1).previous())
        .next()
        .await;
    if let Some(Err(error)) = first {
        ensure!(
            error.kind() != ErrorKind::Unsupported,
            "expected what the capabilities promise to be supported, got {error}"
        );
    }
    Ok(())
}

async fn readiness(ctx: &Ctx) -> Verdict {
    if !on(ctx, Capability::Readiness) {
        return cannot(ctx, Capability::Readiness).await;
    }
    let spec = ctx.spec().with_env("UNREADY".parse()?, "1");
    ctx.create(&spec).await?;
    ctx.until(spec.id, "a process", ctx.budgets().start, |instance| {
        instance
            .facts
            .current()
            .is_some_and(|unit| unit.phase == saasodoo_core::UnitPhase::Running)
    })
    .await?;
    ctx.settle().await;
    let seen = ctx.get(spec.id).await?;
    ensure!(
        seen.facts.current().is_none_or(|unit| !unit.ready),
        "expected the unit not to be ready, saw {:?}",
        seen.facts.current()
    );
    Ok(())
}

async fn memory_certain(ctx: &Ctx) -> Verdict {
    let spec = ctx.spec();
    let mib = spec.resources.memory.get() / (1 << 20);
    let spec = spec.with_env("EAT_MB".parse()?, (mib * 4).to_string());
    ctx.create(&spec).await?;
    let seen = ctx
        .until(spec.id, "the cause out of memory", ctx.budgets().failure, |instance| {
            matches!(instance.cause, Some(Cause::OutOfMemory { .. }))
        })
        .await?;
    let Some(Cause::OutOfMemory { inferred, .. }) = seen.cause else {
        return Err(Stop::failed("the cause is gone"));
    };
    same(
        "whether it is inferred",
        &inferred,
        &!on(ctx, Capability::OutOfMemoryCertain),
    )
}

async fn kept_when_stopped(ctx: &Ctx, capability: Capability, spec: &InstanceSpec) -> Verdict {
    if !on(ctx, capability) {
        return cannot(ctx, capability).await;
    }
    ctx.create_as(spec, CreateOptions::new().stopped(), EnsureOutcome::Created)
        .await?;
    same_spec(spec, &ctx.get(spec.id).await?)
}

async fn tolerations(ctx: &Ctx) -> Verdict {
    let mut spec = ctx.spec();
    spec.scheduling.tolerations.insert("dedicated".parse()?);
    kept_when_stopped(ctx, Capability::Tolerations, &spec).await
}

async fn priority_class(ctx: &Ctx) -> Verdict {
    let mut spec = ctx.spec();
    spec.scheduling.priority_class = Some("tenants".parse()?);
    kept_when_stopped(ctx, Capability::PriorityClass, &spec).await
}

async fn route_change(ctx: &Ctx) -> Verdict {
    let (spec, before) = ctx.running().await?;
    let mut route = spec.route.clone();
    route.subdomain = Some(format!("moved-{}", spec.id.short()).parse()?);
    let change = InstanceChange::new().route(route);
    let operation = Operation::Update(spec.id, Box::new(change.clone()));
    let planned = ctx.orchestrator().plan(&operation).await?;
    let without_restart = on(ctx, Capability::RouteChangeWithoutRestart);
    same(
        "whether the plan says that the process is replaced",
        &planned.restarts,
        &!without_restart,
    )?;
    ctx.orchestrator()
        .update(spec.id, &change, UpdateOptions::new())
        .await?;
    if without_restart {
        ctx.settle().await;
        let after = ctx.get(spec.id).await?;
        same("the status", &after.status, &InstanceStatus::Running)?;
        same("the process", &process(&after), &process(&before))
    } else {
        ctx.until_running(spec.id).await?;
        Ok(())
    }
}

async fn cached_get(ctx: &Ctx) -> Verdict {
    let (spec, _) = ctx.stopped().await?;
    if on(ctx, Capability::CachedGet) {
        let _watch = ctx.orchestrator().watch(ctx.own()).next().await;
        ctx.until(
            spec.id,
            "an answer from the cache",
            ctx.budgets().settle * 2,
            |instance| instance.provenance.source == Source::Cache,
        )
        .await?;
        Ok(())
    } else {
        ctx.settle().await;
        same("the source", &ctx.get(spec.id).await?.provenance.source, &Source::Live)
    }
}

async fn errors_say_where(ctx: &Ctx) -> Verdict {
    let orchestrator = ctx.orchestrator();
    let id = ctx.spec().id;
    let (spec, _) = ctx.stopped().await?;
    let other = spec.clone().with_env("CONTRACT".parse()?, "other");
    let mut bad = ctx.spec();
    bad.storage = Bytes::ZERO;
    let log = orchestrator.logs(id, LogOptions::all()).next().await;
    let change = InstanceChange::new().memory(Bytes::from_gib(1));
    let errors = [
        (OperationKind::Get, id, orchestrator.get(id).await.err()),
        (
            OperationKind::Update,
            id,
            orchestrator.update(id, &change, UpdateOptions::new()).await.err(),
        ),
        (OperationKind::SetPower, id, orchestrator.start(id).await.err()),
        (OperationKind::Logs, id, log.and_then(Result::err)),
        (
            OperationKind::Plan,
            id,
            orchestrator.plan(&Operation::Update(id, Box::new(change))).await.err(),
        ),
        (
            OperationKind::SetPower,
            spec.id,
            orchestrator.restart(spec.id).await.err(),
        ),
        (
            OperationKind::Create,
            spec.id,
            orchestrator.create(&other, CreateOptions::new()).await.err(),
        ),
        (
            OperationKind::Create,
            bad.id,
            orchestrator.create(&bad, CreateOptions::new()).await.err(),
        ),
    ];
    for (operation, id, error) in errors {
        let error = error.ok_or_else(|| Stop::failed(format!("expected {operation} to fail")))?;
        same(
            &format!("the operation in: {error}"),
            &error.operation(),
            &Some(operation),
        )?;
        same(&format!("the instance in: {error}"), &error.instance(), &Some(id))?;
        ensure!(
            ctx.names_backend(error.backend()),
            "expected the error to name the backend {}, got {error}",
            orchestrator.backend()
        );
        ensure!(!error.message().is_empty(), "expected a message");
    }
    Ok(())
}

async fn errors_show_no_secret(ctx: &Ctx) -> Verdict {
    let secret = "s3ntinel-Passw0rd";
    let spec = ctx.spec().with_env("TOKEN".parse()?, secret);
    ctx.create_as(&spec, CreateOptions::new().stopped(), EnsureOutcome::Created)
        .await?;
    let mut other = spec.clone().with_env("TOKEN".parse()?, format!("other-{secret}"));
    if let Some(database) = &mut other.database {
        database.password = format!("db-{secret}").into();
    }
    let conflict = ctx.orchestrator().create(&other, CreateOptions::new()).await;
    let conflict = refused("create with another spec", conflict, &[ErrorKind::Conflict])?;
    let change = InstanceChange::new().set_env("TOKEN".parse()?, format!("next-{secret}"));
    let planned = ctx
        .orchestrator()
        .plan(&Operation::Update(spec.id, Box::new(change)))
        .await?;
    let mut bad = ctx.spec().with_env("ODOO_PASSWORD".parse()?, secret);
    bad.admin = spec.admin.clone();
    let refusal = ctx.orchestrator().create(&bad, CreateOptions::new()).await;
    let refusal = refused("a reserved variable", refusal, &[ErrorKind::InvalidInput])?;
    let text = format!("{conflict} {conflict:?} {refusal} {refusal:?} {planned} {planned:?}");
    ensure!(
        !text.contains(secret),
        "expected no secret value in errors and plans, found one"
    );
    Ok(())
}

/// Two specs whose ids differ and share the first eight digits.
fn twins(ctx: &Ctx) -> Result<(InstanceSpec, InstanceSpec), Stop> {
    let first = ctx.spec();
    let mut second = ctx.spec();
    let (one, other) = (first.id.to_string(), second.id.to_string());
    second.id = format!("{}{}", &one[..8], &other[8..]).parse()?;
    ctx.register(second.id);
    ensure!(
        first.id != second.id && first.id.short() == second.id.short(),
        "expected two ids with equal digits, made {} and {}",
        first.id,
        second.id
    );
    Ok((first, second))
}

async fn equal_short_ids(ctx: &Ctx) -> Verdict {
    let orchestrator = ctx.orchestrator();
    let (first, second) = twins(ctx)?;
    ctx.create(&first).await?;
    ctx.create(&second).await?;
    ctx.until_running(first.id).await?;
    let before = ctx.until_running(second.id).await?;
    same_spec(&first, &ctx.get(first.id).await?)?;
    same_spec(&second, &ctx.get(second.id).await?)?;
    let here = ctx.mark(first.id, "first").await?;
    let there = ctx.mark(second.id, "second").await?;
    ensure!(here != there, "expected two places for two instances, saw {here} twice");

    let change = InstanceChange::new().set_env("CONTRACT".parse()?, "first");
    orchestrator.update(first.id, &change, UpdateOptions::new()).await?;
    ctx.until_running(first.id).await?;
    orchestrator.stop(first.id).await?;
    ctx.until_status(first.id, InstanceStatus::Stopped).await?;
    let token = ctx.purge_token(first.id).await?;
    orchestrator.delete(first.id, DeleteOptions::purge(token)).await?;
    ctx.nothing_of(first.id).await?;

    ctx.settle().await;
    let after = ctx.get(second.id).await?;
    same_spec(&second, &after)?;
    same("the status of the other", &after.status, &InstanceStatus::Running)?;
    same("the process of the other", &process(&after), &process(&before))?;
    ctx.marked(&there, "second").await
}

async fn legacy_id_of_two(ctx: &Ctx) -> Verdict {
    let orchestrator = ctx.orchestrator();
    let (first, second) = twins(ctx)?;
    for spec in [&first, &second] {
        ctx.create_as(spec, CreateOptions::new().stopped(), EnsureOutcome::Created)
            .await?;
    }
    let legacy: InstanceId = first.id.short().to_string().parse()?;
    let conflict = [ErrorKind::Conflict];
    refused("get", orchestrator.get(legacy).await, &conflict)?;
    refused("start", orchestrator.start(legacy).await, &conflict)?;
    let change = InstanceChange::new().set_env("CONTRACT".parse()?, "both");
    refused(
        "update",
        orchestrator.update(legacy, &change, UpdateOptions::new()).await,
        &conflict,
    )?;
    refused(
        "delete",
        orchestrator.delete(legacy, DeleteOptions::retain()).await,
        &conflict,
    )?;
    refused("plan", orchestrator.plan(&Operation::Purge(legacy)).await, &conflict)?;
    for spec in [&first, &second] {
        let seen = ctx.get(spec.id).await?;
        same_spec(spec, &seen)?;
        same("the desired units", &seen.replicas.desired, &0)?;
    }
    Ok(())
}

async fn similar_names(ctx: &Ctx) -> Verdict {
    let mut first = ctx.spec();
    let mut second = ctx.spec();
    let name = format!("c{}", first.id.short());
    first.database_name = name.parse()?;
    second.database_name = format!("{name}-2").parse()?;
    let mut third = ctx.spec();
    third.database_name = format!("{name}_2x").parse()?;
    for spec in [&first, &second, &third] {
        ctx.create_as(spec, CreateOptions::new().stopped(), EnsureOutcome::Created)
            .await?;
    }
    ctx.orchestrator().delete(first.id, DeleteOptions::retain()).await?;
    for spec in [&second, &third] {
        same_spec(spec, &ctx.get(spec.id).await?)?;
    }
    ctx.absent(first.id).await
}
