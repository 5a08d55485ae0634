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

mod calls;
mod edges;

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
        (InstanceStatus::Starting, Some(Cause::Exited { code: Some(3) })),
        "it has run"
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
