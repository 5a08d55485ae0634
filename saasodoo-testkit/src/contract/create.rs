//! Clauses about `create`.

use futures::future::join_all;
use saasodoo_core::{
    CreateOptions, DataPolicy, DeleteOptions, EnsureOutcome, ErrorKind, Instance, InstanceChange, InstanceFilter,
    InstanceId, InstanceOrchestratorExt, InstanceSpec, InstanceStatus, OdooVersion, Operation, UpdateOptions,
};
use uuid::Uuid;

use super::clause::{clause, ensure};
use super::ctx::{process, refused, same, same_spec};
use super::{Clause, Ctx, Stop, Verdict};

pub(super) const CLAUSES: &[Clause] = &[
    clause!(
        "create.makes_an_instance",
        makes_an_instance,
        "the answer is Created, and get finds the instance with the spec that was given"
    ),
    clause!(
        "create.becomes_running",
        becomes_running,
        "an instance that was not created stopped runs by itself"
    ),
    clause!(
        "create.stopped_stays_stopped",
        stopped_stays_stopped,
        "created stopped, nothing of it runs until started"
    ),
    clause!(
        "create.second_with_equal_spec_is_unchanged",
        second_with_equal_spec,
        "nothing is written and the running process goes on"
    ),
    clause!(
        "create.second_with_other_spec_is_conflict",
        second_with_other_spec,
        "the error names the fields, and nothing is written"
    ),
    clause!(
        "create.token_is_of_the_first",
        token_is_of_the_first,
        "the token of the creation that made the instance is told, after a second creation and a change too"
    ),
    clause!(
        "create.taken_host_is_conflict",
        taken_host,
        "a host that another instance has is refused, and nothing stays behind"
    ),
    clause!(
        "create.over_retained_data_needs_adopt",
        over_retained_data,
        "data that a deleted instance left behind is a conflict and untouched"
    ),
    clause!(
        "create.adopts_retained_data",
        adopts_retained_data,
        "with AdoptRetained the answer is Adopted, on the same data"
    ),
    clause!(
        "create.adopt_without_data_is_refused",
        adopt_without_data,
        "with nothing to adopt, nothing is created"
    ),
    clause!(
        "create.rolls_back_exactly",
        rolls_back_exactly,
        "a failure leaves nothing of what this call made, and everything else as it was"
    ),
    clause!(
        "create.rolls_back_at_every_request",
        rolls_back_at_every_request,
        "whichever request of a creation fails, everything or nothing is there afterwards"
    )
    .exclusive(),
    clause!(
        "create.lost_responses_are_made_up_for",
        lost_responses,
        "whichever response of a creation is lost, repeating the call gives the instance"
    )
    .exclusive(),
    clause!(
        "create.bad_input_changes_nothing",
        bad_input_changes_nothing,
        "an invalid spec is refused before any request"
    )
    .exclusive(),
    clause!(
        "create.ten_at_once_all_run",
        ten_at_once,
        "ten instances created at the same moment all run"
    ),
    clause!(
        "create.concurrent_same_spec_makes_one",
        concurrent_same_spec,
        "five equal creations at the same moment make one instance, and none fails"
    ),
    clause!(
        "create.every_field_is_kept",
        every_field_is_kept,
        "a spec with all fields set is observed as it was given"
    ),
    clause!(
        "create.long_names_work",
        long_names,
        "a database name of 50 characters, upper case and underscores included, makes an instance"
    ),
    clause!(
        "create.after_delete_and_purge_is_new",
        after_purge,
        "the same id can be created again on new data when everything was purged"
    ),
];

async fn makes_an_instance(ctx: &Ctx) -> Verdict {
    let spec = ctx.spec();
    let answered = ctx.create(&spec).await?;
    same("the id in the answer", &answered.id, &spec.id)?;
    same_spec(&spec, &answered).map_err(|stop| stop.within("the answer"))?;
    let seen = ctx.get(spec.id).await?;
    same("the id", &seen.id, &spec.id)?;
    same("the name", &seen.name, &answered.name)?;
    same_spec(&spec, &seen)?;
    let hosts = spec.hosts(&ctx.subject().base_domain())?;
    same("the hosts", &seen.endpoints.hosts, &hosts)
}

async fn becomes_running(ctx: &Ctx) -> Verdict {
    let (_, seen) = ctx.running().await?;
    same("the replicas", &(seen.replicas.desired, seen.replicas.ready), &(1, 1))?;
    ensure!(
        seen.cause.is_none(),
        "expected no cause beside running, saw {:?}",
        seen.cause
    );
    Ok(())
}

async fn stopped_stays_stopped(ctx: &Ctx) -> Verdict {
    let (spec, seen) = ctx.stopped().await?;
    same_spec(&spec, &seen)?;
    ctx.settle().await;
    let later = ctx.get(spec.id).await?;
    same("the status", &later.status, &InstanceStatus::Stopped)?;
    ensure!(
        !later.facts.any_live(),
        "expected no live unit, saw {:?}",
        later.facts.units
    );
    ctx.orchestrator().start(spec.id).await?;
    ctx.until_running(spec.id).await?;
    Ok(())
}

async fn second_with_equal_spec(ctx: &Ctx) -> Verdict {
    let (spec, _) = ctx.running().await?;
    let location = ctx.mark(spec.id, "first").await?;
    let before = ctx.get(spec.id).await?;
    let again = ctx
        .create_as(&spec, CreateOptions::new(), EnsureOutcome::Unchanged)
        .await?;
    same("the id", &again.id, &spec.id)?;
    ctx.settle().await;
    let after = ctx.get(spec.id).await?;
    same("the process", &process(&after), &process(&before))?;
    same("the status", &after.status, &InstanceStatus::Running)?;
    ctx.marked(&location, "first").await
}

async fn token_is_of_the_first(ctx: &Ctx) -> Verdict {
    let (first, second) = (Uuid::new_v4(), Uuid::new_v4());
    let spec = ctx.spec();
    let stopped = |token| CreateOptions::new().with_token(token).stopped();
    let answered = ctx.create_as(&spec, stopped(first), EnsureOutcome::Created).await?;
    same("the token in the answer", &answered.provenance.token, &Some(first))?;
    let again = ctx.create_as(&spec, stopped(second), EnsureOutcome::Unchanged).await?;
    same("the token in the second answer", &again.provenance.token, &Some(first))?;
    let change = InstanceChange::new().set_env("CONTRACT".parse()?, "changed");
    ctx.orchestrator()
        .update(spec.id, &change, UpdateOptions::new())
        .await?;
    same("the token", &ctx.get(spec.id).await?.provenance.token, &Some(first))?;
    // It is of the creation, and not of the data.
    ctx.orchestrator().delete(spec.id, DeleteOptions::retain()).await?;
    ctx.absent(spec.id).await?;
    let options = CreateOptions::new().with_data(DataPolicy::AdoptRetained).stopped();
    let adopted = ctx.create_as(&spec, options, EnsureOutcome::Adopted).await?;
    same("the token of a creation without one", &adopted.provenance.token, &None)
}

async fn second_with_other_spec(ctx: &Ctx) -> Verdict {
    let (spec, _) = ctx.running().await?;
    let location = ctx.mark(spec.id, "first").await?;
    let before = ctx.get(spec.id).await?;
    let other = spec
        .clone()
        .with_image(ctx.subject().other_image())
        .with_env("CONTRACT".parse()?, "other");
    let answer = ctx.orchestrator().create(&other, CreateOptions::new()).await;
    let error = refused("create with another spec", answer, &[ErrorKind::Conflict])?;
    for field in ["image", "environment.CONTRACT"] {
        ensure!(
            error.conflicts().iter().any(|conflict| conflict.contains(field)),
            "expected the conflict to name {field}, got {:?}",
            error.conflicts()
        );
    }
    ctx.settle().await;
    let after = ctx.get(spec.id).await?;
    same_spec(&spec, &after)?;
    same("the process", &process(&after), &process(&before))?;
    ctx.marked(&location, "first").await
}

async fn taken_host(ctx: &Ctx) -> Verdict {
    let (first, before) = ctx.resting().await?;
    let host = first
        .hosts(&ctx.subject().base_domain())?
        .into_iter()
        .next()
        .ok_or_else(|| Stop::failed("a spec without a host"))?;
    let label = host.as_str().split('.').next().unwrap_or_default();
    let second = ctx.spec().with_subdomain(label.parse()?);
    let answer = ctx.orchestrator().create(&second, CreateOptions::new()).await;
    let error = refused("create with a taken host", answer, &[ErrorKind::Conflict])?;
    ensure!(
        error.to_string().contains(host.as_str()),
        "expected the error to name the host {host}, got {error}"
    );
    ctx.nothing_of(second.id).await?;
    let after = ctx.get(first.id).await?;
    same(
        "the other instance's revision",
        &after.provenance.revision,
        &before.provenance.revision,
    )
}

/// An instance that was deleted and left data behind, with the file of [`Ctx::mark`] in it.
async fn retained(ctx: &Ctx) -> Result<(InstanceSpec, saasodoo_core::StorageLocation), Stop> {
    let (spec, _) = ctx.running().await?;
    let location = ctx.mark(spec.id, "precious").await?;
    ctx.orchestrator().delete(spec.id, DeleteOptions::retain()).await?;
    ctx.marked(&location, "precious").await?;
    Ok((spec, location))
}

async fn over_retained_data(ctx: &Ctx) -> Verdict {
    let (spec, location) = retained(ctx).await?;
    let answer = ctx.orchestrator().create(&spec, CreateOptions::new()).await;
    refused("create over retained data", answer, &[ErrorKind::Conflict])?;
    ctx.absent(spec.id).await?;
    ctx.marked(&location, "precious").await
}

async fn adopts_retained_data(ctx: &Ctx) -> Verdict {
    let (spec, _) = retained(ctx).await?;
    let options = CreateOptions::new().with_data(DataPolicy::AdoptRetained);
    ctx.create_as(&spec, options, EnsureOutcome::Adopted).await?;
    ctx.until_running(spec.id).await?;
    let location = ctx.location(spec.id).await?;
    ctx.marked(&location, "precious").await
}

async fn adopt_without_data(ctx: &Ctx) -> Verdict {
    let spec = ctx.spec();
    let options = CreateOptions::new().with_data(DataPolicy::AdoptRetained);
    let answer = ctx.orchestrator().create(&spec, options).await;
    refused(
        "adopting what is not there",
        answer,
        &[ErrorKind::StorageMissing, ErrorKind::Conflict, ErrorKind::NotFound],
    )?;
    ctx.nothing_of(spec.id).await
}

async fn rolls_back_exactly(ctx: &Ctx) -> Verdict {
    // Three failures that every platform has: a conflict over data, a conflict over a host, nothing to adopt.
    let (spec, location) = retained(ctx).await?;
    let (neighbour, before) = ctx.running().await?;
    let answer = ctx.orchestrator().create(&spec, CreateOptions::new()).await;
    refused("create over retained data", answer, &[ErrorKind::Conflict])?;
    ctx.marked(&location, "precious").await?;

    let mut greedy = ctx.spec();
    greedy.route = neighbour.route.clone();
    greedy.database_name = neighbour.database_name.clone();
    let answer = ctx.orchestrator().create(&greedy, CreateOptions::new()).await;
    refused("create with the hosts of a neighbour", answer, &[ErrorKind::Conflict])?;
    ctx.nothing_of(greedy.id).await?;

    let empty = ctx.spec();
    let options = CreateOptions::new().with_data(DataPolicy::AdoptRetained);
    let answer = ctx.orchestrator().create(&empty, options).await;
    ensure!(answer.is_err(), "expected adopting nothing to fail, got {answer:?}");
    ctx.nothing_of(empty.id).await?;

    ctx.settle().await;
    let after = ctx.get(neighbour.id).await?;
    same_spec(&neighbour, &after)?;
    same("the neighbour's process", &process(&after), &process(&before))?;
    // What failed can be done right afterwards.
    let options = CreateOptions::new().with_data(DataPolicy::AdoptRetained);
    ctx.create_as(&spec, options, EnsureOutcome::Adopted).await?;
    ctx.marked(&location, "precious").await
}

async fn rolls_back_at_every_request(ctx: &Ctx) -> Verdict {
    let (neighbour, before) = ctx.resting().await?;
    for n in 1..=40 {
        let spec = ctx.spec();
        let Some(guard) = ctx.subject().fail_nth_request(n) else {
            return Err(Stop::skipped("the subject cannot make a request fail"));
        };
        let answer = ctx.orchestrator().create(&spec, CreateOptions::new().stopped()).await;
        let hit = guard.hit();
        drop(guard);
        let when = format!("when request {n} of a creation fails");
        match answer {
            Ok(_) => {
                let seen = ctx.get(spec.id).await.map_err(|stop| stop.within(&when))?;
                same_spec(&spec, &seen).map_err(|stop| stop.within(&when))?;
            }
            Err(error) => {
                ensure!(hit, "{when}: it failed without the fault: {error}");
                ctx.settle().await;
                ctx.nothing_of(spec.id).await.map_err(|stop| stop.within(&when))?;
                ctx.create_as(&spec, CreateOptions::new().stopped(), EnsureOutcome::Created)
                    .await
                    .map_err(|stop| stop.within(format!("{when}, the second call")))?;
            }
        }
        let after = ctx.get(neighbour.id).await?;
        same(
            "the neighbour's revision",
            &after.provenance.revision,
            &before.provenance.revision,
        )?;
        if !hit {
            ensure!(n > 1, "expected a creation to make at least one request");
            return Ok(());
        }
    }
    Err(Stop::failed("expected a creation to take fewer than 40 requests"))
}

async fn lost_responses(ctx: &Ctx) -> Verdict {
    for n in 1..=40 {
        let spec = ctx.spec();
        let Some(guard) = ctx.subject().lose_nth_response(n) else {
            return Err(Stop::skipped("the subject cannot lose a response"));
        };
        let answer = ctx.orchestrator().create(&spec, CreateOptions::new().stopped()).await;
        let hit = guard.hit();
        drop(guard);
        let when = format!("when response {n} of a creation is lost");
        if let Err(error) = answer {
            ensure!(hit, "{when}: it failed without the fault: {error}");
            let again = ctx.orchestrator().create(&spec, CreateOptions::new().stopped()).await;
            again.map_err(|error| Stop::failed(format!("{when}, the second call: {error}")))?;
        }
        let seen = ctx.get(spec.id).await.map_err(|stop| stop.within(&when))?;
        same_spec(&spec, &seen).map_err(|stop| stop.within(&when))?;
        let listed = ctx.orchestrator().list_all(InstanceFilter::id(spec.id)).await?;
        same("the number of instances with the id", &listed.len(), &1)?;
        if !hit {
            ensure!(n > 1, "expected a creation to make at least one request");
            return Ok(());
        }
    }
    Err(Stop::failed("expected a creation to take fewer than 40 requests"))
}

async fn bad_input_changes_nothing(ctx: &Ctx) -> Verdict {
    let mut spec = ctx.spec();
    spec.display_name = "two\nlines".to_owned();
    let requests = ctx.subject().count_requests();
    let answer = ctx.orchestrator().create(&spec, CreateOptions::new()).await;
    let error = refused("create with a bad name", answer, &[ErrorKind::InvalidInput])?;
    same("the field of the error", &error.field(), &Some("display_name"))?;
    same(
        "the requests that were made",
        &ctx.subject().count_requests(),
        &requests,
    )?;
    ctx.nothing_of(spec.id).await
}

async fn ten_at_once(ctx: &Ctx) -> Verdict {
    let specs: Vec<InstanceSpec> = (0..10).map(|_| ctx.spec()).collect();
    let created = join_all(specs.iter().map(|spec| ctx.create(spec))).await;
    created.into_iter().collect::<Result<Vec<_>, Stop>>()?;
    let budget = ctx.budgets().start * 2;
    let runs = |instance: &Instance| instance.status == InstanceStatus::Running;
    let running = join_all(specs.iter().map(|spec| ctx.until(spec.id, "running", budget, runs))).await;
    running.into_iter().collect::<Result<Vec<_>, Stop>>()?;
    Ok(())
}

async fn concurrent_same_spec(ctx: &Ctx) -> Verdict {
    let spec = ctx.spec();
    let orchestrator = ctx.orchestrator();
    let answers = join_all((0..5).map(|_| orchestrator.create(&spec, CreateOptions::new()))).await;
    let mut created = 0;
    for answer in answers {
        match answer {
            Ok(ensured) if ensured.outcome == EnsureOutcome::Unchanged => {}
            Ok(ensured) if ensured.outcome == EnsureOutcome::Created => created += 1,
            other => return Err(Stop::failed(format!("expected Created or Unchanged, got {other:?}"))),
        }
    }
    ensure!(created >= 1, "expected one of five creations to answer Created");
    ctx.until_running(spec.id).await?;
    ctx.settle().await;
    let seen = ctx.get(spec.id).await?;
    same_spec(&spec, &seen)?;
    let wanted = seen.facts.units.iter().filter(|unit| unit.wanted).count();
    same("the units that shall run", &wanted, &1)?;
    let listed = orchestrator.list_all(InstanceFilter::id(spec.id)).await?;
    same("the number of instances with the id", &listed.len(), &1)
}

async fn every_field_is_kept(ctx: &Ctx) -> Verdict {
    let mut spec = ctx
        .spec()
        .with_display_name("Grün & Söhne \"Ltd\"")
        .with_env("WORKERS".parse()?, "2")
        .with_env("GREETING".parse()?, "a=b, \"c\" $d $(HOME) {{.Node.ID}}")
        .with_label("team".parse()?, "blue".parse()?)
        .with_custom_domain(format!("{}.tenant.example", &InstanceId::random().to_string()[..13]).parse()?);
    spec.odoo_version = Some(OdooVersion::new(16));
    spec.demo_data = true;
    spec.resources.cpu_request = Some(spec.resources.cpu);
    spec.resources.memory_request = Some(spec.resources.memory);
    spec.probes.period_seconds = 2;
    spec.probes.startup_seconds = 240;
    spec.probes.liveness = false;
    spec.addons.custom.insert("contract_addon".to_owned());
    spec.addons.disabled.insert("website_sale".to_owned());
    spec.scheduling.stop_grace_seconds = 7;
    ctx.create_as(&spec, CreateOptions::new().stopped(), EnsureOutcome::Created)
        .await?;
    let seen = ctx.get(spec.id).await?;
    same_spec(&spec, &seen)
}

async fn long_names(ctx: &Ctx) -> Verdict {
    let mut spec = ctx.spec();
    let unique = spec.id.short().to_string().to_uppercase();
    spec.database_name = format!("{unique}_{}", "Ab_9".repeat(11))
        .get(..50)
        .unwrap_or_default()
        .parse()?;
    ctx.create_as(&spec, CreateOptions::new().stopped(), EnsureOutcome::Created)
        .await?;
    let seen = ctx.get(spec.id).await?;
    same_spec(&spec, &seen)?;
    ensure!(
        seen.name.as_str().len() <= 63,
        "expected at most 63 characters, saw {}",
        seen.name
    );
    Ok(())
}

async fn after_purge(ctx: &Ctx) -> Verdict {
    let (spec, _) = ctx.running().await?;
    ctx.mark(spec.id, "first life").await?;
    let token = ctx.purge_token(spec.id).await?;
    ctx.orchestrator().delete(spec.id, DeleteOptions::purge(token)).await?;
    ctx.create(&spec).await?;
    ctx.until_running(spec.id).await?;
    let location = ctx.location(spec.id).await?;
    same("the file of the first life", &ctx.marker(&location).await?, &None)?;
    let plan = ctx
        .orchestrator()
        .plan(&Operation::Create(Box::new(spec), CreateOptions::new()))
        .await?;
    ensure!(plan.is_empty(), "expected an empty plan, saw {plan}");
    Ok(())
}
