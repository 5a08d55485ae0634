//! Instances of the migration guide's Python client, adopted directories, and what happens when calls meet: on a real
//! cluster.

// The cluster is the one that KUBECONFIG names, as the testbed sets it.
#![allow(clippy::disallowed_methods)]

use std::panic::AssertUnwindSafe;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use k8s_openapi::api::core::v1::{Namespace, PersistentVolume};
use kube::api::{Api, ApiResource, DynamicObject, GroupVersionKind, PostParams};
use saasodoo_core::*;
use saasodoo_k8s::{AdoptionSource, KubernetesConfig, KubernetesOrchestrator};
use serde_json::{Value, json};

const WAIT: Duration = Duration::from_secs(120);

fn image() -> String {
    std::env::var("SAASODOO_STUB_IMAGE").unwrap_or_else(|_| "saasodoo/odoo-stub:17".to_owned())
}

/// Runs a test in a fresh namespace, which is deleted afterwards with the volumes of its claims, also when it fails.
async fn in_namespace<F>(name: &str, test: impl FnOnce(Arc<Bed>) -> F)
where
    F: Future<Output = ()>,
{
    let bed = Arc::new(Bed::new(&format!("{name}-{}", InstanceId::random().short())).await);
    let outcome = AssertUnwindSafe(test(Arc::clone(&bed))).catch_unwind().await;
    bed.close().await;
    if let Err(panic) = outcome {
        std::panic::resume_unwind(panic);
    }
}

struct Bed {
    namespace: String,
    client: kube::Client,
    config: KubernetesConfig,
}

impl Bed {
    async fn new(namespace: &str) -> Self {
        let path = std::env::var_os("KUBECONFIG").expect("a cluster in KUBECONFIG");
        let kubeconfig = kube::config::Kubeconfig::read_from(path).expect("a kubeconfig");
        let options = kube::config::KubeConfigOptions::default();
        let config = kube::Config::from_custom_kubeconfig(kubeconfig, &options).await;
        let client = kube::Client::try_from(config.expect("a cluster")).expect("a client");
        let namespaces: Api<Namespace> = Api::all(client.clone());
        let object = serde_json::from_value(json!({"metadata": {"name": namespace}})).expect("a namespace");
        namespaces
            .create(&PostParams::default(), &object)
            .await
            .expect("a namespace");
        let common = Config::builder().namespace(namespace).expect("a name").build();
        Self {
            namespace: namespace.to_owned(),
            client,
            config: KubernetesConfig::new(common),
        }
    }

    /// Deletes the namespace. Pods end before the volumes go: they write to them.
    async fn close(&self) {
        let namespaces: Api<Namespace> = Api::all(self.client.clone());
        let _ = namespaces.delete(&self.namespace, &Default::default()).await;
        for _ in 0..240 {
            let pods = self.api("", "v1", "Pod").list(&Default::default()).await;
            if pods.is_ok_and(|pods| pods.items.is_empty()) {
                break;
            }
            tokio::time::sleep(Duration::from_millis(250)).await;
        }
        let volumes: Api<PersistentVolume> = Api::all(self.client.clone());
        let all = volumes.list(&Default::default()).await.map(|list| list.items);
        for volume in all.unwrap_or_default() {
            let claim = volume.spec.as_ref().and_then(|spec| spec.claim_ref.as_ref());
            if claim.and_then(|claim| claim.namespace.as_deref()) == Some(self.namespace.as_str()) {
                let name = volume.metadata.name.unwrap_or_default();
                let _ = volumes.delete(&name, &Default::default()).await;
            }
        }
    }

    async fn orchestrator(&self) -> KubernetesOrchestrator {
        KubernetesOrchestrator::builder(self.config.clone())
            .build()
            .await
            .expect("a client")
    }

    fn api(&self, group: &str, version: &str, kind: &str) -> Api<DynamicObject> {
        let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, kind));
        Api::namespaced_with(self.client.clone(), &self.namespace, &resource)
    }

    async fn put(&self, object: Value) {
        let api_version = object["apiVersion"].as_str().expect("a version");
        let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
        let api = self.api(group, version, object["kind"].as_str().expect("a kind"));
        let object = serde_json::from_value(object).expect("an object");
        api.create(&PostParams::default(), &object).await.expect("created");
    }

    /// Exactly what the guide's client creates, but for the image and the amounts.
    async fn guide(&self, id: InstanceId, database: &str) -> String {
        let short = id.short().to_string();
        let name = format!("odoo-{database}-{short}");
        let labels = json!({"app": "odoo", "managed-by": "saasodoo"});
        self.put(json!({
            "apiVersion": "v1", "kind": "PersistentVolumeClaim",
            "metadata": {"name": format!("{name}-storage"), "labels": labels},
            "spec": {
                "accessModes": ["ReadWriteMany"], "storageClassName": "cephfs-saasodoo",
                "resources": {"requests": {"storage": "64Mi"}},
            },
        }))
        .await;
        let from = |key: &str| json!({"secretKeyRef": {"name": "odoo-db-credentials", "key": key, "optional": true}});
        self.put(json!({
            "apiVersion": "apps/v1", "kind": "Deployment",
            "metadata": {"name": name, "labels": {"app": "odoo", "instance-id": short, "managed-by": "saasodoo"}},
            "spec": {
                "replicas": 1,
                "selector": {"matchLabels": {"app": "odoo", "instance-id": short}},
                "strategy": {"type": "Recreate"},
                "template": {
                    "metadata": {"labels": {"app": "odoo", "instance-id": short, "database": database, "managed-by": "saasodoo"}},
                    "spec": {
                        "terminationGracePeriodSeconds": 2,
                        "containers": [{
                            "name": "odoo", "image": image(), "imagePullPolicy": "IfNotPresent",
                            "ports": [{"containerPort": 8069, "name": "http"}],
                            "env": [
                                {"name": "ODOO_DATABASE_HOST", "value": "postgres"},
                                {"name": "ODOO_DATABASE_PORT", "value": "5432"},
                                {"name": "ODOO_DATABASE_NAME", "value": database},
                                {"name": "ODOO_DATABASE_USER", "valueFrom": from("username")},
                                {"name": "ODOO_DATABASE_PASSWORD", "valueFrom": from("password")},
                                {"name": "PLAN", "value": "basic"},
                            ],
                            "resources": {"requests": {"cpu": "50m", "memory": "64Mi"}, "limits": {"cpu": "50m", "memory": "64Mi"}},
                            "volumeMounts": [{"name": "odoo-data", "mountPath": "/bitnami/odoo"}],
                            "livenessProbe": {"httpGet": {"path": "/web/health", "port": 8069}, "initialDelaySeconds": 120, "periodSeconds": 30, "timeoutSeconds": 5, "failureThreshold": 3},
                            "readinessProbe": {"httpGet": {"path": "/web/health", "port": 8069}, "initialDelaySeconds": 1, "periodSeconds": 2, "timeoutSeconds": 5, "failureThreshold": 3},
                        }],
                        "volumes": [{"name": "odoo-data", "persistentVolumeClaim": {"claimName": format!("{name}-storage")}}],
                    },
                },
            },
        }))
        .await;
        self.put(json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "labels": labels},
            "spec": {
                "type": "ClusterIP", "selector": {"app": "odoo", "instance-id": short},
                "ports": [{"name": "http", "port": 8069, "targetPort": 8069, "protocol": "TCP"}],
            },
        }))
        .await;
        self.put(json!({
            "apiVersion": "traefik.io/v1alpha1", "kind": "IngressRoute", "metadata": {"name": name},
            "spec": {"entryPoints": ["web", "websecure"], "routes": [{
                "match": format!("Host(`{database}.saasodoo.com`)"), "kind": "Rule",
                "services": [{"name": name, "port": 8069}],
            }]},
        }))
        .await;
        name
    }

    fn spec(&self, slug: &str) -> InstanceSpec {
        let id = InstanceId::random();
        let name = format!("{slug}-{}", id.short());
        let mut spec = InstanceSpec::new(id, name.parse().expect("a name"), image().parse().expect("an image"))
            .with_memory(Bytes::from_mib(64))
            .with_cpu(Cpu::from_millis(100))
            .with_storage(Bytes::from_mib(64));
        spec.probes.period_seconds = 2;
        spec.scheduling.stop_grace_seconds = 2;
        spec
    }

    /// Waits until an object that was deleted is gone.
    async fn gone(&self, group: &str, version: &str, kind: &str, name: &str) {
        let api = self.api(group, version, kind);
        let begun = std::time::Instant::now();
        while api.get_opt(name).await.expect("an answer").is_some() {
            assert!(begun.elapsed() < WAIT, "{kind} {name} is still there");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// The names of all objects of these kinds that mention the text.
    async fn mentioning(&self, text: &str) -> Vec<String> {
        let mut found = Vec::new();
        for (group, version, kind) in [
            ("apps", "v1", "Deployment"),
            ("", "v1", "Service"),
            ("", "v1", "Secret"),
            ("", "v1", "Pod"),
            ("", "v1", "PersistentVolumeClaim"),
            ("traefik.io", "v1alpha1", "IngressRoute"),
        ] {
            let list = self
                .api(group, version, kind)
                .list(&Default::default())
                .await
                .expect("a list");
            let names = list.items.into_iter().filter_map(|object| object.metadata.name);
            found.extend(
                names
                    .filter(|name| name.contains(text))
                    .map(|name| format!("{kind} {name}")),
            );
        }
        found
    }
}

async fn purge(orchestrator: &KubernetesOrchestrator, id: InstanceId) -> Deleted {
    let plan = orchestrator.plan(&Operation::Purge(id)).await.expect("a plan");
    let token = plan.purge_token.expect("a token");
    orchestrator
        .delete(id, DeleteOptions::purge(token))
        .await
        .expect("purged")
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs the testbed"]
async fn the_guides_instances_are_operated() {
    in_namespace("k8s-guide", the_guides_instances_are_operated_in).await;
}

async fn the_guides_instances_are_operated_in(bed: Arc<Bed>) {
    let orchestrator = bed.orchestrator().await;
    let id = InstanceId::random();
    let database = format!("g{}", id.short());
    let name = bed.guide(id, &database).await;

    let instance = orchestrator
        .wait_until(id, InstanceStatus::Running, WAIT)
        .await
        .expect("running");
    assert_eq!(instance.name.as_str(), name);
    assert_eq!(instance.provenance.origin, Origin::Legacy);
    assert_eq!(instance.endpoints.hosts[0].as_str(), format!("{database}.saasodoo.com"));
    assert_eq!(instance.spec.storage, Bytes::from_mib(64));
    let legacy: InstanceId = id.short().to_string().parse().expect("eight digits");
    assert_eq!(
        orchestrator.get(legacy).await.expect("by its short id").name,
        instance.name
    );

    // Its host is taken for everybody else.
    let mut thief = bed.spec("thief");
    thief.route.subdomain = Some(database.parse().expect("a label"));
    let error = orchestrator
        .create(&thief, CreateOptions::new())
        .await
        .expect_err("taken");
    assert_eq!(
        (error.kind(), error.conflicts()),
        (ErrorKind::Conflict, &["route".to_owned()][..]),
        "{error}"
    );
    assert_eq!(
        bed.mentioning(&thief.id.short().to_string()).await,
        Vec::<String>::new()
    );

    orchestrator.stop(id).await.expect("stopped");
    orchestrator
        .wait_until(id, InstanceStatus::Stopped, WAIT)
        .await
        .expect("stopped");
    let change = InstanceChange::new()
        .memory(Bytes::from_mib(96))
        .set_env("PLAN".parse().expect("a name"), "premium")
        .set_env("WORKERS".parse().expect("a name"), "4");
    let updated = orchestrator
        .update(id, &change, UpdateOptions::new())
        .await
        .expect("updated");
    assert_eq!(updated.instance.spec.resources.memory, Bytes::from_mib(96));
    assert_eq!(updated.instance.spec.environment.len(), 2);
    let again = orchestrator
        .update(id, &change, UpdateOptions::new())
        .await
        .expect("updated");
    assert_eq!(again.outcome, EnsureOutcome::Unchanged);
    orchestrator.start(id).await.expect("started");
    orchestrator
        .wait_until(id, InstanceStatus::Running, WAIT)
        .await
        .expect("running");
    let mut route = Route::default();
    route.subdomain = Some(format!("shop-{}", id.short()).parse().expect("a label"));
    let updated = orchestrator
        .update(id, &InstanceChange::new().route(route), UpdateOptions::new())
        .await
        .expect("routed");
    assert_eq!(
        updated.instance.status,
        InstanceStatus::Running,
        "a route does not restart anything"
    );
    let got = orchestrator.get(id).await.expect("got");
    assert_eq!(
        got.endpoints.hosts[0].as_str(),
        format!("shop-{}.saasodoo.com", id.short())
    );
    assert_eq!(
        got.spec.route.subdomain.map(|s| s.to_string()),
        Some(format!("shop-{}", id.short()))
    );
    orchestrator.restart(id).await.expect("restarted");
    orchestrator
        .wait_until(id, InstanceStatus::Running, WAIT)
        .await
        .expect("running");

    let deleted = orchestrator.delete(id, DeleteOptions::retain()).await.expect("deleted");
    assert!(deleted.existed && deleted.retained.is_some());
    assert_eq!(
        bed.mentioning(&id.short().to_string()).await,
        [format!("PersistentVolumeClaim {name}-storage")]
    );
    // Its data can be taken over by an instance of ours, and purged.
    let mut successor = bed.spec("x");
    successor.id = id;
    successor.database_name = database.parse().expect("a name");
    let error = orchestrator
        .create(&successor, CreateOptions::new())
        .await
        .expect_err("data in the way");
    assert_eq!(error.conflicts(), ["data"]);
    let options = CreateOptions::new().with_data(DataPolicy::AdoptRetained);
    let adopted = orchestrator.create(&successor, options).await.expect("adopted");
    assert_eq!(adopted.outcome, EnsureOutcome::Adopted);
    orchestrator
        .wait_until(id, InstanceStatus::Running, WAIT)
        .await
        .expect("running");
    let purged = purge(&orchestrator, id).await;
    assert_eq!(purged.purged.len(), 2, "{purged:?}");
    assert_eq!(bed.mentioning(&id.short().to_string()).await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs the testbed"]
async fn a_directory_is_adopted_and_never_deleted() {
    in_namespace("k8s-adopt", a_directory_is_adopted_and_never_deleted_in).await;
}

async fn a_directory_is_adopted_and_never_deleted_in(bed: Arc<Bed>) {
    let root = PathBuf::from(std::env::var("SAASODOO_CEPHFS").expect("the testbed's environment")).join("k8s-adopt");
    let config = bed.config.clone().with_adoption(AdoptionSource::HostPath {
        root: root.display().to_string(),
    });
    let orchestrator = KubernetesOrchestrator::builder(config).build().await.expect("a client");
    let spec = bed.spec("adopt");
    let path = format!("odoo_data_{}", spec.id.short());
    let directory = root.join(&path);
    std::fs::create_dir_all(&directory).expect("a directory");
    std::fs::write(directory.join("precious"), "data").expect("written");
    let options = CreateOptions::new().with_data(DataPolicy::AdoptDirectory(path.parse().expect("a path")));
    let created = orchestrator.create(&spec, options.clone()).await.expect("adopted");
    assert_eq!(created.outcome, EnsureOutcome::Adopted);
    orchestrator
        .wait_until(spec.id, InstanceStatus::Running, WAIT)
        .await
        .expect("running");
    assert!(directory.join("heartbeat.log").exists(), "it runs on that directory");
    let again = orchestrator.create(&spec, options.clone()).await.expect("unchanged");
    assert_eq!(again.outcome, EnsureOutcome::Unchanged);

    // Nobody else gets the directory.
    let thief = bed.spec("thief");
    let error = orchestrator.create(&thief, options.clone()).await.expect_err("taken");
    assert_eq!(
        (error.kind(), error.conflicts()),
        (ErrorKind::Conflict, &["data".to_owned()][..]),
        "{error}"
    );
    assert_eq!(
        bed.mentioning(&thief.id.short().to_string()).await,
        Vec::<String>::new()
    );
    let change = InstanceChange::new().storage(Bytes::from_gib(1));
    let error = orchestrator
        .update(spec.id, &change, UpdateOptions::new())
        .await
        .expect_err("static");
    assert_eq!(error.kind(), ErrorKind::Unsupported);

    // Deleted and adopted again, over the claim that was kept.
    orchestrator
        .delete(spec.id, DeleteOptions::retain())
        .await
        .expect("deleted");
    let created = orchestrator
        .create(&spec, options.clone())
        .await
        .expect("adopted again");
    assert_eq!(created.outcome, EnsureOutcome::Adopted);
    orchestrator
        .wait_until(spec.id, InstanceStatus::Running, WAIT)
        .await
        .expect("running");
    // Purged: the objects go, the data stays, and can be adopted once more.
    let purged = purge(&orchestrator, spec.id).await;
    assert_eq!(purged.purged.len(), 1, "{purged:?}");
    assert_eq!(
        std::fs::read_to_string(directory.join("precious")).expect("there"),
        "data"
    );
    let created = orchestrator.create(&spec, options).await.expect("adopted once more");
    assert_eq!(created.outcome, EnsureOutcome::Adopted);
    orchestrator
        .wait_until(spec.id, InstanceStatus::Running, WAIT)
        .await
        .expect("running");
    purge(&orchestrator, spec.id).await;
    std::fs::remove_dir_all(directory).expect("removed");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs the testbed"]
async fn calls_that_meet_do_no_harm() {
    in_namespace("k8s-meet", calls_that_meet_do_no_harm_in).await;
}

async fn calls_that_meet_do_no_harm_in(bed: Arc<Bed>) {
    let orchestrator = bed.orchestrator().await;
    // The same creation, many times at once.
    let spec = bed.spec("same");
    let calls = (0..5).map(|_| orchestrator.create(&spec, CreateOptions::new()));
    let outcomes: Vec<_> = futures::future::join_all(calls)
        .await
        .into_iter()
        .map(|r| r.map(|e| e.outcome))
        .collect();
    assert!(outcomes.iter().all(Result::is_ok), "{outcomes:?}");
    orchestrator
        .wait_until(spec.id, InstanceStatus::Running, WAIT)
        .await
        .expect("running");

    // One host, several instances at once: never two.
    let rivals: Vec<InstanceSpec> = (0..4)
        .map(|_| {
            let mut rival = bed.spec("rival");
            rival.route.subdomain = Some(format!("prize-{}", spec.id.short()).parse().expect("a label"));
            rival
        })
        .collect();
    let calls = rivals
        .iter()
        .map(|rival| orchestrator.create(rival, CreateOptions::new().stopped()));
    let results = futures::future::join_all(calls).await;
    let winners = results.iter().filter(|result| result.is_ok()).count();
    assert!(winners <= 1, "{results:?}");
    for (rival, result) in rivals.iter().zip(&results) {
        let left = bed.mentioning(&rival.id.short().to_string()).await;
        assert_eq!(left.is_empty(), result.is_err(), "{left:?} {result:?}");
    }

    // A caller that stops waiting.
    let abandoned = bed.spec("abandoned");
    let call = orchestrator.create(&abandoned, CreateOptions::new().stopped());
    assert!(tokio::time::timeout(Duration::from_millis(1), call).await.is_err());
    while !orchestrator.exists(abandoned.id).await.expect("an answer") {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    orchestrator
        .wait_until(abandoned.id, InstanceStatus::Stopped, WAIT)
        .await
        .expect("stopped");
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(bed.mentioning(&abandoned.id.short().to_string()).await.len(), 5);

    // A stopped instance whose creation was interrupted is completed; one that has run and lost its claim is not.
    let claims = bed.api("", "v1", "PersistentVolumeClaim");
    let name = format!("{}-storage", abandoned.object_name());
    claims.delete(&name, &Default::default()).await.expect("deleted");
    let services = bed.api("", "v1", "Service");
    services
        .delete(abandoned.object_name().as_str(), &Default::default())
        .await
        .expect("deleted");
    bed.gone("", "v1", "PersistentVolumeClaim", &name).await;
    let completed = orchestrator
        .create(&abandoned, CreateOptions::new().stopped())
        .await
        .expect("completed");
    assert_eq!(completed.outcome, EnsureOutcome::Created);
    assert_eq!(bed.mentioning(&abandoned.id.short().to_string()).await.len(), 5);
    orchestrator.stop(spec.id).await.expect("stopped");
    orchestrator
        .wait_until(spec.id, InstanceStatus::Stopped, WAIT)
        .await
        .expect("stopped");
    let name = format!("{}-storage", spec.object_name());
    claims.delete(&name, &Default::default()).await.expect("deleted");
    bed.gone("", "v1", "PersistentVolumeClaim", &name).await;
    let error = orchestrator
        .create(&spec, CreateOptions::new())
        .await
        .expect_err("its data is gone");
    assert_eq!(error.kind(), ErrorKind::StorageMissing, "{error}");
    let error = orchestrator.start(spec.id).await.expect_err("its data is gone");
    assert_eq!(error.kind(), ErrorKind::StorageMissing, "{error}");
    let instance = orchestrator.get(spec.id).await.expect("got");
    assert_eq!(instance.storage.state, StorageState::Missing);

    let ids = rivals.iter().map(|rival| rival.id).chain([spec.id, abandoned.id]);
    for id in ids {
        if orchestrator.exists(id).await.expect("an answer") {
            orchestrator.delete(id, DeleteOptions::retain()).await.expect("deleted");
        }
        let plan = orchestrator.plan(&Operation::Purge(id)).await.expect("a plan");
        if let Some(token) = plan.purge_token {
            orchestrator
                .delete(id, DeleteOptions::purge(token))
                .await
                .expect("purged");
        }
    }
}
