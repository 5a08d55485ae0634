//! Measures the Kubernetes backend against a real cluster: requests, latency and memory of create, get, list and watch,
//! with the naive way and the raw transfer of the same bytes beside it in the same run.
//!
//! ```sh
//! eval "$(.ci/testbed/testbed env)"
//! cargo run --release -p saasodoo-benches --bin kubernetes
//! ```
//!
//! No pods are started: all instances are stopped. Everything is in a namespace of its own, which is deleted at the end.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use clap::Parser;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use http::Request;
use kube::Client;
use kube::client::Body;
use kube::config::KubeConfigOptions;
use saasodoo_benches::{Results, Samples, Target, conclude, per, renamed, synchronise, watch_in_children};
use saasodoo_core::{
    Bytes, Config, CreateOptions, DynOrchestrator, InstanceEvent, InstanceFilter, InstanceId,
    InstanceOrchestrator as _, InstanceOrchestratorExt as _, InstanceSpec,
};
use saasodoo_k8s::{KubernetesConfig, KubernetesOrchestrator};
use saasodoo_testkit::fixtures;
use serde_json::{Value, json};

/// Measures the Kubernetes backend.
#[derive(Parser)]
struct Options {
    /// Numbers of instances to measure with, ascending.
    #[arg(long, value_delimiter = ',', default_value = "100,1000")]
    sizes: Vec<usize>,
    /// How many creations of each kind.
    #[arg(long, default_value_t = 25)]
    creations: usize,
    /// Exit with an error when a target does not hold.
    #[arg(long)]
    check: bool,
    /// Keep the namespace.
    #[arg(long)]
    keep: bool,
    /// Used by this program itself, to measure memory in a process of its own: synchronise a watch of this namespace.
    #[arg(long, hide = true)]
    child: Option<String>,
}

const SELECTOR: &str = "managed-by%3Dsaasodoo%2Capp%3Dodoo";

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// The cluster, with all requests counted.
#[derive(Clone)]
struct Cluster {
    client: Client,
    count: Arc<AtomicU64>,
    namespace: String,
}

impl Cluster {
    async fn connect(namespace: String) -> anyhow::Result<Self> {
        let path = std::env::var_os("KUBECONFIG").context("KUBECONFIG names no cluster")?;
        let kubeconfig = kube::config::Kubeconfig::read_from(path)?;
        let mut config = kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
        config.default_retry = false;
        let inner = Client::try_from(config)?;
        let count = Arc::new(AtomicU64::new(0));
        let counter = Arc::clone(&count);
        // Counted for every way alike, so that the comparison is fair.
        let counted = tower::service_fn(move |request: Request<Body>| {
            counter.fetch_add(1, Ordering::Relaxed);
            let inner = inner.clone();
            async move { inner.send(request).await.map_err(BoxError::from) }
        });
        Ok(Self {
            client: Client::new(counted, "default"),
            count,
            namespace,
        })
    }

    fn requests(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }

    /// The bytes of an answer, not looked at.
    async fn raw(&self, method: &str, path: &str, body: Option<&Value>) -> anyhow::Result<Vec<u8>> {
        let body = body.map(|body| body.to_string().into_bytes()).unwrap_or_default();
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(http::header::CONTENT_TYPE, "application/json")
            .body(Body::from(body))?;
        let response = self.client.send(request).await?;
        let status = response.status();
        let bytes = response.into_body().collect_bytes().await?;
        ensure!(
            status.is_success(),
            "{method} {path}: {status} {}",
            String::from_utf8_lossy(&bytes)
        );
        Ok(bytes.to_vec())
    }

    async fn json(&self, method: &str, path: &str, body: Option<&Value>) -> anyhow::Result<Value> {
        Ok(serde_json::from_slice(&self.raw(method, path, body).await?)?)
    }

    fn path(&self, api: &str, plural: &str) -> String {
        format!("{api}/namespaces/{}/{plural}", self.namespace)
    }

    fn deployments(&self) -> String {
        self.path("/apis/apps/v1", "deployments")
    }

    fn pods(&self) -> String {
        self.path("/api/v1", "pods")
    }

    fn claims(&self) -> String {
        self.path("/api/v1", "persistentvolumeclaims")
    }

    async fn orchestrator(&self) -> anyhow::Result<KubernetesOrchestrator> {
        let common = Config::builder()
            .namespace(&self.namespace)?
            .storage_class(&"cephfs-saasodoo".parse()?)
            .base_domain("tenants.example".parse()?)
            .build();
        Ok(KubernetesOrchestrator::builder(KubernetesConfig::new(common))
            .client(self.client.clone())
            .build()
            .await?)
    }
}

fn spec() -> InstanceSpec {
    let id = InstanceId::random();
    fixtures::spec_with_id(&format!("b{}", id.short()), id).with_storage(Bytes::from_mib(1))
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let options = Options::parse();
    if let Some(namespace) = options.child {
        let cluster = Cluster::connect(namespace).await?;
        let orchestrator = cluster.orchestrator().await?;
        return synchronise(&orchestrator, InstanceFilter::all(), || cluster.requests()).await;
    }
    let namespace = format!("bench-{}", InstanceId::random().short());
    let cluster = Cluster::connect(namespace.clone()).await?;
    let object = json!({"metadata": {"name": namespace}});
    cluster.json("POST", "/api/v1/namespaces", Some(&object)).await?;
    let measured = measure(&cluster, &options).await;
    let clean = async { if options.keep { Ok(()) } else { clean(&cluster).await } };
    conclude(measured, clean, options.check).await
}

/// Deletes the namespace and the volumes of its claims.
async fn clean(cluster: &Cluster) -> anyhow::Result<()> {
    let volumes = cluster.json("GET", "/api/v1/persistentvolumes", None).await?;
    cluster
        .raw("DELETE", &format!("/api/v1/namespaces/{}", cluster.namespace), None)
        .await?;
    for volume in volumes["items"].as_array().into_iter().flatten() {
        if volume["spec"]["claimRef"]["namespace"] == *cluster.namespace {
            let name = volume["metadata"]["name"].as_str().unwrap_or_default();
            if let Some(path) = volume["spec"]["hostPath"]["path"].as_str() {
                let _ = std::fs::remove_dir_all(path);
            }
            let _ = cluster
                .raw("DELETE", &format!("/api/v1/persistentvolumes/{name}"), None)
                .await;
        }
    }
    Ok(())
}

async fn measure(cluster: &Cluster, options: &Options) -> anyhow::Result<Results> {
    let version = cluster.json("GET", "/version", None).await?;
    let mut results = Results::new("kubernetes", version["gitVersion"].as_str().unwrap_or_default());
    let orchestrator: DynOrchestrator = Arc::new(cluster.orchestrator().await?);
    let model = spec();
    // Connections and the storage class are known from then on, as they are in a service that runs.
    orchestrator.create(&model, CreateOptions::new().stopped()).await?;
    creation(cluster, &orchestrator, options, 0, &mut results).await?;
    let mut present = 3 * options.creations + 1;
    for size in &options.sizes {
        populate(cluster, &model, present, *size).await?;
        present = present.max(*size);
        settle().await;
        reading(cluster, &orchestrator, &model, *size, &mut results).await?;
        listing(cluster, &orchestrator, *size, &mut results).await?;
        watch_in_children(&["--child".to_owned(), cluster.namespace.clone()], *size, &mut results).await?;
        creation(cluster, &orchestrator, options, *size, &mut results).await?;
        present += 3 * options.creations;
    }
    targets(options, &mut results);
    Ok(results)
}

/// Controllers are busy for a while with what was created.
async fn settle() {
    tokio::time::sleep(Duration::from_secs(5)).await;
}

/// Ours, the naive way, and the least that two rounds can do, in turns, so that all meet the same server.
async fn creation(
    cluster: &Cluster,
    orchestrator: &DynOrchestrator,
    options: &Options,
    size: usize,
    results: &mut Results,
) -> anyhow::Result<()> {
    let (mut ours, mut naive, mut raw) = (Samples::default(), Samples::default(), Samples::default());
    let (mut our_requests, mut naive_requests) = (0, 0);
    for _ in 0..options.creations {
        let spec = spec();
        let before = cluster.requests();
        let start = Instant::now();
        orchestrator.create(&spec, CreateOptions::new().stopped()).await?;
        ours.push(start.elapsed());
        our_requests += cluster.requests() - before;

        let id = InstanceId::random().short().to_string();
        let objects = guide(&id);
        let before = cluster.requests();
        let start = Instant::now();
        for (path, object) in [
            (cluster.claims(), &objects[0]),
            (cluster.deployments(), &objects[1]),
            (cluster.path("/api/v1", "services"), &objects[2]),
            (cluster.path("/apis/traefik.io/v1alpha1", "ingressroutes"), &objects[3]),
        ] {
            cluster.json("POST", &path, Some(object)).await?;
        }
        naive.push(start.elapsed());
        naive_requests += cluster.requests() - before;

        // As many objects as ours, none of them looked at: the Deployment, and the others at once.
        let objects = guide(&InstanceId::random().short().to_string());
        let secret = json!({
            "apiVersion": "v1", "kind": "Secret", "metadata": objects[1]["metadata"], "stringData": {"password": "none"},
        });
        let start = Instant::now();
        cluster.raw("POST", &cluster.deployments(), Some(&objects[1])).await?;
        let paths = [
            (cluster.claims(), &objects[0]),
            (cluster.path("/api/v1", "secrets"), &secret),
            (cluster.path("/api/v1", "services"), &objects[2]),
            (cluster.path("/apis/traefik.io/v1alpha1", "ingressroutes"), &objects[3]),
        ];
        let posts = paths
            .iter()
            .map(|(path, object)| cluster.raw("POST", path, Some(object)));
        futures::future::try_join_all(posts).await?;
        raw.push(start.elapsed());
    }
    results.row("create", "saasodoo", size, &ours, per(our_requests, ours.len()));
    results.row("create", "naive", size, &naive, per(naive_requests, naive.len()));
    results.row("create", "raw", size, &raw, 5.0);
    Ok(())
}

/// What the migration guide's client creates, one after the other.
fn guide(id: &str) -> [Value; 4] {
    let name = format!("odoo-naive-{id}");
    let labels = json!({"app": "odoo", "managed-by": "saasodoo", "instance-id": id});
    let env = |key: &str, value: &str| json!({"name": key, "value": value});
    let resources = json!({"cpu": "1", "memory": "2Gi"});
    let probe = |delay: u32| {
        json!({
            "httpGet": {"path": "/web/health", "port": 8069},
            "initialDelaySeconds": delay, "periodSeconds": 10, "timeoutSeconds": 5, "failureThreshold": 3,
        })
    };
    [
        json!({
            "apiVersion": "v1", "kind": "PersistentVolumeClaim",
            "metadata": {"name": format!("{name}-storage"), "labels": {"app": "odoo", "managed-by": "saasodoo"}},
            "spec": {
                "accessModes": ["ReadWriteMany"], "storageClassName": "cephfs-saasodoo",
                "resources": {"requests": {"storage": "1Mi"}},
            },
        }),
        json!({
            "apiVersion": "apps/v1", "kind": "Deployment",
            "metadata": {"name": name, "labels": labels},
            "spec": {
                // The guide starts it; here nothing runs on either side.
                "replicas": 0,
                "selector": {"matchLabels": {"app": "odoo", "instance-id": id}},
                "strategy": {"type": "Recreate"},
                "template": {
                    "metadata": {"labels": {"app": "odoo", "managed-by": "saasodoo", "instance-id": id, "database": "naive"}},
                    "spec": {
                        "containers": [{
                            "name": "odoo", "image": fixtures::IMAGE,
                            "ports": [{"containerPort": 8069, "name": "http"}],
                            "env": [
                                env("ODOO_DATABASE_HOST", "postgres"), env("ODOO_DATABASE_PORT", "5432"),
                                env("ODOO_DATABASE_NAME", "naive"),
                            ],
                            "resources": {"requests": resources, "limits": resources},
                            "volumeMounts": [{"name": "odoo-data", "mountPath": "/bitnami/odoo"}],
                            "livenessProbe": probe(120), "readinessProbe": probe(30),
                        }],
                        "volumes": [{
                            "name": "odoo-data", "persistentVolumeClaim": {"claimName": format!("{name}-storage")},
                        }],
                    },
                },
            },
        }),
        json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {"name": name, "labels": {"app": "odoo", "managed-by": "saasodoo"}},
            "spec": {
                "type": "ClusterIP", "selector": {"app": "odoo", "instance-id": id},
                "ports": [{"name": "http", "port": 8069, "targetPort": 8069}],
            },
        }),
        json!({
            "apiVersion": "traefik.io/v1alpha1", "kind": "IngressRoute", "metadata": {"name": name},
            "spec": {
                "entryPoints": ["web", "websecure"],
                "routes": [{
                    "match": format!("Host(`naive-{id}.tenants.example`)"), "kind": "Rule",
                    "services": [{"name": name, "port": 8069}],
                }],
            },
        }),
    ]
}

/// Copies of one instance's Deployment and claim, under names and ids of their own. The claims have a class that nobody
/// serves, so that no volumes are made.
async fn populate(cluster: &Cluster, model: &InstanceSpec, present: usize, size: usize) -> anyhow::Result<()> {
    let name = model.object_name();
    let mut deployment = cluster
        .json("GET", &format!("{}/{name}", cluster.deployments()), None)
        .await?;
    let mut claim = cluster
        .json("GET", &format!("{}/{name}-storage", cluster.claims()), None)
        .await?;
    for object in [&mut deployment, &mut claim] {
        let metadata = &object["metadata"];
        let kept =
            json!({"name": metadata["name"], "labels": metadata["labels"], "annotations": metadata["annotations"]});
        object["metadata"] = kept;
        if let Some(annotations) = object["metadata"]["annotations"].as_object_mut() {
            annotations.retain(|key, _| !key.contains("kubernetes.io/"));
        }
        object["status"] = Value::Null;
    }
    claim["spec"]["volumeName"] = Value::Null;
    claim["spec"]["storageClassName"] = json!("bench-none");
    let (whole, short) = (model.id.to_string(), model.id.short().to_string());
    stream::iter(present..size)
        .map(|_| {
            let id = InstanceId::random();
            let copy = |object: &Value| {
                let object = renamed(object, &whole, &id.to_string());
                renamed(&object, &short, &id.short().to_string())
            };
            let (deployment, claim) = (copy(&deployment), copy(&claim));
            async move {
                let (deployments, claims) = (cluster.deployments(), cluster.claims());
                futures::try_join!(
                    cluster.raw("POST", &deployments, Some(&deployment)),
                    cluster.raw("POST", &claims, Some(&claim)),
                )
            }
        })
        .buffer_unordered(16)
        .try_for_each(|_| async { Ok(()) })
        .await
}

async fn reading(
    cluster: &Cluster,
    orchestrator: &DynOrchestrator,
    model: &InstanceSpec,
    size: usize,
    results: &mut Results,
) -> anyhow::Result<()> {
    let (mut ours, mut naive) = (Samples::default(), Samples::default());
    let (name, selector) = (model.object_name(), format!("instance-id%3D{}", model.id.short()));
    let (mut our_requests, mut naive_requests) = (0, 0);
    for _ in 0..50 {
        let before = cluster.requests();
        let start = Instant::now();
        orchestrator.get(model.id).await?;
        ours.push(start.elapsed());
        our_requests += cluster.requests() - before;

        let before = cluster.requests();
        let start = Instant::now();
        cluster
            .json("GET", &format!("{}/{name}", cluster.deployments()), None)
            .await?;
        cluster
            .json("GET", &format!("{}?labelSelector={selector}", cluster.pods()), None)
            .await?;
        naive.push(start.elapsed());
        naive_requests += cluster.requests() - before;
    }
    results.row("get", "saasodoo", size, &ours, per(our_requests, ours.len()));
    results.row("get", "naive", size, &naive, per(naive_requests, naive.len()));

    let cached = cluster.orchestrator().await?;
    let mut events = cached.watch(InstanceFilter::id(model.id));
    while !matches!(events.next().await, Some(InstanceEvent::Synced)) {}
    // Its three watches have begun by then.
    tokio::time::sleep(Duration::from_millis(500)).await;
    let mut samples = Samples::default();
    let before = cluster.requests();
    for _ in 0..1000 {
        let start = Instant::now();
        cached.get(model.id).await?;
        samples.push(start.elapsed());
    }
    let requests = cluster.requests() - before;
    results.row("get cached", "saasodoo", size, &samples, per(requests, samples.len()));
    Ok(())
}

/// The bytes that a list is made of: pages of Deployments one after the other, and the pods beside them.
async fn transfer(cluster: &Cluster) -> anyhow::Result<usize> {
    let pages = |collection: String| async move {
        let (mut bytes, mut token) = (0, String::new());
        loop {
            let path = format!("{collection}?limit=500&labelSelector={SELECTOR}&continue={token}");
            let page = cluster.raw("GET", &path, None).await?;
            bytes += page.len();
            // The token is near the start; the rest is not looked at.
            let head = String::from_utf8_lossy(&page[..page.len().min(2000)]).into_owned();
            match head
                .split_once("\"continue\":\"")
                .and_then(|(_, rest)| rest.split_once('"'))
            {
                Some((next, _)) if !next.is_empty() => next.clone_into(&mut token),
                _ => return anyhow::Ok(bytes),
            }
        }
    };
    let (deployments, pods) = futures::try_join!(pages(cluster.deployments()), pages(cluster.pods()))?;
    Ok(deployments + pods)
}

async fn listing(
    cluster: &Cluster,
    orchestrator: &DynOrchestrator,
    size: usize,
    results: &mut Results,
) -> anyhow::Result<()> {
    let (mut ours, mut raw) = (Samples::default(), Samples::default());
    let (mut our_requests, mut raw_requests, mut bytes) = (0, 0, 0);
    let rounds = 20;
    for round in 0..=rounds {
        let before = cluster.requests();
        let start = Instant::now();
        let listed = orchestrator.list_all(InstanceFilter::all()).await?.len();
        let (our_time, our_count) = (start.elapsed(), cluster.requests() - before);
        ensure!(listed >= size, "listed {listed} of {size}");

        let before = cluster.requests();
        let start = Instant::now();
        bytes = transfer(cluster).await?;
        // The first of each warms up.
        if round > 0 {
            ours.push(our_time);
            our_requests += our_count;
            raw.push(start.elapsed());
            raw_requests += cluster.requests() - before;
        }
    }
    results.row("list", "saasodoo", size, &ours, per(our_requests, ours.len()));
    results.row("list", "raw", size, &raw, per(raw_requests, raw.len()));
    results
        .notes
        .push(format!("a list of {size} instances is {bytes} bytes"));

    // One list, then one read and one list of pods for each.
    let mut naive = Samples::default();
    let before = cluster.requests();
    let repetitions = if size > 200 { 1 } else { 5 };
    for _ in 0..repetitions {
        let start = Instant::now();
        let path = format!("{}?labelSelector={SELECTOR}", cluster.deployments());
        let all = cluster.json("GET", &path, None).await?;
        for deployment in all["items"].as_array().into_iter().flatten() {
            let metadata = &deployment["metadata"];
            let name = metadata["name"].as_str().unwrap_or_default();
            let id = metadata["labels"]["instance-id"].as_str().unwrap_or_default();
            cluster
                .json("GET", &format!("{}/{name}", cluster.deployments()), None)
                .await?;
            cluster
                .json(
                    "GET",
                    &format!("{}?labelSelector=instance-id%3D{id}", cluster.pods()),
                    None,
                )
                .await?;
        }
        naive.push(start.elapsed());
    }
    results.row(
        "list",
        "naive",
        size,
        &naive,
        per(cluster.requests() - before, repetitions),
    );
    Ok(())
}

fn targets(options: &Options, results: &mut Results) {
    let median = |results: &Results, operation: &str, way: &str, size: usize| {
        results.find(operation, way, size).map_or(f64::NAN, |row| row.median_ms)
    };
    let requests = |results: &Results, operation: &str, size: usize| {
        results
            .find(operation, "saasodoo", size)
            .map_or(f64::NAN, |row| row.requests)
    };
    let mut targets = vec![Target::at_most(
        "create: median latency as a part of the naive way's",
        median(results, "create", "saasodoo", 0) / median(results, "create", "naive", 0),
        0.5,
    )];
    for size in &options.sizes {
        let pages = u32::try_from(size.div_ceil(500)).unwrap_or(u32::MAX);
        targets.push(Target::at_most(
            format!("list of {size}: requests"),
            requests(results, "list", *size),
            f64::from(2 * pages),
        ));
        targets.push(Target::at_most(
            format!("list of {size}: median latency as a multiple of the raw transfer's"),
            median(results, "list", "saasodoo", *size) / median(results, "list", "raw", *size),
            1.5,
        ));
        targets.push(Target::at_most(
            format!("cached get with {size}: requests"),
            requests(results, "get cached", *size),
            0.0,
        ));
    }
    results.targets = targets;
}
