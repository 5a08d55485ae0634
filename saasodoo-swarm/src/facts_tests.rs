//! Statuses from services and tasks as the daemon shows them, and the tables of the system in production.

use jiff::Timestamp;
use saasodoo_core::{Bytes, Cause, Config, InstanceId, InstanceSpec, InstanceStatus, Origin, Secret};
use serde_json::{Value, json};

use crate::config::SwarmConfig;
use crate::facts::{Disk, instance, is_unfinished};
use crate::task::Task;

const ID: &str = "0a1b2c3d-1111-4222-8333-444455556666";
const NAME: &str = "odoo-acme-0a1b2c3d";

fn config() -> SwarmConfig {
    let common = Config::builder()
        .base_domain("saasodoo.local".parse().expect("a host"))
        .build();
    SwarmConfig::new(common)
}

/// The service that the Python code makes, byte for byte where it matters, as the daemon shows it afterwards.
pub(crate) fn legacy(replicas: u64) -> Value {
    json!({
        "ID": "svc1", "Version": {"Index": 20},
        "CreatedAt": "2026-11-23T19:00:00.5Z", "UpdatedAt": "2026-11-23T19:00:00.6Z",
        "Spec": {
            "Name": NAME,
            "Labels": {
                "saasodoo.instance.id": ID,
                "saasodoo.instance.name": "Acme Ltd",
                "saasodoo.customer.id": "11111111-2222-4333-8444-555555555555",
                "traefik.enable": "true",
                "traefik.http.routers.odoo-acme-0a1b2c3d.rule": "Host(`acme.saasodoo.local`)",
                "traefik.http.routers.odoo-acme-0a1b2c3d.service": NAME,
                "traefik.http.services.odoo-acme-0a1b2c3d.loadbalancer.server.port": "8069",
            },
            "TaskTemplate": template(),
            "Mode": {"Replicated": {"Replicas": replicas}},
        },
        "Endpoint": {"Spec": {}},
    })
}

fn template() -> Value {
    json!({
        "ContainerSpec": {
            "Image": "bitnamilegacy/odoo:17",
            "Env": [
                "ODOO_DATABASE_HOST=postgres-pool-1", "ODOO_DATABASE_PORT_NUMBER=5432",
                "ODOO_DATABASE_NAME=odoo_1111_0a1b2c3d", "ODOO_DATABASE_USER=odoo_1111_0a1b2c3d_user",
                "ODOO_DATABASE_PASSWORD=s3ntinel", "ODOO_EMAIL=admin@acme.example", "ODOO_PASSWORD=s3ntinel2",
                "ODOO_LOAD_DEMO_DATA=yes", "WORKERS=4",
            ],
            "Mounts": [{
                "Type": "bind", "Target": "/bitnami/odoo",
                "Source": "/mnt/cephfs/odoo_instances/odoo_data_acme_0a1b2c3d",
            }],
            "Isolation": "default",
        },
        "Resources": {"Limits": {"NanoCPUs": 1_500_000_000_u64, "MemoryBytes": 2_147_483_648_u64}},
        "RestartPolicy": {"Condition": "any", "Delay": 0, "MaxAttempts": 0, "Window": 0},
        "Networks": [{"Target": "nhm1fkgcbqcvma707cvvc31i3"}],
        "ForceUpdate": 0,
        "Runtime": "container",
    })
}

fn time(second: i64) -> String {
    (start() + jiff::SignedDuration::from_secs(second)).to_string()
}

fn start() -> Timestamp {
    "2026-11-23T19:00:00Z".parse().expect("a time")
}

/// A task made at that second, in this state since five seconds later.
fn task(second: i64, desired: &str, state: &str) -> Value {
    let mut status = json!({"Timestamp": time(second + 5), "State": state, "Message": state});
    if matches!(state, "starting" | "running" | "complete" | "shutdown" | "failed") {
        status["ContainerStatus"] = json!({"ContainerID": format!("c{second}"), "PID": 1, "ExitCode": 0});
    }
    let mut spec = template();
    spec.as_object_mut().expect("an object").remove("Runtime");
    json!({
        "ID": format!("task{second}"), "Version": {"Index": 100}, "CreatedAt": time(second), "ServiceID": "svc1",
        "NodeID": "node1", "Slot": 1, "DesiredState": desired, "Status": status, "Spec": spec,
    })
}

fn failed(second: i64, desired: &str, code: i32) -> Value {
    let mut task = task(second, desired, "failed");
    task["Status"]["Err"] = json!(format!("task: non-zero exit ({code})"));
    task["Status"]["ContainerStatus"]["ExitCode"] = json!(code);
    task
}

fn with_error(mut task: Value, error: &str) -> Value {
    task["Status"]["Err"] = json!(error);
    task
}

/// What comes out of it two minutes later.
fn seen(service: &Value, tasks: &[Value]) -> (InstanceStatus, Option<Cause>) {
    let tasks: Vec<Task> = tasks.iter().map(|task| Task::read(task, "saasodoo-network")).collect();
    let now = start() + jiff::SignedDuration::from_secs(120);
    let instance = instance(service, &tasks, Disk::default(), &config(), now).expect("a service");
    (instance.status, instance.cause)
}

/// The same service after a change from this body.
fn changed(mut service: Value, before: impl FnOnce(&mut Value)) -> Value {
    let mut previous = service["Spec"].clone();
    before(&mut previous);
    service["PreviousSpec"] = previous;
    service
}

/// Made stopped once and started since.
fn started() -> Value {
    changed(legacy(1), |body| body["Mode"]["Replicated"]["Replicas"] = json!(0))
}

#[test]
fn todays_service_is_read_back_whole() {
    let disk = Disk {
        exists: Some(true),
        quota: Some(10 << 30),
        used: Some(4096),
    };
    let tasks = [Task::read(&task(1, "running", "running"), "saasodoo-network")];
    let instance = instance(&legacy(1), &tasks, disk, &config(), start()).expect("a service");
    assert_eq!(instance.unparsed, []);
    assert_eq!(instance.provenance.origin, Origin::Legacy);
    assert_eq!(instance.provenance.revision, "20");
    assert_eq!(instance.name.as_str(), NAME);
    let spec = &instance.spec;
    assert_eq!(spec.database_name.as_str(), "acme");
    assert_eq!(spec.display_name, "Acme Ltd");
    assert_eq!(
        spec.customer_id.map(|id| id.to_string()).as_deref(),
        Some("11111111-2222-4333-8444-555555555555")
    );
    assert_eq!(spec.image.as_str(), "bitnamilegacy/odoo:17");
    assert_eq!(spec.resources.cpu.millis(), 1500);
    assert_eq!(spec.resources.memory, Bytes::from_gib(2));
    assert_eq!(spec.storage, Bytes::from_gib(10));
    assert!(spec.demo_data);
    let database = spec.database.as_ref().expect("a database");
    assert_eq!(
        (database.host.as_str(), database.port, database.name.as_str()),
        ("postgres-pool-1", 5432, "odoo_1111_0a1b2c3d")
    );
    assert_eq!(database.password, Secret::new("s3ntinel"));
    assert_eq!(
        spec.admin.as_ref().map(|admin| admin.email.as_str()),
        Some("admin@acme.example")
    );
    assert_eq!(spec.environment.len(), 1, "{:?}", spec.environment);
    assert_eq!(spec.route, saasodoo_core::Route::default());
    assert_eq!(instance.endpoints.external, ["http://acme.saasodoo.local"]);
    assert_eq!(
        instance.endpoints.internal.as_deref(),
        Some("http://odoo-acme-0a1b2c3d:8069")
    );
    // What Docker really does with such a service.
    assert_eq!(spec.scheduling.stop_grace_seconds, 10);
    assert!(!spec.probes.liveness);
    assert!(!format!("{instance:?}").contains("s3ntinel"));
}

#[test]
fn names_of_today_are_never_parsed() {
    for slug in ["a-b-c", "a_b", "Acme_Corp", "x-0a1b2c3d", "a--_b"] {
        let mut service = legacy(1);
        let name = format!("odoo-{slug}-0a1b2c3d");
        service["Spec"]["Name"] = json!(name);
        let labels = service["Spec"]["Labels"].as_object_mut().expect("labels");
        labels.retain(|key, _| !key.starts_with("traefik."));
        labels.insert(
            format!("traefik.http.routers.{name}.rule"),
            json!(format!("Host(`{slug}.saasodoo.local`)")),
        );
        labels.insert("saasodoo.restore.optimized".to_owned(), json!("true"));
        let instance = instance(&service, &[], Disk::default(), &config(), start()).expect(slug);
        assert_eq!(instance.spec.database_name.as_str(), slug);
        assert_eq!(instance.id, ID.parse::<InstanceId>().expect("an id"));
        // A host with an underscore is none; Traefik takes it all the same, so it is reported.
        let odd = instance.unparsed.iter().any(|left| left.field == "route");
        assert_eq!(odd, slug.contains('_'), "{slug}: {:?}", instance.unparsed);
    }
}

#[test]
fn what_cannot_be_understood_is_reported_and_the_rest_is_there() {
    let mut service = legacy(1);
    let body = &mut service["Spec"];
    body["TaskTemplate"]["ContainerSpec"]["Env"] = json!([
        "ODOO_DATABASE_HOST=db",
        "ODOO_DATABASE_PORT_NUMBER=many",
        "ODOO_DATABASE_NAME=d",
        "1X=s3ntinel",
        "A=b"
    ]);
    body["TaskTemplate"]["ContainerSpec"]["Image"] = json!("Not An Image");
    body["TaskTemplate"]["ContainerSpec"]["Command"] = json!(["sh"]);
    body["TaskTemplate"]["Resources"]["Limits"]["NanoCPUs"] = json!(7);
    body["TaskTemplate"]["Placement"] = json!({"Constraints": ["node.role==worker", "node.labels.zone == a"]});
    body["Labels"]["saasodoo.customer.id"] = json!("nobody");
    body["Labels"]["note"] = json!("two words");
    body["Mode"]["Replicated"]["Replicas"] = json!(3);
    let instance = instance(&service, &[], Disk::default(), &config(), start()).expect("an instance");
    let mut fields: Vec<&str> = instance.unparsed.iter().map(|left| left.field.as_str()).collect();
    fields.sort_unstable();
    assert_eq!(
        fields,
        [
            "command",
            "customer_id",
            "database.port",
            "environment.1X",
            "image",
            "labels.note",
            "replicas",
            "resources.cpu",
            "scheduling.node_selector",
            "storage",
        ]
    );
    assert_eq!(instance.spec.environment.len(), 1);
    assert_eq!(instance.spec.scheduling.node_selector.len(), 1);
    assert!(!format!("{:?}", instance.unparsed).contains("s3ntinel"));
}

#[test]
fn every_state_has_a_status() {
    use InstanceStatus::{Error, Running, Starting, Unknown};
    for (state, status) in [
        ("new", Starting),
        ("allocated", Starting),
        ("pending", Starting),
        ("assigned", Starting),
        ("accepted", Starting),
        ("preparing", Starting),
        ("ready", Starting),
        ("starting", Starting),
        ("running", Running),
        ("complete", Starting),
        ("shutdown", Starting),
        ("failed", Starting),
        ("rejected", Error),
        ("orphaned", Error),
        ("remove", Starting),
        ("evaporated", Unknown),
        ("", Unknown),
    ] {
        assert_eq!(seen(&started(), &[task(30, "running", state)]).0, status, "{state:?}");
    }
}

/// LEGACY 2.4: the effect of an event on a `running` instance, by the tasks two seconds later. `today` is what the
/// Python code makes of it; where that is a known bug, the right answer differs.
#[test]
fn the_table_of_events_with_its_bugs_corrected() {
    use InstanceStatus::{Error, Running, Starting, Stopped};
    let history = || {
        vec![
            failed(1, "shutdown", 1),
            failed(10, "shutdown", 1),
            failed(20, "shutdown", 1),
        ]
    };
    let with = |mut tasks: Vec<Value>, last: Value| {
        tasks.push(last);
        tasks
    };
    // (what, replicas, tasks, today, right)
    let rows = [
        ("no tasks yet: today calls it stopped", 1, vec![], Stopped, Starting),
        (
            "shutdown only: the next task comes",
            1,
            vec![task(1, "shutdown", "shutdown")],
            Stopped,
            Starting,
        ),
        (
            "pending: today calls it stopped",
            1,
            vec![task(30, "running", "pending")],
            Stopped,
            Starting,
        ),
        (
            "assigned: today calls it stopped",
            1,
            vec![task(30, "running", "assigned")],
            Stopped,
            Starting,
        ),
        (
            "rejected: today calls it stopped",
            1,
            vec![with_error(task(30, "ready", "rejected"), "something the node says")],
            Stopped,
            Error,
        ),
        (
            "complete: Swarm starts another",
            1,
            vec![task(30, "shutdown", "complete")],
            Stopped,
            Starting,
        ),
        (
            "a draining old task beside the new one",
            1,
            vec![task(1, "shutdown", "running"), task(30, "ready", "preparing")],
            Stopped,
            Starting,
        ),
        (
            "preparing",
            1,
            vec![task(30, "running", "preparing")],
            Starting,
            Starting,
        ),
        ("starting", 1, vec![task(30, "running", "starting")], Starting, Starting),
        ("running", 1, vec![task(30, "running", "running")], Running, Running),
        (
            "a crash loop between two starts: today calls it stopped",
            1,
            with(history(), task(30, "ready", "preparing")),
            Stopped,
            Error,
        ),
        ("scaled to 0 with failures in history", 0, history(), Stopped, Stopped),
        (
            "failures in history and a healthy task",
            1,
            with(history(), task(30, "running", "running")),
            Running,
            Running,
        ),
    ];
    let mut corrected = 0;
    for (what, replicas, tasks, today, right) in rows {
        let mut service = started();
        service["UpdatedAt"] = json!(time(0));
        service["Spec"]["Mode"]["Replicated"]["Replicas"] = json!(replicas);
        if replicas == 0 {
            service["PreviousSpec"]["Mode"]["Replicated"]["Replicas"] = json!(1);
        }
        assert_eq!(seen(&service, &tasks).0, right, "{what}");
        corrected += u32::from(today != right);
    }
    assert_eq!(corrected, 8, "rows in which today's answer is a bug");
}

/// LEGACY 2.5: the reconcile mapping, which looks at all tasks at once and forgets what is desired.
#[test]
fn the_table_of_the_reconciler_with_its_bugs_corrected() {
    use InstanceStatus::{Error, Paused, Running, Starting, Stopped, Stopping};
    let hold = |mut service: Value| {
        service["Spec"]["Labels"]["saasodoo.hold"] = json!("suspended");
        service
    };
    let maintenance = |mut service: Value| {
        service["Spec"]["Labels"]["saasodoo.hold"] = json!("maintenance");
        service
    };
    let rows = [
        (
            "any task running",
            started(),
            vec![task(30, "running", "running")],
            Running,
            Running,
        ),
        (
            "running, but told to stop: today calls it running",
            legacy(0),
            vec![task(30, "remove", "running")],
            Running,
            Stopping,
        ),
        (
            "a failure in the history of a stopped service: today calls it error",
            legacy(0),
            vec![failed(1, "shutdown", 1)],
            Error,
            Stopped,
        ),
        ("no tasks of a stopped service", legacy(0), vec![], Stopped, Stopped),
        (
            "no tasks of a started service: today calls it stopped",
            started(),
            vec![],
            Stopped,
            Starting,
        ),
        (
            "rejected: today calls it starting",
            started(),
            vec![with_error(task(30, "ready", "rejected"), "No such image: x:1")],
            Starting,
            Error,
        ),
        (
            "suspended: today the reconciler calls it stopped",
            hold(legacy(0)),
            vec![],
            Stopped,
            Paused,
        ),
        (
            "maintenance: today the reconciler calls it running",
            maintenance(started()),
            vec![task(30, "running", "running")],
            Running,
            InstanceStatus::Maintenance,
        ),
    ];
    for (what, mut service, tasks, _today, right) in rows {
        service["UpdatedAt"] = json!(time(0));
        assert_eq!(seen(&service, &tasks).0, right, "{what}");
    }
}

#[test]
fn refusals_are_the_causes_of_the_other_platform() {
    // The first three as Docker 20.10 says them.
    for (error, code) in [
        ("No such image: nosuch/image:1", "image_pull"),
        (
            "invalid mount config for type \"bind\": bind source path does not exist: /mnt/cephfs/x",
            "mount_failed",
        ),
        ("Minimum memory limit allowed is 6MB", "rejected"),
        (
            "pull access denied for x, repository does not exist or may require 'docker login'",
            "image_pull",
        ),
        ("manifest for x:9 not found: manifest unknown", "image_pull"),
    ] {
        let tasks = [
            with_error(task(20, "shutdown", "rejected"), error),
            with_error(task(30, "ready", "rejected"), error),
        ];
        let (status, cause) = seen(&started_at_zero(), &tasks);
        assert_eq!(status, InstanceStatus::Error, "{error}");
        assert_eq!(cause.as_ref().map(Cause::code), Some(code), "{error}");
        // Between two refusals the newest task has not been refused yet: no flicker.
        let tasks = [
            with_error(task(30, "shutdown", "rejected"), error),
            task(40, "ready", "preparing"),
        ];
        assert_eq!(
            seen(&started_at_zero(), &tasks).1.as_ref().map(Cause::code),
            Some(code),
            "{error}"
        );
    }
}

fn started_at_zero() -> Value {
    let mut service = started();
    service["UpdatedAt"] = json!(time(0));
    service
}

#[test]
fn a_refusal_before_a_change_says_nothing_about_it() {
    let mut new = task(40, "ready", "preparing");
    new["Spec"]["ContainerSpec"]["Image"] = json!("bitnamilegacy/odoo:18");
    let mut service = changed(legacy(1), |_| {});
    service["Spec"]["TaskTemplate"]["ContainerSpec"]["Image"] = json!("bitnamilegacy/odoo:18");
    let tasks = [with_error(task(30, "shutdown", "rejected"), "No such image: x"), new];
    assert_eq!(seen(&service, &tasks), (InstanceStatus::Updating, None));
}

#[test]
fn a_crash_loop_and_a_kill_for_memory_are_told_apart() {
    let loop_of = |code| {
        vec![
            failed(10, "shutdown", code),
            failed(20, "shutdown", code),
            task(30, "ready", "ready"),
        ]
    };
    assert_eq!(
        seen(&started_at_zero(), &loop_of(3)),
        (
            InstanceStatus::Error,
            Some(Cause::CrashLoop {
                restarts: 2,
                last_exit: Some(3)
            })
        )
    );
    assert_eq!(
        seen(&started_at_zero(), &loop_of(137)),
        (
            InstanceStatus::Error,
            Some(Cause::OutOfMemory {
                inferred: true,
                restarts: 2
            })
        )
    );
    // Docker kills what does not answer its probe with the same code.
    let killed = "task: non-zero exit (137): dockerexec: unhealthy container";
    let unhealthy = |second| with_error(failed(second, "shutdown", 137), killed);
    let (status, cause) = seen(&started_at_zero(), &[unhealthy(20), task(30, "ready", "ready")]);
    assert_eq!(
        (status, cause),
        (
            InstanceStatus::Starting,
            Some(Cause::ProbeFailing {
                message: killed.to_owned()
            })
        )
    );
    let (status, cause) = seen(
        &started_at_zero(),
        &[unhealthy(10), unhealthy(20), task(30, "ready", "ready")],
    );
    assert_eq!(status, InstanceStatus::Error);
    assert!(
        matches!(cause, Some(Cause::CrashLoop { last_exit: None, .. })),
        "{cause:?}"
    );
    // What ends with 0 when it is asked to, for the same reason, leaves no word of it.
    let ended = |second| task(second, "shutdown", "complete");
    let next = task(30, "ready", "ready");
    let once = seen(&started_at_zero(), &[ended(20), next.clone()]);
    assert_eq!(once, (InstanceStatus::Starting, None));
    assert_eq!(
        seen(&started_at_zero(), &[ended(10), ended(20), next]),
        (
            InstanceStatus::Error,
            Some(Cause::CrashLoop {
                restarts: 2,
                last_exit: Some(0)
            })
        )
    );
}

#[test]
fn placement_and_lost_nodes() {
    let nowhere = "no suitable node (scheduling constraints not satisfied on 1 node)";
    let (status, cause) = seen(
        &started_at_zero(),
        &[with_error(task(30, "running", "pending"), nowhere)],
    );
    assert_eq!(status, InstanceStatus::Error);
    assert_eq!(
        cause,
        Some(Cause::Unschedulable {
            message: nowhere.to_owned()
        })
    );
    // Its node went down: the task there is given up and its state stays.
    let tasks = [
        task(10, "shutdown", "running"),
        with_error(
            task(30, "running", "pending"),
            "no suitable node (1 node not available for new tasks)",
        ),
    ];
    assert_eq!(
        seen(&started_at_zero(), &tasks),
        (
            InstanceStatus::Error,
            Some(Cause::NodeLost {
                node: Some("node1".to_owned())
            })
        )
    );
}

#[test]
fn a_change_is_on_its_way_until_its_task_runs() {
    let restarted = |state: &str| {
        let mut service = changed(legacy(1), |_| {});
        service["Spec"]["TaskTemplate"]["ForceUpdate"] = json!(1);
        if !state.is_empty() {
            service["UpdateStatus"] = json!({"State": state, "Message": "m"});
        }
        service
    };
    let mut replacement = task(40, "running", "running");
    replacement["Spec"]["ForceUpdate"] = json!(1);
    // Accepted, and Swarm has not acted yet: the old task still runs and is still wanted.
    assert_eq!(
        seen(&restarted(""), &[task(1, "running", "running")]),
        (InstanceStatus::Restarting, None)
    );
    let mut starting = replacement.clone();
    starting["Status"]["State"] = json!("preparing");
    assert_eq!(
        seen(&restarted("updating"), &[task(1, "shutdown", "running"), starting]),
        (InstanceStatus::Restarting, None)
    );
    assert_eq!(
        seen(
            &restarted("updating"),
            &[task(1, "shutdown", "shutdown"), replacement.clone()]
        ),
        (InstanceStatus::Running, None)
    );
    for state in ["paused", "rollback_started", "rollback_paused", "rollback_completed"] {
        let (status, cause) = seen(
            &restarted(state),
            &[task(1, "shutdown", "shutdown"), replacement.clone()],
        );
        assert_eq!(status, InstanceStatus::Running, "{state}");
        assert!(matches!(cause, Some(Cause::RolloutFailed { .. })), "{state}: {cause:?}");
    }
}

#[test]
fn one_id_that_cannot_be_read_is_an_error_of_its_own() {
    let mut service = legacy(1);
    service["Spec"]["Labels"]["saasodoo.instance.id"] = json!("0a1b");
    let error = instance(&service, &[], Disk::default(), &config(), start()).expect_err("no id");
    assert!(error.message().contains(NAME), "{error}");
}

/// What the daemon shows of a body that was sent.
pub(crate) fn as_shown(body: &Value) -> Value {
    json!({"ID": "svc1", "Version": {"Index": 7}, "CreatedAt": time(0), "UpdatedAt": time(0), "Spec": body})
}

pub(crate) fn read_back(body: &Value, config: &SwarmConfig) -> saasodoo_core::Instance {
    instance(&as_shown(body), &[], Disk::default(), config, start()).expect("a service of ours")
}

pub(crate) fn read_service(service: &Value) -> saasodoo_core::Instance {
    instance(service, &[], Disk::default(), &config(), start()).expect("a service")
}

pub(crate) fn spec() -> InstanceSpec {
    InstanceSpec::new(
        ID.parse().expect("an id"),
        "acme".parse().expect("a name"),
        "bitnamilegacy/odoo:17".parse().expect("an image"),
    )
}

#[test]
fn a_creation_is_unfinished_until_somebody_decides_about_power() {
    let mut service = legacy(0);
    assert!(!is_unfinished(&service));
    service["Spec"]["Labels"]["saasodoo.creation.unfinished"] = json!("true");
    assert!(is_unfinished(&service));
    // A change of something else.
    let touched = changed(service.clone(), |body| body["Labels"]["other"] = json!("x"));
    assert!(is_unfinished(&touched));
    let mut held = service.clone();
    held["Spec"]["Labels"]["saasodoo.hold"] = json!("maintenance");
    assert!(!is_unfinished(&held));
    // Started and stopped by somebody who does not know the label.
    let ran = changed(service.clone(), |body| {
        body["Mode"]["Replicated"]["Replicas"] = json!(1)
    });
    assert!(!is_unfinished(&ran));
    service["Spec"]["Mode"]["Replicated"]["Replicas"] = json!(1);
    assert!(!is_unfinished(&service));
}

#[test]
fn a_new_service_is_creating_from_the_first_moment_on() {
    let mut service = legacy(0);
    service["Spec"]["Labels"]["saasodoo.creation.unfinished"] = json!("true");
    assert_eq!(seen(&service, &[]).0, InstanceStatus::Creating);
    let launched = changed(legacy(1), |body| {
        body["Mode"]["Replicated"]["Replicas"] = json!(0);
        body["Labels"]["saasodoo.creation.unfinished"] = json!("true");
    });
    for tasks in [vec![], vec![task(1, "running", "preparing")]] {
        assert_eq!(seen(&launched, &tasks).0, InstanceStatus::Creating, "{tasks:?}");
    }
    assert_eq!(
        seen(&launched, &[task(1, "running", "running")]).0,
        InstanceStatus::Running
    );
    assert_eq!(seen(&started(), &[]).0, InstanceStatus::Starting);
    // Asked to stay stopped, or held.
    assert_eq!(seen(&legacy(0), &[]).0, InstanceStatus::Stopped);
    service["Spec"]["Labels"]["saasodoo.hold"] = json!("suspended");
    assert_eq!(seen(&service, &[]).0, InstanceStatus::Paused);
}
