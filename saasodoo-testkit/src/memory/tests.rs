//! Behaviour of the simulation. Every test runs on a paused clock.

use std::time::Duration;

use futures::StreamExt;
use saasodoo_core::{
    BackendKind, Bytes, Capabilities, Capability, Cause, CreateOptions, DataPath, DataPolicy, DeleteOptions,
    EnsureOutcome, ErrorKind, HealthState, InstanceChange, InstanceEvent, InstanceFilter, InstanceId,
    InstanceOrchestrator, InstanceOrchestratorExt, InstanceSpec, InstanceStatus, LogOptions, Operation, OperationKind,
    Power, PurgeToken, Retry, StorageLocation, StorageState, UpdateOptions,
};
use tokio::time::sleep;

use super::*;
use crate::fixtures::{self, misbehaving, spec};

const BUDGET: Duration = Duration::from_secs(120);

async fn seconds(seconds: u64) {
    sleep(Duration::from_secs(seconds)).await;
}

async fn millis(millis: u64) {
    sleep(Duration::from_millis(millis)).await;
}

async fn running(memory: &MemoryOrchestrator, spec: &InstanceSpec) -> saasodoo_core::Instance {
    memory.create_and_wait(spec, BUDGET).await.expect("it runs")
}

async fn seen(memory: &MemoryOrchestrator, id: InstanceId) -> (InstanceStatus, Option<Cause>) {
    let instance = memory.get(id).await.expect("it exists");
    (instance.status, instance.cause)
}

async fn code(memory: &MemoryOrchestrator, id: InstanceId) -> (InstanceStatus, Option<&'static str>) {
    let (status, cause) = seen(memory, id).await;
    (status, cause.map(|cause| cause.code()))
}

fn location(instance: &saasodoo_core::Instance) -> StorageLocation {
    instance.storage.location.clone().expect("it has storage")
}

async fn lines(memory: &MemoryOrchestrator, id: InstanceId, options: LogOptions) -> Vec<String> {
    memory
        .logs(id, options)
        .map(|line| line.expect("a line").text)
        .collect()
        .await
}

// --- the life of a unit -------------------------------------------------------------------------------------------

#[tokio::test(start_paused = true)]
async fn an_instance_takes_its_time_to_start_and_to_stop() {
    let memory = MemoryOrchestrator::new();
    let spec = spec("acme");
    let made = memory.create(&spec, CreateOptions::new()).await.expect("created");
    assert_eq!(made.outcome, EnsureOutcome::Created);
    assert_eq!(made.instance.status, InstanceStatus::Creating);
    millis(3050).await;
    assert_eq!(seen(&memory, spec.id).await, (InstanceStatus::Creating, None));
    millis(100).await;
    assert_eq!(seen(&memory, spec.id).await, (InstanceStatus::Running, None));

    let stopping = memory.stop(spec.id).await.expect("stopped");
    assert_eq!(stopping.status, InstanceStatus::Stopping);
    millis(950).await;
    assert_eq!(seen(&memory, spec.id).await, (InstanceStatus::Stopping, None));
    millis(100).await;
    assert_eq!(seen(&memory, spec.id).await, (InstanceStatus::Stopped, None));
    assert_eq!(
        memory.start(spec.id).await.expect("started").status,
        InstanceStatus::Starting
    );
}

#[tokio::test(start_paused = true)]
async fn a_quick_stop_and_start_never_has_two_units() {
    let memory = MemoryOrchestrator::new();
    let spec = spec("acme");
    let first = running(&memory, &spec).await;
    memory.stop(spec.id).await.expect("stopped");
    let started = memory.start(spec.id).await.expect("started");
    assert_eq!(
        started.facts.units.len(),
        1,
        "the new one waits until the old one is gone"
    );
    let second = memory
        .wait_until(spec.id, InstanceStatus::Running, BUDGET)
        .await
        .expect("it runs");
    assert_ne!(first.facts.units[0].id, second.facts.units[0].id);
    assert_eq!(memory.violations(), []);
}

#[tokio::test(start_paused = true)]
async fn a_restart_replaces_the_unit_and_keeps_the_data() {
    let memory = MemoryOrchestrator::new();
    let spec = spec("acme");
    let before = running(&memory, &spec).await;
    memory.write_file(&location(&before), "invoice", "42").expect("written");
    memory.restart(spec.id).await.expect("restarted");
    assert_eq!(seen(&memory, spec.id).await.0, InstanceStatus::Restarting);
    let after = memory
        .wait_until(spec.id, InstanceStatus::Running, BUDGET)
        .await
        .expect("it runs");
    assert_ne!(before.facts.units[0].id, after.facts.units[0].id);
    let read = memory.read_file(&location(&after), "invoice").expect("there");
    assert_eq!(read.as_deref(), Some(&b"42"[..]));
    let beats = memory.heartbeats(&location(&after)).expect("there");
    assert!(beats.iter().any(|beat| beat.unit == before.facts.units[0].id));
    assert!(beats.iter().any(|beat| beat.unit == after.facts.units[0].id));
}

#[tokio::test(start_paused = true)]
async fn a_crash_loop_is_told_after_the_second_crash_and_ends_when_fixed() {
    let memory = MemoryOrchestrator::new();
    let spec = misbehaving("acme", "CRASH", "3");
    memory.create(&spec, CreateOptions::new()).await.expect("created");
    millis(1200).await;
    assert_eq!(
        seen(&memory, spec.id).await,
        (InstanceStatus::Creating, Some(Cause::Exited { code: Some(3) }))
    );
    seconds(10).await;
    let (status, cause) = seen(&memory, spec.id).await;
    assert_eq!(status, InstanceStatus::Error);
    let Some(Cause::CrashLoop { restarts, last_exit }) = cause else {
        panic!("{cause:?}");
    };
    assert_eq!((restarts, last_exit), (3, Some(3)), "after 1, 2 and 4 seconds");

    let fix = InstanceChange::new().unset_env("CRASH".parse().expect("a name"));
    memory.update(spec.id, &fix, UpdateOptions::new()).await.expect("fixed");
    memory
        .wait_until(spec.id, InstanceStatus::Running, BUDGET)
        .await
        .expect("it runs");
}

#[tokio::test(start_paused = true)]
async fn the_image_misbehaves_as_the_stub_does() {
    let memory = MemoryOrchestrator::new();
    let tight = misbehaving("tight", "EAT_MB", "300").with_memory(Bytes::from_mib(256));
    let slow = misbehaving("slow", "SLOW", "20");
    let unready = misbehaving("unready", "UNREADY", "1");
    let missing = spec("missing").with_image("saasodoo/odoo-stub:missing".parse().expect("an image"));
    for spec in [&tight, &slow, &unready, &missing] {
        memory.create(spec, CreateOptions::new()).await.expect("created");
    }
    seconds(12).await;
    assert_eq!(
        code(&memory, tight.id).await,
        (InstanceStatus::Error, Some("out_of_memory"))
    );
    assert_eq!(code(&memory, slow.id).await, (InstanceStatus::Creating, None));
    assert_eq!(code(&memory, unready.id).await, (InstanceStatus::Creating, None));
    let (status, cause) = seen(&memory, missing.id).await;
    assert_eq!(status, InstanceStatus::Error);
    assert!(matches!(cause, Some(Cause::ImagePull { image, .. }) if image.ends_with(":missing")));
    seconds(12).await;
    assert_eq!(code(&memory, slow.id).await, (InstanceStatus::Running, None));
    assert_eq!(code(&memory, unready.id).await, (InstanceStatus::Creating, None));
}

#[tokio::test(start_paused = true)]
async fn trouble_shows_and_goes_when_cleared() {
    let waits = [
        (Trouble::ImagePull, InstanceStatus::Error, "image_pull"),
        (Trouble::MountFailed, InstanceStatus::Error, "mount_failed"),
        (Trouble::Unschedulable, InstanceStatus::Error, "unschedulable"),
        (Trouble::QuotaExceeded, InstanceStatus::Error, "quota_exceeded"),
        (Trouble::StoragePending, InstanceStatus::Creating, "storage_pending"),
        (Trouble::OutOfMemory, InstanceStatus::Error, "out_of_memory"),
        (Trouble::CrashLoop { exit_code: 1 }, InstanceStatus::Error, "crash_loop"),
        (Trouble::NodeLost, InstanceStatus::Error, "node_lost"),
    ];
    for (trouble, status, cause) in waits {
        let memory = MemoryOrchestrator::new();
        let spec = spec("acme");
        memory.cause(spec.id, trouble.clone());
        memory.create(&spec, CreateOptions::new()).await.expect("created");
        seconds(20).await;
        assert_eq!(code(&memory, spec.id).await, (status, Some(cause)), "{trouble:?}");
        memory.clear(spec.id);
        seconds(60).await;
        assert_eq!(
            code(&memory, spec.id).await,
            (InstanceStatus::Running, None),
            "{trouble:?}"
        );
        assert_eq!(memory.violations(), []);
    }
}

#[tokio::test(start_paused = true)]
async fn trouble_of_a_running_instance() {
    let memory = MemoryOrchestrator::new();
    let spec = spec("acme");
    running(&memory, &spec).await;

    memory.cause(spec.id, Trouble::Unready);
    assert_eq!(
        code(&memory, spec.id).await,
        (InstanceStatus::Error, Some("probe_failing"))
    );
    memory.clear(spec.id);
    assert_eq!(code(&memory, spec.id).await, (InstanceStatus::Running, None));

    memory.crash(spec.id, 7).expect("it had a process");
    assert_eq!(seen(&memory, spec.id).await.1, Some(Cause::Exited { code: Some(7) }));
    assert_eq!(
        memory.crash(spec.id, 7).expect_err("no process").kind(),
        ErrorKind::NotAllowed
    );
    seconds(5).await;
    assert_ne!(
        seen(&memory, spec.id).await.0,
        InstanceStatus::Running,
        "it has to run for ten seconds first"
    );
    seconds(10).await;
    assert_eq!(code(&memory, spec.id).await, (InstanceStatus::Running, None));
    let instance = memory.get(spec.id).await.expect("it exists");
    assert_eq!(instance.facts.units[0].restarts, 1);
}

#[tokio::test(start_paused = true)]
async fn a_unit_on_a_lost_node_counts_as_live_until_it_is_seen_to_end() {
    let memory = MemoryOrchestrator::new();
    let spec = spec("acme");
    running(&memory, &spec).await;
    memory.cause(spec.id, Trouble::NodeLost);
    memory.stop(spec.id).await.expect("asked");
    seconds(600).await;
    assert_eq!(seen(&memory, spec.id).await.0, InstanceStatus::Stopping);
    let error = memory
        .delete(spec.id, DeleteOptions::retain())
        .await
        .expect_err("it cannot be seen to end");
    assert_eq!(
        (error.kind(), error.retry()),
        (ErrorKind::Timeout, Retry::OutcomeUnknown)
    );
    memory.clear(spec.id);
    let deleted = memory.delete(spec.id, DeleteOptions::retain()).await.expect("deleted");
    assert!(deleted.existed);
}

#[tokio::test(start_paused = true)]
async fn without_readiness_a_process_that_runs_is_ready() {
    let capabilities = Capabilities::all()
        .without(Capability::Readiness)
        .without(Capability::OutOfMemoryCertain);
    let memory = MemoryOrchestrator::builder().capabilities(capabilities).build();
    let unready = misbehaving("acme", "UNREADY", "1");
    memory.create(&unready, CreateOptions::new()).await.expect("created");
    millis(1200).await;
    assert_eq!(code(&memory, unready.id).await, (InstanceStatus::Running, None));
    let tight = misbehaving("tight", "EAT_MB", "9000");
    memory.create(&tight, CreateOptions::new()).await.expect("created");
    seconds(10).await;
    assert!(matches!(
        seen(&memory, tight.id).await.1,
        Some(Cause::OutOfMemory { inferred: true, .. })
    ));
}

// --- the operations -----------------------------------------------------------------------------------------------

#[tokio::test(start_paused = true)]
async fn a_second_create_is_unchanged_or_a_conflict_and_touches_nothing() {
    let memory = MemoryOrchestrator::new();
    let spec = spec("acme");
    let before = running(&memory, &spec).await;
    let again = memory.create(&spec, CreateOptions::new()).await.expect("the same");
    assert_eq!(again.outcome, EnsureOutcome::Unchanged);
    let other = spec
        .clone()
        .with_memory(Bytes::from_gib(4))
        .with_storage(Bytes::from_gib(20));
    let error = memory.create(&other, CreateOptions::new()).await.expect_err("other");
    assert_eq!(error.kind(), ErrorKind::Conflict);
    assert_eq!(error.conflicts(), ["resources.memory", "storage"]);
    assert_eq!(error.instance(), Some(spec.id));
    let after = memory.get(spec.id).await.expect("it exists");
    assert_eq!(before.facts.units, after.facts.units);
    assert_eq!(before.provenance.revision, after.provenance.revision);
}

#[tokio::test(start_paused = true)]
async fn hosts_and_names_belong_to_one_instance() {
    let memory = MemoryOrchestrator::new();
    let a = spec("acme").with_custom_domain("shop.example".parse().expect("a host"));
    memory.create(&a, CreateOptions::new()).await.expect("created");
    for thief in [
        spec("Acme"),
        spec("other").with_custom_domain("shop.example".parse().expect("a host")),
        fixtures::spec_with_id(
            "acme",
            InstanceId::new(uuid::Uuid::from_u64_pair(
                u64::from(u32::from_str_radix(&a.id.short().to_string(), 16).expect("hex")) << 32,
                7,
            )),
        )
        .with_subdomain("another".parse().expect("a label")),
    ] {
        let error = memory.create(&thief, CreateOptions::new()).await.expect_err("taken");
        assert_eq!(error.kind(), ErrorKind::Conflict, "{error}");
        assert!(memory.get(thief.id).await.expect_err("nothing stays").is_not_found());
    }
    assert_eq!(memory.volumes().len(), 1);
    let change = InstanceChange::new().route(saasodoo_core::Route::default());
    memory
        .update(a.id, &change, UpdateOptions::new())
        .await
        .expect("updated");
    let b = spec("other").with_custom_domain("shop.example".parse().expect("a host"));
    memory.create(&b, CreateOptions::new()).await.expect("it is free now");
}

#[tokio::test(start_paused = true)]
async fn an_update_rolls_what_it_must_and_leaves_the_rest() {
    let memory = MemoryOrchestrator::new();
    let spec = spec("acme");
    let before = running(&memory, &spec).await;
    let quiet = InstanceChange::new().storage(Bytes::from_gib(20));
    let answer = memory
        .update(spec.id, &quiet, UpdateOptions::new())
        .await
        .expect("grown");
    assert_eq!(answer.outcome, EnsureOutcome::Updated);
    assert_eq!(answer.instance.facts.units, before.facts.units);
    assert_eq!(answer.instance.storage.capacity, Some(Bytes::from_gib(20)));
    let again = memory
        .update(spec.id, &quiet, UpdateOptions::new())
        .await
        .expect("the same");
    assert_eq!(again.outcome, EnsureOutcome::Unchanged);

    let image = InstanceChange::new().image("saasodoo/odoo-stub:18".parse().expect("an image"));
    let stale = UpdateOptions::new().if_revision(&before.provenance.revision);
    let error = memory.update(spec.id, &image, stale).await.expect_err("stale");
    assert_eq!(error.kind(), ErrorKind::Conflict);
    let answer = memory
        .update(spec.id, &image, UpdateOptions::new())
        .await
        .expect("updated");
    assert_eq!(answer.instance.status, InstanceStatus::Updating);
    let after = memory
        .wait_until(spec.id, InstanceStatus::Running, BUDGET)
        .await
        .expect("it runs");
    assert_ne!(after.facts.units[0].id, before.facts.units[0].id);

    let shrink = InstanceChange::new().storage(Bytes::from_gib(1));
    let error = memory
        .update(spec.id, &shrink, UpdateOptions::new())
        .await
        .expect_err("a shrink");
    assert_eq!(
        (error.kind(), error.field()),
        (ErrorKind::InvalidInput, Some("storage"))
    );
}

#[tokio::test(start_paused = true)]
async fn a_suspended_instance_refuses_to_start() {
    let memory = MemoryOrchestrator::new();
    let spec = spec("acme");
    running(&memory, &spec).await;
    memory.suspend(spec.id).await.expect("suspended");
    assert_eq!(seen(&memory, spec.id).await.0, InstanceStatus::Stopping);
    seconds(2).await;
    assert_eq!(seen(&memory, spec.id).await.0, InstanceStatus::Paused);
    for power in [Power::Start, Power::Restart] {
        let error = memory.set_power(spec.id, power).await.expect_err("held");
        assert_eq!(error.kind(), ErrorKind::NotAllowed);
    }
    memory.set_power(spec.id, Power::Stop).await.expect("harmless");
    memory.set_power(spec.id, Power::Suspend).await.expect("harmless");
    let resumed = memory.resume(spec.id).await.expect("resumed");
    assert_eq!(resumed.status, InstanceStatus::Stopped);
    let error = memory.restart(spec.id).await.expect_err("stopped");
    assert_eq!(error.kind(), ErrorKind::NotAllowed);
    memory.start(spec.id).await.expect("started");
}

#[tokio::test(start_paused = true)]
async fn data_outlives_the_instance_until_it_is_purged_with_a_fitting_token() {
    let memory = MemoryOrchestrator::new();
    let spec = spec("acme");
    let made = running(&memory, &spec).await;
    let place = location(&made);
    memory.write_file(&place, "a", "1").expect("written");
    let deleted = memory.delete(spec.id, DeleteOptions::retain()).await.expect("deleted");
    assert_eq!((deleted.existed, &deleted.retained), (true, &Some(place.clone())));
    assert!(memory.get(spec.id).await.expect_err("gone").is_not_found());
    assert!(
        !memory
            .delete(spec.id, DeleteOptions::retain())
            .await
            .expect("gone")
            .existed
    );

    let error = memory
        .create(&spec, CreateOptions::new())
        .await
        .expect_err("data is there");
    assert_eq!(
        (error.kind(), error.conflicts()),
        (ErrorKind::Conflict, &["data".to_owned()][..])
    );
    let adopt = CreateOptions::new().with_data(DataPolicy::AdoptRetained);
    let plan = memory.plan(&Operation::Purge(spec.id)).await.expect("a plan");
    let token = plan.purge_token.expect("a token");
    let adopted = memory.create(&spec, adopt.clone()).await.expect("adopted");
    assert_eq!(adopted.outcome, EnsureOutcome::Adopted);
    assert_eq!(location(&adopted.instance), place);
    assert!(memory.read_file(&place, "a").expect("there").is_some());

    let foreign = PurgeToken::new(BackendKind::Swarm, spec.id, token.objects().to_vec());
    let other = PurgeToken::new(BackendKind::Memory, InstanceId::random(), token.objects().to_vec());
    for bad in [foreign, other] {
        let error = memory
            .delete(spec.id, DeleteOptions::purge(bad))
            .await
            .expect_err("refused");
        assert_eq!(error.kind(), ErrorKind::Conflict);
    }
    let purged = memory
        .delete(spec.id, DeleteOptions::purge(token.clone()))
        .await
        .expect("purged");
    assert_eq!(purged.purged, token.objects());
    assert_eq!(memory.volumes(), Vec::<String>::new());

    memory.create(&spec, CreateOptions::new()).await.expect("new data");
    let error = memory
        .delete(spec.id, DeleteOptions::purge(token))
        .await
        .expect_err("it is other data now");
    assert_eq!(error.kind(), ErrorKind::Conflict);
    assert_eq!(memory.volumes().len(), 1);
    let error = memory
        .create(&fixtures::spec("b"), adopt)
        .await
        .expect_err("nothing to adopt");
    assert_eq!(error.kind(), ErrorKind::StorageMissing);
}

#[tokio::test(start_paused = true)]
async fn retain_storage_refuses_every_purge() {
    let config = Config::builder().retain_storage(true).build();
    let memory = MemoryOrchestrator::builder().config(config).build();
    let spec = spec("acme");
    running(&memory, &spec).await;
    let error = memory.plan(&Operation::Purge(spec.id)).await.expect_err("forbidden");
    assert_eq!(error.kind(), ErrorKind::NotAllowed);
}

#[tokio::test(start_paused = true)]
async fn a_volume_that_was_destroyed_is_missing_and_nothing_starts_without_it() {
    let memory = MemoryOrchestrator::new();
    let spec = spec("acme");
    let made = running(&memory, &spec).await;
    memory.stop(spec.id).await.expect("stopped");
    seconds(2).await;
    memory.destroy_data(&location(&made)).expect("destroyed");
    let instance = memory.get(spec.id).await.expect("it exists");
    assert_eq!(instance.storage.state, StorageState::Missing);
    let error = memory.start(spec.id).await.expect_err("no data");
    assert_eq!(error.kind(), ErrorKind::StorageMissing);
    assert_eq!(
        memory.violations().len(),
        1,
        "the data of a defined instance was deleted"
    );
}

#[tokio::test(start_paused = true)]
async fn bad_input_and_missing_capabilities_change_nothing() {
    let memory = MemoryOrchestrator::builder()
        .capabilities(Capabilities::default())
        .build();
    let mut tolerant = spec("acme");
    tolerant.scheduling.tolerations.insert("big".parse().expect("a key"));
    let mut important = spec("acme");
    important.scheduling.priority_class = Some("high".parse().expect("a name"));
    let mut reserved = spec("acme");
    reserved.database_name = "api".parse().expect("a name");
    let adopt = CreateOptions::new().with_data(DataPolicy::AdoptDirectory("x".parse().expect("a path")));
    for (spec, options, kind, field) in [
        (
            &tolerant,
            CreateOptions::new(),
            ErrorKind::Unsupported,
            "scheduling.tolerations",
        ),
        (
            &important,
            CreateOptions::new(),
            ErrorKind::Unsupported,
            "scheduling.priority_class",
        ),
        (
            &reserved,
            CreateOptions::new(),
            ErrorKind::InvalidInput,
            "database_name",
        ),
        (&spec("acme"), adopt, ErrorKind::Unsupported, "data"),
    ] {
        let error = memory.create(spec, options).await.expect_err(field);
        assert_eq!((error.kind(), error.field()), (kind, Some(field)), "{error}");
    }
    let plain = spec("acme");
    memory.create(&plain, CreateOptions::new()).await.expect("created");
    let grow = InstanceChange::new().storage(Bytes::from_gib(20));
    let error = memory
        .update(plain.id, &grow, UpdateOptions::new())
        .await
        .expect_err("no growth");
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    let previous: Vec<_> = memory.logs(plain.id, LogOptions::all().previous()).collect().await;
    assert_eq!(
        previous[0].as_ref().expect_err("no previous").kind(),
        ErrorKind::Unsupported
    );
    assert_eq!(memory.list_all(InstanceFilter::all()).await.expect("a list").len(), 1);
}

#[tokio::test(start_paused = true)]
async fn observations_withhold_secrets_and_show_what_was_done_by_hand() {
    let memory = MemoryOrchestrator::new();
    let spec = spec("acme");
    let made = running(&memory, &spec).await;
    assert!(
        made.spec
            .admin
            .as_ref()
            .is_some_and(|admin| admin.password.is_withheld())
    );
    assert!(made.spec.database.as_ref().is_some_and(|db| db.password.is_withheld()));
    assert_eq!(made.spec.diff(&spec), []);
    memory
        .edit_by_hand(spec.id, |spec| spec.resources.memory = Bytes::from_gib(7))
        .expect("edited");
    memory
        .garble(spec.id, saasodoo_core::Unparsed::new("labels.x", "y", "is not known"))
        .expect("garbled");
    let after = memory.get(spec.id).await.expect("it exists");
    assert_eq!(after.spec.resources.memory, Bytes::from_gib(7));
    assert_eq!(after.unparsed.len(), 1);
    assert_eq!(after.facts.units, made.facts.units);
}

#[tokio::test(start_paused = true)]
async fn a_legacy_id_means_the_one_instance_that_has_it() {
    let memory = MemoryOrchestrator::new();
    let one = fixtures::spec_with_id("a", InstanceId::new(uuid::Uuid::from_u64_pair(7 << 32, 1)));
    let two = fixtures::spec_with_id("b", InstanceId::new(uuid::Uuid::from_u64_pair(7 << 32, 2)));
    memory.create(&one, CreateOptions::new()).await.expect("created");
    let short: InstanceId = one.id.short().to_string().parse().expect("eight digits");
    assert_eq!(memory.get(short).await.expect("one").id, one.id);
    memory.create(&two, CreateOptions::new()).await.expect("created");
    assert_eq!(memory.get(short).await.expect_err("two").kind(), ErrorKind::Conflict);
}

#[tokio::test(start_paused = true)]
async fn plans_tell_what_happens_and_do_nothing() {
    let memory = MemoryOrchestrator::new();
    let spec = spec("acme");
    let create = Operation::Create(Box::new(spec.clone()), CreateOptions::new());
    let plan = memory.plan(&create).await.expect("a plan");
    assert!(
        plan.creates.iter().any(|object| object == "host acme.saasodoo.com"),
        "{plan}"
    );
    assert!(memory.get(spec.id).await.expect_err("nothing was done").is_not_found());
    assert!(
        memory
            .plan(&Operation::Delete(spec.id))
            .await
            .expect("a plan")
            .is_empty()
    );
    running(&memory, &spec).await;
    assert!(memory.plan(&create).await.expect("a plan").is_empty());
    let change = InstanceChange::new().memory(Bytes::from_gib(4));
    let plan = memory
        .plan(&Operation::Update(spec.id, Box::new(change)))
        .await
        .expect("a plan");
    assert_eq!(plan.changes.len(), 1);
    assert_eq!(plan.changes[0].to_string(), "resources.memory: 2Gi -> 4Gi");
    assert!(plan.restarts);
    let stop = memory
        .plan(&Operation::SetPower(spec.id, Power::Stop))
        .await
        .expect("a plan");
    assert!(stop.restarts && !stop.is_empty());
    let start = memory
        .plan(&Operation::SetPower(spec.id, Power::Start))
        .await
        .expect("a plan");
    assert!(start.is_empty());
    assert_eq!(seen(&memory, spec.id).await, (InstanceStatus::Running, None));
}

// --- watching and reading -----------------------------------------------------------------------------------------

fn told(event: &InstanceEvent) -> String {
    match event {
        InstanceEvent::Applied(instance) => instance.status.to_string(),
        InstanceEvent::Deleted(_) => "deleted".to_owned(),
        InstanceEvent::Synced => "synced".to_owned(),
        InstanceEvent::Stale(_) => "stale".to_owned(),
        other => format!("{other:?}"),
    }
}

/// The different things told, in order; units coming closer to being ready show the same status several times.
async fn take_until(watch: &mut futures::stream::BoxStream<'static, InstanceEvent>, last: &str) -> Vec<String> {
    let mut all: Vec<String> = Vec::new();
    loop {
        let event = told(&watch.next().await.expect("a watch never ends"));
        let done = event == last;
        if all.last() != Some(&event) {
            all.push(event);
        }
        if done {
            return all;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn every_watcher_hears_everything_also_what_time_brings() {
    let memory = MemoryOrchestrator::new();
    let old = spec("old");
    running(&memory, &old).await;
    let mut watches = [memory.watch(InstanceFilter::all()), memory.watch(InstanceFilter::all())];
    for watch in &mut watches {
        assert_eq!(take_until(watch, "synced").await, ["running", "synced"]);
    }
    let acting = memory.clone();
    let new = spec("new");
    let id = new.id;
    tokio::spawn(async move {
        running(&acting, &new).await;
        acting.stop(id).await.expect("stopped");
        acting
            .wait_until(id, InstanceStatus::Stopped, BUDGET)
            .await
            .expect("it stops");
        acting.start(id).await.expect("started");
        acting
            .wait_until(id, InstanceStatus::Running, BUDGET)
            .await
            .expect("it runs");
        acting.delete(id, DeleteOptions::retain()).await.expect("deleted");
    });
    for watch in &mut watches {
        assert_eq!(
            take_until(watch, "deleted").await,
            [
                "creating",
                "running",
                "stopping",
                "stopped",
                "starting",
                "running",
                "terminated",
                "deleted"
            ]
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_watch_hears_time_alone_without_anybody_calling() {
    let memory = MemoryOrchestrator::new();
    let spec = spec("acme");
    memory.create(&spec, CreateOptions::new()).await.expect("created");
    let mut watch = memory.watch(InstanceFilter::id(spec.id));
    let heard = tokio::time::timeout(BUDGET, take_until(&mut watch, "running")).await;
    assert_eq!(heard.expect("in time"), ["creating", "synced", "creating", "running"]);
    let calls = memory.calls().len();
    let quiet = tokio::time::timeout(Duration::from_secs(86_400), watch.next()).await;
    assert!(quiet.is_err(), "nothing more happens: {quiet:?}");
    assert_eq!(memory.calls().len(), calls);
}

#[tokio::test(start_paused = true)]
async fn a_watch_filters_also_by_status() {
    let memory = MemoryOrchestrator::new();
    let (a, b) = (spec("a"), spec("b"));
    running(&memory, &a).await;
    running(&memory, &b).await;
    let mut watch = memory.watch(InstanceFilter::id(a.id).with_status(InstanceStatus::Running));
    assert_eq!(take_until(&mut watch, "synced").await, ["running", "synced"]);
    memory.stop(b.id).await.expect("stopped");
    memory.stop(a.id).await.expect("stopped");
    let event = watch.next().await.expect("an event");
    assert!(
        matches!(&event, InstanceEvent::Deleted(last) if last.id == a.id),
        "{event:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_watch_that_was_cut_off_says_so_and_makes_up_for_it() {
    let memory = MemoryOrchestrator::new();
    let (kept, changed, gone) = (spec("kept"), spec("changed"), spec("gone"));
    for spec in [&kept, &changed, &gone] {
        running(&memory, spec).await;
    }
    let mut watch = memory.watch(InstanceFilter::all());
    take_until(&mut watch, "synced").await;
    memory.cut_watches(Duration::from_secs(30));
    assert_eq!(told(&watch.next().await.expect("an event")), "stale");
    assert_eq!(
        memory.health().await.check("watch").map(|check| check.state),
        Some(HealthState::Degraded)
    );
    memory.delete(gone.id, DeleteOptions::retain()).await.expect("deleted");
    memory.stop(changed.id).await.expect("stopped");
    let mut made_up = Vec::new();
    loop {
        match watch.next().await.expect("an event") {
            InstanceEvent::Applied(instance) => made_up.push((instance.id, instance.status.to_string())),
            InstanceEvent::Deleted(instance) => made_up.push((instance.id, "deleted".to_owned())),
            InstanceEvent::Synced => break,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(
        made_up,
        [(changed.id, "stopped".to_owned()), (gone.id, "deleted".to_owned())]
    );
    let mut late = memory.watch(InstanceFilter::all());
    assert_eq!(
        take_until(&mut late, "synced").await.last().map(String::as_str),
        Some("synced")
    );
}

#[tokio::test(start_paused = true)]
async fn logs_tail_follow_and_show_the_process_before() {
    let memory = MemoryOrchestrator::new();
    let spec = spec("acme");
    let made = running(&memory, &spec).await;
    let unit = made.facts.units[0].id.clone();
    assert_eq!(
        lines(&memory, spec.id, LogOptions::all()).await,
        [
            format!("odoo-stub: starting on {unit}"),
            "odoo-stub: listening on 8069".to_owned()
        ]
    );
    assert_eq!(
        lines(&memory, spec.id, LogOptions::tail(1)).await,
        ["odoo-stub: listening on 8069"]
    );
    assert_eq!(
        lines(&memory, spec.id, LogOptions::all().previous()).await,
        Vec::<String>::new()
    );
    let mut followed = memory.logs(spec.id, LogOptions::tail(1).follow());
    let mut next = async || followed.next().await.expect("a line").expect("a line").text;
    assert_eq!(next().await, "odoo-stub: listening on 8069");
    memory.crash(spec.id, 9).expect("crashed");
    assert_eq!(next().await, "odoo-stub: crashing with 9");
    assert!(next().await.starts_with("odoo-stub: starting on"));
    let previous = lines(&memory, spec.id, LogOptions::all().previous()).await;
    assert_eq!(previous.last().map(String::as_str), Some("odoo-stub: crashing with 9"));
    let since = memory.get(spec.id).await.expect("it exists").facts.observed_at;
    assert_eq!(
        lines(&memory, spec.id, LogOptions::all().since(since)).await,
        Vec::<String>::new()
    );
    memory.delete(spec.id, DeleteOptions::retain()).await.expect("deleted");
    let rest: Vec<_> = followed.collect().await;
    assert!(rest.len() < 10, "a log ends with its instance");
    let absent: Vec<_> = memory.logs(spec.id, LogOptions::all()).collect().await;
    assert!(matches!(&absent[..], [Err(error)] if error.is_not_found()));
}

// --- faults -------------------------------------------------------------------------------------------------------

#[tokio::test(start_paused = true)]
async fn planned_faults_befall_the_calls_they_name() {
    let memory = MemoryOrchestrator::builder()
        .faults(
            FaultPlan::new()
                .on(OperationKind::Create, 1, Fault::Fail(ErrorKind::Unavailable))
                .on(OperationKind::Create, 2, Fault::LoseResponse)
                .on(OperationKind::Get, 1, Fault::Fail(ErrorKind::Throttled))
                .on(OperationKind::List, 1, Fault::Fail(ErrorKind::Forbidden))
                .on(OperationKind::Health, 1, Fault::Fail(ErrorKind::Unavailable))
                .on(OperationKind::Logs, 1, Fault::Fail(ErrorKind::Timeout)),
        )
        .build();
    let spec = spec("acme");
    let error = memory.create(&spec, CreateOptions::new()).await.expect_err("refused");
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert_eq!(error.operation(), Some(OperationKind::Create));
    assert_eq!(memory.volumes().len(), 0, "nothing was done");
    let error = memory.create(&spec, CreateOptions::new()).await.expect_err("lost");
    assert_eq!(error.retry(), Retry::OutcomeUnknown);
    let again = memory.create(&spec, CreateOptions::new()).await.expect("it was done");
    assert_eq!(again.outcome, EnsureOutcome::Unchanged);
    assert_eq!(
        memory.get(spec.id).await.expect_err("planned").kind(),
        ErrorKind::Throttled
    );
    memory.get(spec.id).await.expect("only the first");
    let list = memory.list_all(InstanceFilter::all()).await;
    assert_eq!(list.expect_err("planned").kind(), ErrorKind::Forbidden);
    assert!(!memory.health().await.is_ready());
    assert!(memory.health().await.is_ready());
    let logs: Vec<_> = memory.logs(spec.id, LogOptions::all()).collect().await;
    assert!(matches!(&logs[..], [Err(error)] if error.kind() == ErrorKind::Timeout));

    let calls = memory.calls();
    assert_eq!(memory.count_calls(OperationKind::Create), 3);
    assert_eq!(calls[1].fault, Some(Fault::LoseResponse));
    assert_eq!(
        (calls[0].operation, calls[0].instance),
        (OperationKind::Create, Some(spec.id))
    );
}

#[tokio::test(start_paused = true)]
async fn slow_hanging_and_panicking_calls() {
    let memory = MemoryOrchestrator::new();
    let spec = spec("acme");
    running(&memory, &spec).await;
    memory.plan_faults(
        FaultPlan::new()
            .on(OperationKind::SetPower, 1, Fault::Delay(Duration::from_secs(5)))
            .on(OperationKind::SetPower, 2, Fault::DelayResponse(Duration::from_secs(5)))
            .on(OperationKind::SetPower, 3, Fault::Hang)
            .on(OperationKind::SetPower, 4, Fault::HangAfter)
            .on(OperationKind::SetPower, 5, Fault::Panic),
    );
    let call = |power| {
        let memory = memory.clone();
        async move { tokio::time::timeout(Duration::from_secs(2), memory.set_power(spec.id, power)).await }
    };
    assert!(call(Power::Stop).await.is_err());
    assert_eq!(
        seen(&memory, spec.id).await.0,
        InstanceStatus::Running,
        "still on its way"
    );
    seconds(10).await;
    assert_eq!(
        seen(&memory, spec.id).await.0,
        InstanceStatus::Stopped,
        "dropping the future did not stop it"
    );
    assert!(call(Power::Start).await.is_err());
    assert_eq!(seen(&memory, spec.id).await.0, InstanceStatus::Starting);
    assert!(call(Power::Stop).await.is_err());
    seconds(10).await;
    assert_eq!(
        seen(&memory, spec.id).await.0,
        InstanceStatus::Running,
        "it never arrived"
    );
    assert!(call(Power::Stop).await.is_err());
    assert_eq!(seen(&memory, spec.id).await.0, InstanceStatus::Stopped, "it was done");
    let panicked = tokio::spawn(call(Power::Start)).await;
    assert!(panicked.expect_err("it panics").is_panic());
    assert_eq!(seen(&memory, spec.id).await.0, InstanceStatus::Stopped);
}

#[tokio::test(start_paused = true)]
async fn a_watch_that_cannot_begin_is_stale_and_tries_again() {
    let memory = MemoryOrchestrator::builder()
        .faults(FaultPlan::new().on(OperationKind::Watch, 1, Fault::Fail(ErrorKind::Forbidden)))
        .build();
    let mut watch = memory.watch(InstanceFilter::all());
    assert_eq!(take_until(&mut watch, "synced").await, ["stale", "synced"]);
}

// --- two platforms ------------------------------------------------------------------------------------------------

fn pair() -> (MemoryOrchestrator, MemoryOrchestrator) {
    let swarm = MemoryOrchestrator::builder().posing_as(BackendKind::Swarm).build();
    let kubernetes = MemoryOrchestrator::builder()
        .posing_as(BackendKind::Kubernetes)
        .sharing_data_with(&swarm)
        .build();
    (swarm, kubernetes)
}

#[tokio::test(start_paused = true)]
async fn a_directory_is_adopted_by_the_other_platform_and_two_writers_are_noticed() {
    let (swarm, kubernetes) = pair();
    let spec = spec("acme");
    let source = running(&swarm, &spec).await;
    let StorageLocation::Directory { path } = location(&source) else {
        panic!("a directory on Swarm: {:?}", source.storage);
    };
    swarm.write_file(&location(&source), "a", "1").expect("written");
    let path: DataPath = path.rsplit('/').next().expect("a name").parse().expect("a path");
    let options = CreateOptions::new()
        .with_data(DataPolicy::AdoptDirectory(path))
        .stopped();
    let target = kubernetes.create(&spec, options).await.expect("adopted");
    assert_eq!(target.outcome, EnsureOutcome::Adopted);
    assert!(
        kubernetes
            .read_file(&location(&target.instance), "a")
            .expect("there")
            .is_some()
    );
    assert_eq!(swarm.violations(), []);

    // The broken fence: started while the other side still runs. Nobody looks at the other side meanwhile.
    kubernetes.start(spec.id).await.expect("started");
    seconds(5).await;
    assert!(
        matches!(&swarm.violations()[..], [Violation::TwoWriters { writers, .. }] if writers.len() == 2),
        "{:?}",
        swarm.violations()
    );
    assert_eq!(kubernetes.writers(&location(&target.instance)).expect("there").len(), 2);
}

#[tokio::test(start_paused = true)]
async fn one_after_the_other_is_no_violation_even_if_nobody_looked_in_between() {
    let (swarm, kubernetes) = pair();
    let spec = spec("acme");
    let source = running(&swarm, &spec).await;
    swarm.stop(spec.id).await.expect("stopped");
    seconds(30).await;
    let path = format!("odoo_data_acme_{}", spec.id.short()).parse().expect("a path");
    let options = CreateOptions::new().with_data(DataPolicy::AdoptDirectory(path));
    kubernetes.create(&spec, options).await.expect("adopted");
    seconds(30).await;
    assert_eq!(swarm.violations(), []);
    let units: std::collections::BTreeSet<_> = swarm
        .heartbeats(&location(&source))
        .expect("there")
        .into_iter()
        .map(|beat| beat.unit)
        .collect();
    assert_eq!(units.len(), 2, "both have written, one after the other");
    // Rolling back or purging the adopting side leaves the directory where it is.
    let plan = kubernetes.plan(&Operation::Purge(spec.id)).await.expect("a plan");
    let token = plan.purge_token.expect("a token");
    assert_eq!(token.objects(), []);
    let deleted = kubernetes
        .delete(spec.id, DeleteOptions::purge(token))
        .await
        .expect("deleted");
    assert!(deleted.retained.is_some() && deleted.purged.is_empty());
    assert_eq!(swarm.volumes().len(), 1);
    swarm.start(spec.id).await.expect("started");
    swarm
        .wait_until(spec.id, InstanceStatus::Running, BUDGET)
        .await
        .expect("it runs");
    assert_eq!(swarm.violations(), []);
}

#[tokio::test(start_paused = true)]
async fn what_ends_at_a_moment_has_ended_for_what_begins_at_it() {
    for first in 0..2 {
        let (swarm, kubernetes) = pair();
        let place = swarm.make_directory(&"shared".parse().expect("a path"));
        let options = CreateOptions::new().with_data(DataPolicy::AdoptDirectory("shared".parse().expect("a path")));
        let spec = spec("acme");
        let sides = [&swarm, &kubernetes];
        for side in sides {
            side.create(&spec, options.clone().stopped()).await.expect("adopted");
        }
        sides[first].start(spec.id).await.expect("started");
        seconds(10).await;
        sides[first].stop(spec.id).await.expect("stopped");
        millis(900).await;
        assert_eq!(swarm.writers(&place).expect("there").len(), 1, "for another 100 ms");
        sides[1 - first]
            .start(spec.id)
            .await
            .expect("it opens the data after 100 ms");
        seconds(10).await;
        assert_eq!(swarm.violations(), []);
    }
}

#[tokio::test(start_paused = true)]
async fn everything_is_the_same_in_every_run() {
    async fn run() -> Vec<String> {
        let memory = MemoryOrchestrator::builder()
            .seed(7)
            .starting_at("2026-03-01T12:00:00.7Z".parse().expect("a time"))
            .build();
        let mut watch = memory.watch(InstanceFilter::all());
        let mut seen = Vec::new();
        for spec in fixtures::fleet(5) {
            memory.create(&spec, CreateOptions::new()).await.expect("created");
            memory.cause(spec.id, Trouble::CrashLoop { exit_code: 1 });
        }
        while seen.len() < 60 {
            seen.push(format!("{:?}", watch.next().await));
        }
        seen
    }
    assert_eq!(run().await, run().await);
}

/// Not paused: what the quickstart and several threads at once see.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_also_works_on_a_running_clock_and_on_several_threads() {
    let quick = Duration::from_millis(5);
    let memory = MemoryOrchestrator::builder()
        .pull_time(quick)
        .start_time(quick)
        .stop_time(quick)
        .build();
    let mut watch = memory.watch(InstanceFilter::all());
    let fleet = fixtures::fleet(10);
    let tasks: Vec<_> = fleet
        .iter()
        .cloned()
        .map(|spec| {
            let memory = memory.clone();
            tokio::spawn(async move { running(&memory, &spec).await })
        })
        .collect();
    let mut up = std::collections::BTreeSet::new();
    while up.len() < fleet.len() {
        if let Some(InstanceEvent::Applied(instance)) = watch.next().await
            && instance.status == InstanceStatus::Running
        {
            up.insert(instance.id);
        }
    }
    for task in tasks {
        assert_eq!(task.await.expect("no panic").status, InstanceStatus::Running);
    }
    for spec in &fleet {
        assert!(
            memory
                .delete(spec.id, DeleteOptions::retain())
                .await
                .expect("deleted")
                .existed
        );
    }
    assert_eq!(memory.list_all(InstanceFilter::all()).await.expect("a list").len(), 0);
    assert_eq!(memory.violations(), []);
}
