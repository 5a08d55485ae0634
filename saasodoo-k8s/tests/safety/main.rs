//! What must not happen to an instance's data, whoever else is at work and whatever answer is lost.

mod creation;
mod operation;
mod purge;
#[path = "../common/server.rs"]
mod server;

use std::time::Duration;

use kube::Client;
use saasodoo_core::{
    Bytes, Cause, Config, CreateOptions, DataPolicy, DeleteOptions, EnsureOutcome, Error, ErrorKind, InstanceChange,
    InstanceFilter, InstanceId, InstanceOrchestrator as _, InstanceOrchestratorExt as _, InstanceSpec, InstanceStatus,
    Operation, Power, PurgeToken, Retry, Route, StorageLocation, StorageState, UpdateOptions,
};
use saasodoo_k8s::{AdoptionSource, KubernetesConfig, KubernetesOrchestrator};
use saasodoo_testkit::fixtures;
use serde_json::{Value, json};
use server::{CLAIMS, CLASSES, DEPLOYMENTS, EVENTS, PODS, ROUTES, SECRETS, SERVICES, Seen, Server, VOLUMES};
use tokio::time::sleep;

const NAME: &str = "odoo-acme-0a1b2c3d";
const CLAIM: &str = "odoo-acme-0a1b2c3d-storage";
const UUID: &str = "0a1b2c3d-1111-4222-8333-444455556666";
/// Another tenant with the same eight digits.
const TWIN: &str = "0a1b2c3d-9999-4222-8333-444455556666";

fn id() -> InstanceId {
    UUID.parse().expect("a UUID")
}

fn digits() -> InstanceId {
    "0a1b2c3d".parse().expect("eight digits")
}

fn spec() -> InstanceSpec {
    fixtures::spec_with_id("acme", id())
}

fn config() -> KubernetesConfig {
    KubernetesConfig::new(
        Config::builder()
            .namespace("ns")
            .expect("a name")
            .base_domain("tenants.example".parse().expect("a host"))
            .build(),
    )
    .with_adoption(AdoptionSource::HostPath {
        root: "/nowhere/data".to_owned(),
    })
}

async fn orchestrator(client: Client) -> KubernetesOrchestrator {
    KubernetesOrchestrator::builder(config())
        .client(client)
        .build()
        .await
        .expect("an orchestrator")
}

/// An instance that exists, with a bound claim, and requests that are recorded from here on.
async fn existing(server: &Server) -> KubernetesOrchestrator {
    let orchestrator = orchestrator(server.client()).await;
    orchestrator
        .create(&spec(), CreateOptions::new())
        .await
        .expect("created");
    server.edit(CLAIMS, CLAIM, |claim| {
        claim["spec"]["volumeName"] = json!("pv-1");
        claim["status"] = json!({"phase": "Bound", "capacity": {"storage": "10Gi"}});
    });
    server.take();
    orchestrator
}

fn labels(uuid: &str) -> Value {
    json!({
        "app": "odoo", "managed-by": "saasodoo", "instance-id": "0a1b2c3d", "app.kubernetes.io/instance": uuid,
    })
}

fn pod(phase: &str) -> Value {
    json!({
        "metadata": {"labels": labels(UUID)},
        "spec": {
            "nodeName": "a", "containers": [{"name": "odoo"}],
            "volumes": [{"name": "odoo-data", "persistentVolumeClaim": {"claimName": CLAIM}}],
        },
        "status": {"phase": phase, "containerStatuses": [{"name": "odoo", "state": {"running": {}}}]},
    })
}

fn claim_of(uuid: &str) -> Value {
    json!({
        "metadata": {"labels": labels(uuid)},
        "spec": {"storageClassName": "cephfs-saasodoo", "resources": {"requests": {"storage": "10Gi"}}},
        "status": {"phase": "Bound"},
    })
}

/// The volume of the instance's claim, as a provisioner makes it.
fn volume(server: &Server, policy: &str) -> Value {
    let claim = server.get(CLAIMS, CLAIM).expect("a claim");
    json!({
        "metadata": {"annotations": {"pv.kubernetes.io/provisioned-by": "a-provisioner"}},
        "spec": {
            "persistentVolumeReclaimPolicy": policy,
            "claimRef": {"namespace": "ns", "name": CLAIM, "uid": claim["metadata"]["uid"]},
        },
        "status": {"phase": "Bound"},
    })
}

fn writes(seen: &[Seen]) -> Vec<String> {
    let writes = seen.iter().filter(|request| request.method != "GET");
    writes.map(Seen::line).collect()
}

fn kinds(error: &Error) -> (ErrorKind, Retry) {
    (error.kind(), error.retry())
}

const LATER: (ErrorKind, Retry) = (ErrorKind::Conflict, Retry::After(None));

fn forbidden() -> Value {
    json!({"kind": "Status", "code": 403, "reason": "Forbidden", "message": "it is forbidden"})
}

async fn token(orchestrator: &KubernetesOrchestrator) -> PurgeToken {
    let plan = orchestrator.plan(&Operation::Purge(id())).await.expect("a plan");
    plan.purge_token.expect("a token")
}
