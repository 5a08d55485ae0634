//! What the tests against a real cluster share: a namespace of their own, a client in whose way faults can be put, and a
//! picture of everything that exists.

#![allow(dead_code, reason = "each test binary uses a part of it")]

pub(crate) mod guide;
pub(crate) mod subject;

use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::FutureExt as _;
use http::Request;
use kube::api::{ApiResource, DeleteParams, DynamicObject, ListParams, PostParams};
use kube::client::Body;
use kube::core::GroupVersionKind;
use kube::{Api, Client};
use saasodoo_core::{Bytes, Config, Cpu, DynOrchestrator, InstanceId, InstanceSpec};
use saasodoo_k8s::{KubernetesConfig, KubernetesOrchestrator};
use serde_json::{Value, json};

pub(crate) const BASE: &str = "tenants.example";

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// The client's configuration, from `KUBECONFIG`. Retries are the library's own business.
pub(crate) async fn client_config() -> kube::Config {
    let path = std::env::var_os("KUBECONFIG").expect("a cluster in KUBECONFIG");
    let kubeconfig = kube::config::Kubeconfig::read_from(path).expect("a kubeconfig");
    let options = kube::config::KubeConfigOptions::default();
    let config = kube::Config::from_custom_kubeconfig(kubeconfig, &options).await;
    let mut config = config.expect("a cluster");
    config.default_retry = false;
    config
}

pub(crate) async fn client() -> Client {
    Client::try_from(client_config().await).expect("a client")
}

/// What is done to requests on their way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The connection breaks before the request is sent.
    Before,
    /// The request has its effect, and the answer is lost.
    After,
}

/// Counts the requests of a client, and puts faults in their way. Watches pass: they run in the background, and which
/// of them is the n-th request would be a matter of luck.
#[derive(Debug, Clone, Default)]
pub(crate) struct Tap(Arc<TapState>);

#[derive(Debug, Default)]
struct TapState {
    requests: Mutex<Vec<String>>,
    fault: Mutex<Option<(u64, Fault, Arc<AtomicBool>)>>,
    count: AtomicU64,
}

impl Tap {
    /// A client whose requests go through here.
    pub(crate) fn client(&self, inner: Client) -> Client {
        let tap = self.clone();
        let namespace = inner.default_namespace().to_owned();
        let service = tower::service_fn(move |request: Request<Body>| {
            let (inner, fault) = (inner.clone(), tap.take(&request));
            async move {
                match fault {
                    None => Ok::<_, BoxError>(inner.send(request).await?),
                    Some(Fault::Before) => Err(reset()),
                    Some(Fault::After) => {
                        let response = inner.send(request).await?;
                        response.into_body().collect_bytes().await?;
                        Err(reset())
                    }
                }
            }
        });
        Client::new(service, namespace)
    }

    fn take(&self, request: &Request<Body>) -> Option<Fault> {
        let uri = request.uri().to_string();
        let background = uri.contains("watch=true") || uri.contains("/log?");
        self.0
            .requests
            .lock()
            .expect("no panic")
            .push(format!("{} {uri}", request.method()));
        if background {
            return None;
        }
        self.0.count.fetch_add(1, Ordering::SeqCst);
        let mut fault = self.0.fault.lock().expect("no panic");
        let (left, kind, hit) = fault.as_mut()?;
        *left -= 1;
        if *left > 0 {
            return None;
        }
        hit.store(true, Ordering::SeqCst);
        let kind = *kind;
        *fault = None;
        Some(kind)
    }

    /// The n-th request from now, from 1, has this fault. Answers whether it has struck.
    pub(crate) fn fail(&self, n: u64, fault: Fault) -> Arc<AtomicBool> {
        let hit = Arc::new(AtomicBool::new(false));
        *self.0.fault.lock().expect("no panic") = Some((n, fault, Arc::clone(&hit)));
        hit
    }

    pub(crate) fn heal(&self) {
        *self.0.fault.lock().expect("no panic") = None;
    }

    /// How many requests were made, watches and logs not counted.
    pub(crate) fn count(&self) -> u64 {
        self.0.count.load(Ordering::SeqCst)
    }

    pub(crate) fn requests(&self) -> Vec<String> {
        self.0.requests.lock().expect("no panic").clone()
    }
}

fn reset() -> BoxError {
    std::io::Error::new(std::io::ErrorKind::ConnectionReset, "a fault of the test").into()
}

/// A namespace of its own for one test.
#[derive(Clone)]
pub(crate) struct Bed {
    pub(crate) client: Client,
    pub(crate) namespace: String,
    pub(crate) tap: Tap,
}

/// Runs a test in a fresh namespace, which is deleted afterwards with all that is in it and the volumes it used. A
/// failure prints what was there. `SAASODOO_KEEP` keeps everything.
pub(crate) async fn in_namespace<F>(name: &str, test: impl FnOnce(Bed) -> F)
where
    F: Future<Output = ()>,
{
    let client = client().await;
    let namespace = format!("t-{name}-{}", InstanceId::random().short());
    let object = json!({"metadata": {"name": namespace, "labels": {"saasodoo-test": name}}});
    dynamic(&client, "", "v1", "Namespace", None)
        .create(
            &PostParams::default(),
            &serde_json::from_value(object).expect("an object"),
        )
        .await
        .expect("a namespace");
    let bed = Bed {
        client,
        namespace,
        tap: Tap::default(),
    };
    let outcome = AssertUnwindSafe(test(bed.clone())).catch_unwind().await;
    if outcome.is_err() {
        bed.dump().await;
    }
    if std::env::var_os("SAASODOO_KEEP").is_none() {
        bed.close().await;
    }
    if let Err(panic) = outcome {
        std::panic::resume_unwind(panic);
    }
}

/// An API for any kind of object.
pub(crate) fn dynamic(
    client: &Client,
    group: &str,
    version: &str,
    kind: &str,
    namespace: Option<&str>,
) -> Api<DynamicObject> {
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, kind));
    match namespace {
        Some(namespace) => Api::namespaced_with(client.clone(), namespace, &resource),
        None => Api::all_with(client.clone(), &resource),
    }
}

/// All kinds of objects that an instance can consist of.
const KINDS: [(&str, &str, &str); 9] = [
    ("apps", "v1", "Deployment"),
    ("", "v1", "Service"),
    ("", "v1", "Secret"),
    ("", "v1", "ConfigMap"),
    ("", "v1", "PersistentVolumeClaim"),
    ("traefik.io", "v1alpha1", "IngressRoute"),
    ("networking.k8s.io", "v1", "Ingress"),
    ("networking.k8s.io", "v1", "NetworkPolicy"),
    ("", "v1", "ServiceAccount"),
];

/// Everything that exists, by kind and name: the UID, and what somebody asked for. Not what the platform reports.
pub(crate) type Picture = BTreeMap<String, Value>;

impl Bed {
    pub(crate) fn config(&self) -> KubernetesConfig {
        let common = Config::builder()
            .namespace(&self.namespace)
            .expect("a namespace")
            .storage_class(&"cephfs-saasodoo".parse().expect("a name"))
            .base_domain(BASE.parse().expect("a host"))
            .build();
        KubernetesConfig::new(common)
    }

    pub(crate) async fn orchestrator(&self) -> DynOrchestrator {
        self.orchestrator_with(self.config()).await
    }

    pub(crate) async fn orchestrator_with(&self, config: KubernetesConfig) -> DynOrchestrator {
        let client = self.tap.client(self.client.clone());
        Arc::new(
            KubernetesOrchestrator::builder(config)
                .client(client)
                .build()
                .await
                .expect("an orchestrator"),
        )
    }

    pub(crate) fn api(&self, group: &str, version: &str, kind: &str) -> Api<DynamicObject> {
        dynamic(&self.client, group, version, kind, Some(&self.namespace))
    }

    pub(crate) async fn create(&self, group: &str, version: &str, kind: &str, object: Value) -> DynamicObject {
        let mut object = object;
        object["apiVersion"] = if group.is_empty() {
            json!(version)
        } else {
            json!(format!("{group}/{version}"))
        };
        object["kind"] = json!(kind);
        self.api(group, version, kind)
            .create(
                &PostParams::default(),
                &serde_json::from_value(object).expect("an object"),
            )
            .await
            .unwrap_or_else(|error| panic!("{kind}: {error}"))
    }

    /// Everything in the namespace that somebody made, and the volumes of its claims.
    pub(crate) async fn picture(&self) -> Picture {
        let mut picture = Picture::new();
        for (group, version, kind) in KINDS {
            let objects = self.api(group, version, kind).list(&ListParams::default()).await;
            for object in objects.unwrap_or_else(|error| panic!("{kind}: {error}")) {
                let mut value = serde_json::to_value(&object).expect("JSON");
                let token = value["type"] == "kubernetes.io/service-account-token";
                let name = object.metadata.name.unwrap_or_default();
                if token || name == "default" || name == "kube-root-ca.crt" {
                    continue;
                }
                let metadata = &value["metadata"];
                let kept = json!({
                    "uid": metadata["uid"],
                    "generation": metadata["generation"],
                    "labels": metadata["labels"],
                    "owners": metadata["ownerReferences"],
                    "deleting": metadata["deletionTimestamp"],
                });
                let mut annotations = metadata["annotations"].clone();
                if let Some(annotations) = annotations.as_object_mut() {
                    annotations.retain(|key, _| !key.contains("kubernetes.io/"));
                }
                value["metadata"] = kept;
                value["metadata"]["annotations"] = annotations;
                // Binding writes these, some time after the claim is made.
                value["spec"]["volumeName"] = Value::Null;
                if let Some(object) = value.as_object_mut() {
                    object.remove("status");
                }
                picture.insert(format!("{kind} {name}"), value);
            }
        }
        picture
    }

    /// The UIDs of everything, pods too.
    pub(crate) async fn uids(&self) -> BTreeMap<String, String> {
        let mut uids: BTreeMap<String, String> = self
            .picture()
            .await
            .into_iter()
            .map(|(name, object)| (name, object["metadata"]["uid"].as_str().unwrap_or_default().to_owned()))
            .collect();
        for pod in self.pods().await {
            uids.insert(
                format!("Pod {}", pod.metadata.name.unwrap_or_default()),
                pod.metadata.uid.unwrap_or_default(),
            );
        }
        uids
    }

    pub(crate) async fn pods(&self) -> Vec<DynamicObject> {
        self.api("", "v1", "Pod")
            .list(&ListParams::default())
            .await
            .expect("pods")
            .items
    }

    /// Volumes whose claim is in the namespace.
    async fn volumes(&self) -> Vec<DynamicObject> {
        let volumes = dynamic(&self.client, "", "v1", "PersistentVolume", None);
        let all = volumes
            .list(&ListParams::default())
            .await
            .map(|list| list.items)
            .unwrap_or_default();
        all.into_iter()
            .filter(|volume| volume.data["spec"]["claimRef"]["namespace"] == self.namespace.as_str())
            .collect()
    }

    async fn dump(&self) {
        eprintln!("--- what was in {}", self.namespace);
        for (name, object) in self.picture().await {
            eprintln!("{name} {}", object["metadata"]);
        }
        for pod in self.pods().await {
            eprintln!("Pod {} {}", pod.metadata.name.unwrap_or_default(), pod.data["status"]);
        }
        let events = self.api("", "v1", "Event").list(&ListParams::default()).await;
        for event in events.map(|list| list.items).unwrap_or_default() {
            eprintln!(
                "Event {} {}: {}",
                event.data["involvedObject"]["name"], event.data["reason"], event.data["message"]
            );
        }
        for request in self.tap.requests().iter().rev().take(40).rev() {
            eprintln!("request {request}");
        }
    }

    async fn close(&self) {
        let volumes = self.volumes().await;
        let namespaces = dynamic(&self.client, "", "v1", "Namespace", None);
        let _ = namespaces.delete(&self.namespace, &DeleteParams::default()).await;
        // Pods first: a volume's directory is removed with the volume, and they write to it.
        for _ in 0..240 {
            let pods = self.api("", "v1", "Pod").list(&ListParams::default()).await;
            if pods.is_ok_and(|pods| pods.items.is_empty()) {
                break;
            }
            tokio::time::sleep(Duration::from_millis(250)).await;
        }
        let all = dynamic(&self.client, "", "v1", "PersistentVolume", None);
        for volume in volumes {
            let name = volume.metadata.name.unwrap_or_default();
            if let Some(path) = volume.data["spec"]["hostPath"]["path"].as_str() {
                let _ = std::fs::remove_dir_all(path);
            }
            let _ = all.delete(&name, &DeleteParams::default()).await;
        }
    }
}

/// A small instance on the stub image, which works within a second of being started.
pub(crate) fn spec() -> InstanceSpec {
    let id = InstanceId::random();
    let mut spec = saasodoo_testkit::fixtures::spec_with_id(&format!("t{}", id.short()), id)
        .with_image(image())
        .with_cpu(Cpu::from_millis(200))
        .with_memory(Bytes::from_mib(64))
        .with_storage(Bytes::from_mib(16));
    spec.resources.cpu_request = Some(Cpu::from_millis(5));
    spec.resources.memory_request = Some(Bytes::from_mib(8));
    spec.probes.period_seconds = 1;
    spec.probes.startup_seconds = 60;
    spec.scheduling.stop_grace_seconds = 5;
    spec
}

pub(crate) fn image() -> saasodoo_core::ImageRef {
    let image = std::env::var("SAASODOO_STUB_IMAGE").unwrap_or_else(|_| saasodoo_testkit::fixtures::IMAGE.to_owned());
    image.parse().expect("an image")
}
