//! Clauses about `update`.

use futures::future::join;
use saasodoo_core::{
    Bytes, Capability, Cpu, CreateOptions, EnsureOutcome, ErrorKind, Instance, InstanceChange, InstanceId,
    InstanceOrchestratorExt, InstanceSpec, InstanceStatus, OdooVersion, UpdateOptions,
};

use super::clause::{clause, ensure};
use super::ctx::{process, refused, same, same_spec};
use super::{Clause, Ctx, Stop, Verdict};

pub(super) const CLAUSES: &[Clause] = &[
    clause!(
        "update.applies_and_is_observed",
        applies_and_is_observed,
        "the answer is Updated, get shows the new values, and the instance runs again on the same data"
    ),
    clause!(
        "update.same_values_are_unchanged",
        same_values,
        "nothing is written and the process goes on"
    ),
    clause!(
        "update.empty_change_is_unchanged",
        empty_change,
        "a change of nothing writes nothing"
    ),
    clause!(
        "update.while_stopped_stays_stopped",
        while_stopped,
        "the change is kept for the next start"
    ),
    clause!(
        "update.while_suspended_stays_paused",
        while_suspended,
        "a change does not end a hold"
    ),
    clause!(
        "update.storage_grows",
        storage_grows,
        "to a larger size; a smaller one is refused and nothing is written"
    )
    .requires(&[Capability::StorageGrowth]),
    clause!(
        "update.storage_never_shrinks",
        storage_never_shrinks,
        "a smaller size is refused on every backend"
    ),
    clause!(
        "update.absent_is_not_found",
        absent,
        "an instance that is not there is not made"
    ),
    clause!(
        "update.stale_revision_is_conflict",
        stale_revision,
        "with if_revision, and nothing is written"
    ),
    clause!(
        "update.image_and_version",
        image_and_version,
        "the version follows the new image's tag, and it runs"
    ),
    clause!(
        "update.version_alone",
        version_alone,
        "the version can be told apart from the tag"
    ),
    clause!(
        "update.env_set_and_unset",
        env_set_and_unset,
        "variables are set, replaced and removed; others stay"
    ),
    clause!(
        "update.memory_and_cpu",
        memory_and_cpu,
        "both limits change, up and down"
    ),
    clause!(
        "update.requests_follow_limits_down",
        requests_follow,
        "a request above the new limit follows it"
    ),
    clause!(
        "update.route",
        route,
        "the hosts change in the spec and in the endpoints"
    ),
    clause!(
        "update.taken_host_is_conflict",
        taken_host,
        "a host that another instance has is refused, and nothing is written"
    ),
    clause!("update.probes", probes, "the probes change"),
    clause!("update.addons", addons, "the metadata about addons changes"),
    clause!(
        "update.each_field_leaves_the_others",
        each_field,
        "every change changes exactly what it says"
    ),
    clause!(
        "update.replaces_the_process",
        replaces_the_process,
        "a new limit is in force: another process runs"
    ),
    clause!(
        "update.concurrent_changes_all_apply",
        concurrent,
        "two changes of different fields at the same moment are both there afterwards"
    ),
    clause!(
        "update.does_not_touch_others",
        others,
        "another instance of the same customer goes on"
    ),
];

async fn update(ctx: &Ctx, id: InstanceId, change: &InstanceChange, outcome: EnsureOutcome) -> Result<Instance, Stop> {
    let ensured = ctx
        .orchestrator()
        .update(id, change, UpdateOptions::new())
        .await
        .map_err(|error| Stop::from(error).within("update"))?;
    same("the outcome of the update", &ensured.outcome, &outcome)?;
    Ok(ensured.instance)
}

/// Updates an instance; the answer and `get` must show exactly the spec after the change.
async fn updated(ctx: &Ctx, spec: &InstanceSpec, change: &InstanceChange) -> Result<InstanceSpec, Stop> {
    let expected = change.apply_to(spec)?;
    let answered = update(ctx, spec.id, change, EnsureOutcome::Updated).await?;
    same_spec(&expected, &answered).map_err(|stop| stop.within("the answer of the update"))?;
    same_spec(&expected, &ctx.get(spec.id).await?).map_err(|stop| stop.within("get after the update"))?;
    Ok(expected)
}

async fn applies_and_is_observed(ctx: &Ctx) -> Verdict {
    let (spec, _) = ctx.running().await?;
    let location = ctx.mark(spec.id, "kept").await?;
    let change = InstanceChange::new()
        .memory(Bytes::new(spec.resources.memory.get() * 2))
        .set_env("CONTRACT".parse()?, "changed");
    let expected = updated(ctx, &spec, &change).await?;
    let seen = ctx.until_running(spec.id).await?;
    same_spec(&expected, &seen)?;
    same("where the data is", &ctx.location(spec.id).await?, &location)?;
    ctx.marked(&location, "kept").await
}

async fn same_values(ctx: &Ctx) -> Verdict {
    let (spec, before) = ctx.running().await?;
    let change = InstanceChange::new()
        .image(spec.image.clone())
        .cpu(spec.resources.cpu)
        .memory(spec.resources.memory)
        .storage(spec.storage)
        .route(spec.route.clone())
        .probes(spec.probes.clone())
        .addons(spec.addons.clone())
        .unset_env("CONTRACT_NEVER_SET".parse()?);
    update(ctx, spec.id, &change, EnsureOutcome::Unchanged).await?;
    ctx.settle().await;
    let after = ctx.get(spec.id).await?;
    same_spec(&spec, &after)?;
    same("the status", &after.status, &InstanceStatus::Running)?;
    same("the process", &process(&after), &process(&before))
}

async fn empty_change(ctx: &Ctx) -> Verdict {
    let (spec, before) = ctx.resting().await?;
    update(ctx, spec.id, &InstanceChange::new(), EnsureOutcome::Unchanged).await?;
    let after = ctx.get(spec.id).await?;
    same("the revision", &after.provenance.revision, &before.provenance.revision)?;
    same_spec(&spec, &after)
}

async fn while_stopped(ctx: &Ctx) -> Verdict {
    let (spec, _) = ctx.stopped().await?;
    let change = InstanceChange::new()
        .image(ctx.subject().other_image())
        .set_env("CONTRACT".parse()?, "next start");
    let expected = updated(ctx, &spec, &change).await?;
    ctx.settle().await;
    let seen = ctx.get(spec.id).await?;
    same("the status", &seen.status, &InstanceStatus::Stopped)?;
    ensure!(
        !seen.facts.any_live(),
        "expected nothing to run, saw {:?}",
        seen.facts.units
    );
    ctx.orchestrator().start(spec.id).await?;
    same_spec(&expected, &ctx.until_running(spec.id).await?)
}

async fn while_suspended(ctx: &Ctx) -> Verdict {
    let (spec, _) = ctx.stopped().await?;
    ctx.orchestrator().suspend(spec.id).await?;
    ctx.until_status(spec.id, InstanceStatus::Paused).await?;
    let change = InstanceChange::new().set_env("CONTRACT".parse()?, "held");
    updated(ctx, &spec, &change).await?;
    ctx.settle().await;
    same("the status", &ctx.get(spec.id).await?.status, &InstanceStatus::Paused)?;
    let answer = ctx.orchestrator().start(spec.id).await;
    refused("start of a suspended instance", answer, &[ErrorKind::NotAllowed])?;
    Ok(())
}

async fn storage_grows(ctx: &Ctx) -> Verdict {
    let (spec, _) = ctx.running().await?;
    let location = ctx.mark(spec.id, "kept").await?;
    let larger = Bytes::new(spec.storage.get() * 2);
    let grown = updated(ctx, &spec, &InstanceChange::new().storage(larger)).await?;
    same(
        "the size asked for",
        &ctx.get(spec.id).await?.storage.requested,
        &Some(larger),
    )?;
    let answer = ctx
        .orchestrator()
        .update(
            spec.id,
            &InstanceChange::new().storage(spec.storage),
            UpdateOptions::new(),
        )
        .await;
    let error = refused("shrinking the storage", answer, &[ErrorKind::InvalidInput])?;
    same("the field of the error", &error.field(), &Some("storage"))?;
    same_spec(&grown, &ctx.get(spec.id).await?)?;
    ctx.until_running(spec.id).await?;
    ctx.marked(&location, "kept").await
}

async fn storage_never_shrinks(ctx: &Ctx) -> Verdict {
    let (spec, before) = ctx.resting().await?;
    let smaller = Bytes::new(spec.storage.get() / 2);
    let answer = ctx
        .orchestrator()
        .update(spec.id, &InstanceChange::new().storage(smaller), UpdateOptions::new())
        .await;
    let error = refused("shrinking the storage", answer, &[ErrorKind::InvalidInput])?;
    same("the field of the error", &error.field(), &Some("storage"))?;
    let after = ctx.get(spec.id).await?;
    same_spec(&spec, &after)?;
    same("the revision", &after.provenance.revision, &before.provenance.revision)
}

async fn absent(ctx: &Ctx) -> Verdict {
    let spec = ctx.spec();
    let change = InstanceChange::new().memory(Bytes::from_gib(1));
    let answer = ctx.orchestrator().update(spec.id, &change, UpdateOptions::new()).await;
    refused("update of an absent instance", answer, &[ErrorKind::NotFound])?;
    ctx.nothing_of(spec.id).await
}

async fn stale_revision(ctx: &Ctx) -> Verdict {
    let (spec, before) = ctx.resting().await?;
    let stale = before.provenance.revision;
    let expected = updated(ctx, &spec, &InstanceChange::new().set_env("CONTRACT".parse()?, "1")).await?;
    let change = InstanceChange::new().set_env("CONTRACT".parse()?, "2");
    let answer = ctx
        .orchestrator()
        .update(spec.id, &change, UpdateOptions::new().if_revision(stale))
        .await;
    refused("update with a stale revision", answer, &[ErrorKind::Conflict])?;
    same_spec(&expected, &ctx.get(spec.id).await?)?;
    // The platform may write to a new object for a moment: the present revision is read again then.
    for _ in 0..5 {
        let current = ctx.get(spec.id).await?.provenance.revision;
        let options = UpdateOptions::new().if_revision(current);
        match ctx.orchestrator().update(spec.id, &change, options).await {
            Ok(_) => return same_spec(&change.apply_to(&spec)?, &ctx.get(spec.id).await?),
            Err(error) if error.kind() == ErrorKind::Conflict => ctx.settle().await,
            Err(error) => return Err(error.into()),
        }
    }
    Err(Stop::failed(
        "expected an update with the present revision to succeed, got Conflict five times",
    ))
}

async fn image_and_version(ctx: &Ctx) -> Verdict {
    let (spec, _) = ctx.running().await?;
    let other = ctx.subject().other_image();
    let expected = updated(ctx, &spec, &InstanceChange::new().image(other.clone())).await?;
    let seen = ctx.until_running(spec.id).await?;
    same("the image", &seen.spec.image, &other)?;
    same(
        "the version",
        &seen.spec.effective_version(),
        &expected.effective_version(),
    )?;
    ensure!(
        seen.spec.effective_version() != spec.effective_version(),
        "expected another version than {:?}",
        spec.effective_version()
    );
    Ok(())
}

async fn version_alone(ctx: &Ctx) -> Verdict {
    let (spec, _) = ctx.stopped().await?;
    let version = OdooVersion::new(16);
    updated(ctx, &spec, &InstanceChange::new().odoo_version(version)).await?;
    let seen = ctx.get(spec.id).await?;
    same("the version", &seen.spec.effective_version(), &Some(version))
}

async fn env_set_and_unset(ctx: &Ctx) -> Verdict {
    let spec = ctx
        .spec()
        .with_env("STAYS".parse()?, "a")
        .with_env("CHANGES".parse()?, "b")
        .with_env("GOES".parse()?, "c");
    ctx.create_as(&spec, CreateOptions::new().stopped(), EnsureOutcome::Created)
        .await?;
    let change = InstanceChange::new()
        .set_env("CHANGES".parse()?, "B")
        .set_env("COMES".parse()?, "")
        .unset_env("GOES".parse()?);
    updated(ctx, &spec, &change).await?;
    let seen = ctx.get(spec.id).await?.spec.environment;
    let value = |name: &str| {
        let found = seen.iter().find(|(key, _)| key.as_str() == name);
        found.map(|(_, value)| value.as_str())
    };
    same("the variable that stays", &value("STAYS"), &Some("a"))?;
    same("the variable that changes", &value("CHANGES"), &Some("B"))?;
    same("the variable that comes, empty", &value("COMES"), &Some(""))?;
    same("the variable that goes", &value("GOES"), &None)
}

async fn memory_and_cpu(ctx: &Ctx) -> Verdict {
    let (spec, _) = ctx.stopped().await?;
    let more = InstanceChange::new()
        .memory(Bytes::new(spec.resources.memory.get() * 3))
        .cpu(Cpu::from_millis(spec.resources.cpu.millis() * 3));
    let more = updated(ctx, &spec, &more).await?;
    let less = InstanceChange::new()
        .memory(spec.resources.memory)
        .cpu(spec.resources.cpu);
    updated(ctx, &more, &less).await?;
    Ok(())
}

async fn requests_follow(ctx: &Ctx) -> Verdict {
    let mut spec = ctx.spec();
    let limit = spec.resources.memory;
    spec.resources.memory = Bytes::new(limit.get() * 2);
    spec.resources.memory_request = Some(spec.resources.memory);
    ctx.create_as(&spec, CreateOptions::new().stopped(), EnsureOutcome::Created)
        .await?;
    let after = updated(ctx, &spec, &InstanceChange::new().memory(limit)).await?;
    same("the request", &after.resources.memory_request, &Some(limit))
}

async fn route(ctx: &Ctx) -> Verdict {
    let (spec, _) = ctx.running().await?;
    let mut route = spec.route.clone();
    route.subdomain = Some(format!("moved-{}", spec.id.short()).parse()?);
    route
        .custom_domains
        .insert(format!("{}.tenant.example", spec.id.short()).parse()?);
    let expected = updated(ctx, &spec, &InstanceChange::new().route(route)).await?;
    let hosts = expected.hosts(&ctx.subject().base_domain())?;
    let seen = ctx.until_running(spec.id).await?;
    same("the hosts", &seen.endpoints.hosts, &hosts)?;
    // And back, which takes the custom host away again.
    updated(ctx, &expected, &InstanceChange::new().route(spec.route.clone())).await?;
    let seen = ctx.until_running(spec.id).await?;
    same(
        "the hosts",
        &seen.endpoints.hosts,
        &spec.hosts(&ctx.subject().base_domain())?,
    )
}

async fn taken_host(ctx: &Ctx) -> Verdict {
    let (first, _) = ctx.stopped().await?;
    let (second, before) = ctx.resting().await?;
    let host = &first.hosts(&ctx.subject().base_domain())?[0];
    let mut route = second.route.clone();
    route.subdomain = Some(host.as_str().split('.').next().unwrap_or_default().parse()?);
    let answer = ctx
        .orchestrator()
        .update(second.id, &InstanceChange::new().route(route), UpdateOptions::new())
        .await;
    refused("update to a taken host", answer, &[ErrorKind::Conflict])?;
    let after = ctx.get(second.id).await?;
    same_spec(&second, &after)?;
    same("the revision", &after.provenance.revision, &before.provenance.revision)
}

async fn probes(ctx: &Ctx) -> Verdict {
    let (spec, _) = ctx.stopped().await?;
    let mut probes = spec.probes.clone();
    probes.path = "/web/login".parse()?;
    probes.period_seconds += 1;
    probes.startup_seconds += 60;
    probes.liveness = !probes.liveness;
    updated(ctx, &spec, &InstanceChange::new().probes(probes)).await?;
    Ok(())
}

async fn addons(ctx: &Ctx) -> Verdict {
    let (spec, _) = ctx.stopped().await?;
    let mut addons = spec.addons.clone();
    addons.custom.extend(["b_addon".to_owned(), "a_addon".to_owned()]);
    addons.disabled.insert("point_of_sale".to_owned());
    let with = updated(ctx, &spec, &InstanceChange::new().addons(addons)).await?;
    updated(ctx, &with, &InstanceChange::new().addons(spec.addons.clone())).await?;
    Ok(())
}

async fn each_field(ctx: &Ctx) -> Verdict {
    let (mut spec, _) = ctx.stopped().await?;
    let mut probes = spec.probes.clone();
    probes.startup_seconds += 30;
    let mut addons = spec.addons.clone();
    addons.custom.insert("each".to_owned());
    let mut route = spec.route.clone();
    route.subdomain = Some(format!("each-{}", spec.id.short()).parse()?);
    let changes = [
        InstanceChange::new().cpu(Cpu::from_millis(spec.resources.cpu.millis() + 50)),
        InstanceChange::new().memory(Bytes::new(spec.resources.memory.get() + Bytes::from_mib(16).get())),
        InstanceChange::new().set_env("EACH".parse()?, "1"),
        InstanceChange::new().probes(probes),
        InstanceChange::new().addons(addons),
        InstanceChange::new().route(route),
        InstanceChange::new().image(ctx.subject().other_image()),
        InstanceChange::new().odoo_version(OdooVersion::new(15)),
        InstanceChange::new().unset_env("EACH".parse()?),
    ];
    for change in changes {
        spec = updated(ctx, &spec, &change)
            .await
            .map_err(|stop| stop.within(format!("{change:?}")))?;
    }
    same("the status", &ctx.get(spec.id).await?.status, &InstanceStatus::Stopped)
}

async fn replaces_the_process(ctx: &Ctx) -> Verdict {
    let (spec, before) = ctx.running().await?;
    let change = InstanceChange::new().set_env("CONTRACT".parse()?, "new process");
    updated(ctx, &spec, &change).await?;
    let old = process(&before);
    ctx.until(spec.id, "another process to run", ctx.budgets().start, |instance| {
        instance.status == InstanceStatus::Running && process(instance) != old
    })
    .await?;
    Ok(())
}

async fn concurrent(ctx: &Ctx) -> Verdict {
    let (spec, _) = ctx.stopped().await?;
    let memory = InstanceChange::new().memory(Bytes::new(spec.resources.memory.get() * 2));
    let environment = InstanceChange::new().set_env("CONTRACT".parse()?, "both");
    let orchestrator = ctx.orchestrator();
    let (a, b) = join(
        orchestrator.update(spec.id, &memory, UpdateOptions::new()),
        orchestrator.update(spec.id, &environment, UpdateOptions::new()),
    )
    .await;
    a.map_err(|error| Stop::from(error).within("one of two updates"))?;
    b.map_err(|error| Stop::from(error).within("one of two updates"))?;
    let expected = environment.apply_to(&memory.apply_to(&spec)?)?;
    same_spec(&expected, &ctx.get(spec.id).await?)
}

async fn others(ctx: &Ctx) -> Verdict {
    let (neighbour, before) = ctx.running().await?;
    let (spec, _) = ctx.running().await?;
    let change = InstanceChange::new()
        .image(ctx.subject().other_image())
        .memory(Bytes::new(spec.resources.memory.get() * 2));
    updated(ctx, &spec, &change).await?;
    ctx.until_running(spec.id).await?;
    let after = ctx.get(neighbour.id).await?;
    same_spec(&neighbour, &after)?;
    same("the neighbour's status", &after.status, &InstanceStatus::Running)?;
    same("the neighbour's process", &process(&after), &process(&before))
}
