//! The life of an instance on a real cluster, printed step by step. The contract suite says what must hold; this is the
//! shortest way to see it.

use std::time::{Duration, Instant};

use futures::TryStreamExt as _;
use saasodoo_core::*;
use saasodoo_k8s::{KubernetesConfig, KubernetesOrchestrator};

fn image() -> ImageRef {
    std::env::var("SAASODOO_STUB_IMAGE")
        .unwrap_or_else(|_| "saasodoo/odoo-stub:17".to_owned())
        .parse()
        .expect("an image")
}

async fn orchestrator(namespace: &str) -> KubernetesOrchestrator {
    let client = kube::Client::try_default().await.expect("a cluster");
    let namespaces: kube::Api<k8s_openapi::api::core::v1::Namespace> = kube::Api::all(client);
    let object = serde_json::from_value(serde_json::json!({"metadata": {"name": namespace}})).expect("a namespace");
    match namespaces.create(&kube::api::PostParams::default(), &object).await {
        Ok(_) => {}
        Err(kube::Error::Api(status)) if status.is_already_exists() => {}
        Err(error) => panic!("{error}"),
    }
    let common = Config::builder().namespace(namespace).expect("a name").build();
    KubernetesOrchestrator::builder(KubernetesConfig::new(common))
        .build()
        .await
        .expect("a client")
}

fn spec() -> InstanceSpec {
    let id = InstanceId::random();
    let name = format!("Life_{}", id.short());
    let mut spec = InstanceSpec::new(id, name.parse().expect("a name"), image())
        .with_database(DatabaseEndpoint::new("postgres", "odoo_x", "odoo_x_user", "pw".into()))
        .with_admin("a@b.example", "admin-pw".into())
        .with_memory(Bytes::from_mib(64))
        .with_cpu(Cpu::from_millis(200))
        .with_storage(Bytes::from_mib(64));
    spec.scheduling.stop_grace_seconds = 2;
    spec
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs the testbed"]
async fn an_instance_lives_and_dies() {
    let orchestrator = orchestrator("k8s-life").await;
    let began = Instant::now();
    let at = |what: &str| println!("{:7.3} {what}", began.elapsed().as_secs_f64());
    println!("{}", orchestrator.health().await);
    let spec = spec();
    let id = spec.id;
    let ensured = orchestrator.create(&spec, CreateOptions::new()).await.expect("created");
    at(&format!("created {:?} {}", ensured.outcome, ensured.instance.status));
    let instance = orchestrator
        .wait_until(id, InstanceStatus::Running, Duration::from_secs(90))
        .await
        .expect("running");
    at("running");
    println!("{instance:#?}");
    assert_eq!(instance.spec.diff(&spec), []);
    assert_eq!(instance.unparsed, []);
    let again = orchestrator.create(&spec, CreateOptions::new()).await.expect("again");
    at("created again");
    assert_eq!(again.outcome, EnsureOutcome::Unchanged);
    let other = spec.clone().with_memory(Bytes::from_mib(128));
    let error = orchestrator
        .create(&other, CreateOptions::new())
        .await
        .expect_err("another spec");
    println!("{error}");
    assert_eq!(error.conflicts(), ["resources.memory"]);
    let mut secret = spec.clone();
    secret.admin.as_mut().expect("an admin").password = "other".into();
    let error = orchestrator
        .create(&secret, CreateOptions::new())
        .await
        .expect_err("another secret");
    assert_eq!(error.conflicts(), ["admin.password"]);
    let listed: Vec<Instance> = orchestrator
        .list(InstanceFilter::all())
        .try_collect()
        .await
        .expect("a list");
    assert!(listed.iter().any(|instance| instance.id == id));
    let change = InstanceChange::new()
        .set_env("WORKERS".parse().expect("a name"), "2")
        .storage(Bytes::from_mib(96))
        .cpu(Cpu::from_millis(250));
    let plan = orchestrator
        .plan(&Operation::Update(id, Box::new(change.clone())))
        .await
        .expect("a plan");
    println!("{plan}");
    let updated = orchestrator
        .update(id, &change, UpdateOptions::new())
        .await
        .expect("updated");
    at(&format!("updated {:?} {}", updated.outcome, updated.instance.status));
    let updated = orchestrator
        .update(id, &change, UpdateOptions::new())
        .await
        .expect("updated");
    assert_eq!(updated.outcome, EnsureOutcome::Unchanged);
    orchestrator
        .wait_until(id, InstanceStatus::Running, Duration::from_secs(90))
        .await
        .expect("running");
    at("running");
    let change = InstanceChange::new()
        .unset_env("WORKERS".parse().expect("a name"))
        .route({
            let mut route = Route::default();
            route.subdomain = Some(format!("shop-{}", id.short()).parse().expect("a label"));
            route
        });
    let updated = orchestrator
        .update(id, &change, UpdateOptions::new())
        .await
        .expect("updated");
    assert!(updated.instance.spec.environment.is_empty());
    println!("{:?}", updated.instance.endpoints);
    orchestrator
        .wait_until(id, InstanceStatus::Running, Duration::from_secs(90))
        .await
        .expect("running");
    at("running");
    orchestrator.restart(id).await.expect("restarted");
    orchestrator
        .wait_until(id, InstanceStatus::Running, Duration::from_secs(90))
        .await
        .expect("running");
    at("restarted");
    orchestrator.stop(id).await.expect("stopping");
    orchestrator
        .wait_until(id, InstanceStatus::Stopped, Duration::from_secs(90))
        .await
        .expect("stopped");
    at("stopped");
    orchestrator.start(id).await.expect("starting");
    orchestrator.suspend(id).await.expect("suspended");
    let error = orchestrator.start(id).await.expect_err("suspended");
    println!("{error}");
    orchestrator
        .wait_until(id, InstanceStatus::Paused, Duration::from_secs(90))
        .await
        .expect("paused");
    at("paused");
    orchestrator.resume(id).await.expect("resumed");
    println!("{}", orchestrator.plan(&Operation::Delete(id)).await.expect("a plan"));
    let deleted = orchestrator.delete(id, DeleteOptions::retain()).await.expect("deleted");
    at("deleted");
    println!("{deleted:?}");
    let again = orchestrator.delete(id, DeleteOptions::retain()).await.expect("deleted");
    assert!(!again.existed);
    let error = orchestrator
        .create(&spec, CreateOptions::new())
        .await
        .expect_err("data in the way");
    println!("{error}");
    at("refused");
    let options = CreateOptions::new().with_data(DataPolicy::AdoptRetained).stopped();
    let mut larger = spec.clone();
    larger.storage = Bytes::from_mib(96);
    let adopted = orchestrator.create(&larger, options).await.expect("adopted");
    assert_eq!(adopted.outcome, EnsureOutcome::Adopted);
    at("adopted");
    let plan = orchestrator.plan(&Operation::Purge(id)).await.expect("a plan");
    println!("{plan}");
    let token = plan.purge_token.expect("a token");
    let purged = orchestrator
        .delete(id, DeleteOptions::purge(token))
        .await
        .expect("purged");
    at(&format!("purged {purged:?}"));
    assert!(orchestrator.get(id).await.expect_err("gone").is_not_found());
}
