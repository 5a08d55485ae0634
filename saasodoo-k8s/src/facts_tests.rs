//! What pods and Deployments say, by table: objects as a server has them, and the status that comes out.

use jiff::Timestamp;
use saasodoo_core::{Cause, InstanceStatus, Source, derive};
use serde_json::{Value, json};

use crate::config::KubernetesConfig;
use crate::facts::facts;
use crate::observe::{ClaimSeen, Observer, observe};
use crate::views::{DeploymentView, PodView};

const NOW: &str = "2026-11-23T12:00:00Z";

fn now() -> Timestamp {
    NOW.parse().expect("a time")
}

fn deployment(replicas: i32, change: impl FnOnce(&mut Value)) -> DeploymentView {
    let mut object = json!({
        "metadata": {"name": "odoo-acme-0a1b2c3d", "generation": 3, "annotations": {"saasodoo.io/transition": "start"}},
        "spec": {"replicas": replicas, "template": {"spec": {"containers": [{"name": "odoo", "image": "odoo:17"}]}}},
        "status": {"observedGeneration": 3, "replicas": replicas, "updatedReplicas": replicas},
    });
    change(&mut object);
    serde_json::from_value(object).expect("a deployment")
}

fn pod(name: &str, status: Value) -> PodView {
    let object = json!({
        "metadata": {"name": name, "creationTimestamp": "2026-11-23T11:00:00Z"},
        "spec": {"nodeName": "node-1", "containers": [{"name": "odoo"}]},
        "status": status,
    });
    serde_json::from_value(object).expect("a pod")
}

fn running(ready: bool, changed: &str) -> Value {
    json!({
        "phase": "Running",
        "conditions": [{"type": "Ready", "status": if ready {"True"} else {"False"}, "lastTransitionTime": changed}],
        "containerStatuses": [{
            "name": "odoo", "ready": ready, "restartCount": 0,
            "state": {"running": {"startedAt": "2026-11-23T11:00:05Z"}},
        }],
    })
}

fn waiting(reason: &str) -> Value {
    json!({
        "phase": "Pending",
        "containerStatuses": [{"name": "odoo", "restartCount": 0, "state": {"waiting": {"reason": reason, "message": "because"}}}],
    })
}

fn crashed(reason: &str, code: i32, restarts: i32) -> Value {
    json!({
        "phase": "Running",
        "containerStatuses": [{
            "name": "odoo", "restartCount": restarts,
            "state": {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off"}},
            "lastState": {"terminated": {"reason": reason, "exitCode": code, "finishedAt": "2026-11-23T11:59:00Z"}},
        }],
    })
}

fn status(deployment: &DeploymentView, pods: &[PodView]) -> (InstanceStatus, Option<Cause>) {
    let pods: Vec<&PodView> = pods.iter().collect();
    derive(&facts(deployment, &pods, now()))
}

fn code(deployment: &DeploymentView, pods: &[PodView]) -> (InstanceStatus, Option<&'static str>) {
    let (status, cause) = status(deployment, pods);
    (status, cause.map(|cause| cause.code()))
}

#[test]
fn pods_by_table() {
    use InstanceStatus::{Error, Running, Starting, Unknown};
    let unschedulable = |message: &str| {
        json!({"phase": "Pending", "conditions": [
            {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message},
        ]})
    };
    let cases: Vec<(&str, Value, InstanceStatus, Option<&str>)> = vec![
        ("ready", running(true, "2026-11-23T11:00:20Z"), Running, None),
        ("not ready yet", running(false, "2026-11-23T11:00:00Z"), Starting, None),
        (
            "not ready any more",
            running(false, "2026-11-23T11:30:00Z"),
            Error,
            Some("probe_failing"),
        ),
        ("creating", waiting("ContainerCreating"), Starting, None),
        ("initializing", waiting("PodInitializing"), Starting, None),
        ("no image", waiting("ErrImagePull"), Error, Some("image_pull")),
        (
            "no image, later",
            waiting("ImagePullBackOff"),
            Error,
            Some("image_pull"),
        ),
        ("no image name", waiting("InvalidImageName"), Error, Some("image_pull")),
        ("never pulled", waiting("ErrImageNeverPull"), Error, Some("image_pull")),
        (
            "bad config",
            waiting("CreateContainerConfigError"),
            Error,
            Some("rejected"),
        ),
        ("cannot run", waiting("RunContainerError"), Error, Some("rejected")),
        ("unknown reason", waiting("GoneFishing"), Starting, Some("other")),
        ("crash loop", crashed("Error", 1, 4), Error, Some("crash_loop")),
        (
            "crash loop for memory",
            crashed("OOMKilled", 137, 4),
            Error,
            Some("out_of_memory"),
        ),
        (
            "killed, not for memory",
            crashed("Error", 137, 4),
            Error,
            Some("crash_loop"),
        ),
        (
            "no room",
            unschedulable("0/3 nodes are available: 3 Insufficient memory."),
            Error,
            Some("unschedulable"),
        ),
        (
            "no volume yet",
            unschedulable("pod has unbound immediate PersistentVolumeClaims"),
            Starting,
            Some("storage_pending"),
        ),
        (
            "no claim",
            unschedulable("persistentvolumeclaim \"x\" not found"),
            Starting,
            Some("storage_pending"),
        ),
        (
            "evicted",
            json!({"phase": "Failed", "reason": "Evicted", "message": "memory pressure"}),
            Starting,
            Some("evicted"),
        ),
        (
            "node shut down",
            json!({"phase": "Failed", "reason": "NodeShutdown"}),
            Starting,
            Some("evicted"),
        ),
        (
            "no room on the node",
            json!({"phase": "Failed", "reason": "OutOfcpu"}),
            Error,
            Some("rejected"),
        ),
        (
            "node lost",
            json!({"phase": "Running", "reason": "NodeLost"}),
            Error,
            Some("node_lost"),
        ),
        ("unknown phase", json!({"phase": "Unknown"}), Error, Some("node_lost")),
        ("new phase", json!({"phase": "Dreaming"}), Unknown, None),
        (
            "disrupted",
            json!({"phase": "Pending", "conditions": [
                {"type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler", "message": "m"},
            ]}),
            Starting,
            Some("evicted"),
        ),
    ];
    for (what, pod_status, wanted, cause) in cases {
        let seen = code(&deployment(1, |_| ()), &[pod("p", pod_status)]);
        assert_eq!(seen, (wanted, cause), "{what}");
    }
}

#[test]
fn memory_is_certain() {
    let (_, cause) = status(&deployment(1, |_| ()), &[pod("p", crashed("OOMKilled", 137, 3))]);
    assert_eq!(
        cause,
        Some(Cause::OutOfMemory {
            inferred: false,
            restarts: 3
        })
    );
}

#[test]
fn an_init_container_or_sidecar_that_blocks_is_named() {
    let blocked = json!({
        "phase": "Pending",
        "initContainerStatuses": [{"name": "init", "state": {"waiting": {"reason": "ImagePullBackOff", "message": "no"}}}],
        "containerStatuses": [{"name": "odoo", "state": {"waiting": {"reason": "PodInitializing"}}}],
    });
    assert_eq!(
        code(&deployment(1, |_| ()), &[pod("p", blocked)]),
        (InstanceStatus::Error, Some("image_pull"))
    );
    let sidecar = json!({
        "phase": "Running",
        "containerStatuses": [
            {"name": "proxy", "state": {"waiting": {"reason": "CrashLoopBackOff"}}, "restartCount": 9},
            {"name": "odoo", "ready": true, "state": {"running": {"startedAt": "2026-11-23T11:00:05Z"}}},
        ],
    });
    let facts_of = |status: Value| {
        let pod = pod("p", status);
        facts(&deployment(1, |_| ()), &[&pod], now())
    };
    let facts = facts_of(sidecar);
    assert_eq!(facts.units[0].restarts, 0, "only Odoo's restarts count");
    assert!(matches!(facts.units[0].problem, Some(Cause::CrashLoop { .. })));
}

#[test]
fn deployments_by_table() {
    use InstanceStatus::{Error, Maintenance, Paused, Running, Starting, Stopped, Stopping, Terminated};
    let ready = || pod("p", running(true, "2026-11-23T11:00:20Z"));
    let leaving = || {
        let mut pod = ready();
        pod.metadata.deletion_timestamp = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(now()));
        pod
    };
    type Change = fn(&mut Value);
    let failure = |message: &'static str| {
        move |d: &mut Value| {
            d["status"]["conditions"] = json!([
                {"type": "ReplicaFailure", "status": "True", "reason": "FailedCreate", "message": message},
            ]);
        }
    };
    assert_eq!(
        code(
            &deployment(1, failure("pods \"x\" is forbidden: exceeded quota: q")),
            &[]
        ),
        (Error, Some("quota_exceeded"))
    );
    assert_eq!(
        code(
            &deployment(1, failure("no PriorityClass with name high was found")),
            &[]
        ),
        (Error, Some("rejected"))
    );
    let cases: Vec<(&str, i32, Change, Vec<PodView>, InstanceStatus)> = vec![
        ("stopped", 0, |_| (), vec![], Stopped),
        ("stopping", 0, |_| (), vec![leaving()], Stopping),
        ("no pod yet", 1, |_| (), vec![], Starting),
        ("the old pod leaves", 1, |_| (), vec![leaving()], Starting),
        ("the new one is there", 1, |_| (), vec![leaving(), ready()], Running),
        (
            "a change was not seen yet",
            1,
            |d| d["metadata"]["generation"] = json!(4),
            vec![ready()],
            Starting,
        ),
        (
            "an old pod still counts",
            1,
            |d| d["status"]["updatedReplicas"] = json!(0),
            vec![ready()],
            Starting,
        ),
        (
            "deleted",
            1,
            |d| d["metadata"]["deletionTimestamp"] = json!(NOW),
            vec![ready()],
            Terminated,
        ),
        (
            "suspended",
            0,
            |d| d["metadata"]["annotations"]["saasodoo.io/hold"] = json!("suspended"),
            vec![],
            Paused,
        ),
        (
            "held",
            0,
            |d| d["metadata"]["annotations"]["saasodoo.io/hold"] = json!("maintenance"),
            vec![],
            Maintenance,
        ),
        (
            "rollout late, running",
            1,
            |d| {
                d["status"]["conditions"] =
                    json!([{"type": "Progressing", "status": "False", "reason": "ProgressDeadlineExceeded"}]);
            },
            vec![ready()],
            Running,
        ),
    ];
    for (what, replicas, change, pods, wanted) in cases {
        assert_eq!(status(&deployment(replicas, change), &pods).0, wanted, "{what}");
    }
}

#[test]
fn a_pod_that_does_not_end_is_lost_and_fences() {
    let mut stuck = pod("p", running(true, "2026-11-23T11:00:20Z"));
    let long_ago: Timestamp = "2026-11-23T11:50:00Z".parse().expect("a time");
    stuck.metadata.deletion_timestamp = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(long_ago));
    let facts = facts(&deployment(0, |_| ()), &[&stuck], now());
    assert!(facts.any_live(), "nobody knows whether it still writes");
    assert_eq!(derive(&facts).0, InstanceStatus::Stopping);
}

/// What the guide's Python client creates, word for word.
pub(crate) fn guide_deployment() -> Value {
    json!({
        "metadata": {
            "name": "odoo-acme-0a1b2c3d", "namespace": "saasodoo", "uid": "u", "resourceVersion": "1", "generation": 1,
            "labels": {"app": "odoo", "instance-id": "0a1b2c3d", "managed-by": "saasodoo"},
        },
        "spec": {
            "replicas": 1,
            "selector": {"matchLabels": {"app": "odoo", "instance-id": "0a1b2c3d"}},
            "strategy": {"type": "Recreate"},
            "template": {
                "metadata": {"labels": {"app": "odoo", "instance-id": "0a1b2c3d", "database": "acme", "managed-by": "saasodoo"}},
                "spec": {
                    "containers": [{
                        "name": "odoo", "image": "bitnami/odoo:17",
                        "ports": [{"containerPort": 8069, "name": "http"}],
                        "env": [
                            {"name": "ODOO_DATABASE_HOST", "value": "postgres"},
                            {"name": "ODOO_DATABASE_PORT", "value": "5432"},
                            {"name": "ODOO_DATABASE_NAME", "value": "acme"},
                            {"name": "ODOO_DATABASE_USER", "valueFrom": {"secretKeyRef": {"name": "odoo-db-credentials", "key": "username"}}},
                            {"name": "ODOO_DATABASE_PASSWORD", "valueFrom": {"secretKeyRef": {"name": "odoo-db-credentials", "key": "password"}}},
                            {"name": "WORKERS", "value": "2"},
                        ],
                        "resources": {"requests": {"cpu": "1", "memory": "2Gi"}, "limits": {"cpu": "1", "memory": "2Gi"}},
                        "volumeMounts": [{"name": "odoo-data", "mountPath": "/bitnami/odoo"}],
                        "livenessProbe": {"httpGet": {"path": "/web/health", "port": 8069}, "initialDelaySeconds": 120, "periodSeconds": 30, "timeoutSeconds": 5, "failureThreshold": 3},
                        "readinessProbe": {"httpGet": {"path": "/web/health", "port": 8069}, "initialDelaySeconds": 30, "periodSeconds": 10, "timeoutSeconds": 5, "failureThreshold": 3},
                    }],
                    "volumes": [{"name": "odoo-data", "persistentVolumeClaim": {"claimName": "odoo-acme-0a1b2c3d-storage"}}],
                },
            },
        },
        "status": {"observedGeneration": 1, "replicas": 1, "updatedReplicas": 1},
    })
}

#[test]
fn the_guides_instances_are_read() {
    let config = KubernetesConfig::new(saasodoo_core::Config::default());
    let deployment: DeploymentView = serde_json::from_value(guide_deployment()).expect("a deployment");
    let seen = observe(
        &Observer::new(&config),
        &deployment,
        &[],
        ClaimSeen::NotRead,
        Source::Live,
        now(),
    );
    assert_eq!(seen.provenance.origin, saasodoo_core::Origin::Legacy);
    assert!(seen.id.is_legacy());
    assert_eq!(seen.id.to_string(), "0a1b2c3d");
    assert_eq!(seen.spec.database_name.as_str(), "acme");
    assert_eq!(seen.spec.image.as_str(), "bitnami/odoo:17");
    let database = seen.spec.database.as_ref().expect("a database");
    assert_eq!(
        (database.host.as_str(), database.port, database.name.as_str()),
        ("postgres", 5432, "acme")
    );
    assert_eq!(database.user, None);
    assert!(database.password.is_withheld());
    assert_eq!(seen.spec.environment.len(), 1);
    assert_eq!(seen.spec.resources.cpu_request, Some(seen.spec.resources.cpu));
    assert_eq!(seen.spec.probes.startup_seconds, 210);
    assert_eq!(
        seen.storage.location.expect("a place").to_string(),
        "claim saasodoo/odoo-acme-0a1b2c3d-storage"
    );
    let left: Vec<&str> = seen.unparsed.iter().map(|left| left.field.as_str()).collect();
    assert_eq!(left, ["database.user", "storage", "route"]);
}

#[test]
fn garbage_is_listed_and_told() {
    let config = KubernetesConfig::new(saasodoo_core::Config::default());
    let object = json!({
        "metadata": {
            "name": "Odd Name", "uid": "9b2f3c5e-0000-4000-8000-000000000000",
            "labels": {"app": "odoo", "managed-by": "saasodoo", "instance-id": "nonsense"},
            "annotations": {"saasodoo.io/addons": "{", "saasodoo.io/storage": "-1"},
        },
        "spec": {"replicas": 3, "template": {"spec": {"containers": [{"name": "x", "image": "?"}]}}},
    });
    let deployment: DeploymentView = serde_json::from_value(object).expect("a deployment");
    let seen = observe(
        &Observer::new(&config),
        &deployment,
        &[],
        ClaimSeen::NotRead,
        Source::Live,
        now(),
    );
    assert_eq!(
        seen.id.to_string(),
        "9b2f3c5e-0000-4000-8000-000000000000",
        "the Deployment's own UID"
    );
    let left: Vec<&str> = seen.unparsed.iter().map(|left| left.field.as_str()).collect();
    for field in [
        "id",
        "image",
        "addons",
        "storage",
        "replicas",
        "resources.cpu",
        "probes",
        "strategy",
    ] {
        assert!(left.contains(&field), "{field} in {left:?}");
    }
}
