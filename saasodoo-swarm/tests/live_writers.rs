//! One writer for each data directory, on the testbed's Docker Swarm and CephFS.

mod common;

use std::process::Command;
use std::time::Duration;

use common::{directory, on_testbed, spec, variable};
use saasodoo_core::{
    Bytes, CreateOptions, ErrorKind, Instance, InstanceChange, InstanceFilter, InstanceId, InstanceOrchestrator,
    InstanceOrchestratorExt, InstanceStatus, Power, UpdateOptions,
};
use saasodoo_swarm::SwarmOrchestrator;
use serde_json::Value;

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

fn body(name: &str) -> Value {
    let list: Value = serde_json::from_str(&docker(&["service", "inspect", name])).expect("JSON");
    list[0]["Spec"].clone()
}

fn containers(name: &str) -> String {
    let filter = format!("label=com.docker.swarm.service.name={name}");
    docker(&["ps", "-q", "--filter", &filter])
}

async fn until(swarm: &SwarmOrchestrator, id: InstanceId, status: InstanceStatus) -> Instance {
    let seen = swarm.wait_until(id, status, Duration::from_secs(90)).await;
    seen.expect("the status in time")
}

#[tokio::test]
#[ignore = "needs Docker Swarm (creates services)"]
async fn a_suspended_service_that_is_scaled_up_by_hand_does_not_run() {
    on_testbed(|swarm, _| async move {
        let spec = spec();
        swarm.create(&spec, CreateOptions::new()).await.expect("created");
        let name = until(&swarm, spec.id, InstanceStatus::Running).await.name;
        let mut before = body(name.as_str());
        before["Mode"]["Replicated"]["Replicas"] = 0.into();
        swarm.set_power(spec.id, Power::Suspend).await.expect("suspended");
        until(&swarm, spec.id, InstanceStatus::Paused).await;
        docker(&["service", "scale", "-d", &format!("{name}=1")]);
        tokio::time::sleep(Duration::from_secs(6)).await;
        assert_eq!(containers(name.as_str()), "");
        let states = docker(&[
            "service",
            "ps",
            "--format",
            "{{.CurrentState}} {{.Error}}",
            name.as_str(),
        ]);
        assert!(
            states.contains("Pending") && states.contains("no suitable node"),
            "{states}"
        );
        let seen = swarm.get(spec.id).await.expect("an instance");
        assert!(
            seen.spec.diff(&spec).is_empty() && seen.unparsed.is_empty(),
            "{:?}",
            seen.unparsed
        );
        let error = swarm.set_power(spec.id, Power::Start).await.expect_err("held");
        assert_eq!(error.kind(), ErrorKind::NotAllowed, "{error}");
        swarm.set_power(spec.id, Power::Resume).await.expect("resumed");
        until(&swarm, spec.id, InstanceStatus::Stopped).await;
        assert_eq!(body(name.as_str()), before, "as it was before the suspension");
        swarm.set_power(spec.id, Power::Start).await.expect("started");
        until(&swarm, spec.id, InstanceStatus::Running).await;
        assert_ne!(containers(name.as_str()), "");
    })
    .await;
}

#[tokio::test]
#[ignore = "needs Docker Swarm (creates services)"]
async fn values_reach_the_process_as_they_are() {
    on_testbed(|swarm, _| async move {
        let value = r#"{{.Node.Hostname}} {{{ "}}" {{"#;
        let spec = spec().with_env("RAW".parse().expect("a name"), value);
        swarm.create(&spec, CreateOptions::new()).await.expect("created");
        let instance = until(&swarm, spec.id, InstanceStatus::Running).await;
        assert!(instance.spec.diff(&spec).is_empty());
        let container = containers(instance.name.as_str());
        assert_eq!(docker(&["exec", &container, "sh", "-c", "echo \"$RAW\""]), value);
    })
    .await;
}

#[tokio::test]
#[ignore = "needs Docker Swarm (creates services)"]
async fn a_restart_with_a_long_grace_period_is_one_after_the_other() {
    on_testbed(|swarm, _| async move {
        let mut spec = spec();
        spec.scheduling.stop_grace_seconds = 60;
        swarm.create(&spec, CreateOptions::new()).await.expect("created");
        let instance = until(&swarm, spec.id, InstanceStatus::Running).await;
        let mut before = body(instance.name.as_str());
        let first = containers(instance.name.as_str());
        swarm.set_power(spec.id, Power::Restart).await.expect("restarted");
        until(&swarm, spec.id, InstanceStatus::Running).await;
        let second = containers(instance.name.as_str());
        assert_ne!(first, second);
        before["TaskTemplate"]["ForceUpdate"] = 1.into();
        assert_eq!(body(instance.name.as_str()), before);
    })
    .await;
}

#[tokio::test]
#[ignore = "needs Docker Swarm (creates services)"]
async fn a_service_that_is_labelled_while_it_runs_is_seen_to_run() {
    on_testbed(|swarm, root| async move {
        let id = InstanceId::random();
        let name = format!("odoo-late-{}", id.short());
        let data = root.join(format!("odoo_data_late_{}", id.short()));
        std::fs::create_dir(&data).expect("a directory");
        let mount = format!("type=bind,source={},target=/bitnami/odoo", data.display());
        let image = variable("SAASODOO_STUB_IMAGE");
        docker(&[
            "service",
            "create",
            "-q",
            "--no-resolve-image",
            "--mount",
            &mount,
            "--name",
            &name,
            &image,
        ]);
        docker(&[
            "service",
            "update",
            "-q",
            "--no-resolve-image",
            "--label-add",
            &format!("saasodoo.instance.id={id}"),
            &name,
        ]);
        let seen = swarm.get(id).await.expect("an instance");
        assert!(seen.facts.any_live(), "{:?}", seen.facts);
        let listed = swarm.list_all(InstanceFilter::id(id)).await.expect("a list");
        assert!(listed[0].facts.any_live());
        swarm.set_power(id, Power::Stop).await.expect("stopped");
        until(&swarm, id, InstanceStatus::Stopped).await;
        assert_eq!(containers(&name), "");
    })
    .await;
}

#[tokio::test]
#[ignore = "needs Docker Swarm and CephFS (creates services)"]
async fn a_quota_that_others_raised_does_not_shrink() {
    on_testbed(|swarm, _| async move {
        let spec = spec().with_storage(Bytes::from_mib(10));
        let made = swarm
            .create(&spec, CreateOptions::new().stopped())
            .await
            .expect("created");
        let data = directory(made.instance.storage.location.as_ref());
        let quota = |size: Bytes| xattr::set(&data, "ceph.quota.max_bytes", size.get().to_string().as_bytes());
        quota(Bytes::from_mib(50)).expect("raised");
        let grow = |size: u32| InstanceChange::new().storage(Bytes::from_mib(size));
        let error = swarm
            .update(spec.id, &grow(20), UpdateOptions::new())
            .await
            .expect_err("a shrink");
        assert_eq!(
            (error.kind(), error.field()),
            (ErrorKind::InvalidInput, Some("storage")),
            "{error}"
        );
        let capacity = swarm.get(spec.id).await.expect("an instance").storage.capacity;
        assert_eq!(capacity, Some(Bytes::from_mib(50)));
        let grown = swarm
            .update(spec.id, &grow(60), UpdateOptions::new())
            .await
            .expect("grown");
        assert_eq!(grown.instance.storage.capacity, Some(Bytes::from_mib(60)));
    })
    .await;
}
