//! Against the testbed's Docker Swarm and CephFS.

mod common;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use common::{directory, on_testbed, spec, variable};
use futures::TryStreamExt;
use jiff::Timestamp;
use saasodoo_core::{
    Bytes, Cause, CreateOptions, DataPolicy, DeleteOptions, EnsureOutcome, ErrorKind, Instance, InstanceChange,
    InstanceEvent, InstanceId, InstanceOrchestrator, InstanceOrchestratorExt, InstanceSpec, InstanceStatus, LogOptions,
    Operation, Origin, Power, Retry, Secret, UpdateOptions,
};
use saasodoo_swarm::SwarmOrchestrator;
use serde_json::Value;

/// Two intervals of the slow polling that the tests are configured with, and what a loaded machine takes on top.
const TWO_INTERVALS: Duration = Duration::from_secs(6 + 4);

async fn running(swarm: &SwarmOrchestrator, id: InstanceId) -> Instance {
    swarm
        .wait_until(id, InstanceStatus::Running, Duration::from_secs(90))
        .await
        .expect("running")
}

fn docker(arguments: &[&str]) -> String {
    let output = Command::new("docker")
        .args(arguments)
        .output()
        .expect("the docker command");
    assert!(
        output.status.success(),
        "docker {arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).expect("UTF-8").trim().to_owned()
}

/// The container of an instance that runs.
fn container(instance: &Instance) -> String {
    let task = &instance.facts.current().expect("a task").id;
    docker(&["inspect", "--format", "{{.Status.ContainerStatus.ContainerID}}", task])
}

fn in_container(container: &str, script: &str) -> (bool, String) {
    let output = Command::new("docker")
        .args(["exec", container, "sh", "-c", script])
        .output()
        .expect("the docker command");
    let text = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&text).into_owned())
}

#[tokio::test]
#[ignore = "needs Docker Swarm (creates services)"]
async fn an_instance_lives_and_dies() {
    on_testbed(|swarm, _| async move {
        let cluster = docker(&["info", "--format", "{{.Swarm.Cluster.ID}}"]);
        assert_eq!(swarm.cluster_id().await.expect("a manager"), cluster.trim());
        let spec = spec();
        let ensured = swarm.create(&spec, CreateOptions::new()).await.expect("created");
        assert_eq!(ensured.outcome, EnsureOutcome::Created);
        let instance = running(&swarm, spec.id).await;
        assert!(instance.spec.diff(&spec).is_empty(), "{:?}", instance.spec.diff(&spec));
        assert_eq!(instance.unparsed, []);
        // The password is in a file of the container and nowhere else.
        let (_, password) = in_container(&container(&instance), "cat $ODOO_DATABASE_PASSWORD_FILE");
        assert_eq!(password, "s3ntinel-db");
        assert!(!docker(&["service", "inspect", instance.name.as_str()]).contains("s3ntinel"));
        let data = directory(instance.storage.location.as_ref());
        assert!(data.join("heartbeat.log").exists());
        let plan = swarm.plan(&Operation::Purge(spec.id)).await.expect("a plan");
        let token = plan.purge_token.expect("a token");
        // What a link in the data points at is not the instance's.
        let outside = data.parent().expect("the root").join("outside");
        std::fs::create_dir(&outside).expect("a directory");
        std::fs::write(outside.join("precious"), "x").expect("a file");
        std::os::unix::fs::symlink(&outside, data.join("link")).expect("a link");
        std::os::unix::fs::symlink("/etc/hostname", data.join("file")).expect("a link");
        let deleted = swarm
            .delete(spec.id, DeleteOptions::purge(token))
            .await
            .expect("deleted");
        assert_eq!(deleted.purged.len(), 1);
        assert!(!data.exists());
        assert!(outside.join("precious").exists());
        assert!(Path::new("/etc/hostname").exists());
        let secrets = docker(&[
            "secret",
            "ls",
            "-q",
            "--filter",
            &format!("label=saasodoo.instance.id={}", spec.id),
        ]);
        assert_eq!(secrets, "", "no secret is left");
    })
    .await;
}

/// O1 of the system in production: a second creation deletes the running service and its data.
#[tokio::test]
#[ignore = "needs Docker Swarm (creates services)"]
async fn a_creation_that_meets_something_touches_nothing() {
    on_testbed(|swarm, root| async move {
        // A directory with data.
        let spec = spec();
        let data = root.join(format!("odoo_data_{}_{}", spec.database_name, spec.id.short()));
        std::fs::create_dir(&data).expect("a directory");
        std::fs::write(data.join("precious"), "x").expect("a file");
        let error = swarm.create(&spec, CreateOptions::new()).await.expect_err("data");
        assert_eq!(error.kind(), ErrorKind::Conflict, "{error}");
        assert_eq!(std::fs::read_to_string(data.join("precious")).expect("the file"), "x");
        assert!(swarm.get(spec.id).await.expect_err("nothing").is_not_found());

        // A service of somebody else under the same name.
        let taken = common::spec();
        let name = format!("odoo-{}-{}", taken.database_name, taken.id.short());
        let id = docker(&[
            "service",
            "create",
            "-d",
            "-q",
            "--no-resolve-image",
            "--replicas",
            "0",
            "--name",
            &name,
            &variable("SAASODOO_STUB_IMAGE"),
        ]);
        let before = docker(&["service", "inspect", &id]);
        let error = swarm.create(&taken, CreateOptions::new()).await.expect_err("a name");
        let after = docker(&["service", "inspect", &id]);
        docker(&["service", "rm", &id]);
        assert_eq!(error.kind(), ErrorKind::Conflict, "{error}");
        assert_eq!(before, after);
        let left = root.join(format!("odoo_data_{}_{}", taken.database_name, taken.id.short()));
        assert!(!left.exists(), "what this call made is gone");
    })
    .await;
}

#[tokio::test]
#[ignore = "needs Docker Swarm (creates services)"]
async fn the_quota_is_enforced_inside_the_container_and_grows() {
    on_testbed(|swarm, _| async move {
        let mut spec = spec();
        spec.storage = Bytes::from_mib(8);
        swarm.create(&spec, CreateOptions::new()).await.expect("created");
        let instance = running(&swarm, spec.id).await;
        assert_eq!(instance.storage.capacity, Some(Bytes::from_mib(8)));
        let container = container(&instance);
        let write = "dd if=/dev/zero of=/bitnami/odoo/ballast bs=1M count=24 conv=fsync";
        // CephFS looks at a directory's size with some delay, so a little more than the quota can fit.
        let (written, text) = in_container(&container, write);
        assert!(!written && text.contains("quota"), "{text}");
        let change = InstanceChange::new().storage(Bytes::from_mib(128));
        let updated = swarm
            .update(spec.id, &change, UpdateOptions::new())
            .await
            .expect("grown");
        assert_eq!(updated.outcome, EnsureOutcome::Updated);
        let (written, text) = in_container(&container, write);
        assert!(written, "the same container writes on: {text}");
        let smaller = InstanceChange::new().storage(Bytes::from_mib(16));
        let error = swarm
            .update(spec.id, &smaller, UpdateOptions::new())
            .await
            .expect_err("a shrink");
        assert_eq!(error.field(), Some("storage"), "{error}");
    })
    .await;
}

/// Waits for a cause in a watch, and says how long it took and what was seen.
async fn watched(
    swarm: &SwarmOrchestrator,
    id: InstanceId,
    fits: impl Fn(&Instance) -> bool + Send + Sync,
) -> (Duration, Instance) {
    use futures::StreamExt;
    let mut events = swarm.watch(saasodoo_core::InstanceFilter::id(id));
    let begun = Instant::now();
    let seen = tokio::time::timeout(Duration::from_secs(60), async {
        while let Some(event) = events.next().await {
            if let InstanceEvent::Applied(instance) = event
                && fits(&instance)
            {
                return *instance;
            }
        }
        panic!("the watch has ended");
    });
    let seen = seen.await.expect("the cause within a minute");
    (begun.elapsed(), seen)
}

/// When a process of the instance ended last.
fn last_exit(instance: &Instance) -> Option<(Timestamp, Option<i32>)> {
    let exits = instance.facts.units.iter().filter_map(|unit| unit.last_exit.as_ref());
    exits.filter_map(|exit| Some((exit.at?, exit.code))).max()
}

#[tokio::test]
#[ignore = "needs Docker Swarm (creates services)"]
async fn failures_are_seen_within_two_intervals() {
    on_testbed(|swarm, _| async move {
        let code = |instance: &Instance| instance.cause.as_ref().map(Cause::code);
        // Killed: Swarm starts another task, and no event says so.
        let killed = spec();
        swarm.create(&killed, CreateOptions::new()).await.expect("created");
        let instance = running(&swarm, killed.id).await;
        let first = instance.facts.current().expect("a task").id.clone();
        // One kill is no cause yet, but the exit is told.
        let gone = |seen: &Instance| {
            let killed = last_exit(seen).is_some_and(|(_, code)| code == Some(137));
            seen.status == InstanceStatus::Starting && killed
        };
        let ((took, _), ()) = tokio::join!(watched(&swarm, killed.id, gone), async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            docker(&["kill", &container(&instance)]);
        });
        assert!(took <= TWO_INTERVALS, "{took:?}");
        let again = running(&swarm, killed.id).await;
        assert_ne!(again.facts.current().expect("a task").id, first);

        // The bind source goes away under a running instance, which is then killed.
        let data = directory(again.storage.location.as_ref());
        std::fs::rename(&data, data.with_extension("moved")).expect("moved");
        docker(&["kill", &container(&again)]);
        let (took, _) = watched(&swarm, killed.id, |seen| {
            seen.status == InstanceStatus::Error && code(seen) == Some("mount_failed")
        })
        .await;
        // Swarm waits for the restart delay of five seconds before it tries.
        assert!(took <= TWO_INTERVALS + Duration::from_secs(5), "{took:?}");
        std::fs::rename(data.with_extension("moved"), &data).expect("moved back");

        let missing = spec().with_image("saasodoo/no-such-image:17".parse().expect("an image"));
        swarm.create(&missing, CreateOptions::new()).await.expect("created");
        let (took, _) = watched(&swarm, missing.id, |seen| {
            seen.status == InstanceStatus::Error && code(seen) == Some("image_pull")
        })
        .await;
        assert!(took <= TWO_INTERVALS, "{took:?}");

        // Named after the second kill.
        let hungry = spec().with_env("EAT_MB".parse().expect("a name"), "256");
        swarm.create(&hungry, CreateOptions::new()).await.expect("created");
        let (_, seen) = watched(&swarm, hungry.id, |seen| {
            seen.status == InstanceStatus::Error && code(seen) == Some("out_of_memory")
        })
        .await;
        let (at, _) = last_exit(&seen).expect("an exit");
        let late = Timestamp::now().duration_since(at).unsigned_abs();
        assert!(late <= TWO_INTERVALS, "{late:?} after the kill");

        // No node has the label that it asks for.
        let mut homeless = spec();
        let (key, value) = (
            "saasodoo.nowhere".parse().expect("a key"),
            "yes".parse().expect("a value"),
        );
        homeless.scheduling.node_selector.insert(key, value);
        swarm.create(&homeless, CreateOptions::new()).await.expect("created");
        let (took, seen) = watched(&swarm, homeless.id, |seen| code(seen) == Some("unschedulable")).await;
        assert!(took <= TWO_INTERVALS, "{took:?}");
        let cause = seen.cause.expect("a cause").to_string();
        assert!(cause.contains("no suitable node"), "{cause}");
    })
    .await;
}

fn inspect(name: &str) -> Value {
    let text = docker(&["service", "inspect", name]);
    let list: Value = serde_json::from_str(&text).expect("JSON");
    list[0]["Spec"].clone()
}

/// The paths at which two bodies differ.
fn differing(a: &Value, b: &Value) -> Vec<String> {
    fn walk(a: &Value, b: &Value, path: &str, into: &mut Vec<String>) {
        match (a, b) {
            (Value::Object(x), Value::Object(y)) => {
                let keys: std::collections::BTreeSet<_> = x.keys().chain(y.keys()).collect();
                for key in keys {
                    let null = &Value::Null;
                    let (x, y) = (x.get(key).unwrap_or(null), y.get(key).unwrap_or(null));
                    walk(x, y, &format!("{path}/{key}"), into);
                }
            }
            _ if a != b => into.push(path.to_owned()),
            _ => {}
        }
    }
    let mut paths = Vec::new();
    walk(a, b, "", &mut paths);
    paths
}

#[tokio::test]
#[ignore = "needs Docker Swarm and docker-py (creates services)"]
async fn a_service_of_docker_py_is_adopted_and_operated() {
    on_testbed(|swarm, root| async move {
        let id = InstanceId::random();
        let slug = format!("sw-{}_x", id.short());
        let data = root.join(format!("odoo_data_{slug}_{}", id.short()));
        std::fs::create_dir(&data).expect("a directory");
        let quota = Bytes::from_mib(32);
        xattr::set(&data, "ceph.quota.max_bytes", quota.get().to_string().as_bytes()).expect("a quota");
        let python = std::env::var("SAASODOO_PYTHON").unwrap_or_else(|_| "python3".to_owned());
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/legacy_create.py");
        let made = Command::new(python)
            .arg(script)
            .args([&slug, &id.to_string(), "sw.example", &variable("SAASODOO_STUB_IMAGE")])
            .args([data.to_str().expect("UTF-8"), "saasodoo-network"])
            .output()
            .expect("python");
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));

        let instance = running(&swarm, id).await;
        let name = instance.name.clone();
        assert_eq!(name.as_str(), format!("odoo-{slug}-{}", id.short()));
        assert_eq!(instance.provenance.origin, Origin::Legacy);
        let spec: &InstanceSpec = &instance.spec;
        assert_eq!(spec.database_name.as_str(), slug);
        assert_eq!(spec.storage, quota);
        assert_eq!(spec.resources.memory, Bytes::from_mib(64));
        assert_eq!(
            spec.database.as_ref().map(|database| &database.password),
            Some(&Secret::new("s3ntinel-db"))
        );
        assert_eq!(directory(instance.storage.location.as_ref()), data);
        let listed = swarm
            .list_all(saasodoo_core::InstanceFilter::id(id))
            .await
            .expect("a list");
        assert_eq!(listed.len(), 1);
        assert!(listed[0].spec.diff(spec).is_empty(), "{:?}", listed[0].spec.diff(spec));

        // Each step changes what it was asked to change and nothing else.
        let mut before = inspect(name.as_str());
        let mut step = |what: &str, paths: &[&str]| {
            let after = inspect(name.as_str());
            assert_eq!(differing(&before, &after), paths, "{what}");
            before = after;
        };
        swarm.set_power(id, Power::Stop).await.expect("accepted");
        swarm
            .wait_until(id, InstanceStatus::Stopped, Duration::from_secs(60))
            .await
            .expect("stopped");
        step("stop", &["/Mode/Replicated/Replicas"]);
        swarm.set_power(id, Power::Start).await.expect("accepted");
        running(&swarm, id).await;
        step("start", &["/Mode/Replicated/Replicas"]);
        let resize = InstanceChange::new()
            .memory(Bytes::from_mib(96))
            .storage(Bytes::from_mib(48));
        swarm.update(id, &resize, UpdateOptions::new()).await.expect("resized");
        step("resize", &["/TaskTemplate/Resources/Limits/MemoryBytes"]);
        let resized = running(&swarm, id).await;
        assert_eq!(resized.spec.storage, Bytes::from_mib(48));
        assert_eq!(resized.storage.capacity, Some(Bytes::from_mib(48)));
        swarm.set_power(id, Power::Restart).await.expect("accepted");
        step("restart", &["/TaskTemplate/ForceUpdate"]);
        running(&swarm, id).await;
        swarm.set_power(id, Power::Suspend).await.expect("accepted");
        let (fence, since) = ("/TaskTemplate/Placement/Constraints", "/Labels/saasodoo.suspended-at");
        step(
            "suspend",
            &["/Labels/saasodoo.hold", since, "/Mode/Replicated/Replicas", fence],
        );
        let error = swarm.set_power(id, Power::Start).await.expect_err("held");
        assert_eq!(error.kind(), ErrorKind::NotAllowed, "{error}");
        swarm.set_power(id, Power::Resume).await.expect("accepted");
        step("resume", &["/Labels/saasodoo.hold", since, fence]);
        swarm.set_power(id, Power::Start).await.expect("accepted");
        running(&swarm, id).await;
        let lines: Vec<_> = swarm.logs(id, LogOptions::tail(5)).try_collect().await.expect("a log");
        assert!(lines.iter().any(|line| line.text.contains("listening")), "{lines:?}");
        let deleted = swarm.delete(id, DeleteOptions::retain()).await.expect("deleted");
        assert_eq!(directory(deleted.retained.as_ref()), data);
        assert!(data.join("heartbeat.log").exists(), "the data is there");
        assert!(swarm.get(id).await.expect_err("gone").is_not_found());
    })
    .await;
}

#[tokio::test]
#[ignore = "needs Docker Swarm (creates services)"]
async fn contention_is_worked_through() {
    on_testbed(|swarm, _| async move {
        let spec = spec();
        swarm
            .create(&spec, CreateOptions::new().stopped())
            .await
            .expect("created");
        let changes = (0..5).map(|n| {
            let swarm = swarm.clone();
            let change = InstanceChange::new().set_env(format!("V{n}").parse().expect("a name"), "1");
            async move { swarm.update(spec.id, &change, UpdateOptions::new()).await }
        });
        for result in futures::future::join_all(changes).await {
            result.expect("applied again to what the others made of it");
        }
        let seen = swarm.get(spec.id).await.expect("an instance");
        assert_eq!(seen.spec.environment.len(), 5, "{:?}", seen.spec.environment);
    })
    .await;
}

#[tokio::test]
#[ignore = "needs Docker Swarm (creates services)"]
async fn a_file_system_without_quotas_is_refused_unless_best_effort_will_do() {
    let root = tempfile::tempdir().expect("a directory");
    let path = root.path().to_owned();
    let lenient = common::builder(&path)
        .quota(saasodoo_swarm::QuotaPolicy::BestEffort)
        .build()
        .expect("an orchestrator");
    let test = |lenient: SwarmOrchestrator, root: PathBuf| async move {
        let strict = common::builder(&root).build().expect("an orchestrator");
        let refused = strict
            .create(&spec(), CreateOptions::new().stopped())
            .await
            .expect_err("no quotas");
        assert_eq!(refused.kind(), ErrorKind::MissingPrerequisite, "{refused}");
        assert_eq!(std::fs::read_dir(&root).expect("the root").count(), 0, "nothing stays");
        let spec: InstanceSpec = spec();
        lenient
            .create(&spec, CreateOptions::new().stopped())
            .await
            .expect("created");
        lenient.delete(spec.id, DeleteOptions::retain()).await.expect("deleted");
    };
    common::cleaned(lenient, path, test).await;
}

#[tokio::test]
#[ignore = "needs Docker Swarm (creates services)"]
async fn a_quota_is_never_less_than_what_is_there() {
    on_testbed(|swarm, root| async move {
        let full = root.join("full");
        std::fs::create_dir(&full).expect("a directory");
        std::fs::write(full.join("ballast"), vec![0; 4 << 20]).expect("a file");
        // CephFS counts with a delay.
        let used = || xattr::get(&full, "ceph.dir.rbytes").expect("CephFS").expect("a number");
        let deadline = Instant::now() + Duration::from_secs(30);
        while used() != b"4194304" {
            assert!(Instant::now() < deadline, "the size is not counted");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        let mut small = spec();
        small.storage = Bytes::from_mib(2);
        let adopt = || {
            let path = "full".parse().expect("a path");
            CreateOptions::new()
                .stopped()
                .with_data(DataPolicy::AdoptDirectory(path))
        };
        let error = swarm.create(&small, adopt()).await.expect_err("less than there is");
        assert_eq!(
            (error.kind(), error.field()),
            (ErrorKind::InvalidInput, Some("storage"))
        );
        assert!(
            error.message().contains("2Mi") && error.message().contains("4Mi"),
            "{error}"
        );
        let quota = |path: &Path| xattr::get(path, "ceph.quota.max_bytes").expect("CephFS");
        assert_eq!(quota(&full), None);
        small.storage = Bytes::from_mib(8);
        swarm.create(&small, adopt()).await.expect("adopted");
        assert_eq!(quota(&full).expect("a quota"), b"8388608");
        // Somebody raises it by hand; an update from 8 to 16 MiB does not take that back.
        xattr::set(&full, "ceph.quota.max_bytes", b"33554432").expect("raised");
        let change = InstanceChange::new().storage(Bytes::from_mib(16));
        let error = swarm
            .update(small.id, &change, UpdateOptions::new())
            .await
            .expect_err("less than there is");
        assert_eq!(
            (error.kind(), error.field()),
            (ErrorKind::InvalidInput, Some("storage"))
        );
        assert_eq!(quota(&full).expect("a quota"), b"33554432");
    })
    .await;
}

/// A migrated instance runs on the directory that its source on Swarm has left.
#[tokio::test]
#[ignore = "needs Docker Swarm (creates services)"]
async fn data_that_something_else_uses_by_now_is_not_purged() {
    on_testbed(|swarm, _| async move {
        let spec = spec();
        swarm
            .create(&spec, CreateOptions::new().stopped())
            .await
            .expect("created");
        let deleted = swarm.delete(spec.id, DeleteOptions::retain()).await.expect("deleted");
        let data = directory(deleted.retained.as_ref());
        std::fs::write(data.join("precious"), "x").expect("a file");
        let plan = swarm.plan(&Operation::Purge(spec.id)).await.expect("a plan");
        let token = plan.purge_token.expect("just left");
        // As if the instance had been deleted an hour ago.
        let until = Timestamp::now().as_second() - 3600;
        xattr::set(&data, "user.saasodoo.retained", until.to_string().as_bytes()).expect("an attribute");
        let refused = swarm.plan(&Operation::Purge(spec.id)).await.expect_err("in use");
        assert_eq!(refused.kind(), ErrorKind::Conflict, "{refused}");
        let refused = swarm
            .delete(spec.id, DeleteOptions::purge(token))
            .await
            .expect_err("in use");
        assert_eq!(refused.kind(), ErrorKind::Conflict, "{refused}");
        assert!(data.join("precious").exists());
        // As the advice says: adopted by a stopped instance and deleted again it is known to be at rest.
        let adopt = CreateOptions::new().stopped().with_data(DataPolicy::AdoptRetained);
        swarm.create(&spec, adopt).await.expect("adopted");
        swarm.delete(spec.id, DeleteOptions::retain()).await.expect("deleted");
        let plan = swarm.plan(&Operation::Purge(spec.id)).await.expect("a plan");
        let token = plan.purge_token.expect("a token");
        swarm
            .delete(spec.id, DeleteOptions::purge(token))
            .await
            .expect("purged");
        assert!(!data.exists());
    })
    .await;
}

#[tokio::test]
#[ignore = "needs Docker Swarm (creates services)"]
async fn a_directory_is_not_adopted_while_a_removed_services_task_ends_on_it() {
    on_testbed(|swarm, root| async move {
        let data = root.join("ending");
        std::fs::create_dir(&data).expect("a directory");
        let mount = format!("type=bind,source={},target=/bitnami/odoo", data.display());
        let stubborn = "trap '' TERM; while :; do date > /bitnami/odoo/beat; sleep 1; done";
        let name = format!("sw-ending-{}", InstanceId::random().short());
        docker(&[
            "service",
            "create",
            "-q",
            "--no-resolve-image",
            "--name",
            &name,
            "--stop-grace-period",
            "6s",
            "--mount",
            &mount,
            "--entrypoint",
            "sh",
            &variable("SAASODOO_STUB_IMAGE"),
            "-c",
            stubborn,
        ]);
        docker(&["service", "rm", &name]);
        let spec = spec();
        let adopt = || {
            let path = "ending".parse().expect("a path");
            CreateOptions::new().with_data(DataPolicy::AdoptDirectory(path))
        };
        let error = swarm.create(&spec, adopt()).await.expect_err("two writers");
        assert_eq!(
            (error.kind(), error.retry()),
            (ErrorKind::Conflict, Retry::After(None)),
            "{error}"
        );
        assert!(error.message().contains("service that has been removed"), "{error}");
        let deadline = Instant::now() + Duration::from_secs(60);
        while let Err(error) = swarm.create(&spec, adopt()).await {
            assert!(Instant::now() < deadline, "{error}");
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        let beat = std::fs::read(data.join("beat")).expect("the old writer's file");
        running(&swarm, spec.id).await;
        assert_eq!(
            std::fs::read(data.join("beat")).expect("the file"),
            beat,
            "it has ended"
        );
    })
    .await;
}
