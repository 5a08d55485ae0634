//! Clauses about `get` and `list`.

use std::collections::BTreeSet;

use futures::TryStreamExt;
use saasodoo_core::{
    CreateOptions, CustomerId, DeleteOptions, EnsureOutcome, ErrorKind, InstanceChange, InstanceFilter, InstanceId,
    InstanceOrchestratorExt, InstanceStatus, UpdateOptions,
};

use super::clause::{clause, ensure};
use super::ctx::{describe, refused, same, same_spec};
use super::{Clause, Ctx, Stop, Verdict};

pub(super) const CLAUSES: &[Clause] = &[
    clause!(
        "get.shows_the_spec",
        shows_the_spec,
        "as the objects have it, with where it comes from"
    ),
    clause!(
        "get.secrets_are_withheld",
        secrets,
        "no observation, in no format, shows a password"
    ),
    clause!("get.absent_is_not_found", absent, "confirmed by the server"),
    clause!(
        "get.sees_own_writes",
        sees_own_writes,
        "never older than the last mutation through this orchestrator"
    ),
    clause!(
        "get.legacy_id_finds_the_one",
        legacy_id,
        "eight digits are enough where they mean one instance"
    ),
    clause!(
        "get.failed_read_is_no_absence",
        failed_read,
        "a read that fails is an error: neither not_found nor a shorter list"
    )
    .exclusive(),
    clause!("list.contains_what_exists", contains_what_exists, "each instance once"),
    clause!("list.filters", filters, "by id, customer, status and label"),
    clause!("list.nothing_matches", nothing_matches, "an empty list is not an error"),
    clause!(
        "list.agrees_with_get",
        agrees_with_get,
        "the same spec, status, name, hosts and revision"
    ),
    clause!(
        "list.without_the_deleted",
        without_the_deleted,
        "also when its data was left behind"
    ),
    clause!(
        "list.is_lazy",
        is_lazy,
        "the first request is made when the stream is polled"
    ),
    clause!(
        "list.in_constant_requests",
        constant_requests,
        "five instances take as many requests as one"
    )
    .exclusive(),
    clause!(
        "list.one_bad_object_does_not_hide_the_rest",
        one_bad_object,
        "what cannot be understood is in unparsed"
    ),
];

fn ids(instances: &[saasodoo_core::Instance]) -> BTreeSet<InstanceId> {
    instances.iter().map(|instance| instance.id).collect()
}

async fn shows_the_spec(ctx: &Ctx) -> Verdict {
    let (spec, seen) = ctx.running().await?;
    same_spec(&spec, &seen)?;
    same("the id", &seen.id, &spec.id)?;
    ensure!(
        ctx.names_backend(Some(seen.backend)),
        "expected the backend {}, saw {}",
        ctx.orchestrator().backend(),
        seen.backend
    );
    same("the customer", &seen.spec.customer_id, &Some(ctx.customer()))?;
    ensure!(!seen.provenance.revision.is_empty(), "expected a revision, saw none");
    ensure!(
        seen.endpoints.internal.is_some(),
        "expected an internal endpoint, saw {:?}",
        seen.endpoints
    );
    same(
        "the number of external URLs",
        &seen.endpoints.external.len(),
        &seen.endpoints.hosts.len(),
    )?;
    let location = ctx.location(spec.id).await?;
    ensure!(!location.to_string().is_empty(), "expected a location");
    Ok(())
}

async fn secrets(ctx: &Ctx) -> Verdict {
    let (spec, _) = ctx.stopped().await?;
    let mut passwords = Vec::new();
    passwords.extend(spec.database.as_ref().and_then(|database| database.password.expose()));
    passwords.extend(spec.admin.as_ref().and_then(|admin| admin.password.expose()));
    ensure!(
        !passwords.is_empty(),
        "the subject's spec has neither a database nor an administrator"
    );
    let seen = ctx.get(spec.id).await?;
    if let Some(database) = &seen.spec.database {
        ensure!(
            database.password.is_withheld(),
            "expected the database password to be withheld"
        );
    }
    if let Some(admin) = &seen.spec.admin {
        ensure!(
            admin.password.is_withheld(),
            "expected the administrator's password to be withheld"
        );
    }
    let listed = ctx.orchestrator().list_all(InstanceFilter::id(spec.id)).await?;
    let json = serde_json::to_string(&listed).map_err(Stop::failed)?;
    let text = format!("{seen:?} {listed:?} {json} {:?}", ctx.orchestrator());
    for password in passwords {
        ensure!(
            !text.contains(password),
            "expected no password in an observation, found one"
        );
    }
    Ok(())
}

async fn absent(ctx: &Ctx) -> Verdict {
    let spec = ctx.spec();
    let error = refused(
        "get of an absent instance",
        ctx.orchestrator().get(spec.id).await,
        &[ErrorKind::NotFound],
    )?;
    same("the instance in the error", &error.instance(), &Some(spec.id))
}

async fn sees_own_writes(ctx: &Ctx) -> Verdict {
    let spec = ctx.spec();
    let orchestrator = ctx.orchestrator();
    ctx.create(&spec).await?;
    let seen = ctx.get(spec.id).await.map_err(|stop| stop.within("after create"))?;
    same("the units desired after create", &seen.facts.desired, &1)?;
    for value in ["1", "2", "3"] {
        let change = InstanceChange::new().set_env("CONTRACT".parse()?, value);
        orchestrator.update(spec.id, &change, UpdateOptions::new()).await?;
        same_spec(&change.apply_to(&spec)?, &ctx.get(spec.id).await?).map_err(|stop| stop.within("after update"))?;
    }
    orchestrator.stop(spec.id).await?;
    let seen = ctx.get(spec.id).await?;
    same("the units desired after stop", &seen.facts.desired, &0)?;
    ensure!(
        seen.status != InstanceStatus::Running,
        "expected it not to run after stop"
    );
    orchestrator.start(spec.id).await?;
    same(
        "the units desired after start",
        &ctx.get(spec.id).await?.facts.desired,
        &1,
    )?;
    orchestrator.suspend(spec.id).await?;
    let seen = ctx.get(spec.id).await?;
    same("the units desired after suspend", &seen.facts.desired, &0)?;
    ensure!(seen.facts.hold.is_some(), "expected a hold after suspend");
    orchestrator.delete(spec.id, DeleteOptions::retain()).await?;
    ctx.absent(spec.id).await.map_err(|stop| stop.within("after delete"))
}

async fn legacy_id(ctx: &Ctx) -> Verdict {
    let (spec, _) = ctx.stopped().await?;
    let legacy: InstanceId = spec.id.short().to_string().parse()?;
    let seen = ctx.orchestrator().get(legacy).await?;
    same("the id", &seen.id, &spec.id)?;
    let absent: InstanceId = InstanceId::random().short().to_string().parse()?;
    refused(
        "get of an absent legacy id",
        ctx.orchestrator().get(absent).await,
        &[ErrorKind::NotFound],
    )?;
    Ok(())
}

async fn failed_read(ctx: &Ctx) -> Verdict {
    let (spec, _) = ctx.stopped().await?;
    let orchestrator = ctx.orchestrator();
    let mut hits = 0;
    let fault = || {
        ctx.subject()
            .fail_nth_request(1)
            .ok_or_else(|| Stop::skipped("the subject cannot make a request fail"))
    };

    let guard = fault()?;
    let answer = orchestrator.get(spec.id).await;
    hits += usize::from(guard.hit());
    drop(guard);
    if let Err(error) = &answer {
        ensure!(
            !error.is_not_found(),
            "expected a failed read to be an error of reading, got {error}"
        );
    }

    let guard = fault()?;
    let answer = orchestrator.exists(spec.id).await;
    hits += usize::from(guard.hit());
    drop(guard);
    ensure!(
        answer.is_err() || matches!(answer, Ok(true)),
        "expected exists to fail or be true, got {answer:?}"
    );

    let guard = fault()?;
    let answer = orchestrator.list_all(InstanceFilter::id(spec.id)).await;
    hits += usize::from(guard.hit());
    drop(guard);
    if let Ok(listed) = &answer {
        ensure!(
            !listed.is_empty(),
            "expected a failed read to be an error, got an empty list"
        );
    }

    let guard = fault()?;
    let answer = orchestrator
        .update(spec.id, &InstanceChange::new(), UpdateOptions::new())
        .await;
    hits += usize::from(guard.hit());
    drop(guard);
    if let Err(error) = &answer {
        ensure!(
            !error.is_not_found(),
            "expected a failed read in update to be an error of reading, got {error}"
        );
    }

    let guard = fault()?;
    let answer = orchestrator.delete(spec.id, DeleteOptions::retain()).await;
    hits += usize::from(guard.hit());
    drop(guard);
    if let Ok(deleted) = &answer {
        ensure!(
            deleted.existed,
            "expected a failed read in delete to be an error, got {deleted:?}"
        );
    }
    ensure!(
        hits > 0,
        "expected at least one of five operations to make a request that can fail"
    );
    Ok(())
}

async fn contains_what_exists(ctx: &Ctx) -> Verdict {
    let mut expected = BTreeSet::new();
    for _ in 0..3 {
        expected.insert(ctx.stopped().await?.0.id);
    }
    let all = ctx.orchestrator().list_all(InstanceFilter::all()).await?;
    let ours: Vec<InstanceId> = all.iter().map(|i| i.id).filter(|id| expected.contains(id)).collect();
    same("how often our three instances are listed", &ours.len(), &3)?;
    same("which of them are listed", &ours.into_iter().collect(), &expected)
}

async fn filters(ctx: &Ctx) -> Verdict {
    let orchestrator = ctx.orchestrator();
    let key: saasodoo_core::LabelKey = "contract".parse()?;
    let unique = InstanceId::random().to_string();
    let blue = ctx.spec().with_label(key.clone(), unique.parse()?);
    let red = ctx.spec().with_customer(CustomerId::random());
    for spec in [&blue, &red] {
        ctx.create_as(spec, CreateOptions::new().stopped(), EnsureOutcome::Created)
            .await?;
    }
    ctx.until_status(blue.id, InstanceStatus::Stopped).await?;
    ctx.until_status(red.id, InstanceStatus::Stopped).await?;
    orchestrator.start(blue.id).await?;
    ctx.until_running(blue.id).await?;

    let list = |filter: InstanceFilter| async move { orchestrator.list_all(filter).await.map(|listed| ids(&listed)) };
    let only_blue = BTreeSet::from([blue.id]);
    let only_red = BTreeSet::from([red.id]);
    same("by id", &list(InstanceFilter::id(blue.id)).await?, &only_blue)?;
    same(
        "by two ids",
        &list(ctx.own()).await?,
        &BTreeSet::from([blue.id, red.id]),
    )?;
    let customer = InstanceFilter::all().with_customer(ctx.customer());
    same("by customer", &list(customer).await?, &only_blue)?;
    let label = InstanceFilter::all().with_label(key.clone(), unique.parse()?);
    same("by label", &list(label.clone()).await?, &only_blue)?;
    let other_label = InstanceFilter::all().with_label(key, "other".parse()?);
    ensure!(
        !list(other_label).await?.contains(&blue.id),
        "expected another value of the label not to match"
    );
    same(
        "by status",
        &list(ctx.own().with_status(InstanceStatus::Stopped)).await?,
        &only_red,
    )?;
    let either = ctx
        .own()
        .with_status(InstanceStatus::Stopped)
        .with_status(InstanceStatus::Running);
    same(
        "by one of two statuses",
        &list(either).await?,
        &BTreeSet::from([blue.id, red.id]),
    )?;
    let both = label.with_status(InstanceStatus::Stopped);
    same("by label and status together", &list(both).await?, &BTreeSet::new())
}

async fn nothing_matches(ctx: &Ctx) -> Verdict {
    for filter in [
        InstanceFilter::id(InstanceId::random()),
        InstanceFilter::all().with_customer(CustomerId::random()),
        InstanceFilter::all().with_label("contract".parse()?, InstanceId::random().to_string().parse()?),
    ] {
        let listed = ctx.orchestrator().list_all(filter.clone()).await?;
        ensure!(
            listed.is_empty(),
            "expected nothing for {filter:?}, saw {}",
            describe(&listed[0])
        );
    }
    Ok(())
}

async fn agrees_with_get(ctx: &Ctx) -> Verdict {
    let (spec, got) = ctx.resting().await?;
    let listed = ctx.orchestrator().list_all(InstanceFilter::id(spec.id)).await?;
    same("the number of instances with the id", &listed.len(), &1)?;
    let listed = &listed[0];
    same_spec(&spec, listed)?;
    same("the name", &listed.name, &got.name)?;
    same("the status", &(listed.status, &listed.cause), &(got.status, &got.cause))?;
    same("the hosts", &listed.endpoints.hosts, &got.endpoints.hosts)?;
    same("the revision", &listed.provenance.revision, &got.provenance.revision)?;
    same("who made it", &listed.provenance.origin, &got.provenance.origin)
}

async fn without_the_deleted(ctx: &Ctx) -> Verdict {
    let (spec, _) = ctx.stopped().await?;
    let (stays, _) = ctx.stopped().await?;
    ctx.orchestrator().delete(spec.id, DeleteOptions::retain()).await?;
    let listed = ctx.orchestrator().list_all(ctx.own()).await?;
    same("what is listed", &ids(&listed), &BTreeSet::from([stays.id]))
}

async fn is_lazy(ctx: &Ctx) -> Verdict {
    let spec = ctx.spec();
    let stream = ctx.orchestrator().list(InstanceFilter::id(spec.id));
    ctx.settle().await;
    // What is created after the stream was made and before it is polled must be in it.
    ctx.create_as(&spec, CreateOptions::new().stopped(), EnsureOutcome::Created)
        .await?;
    let listed: Vec<_> = stream.try_collect().await?;
    same("what is listed", &ids(&listed), &BTreeSet::from([spec.id]))
}

async fn constant_requests(ctx: &Ctx) -> Verdict {
    let requests = || {
        ctx.subject()
            .count_requests()
            .ok_or_else(|| Stop::skipped("the subject does not count requests"))
    };
    let (first, _) = ctx.stopped().await?;
    let start = requests()?;
    ctx.orchestrator().list_all(InstanceFilter::id(first.id)).await?;
    let one = requests()? - start;
    for _ in 0..4 {
        ctx.stopped().await?;
    }
    let start = requests()?;
    let listed = ctx.orchestrator().list_all(ctx.own()).await?;
    let five = requests()? - start;
    same("the number of instances", &listed.len(), &5)?;
    same("the requests for five instances", &five, &one)
}

async fn one_bad_object(ctx: &Ctx) -> Verdict {
    let (good, _) = ctx.stopped().await?;
    let (bad, _) = ctx.stopped().await?;
    let instance = ctx.get(bad.id).await?;
    if !ctx.subject().spoil(&instance).await? {
        return Err(Stop::skipped("the subject cannot spoil an object"));
    }
    let listed = ctx.orchestrator().list_all(ctx.own()).await?;
    same("what is listed", &ids(&listed), &BTreeSet::from([good.id, bad.id]))?;
    let spoiled = listed.iter().find(|instance| instance.id == bad.id);
    let unparsed = spoiled.map(|instance| instance.unparsed.as_slice()).unwrap_or_default();
    ensure!(
        !unparsed.is_empty(),
        "expected the bad part to be in unparsed, saw nothing there"
    );
    let sound = listed.iter().find(|instance| instance.id == good.id);
    sound.map_or_else(
        || Err(Stop::failed("the good one is missing")),
        |seen| same_spec(&good, seen),
    )
}
