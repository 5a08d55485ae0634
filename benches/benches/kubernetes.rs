//! Conversion on Kubernetes: a spec to its objects, and a page of a list to instances, beside the client library's own
//! types parsing the same bytes.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Pod;
use kube::core::ObjectList;
use saasodoo_core::Config;
use saasodoo_k8s::{KubernetesConfig, bench};
use saasodoo_testkit::fixtures;
use serde_json::{Value, json};

const INSTANCES: u32 = 500;

/// What a server adds to an object of ours, by volume: most of it is who owns which field.
fn managed_fields(object: &Value) -> Value {
    fn fields(value: &Value) -> Value {
        match value {
            Value::Object(map) => map
                .iter()
                .map(|(key, value)| (format!("f:{key}"), fields(value)))
                .collect(),
            Value::Array(items) => {
                let named = items
                    .iter()
                    .map(|item| (format!("k:{{\"name\":{}}}", item["name"]), fields(item)));
                named.collect()
            }
            _ => json!({}),
        }
    }
    json!([{"manager": "saasodoo", "operation": "Update", "fieldsType": "FieldsV1", "fieldsV1": fields(object)}])
}

/// A page of Deployments and one of pods, as large as those of a server.
fn pages(config: &KubernetesConfig) -> (Vec<u8>, Vec<u8>) {
    let (mut deployments, mut pods) = (Vec::new(), Vec::new());
    for spec in fixtures::fleet(INSTANCES) {
        let objects = bench::objects(config, &spec).expect("objects");
        let mut deployment = objects.into_iter().next().expect("the Deployment");
        let own = managed_fields(&deployment);
        deployment["metadata"]["managedFields"] = own;
        deployment["metadata"]["uid"] = json!(spec.id.to_string());
        deployment["metadata"]["creationTimestamp"] = json!("2026-11-20T10:00:00Z");
        deployment["status"] = json!({
            "observedGeneration": 1, "replicas": 1, "updatedReplicas": 1, "readyReplicas": 1, "availableReplicas": 1,
            "conditions": [{"type": "Available", "status": "True", "reason": "MinimumReplicasAvailable"}],
        });
        let mut pod = json!({
            "metadata": {
                "name": format!("{}-x", spec.object_name()),
                "uid": format!("p-{}", spec.id),
                "labels": deployment["spec"]["template"]["metadata"]["labels"],
            },
            "spec": deployment["spec"]["template"]["spec"],
            "status": {
                "phase": "Running",
                "podIP": "10.0.0.1",
                "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": "2026-11-20T10:00:09Z"}],
                "containerStatuses": [{
                    "name": "odoo", "ready": true, "started": true, "restartCount": 0,
                    "image": fixtures::IMAGE, "imageID": "sha256:0",
                    "state": {"running": {"startedAt": "2026-11-20T10:00:01Z"}}, "lastState": {},
                }],
            },
        });
        pod["spec"]["nodeName"] = json!("node-1");
        let own = managed_fields(&pod);
        pod["metadata"]["managedFields"] = own;
        deployments.push(deployment);
        pods.push(pod);
    }
    let page = |kind: &str, items: Vec<Value>| {
        json!({"apiVersion": "v1", "kind": kind, "metadata": {"resourceVersion": "1"}, "items": items})
            .to_string()
            .into_bytes()
    };
    (page("DeploymentList", deployments), page("PodList", pods))
}

fn benchmarks(c: &mut Criterion) {
    let config = KubernetesConfig::new(Config::default());
    let spec = fixtures::spec("acme");
    c.bench_function("kubernetes/spec_to_objects", |b| {
        b.iter(|| bench::objects(&config, black_box(&spec)).expect("objects"));
    });

    let (deployments, pods) = pages(&config);
    let bytes = u64::try_from(deployments.len() + pods.len()).expect("a size");
    let mut group = c.benchmark_group("kubernetes/page_of_500");
    group.sample_size(20).throughput(Throughput::Bytes(bytes));
    group.bench_function("instances", |b| {
        b.iter(|| bench::instances(&config, black_box(&deployments), black_box(&pods)).expect("instances"));
    });
    group.bench_function("typed_objects_only", |b| {
        b.iter(|| {
            let deployments: ObjectList<Deployment> = serde_json::from_slice(black_box(&deployments)).expect("a list");
            let pods: ObjectList<Pod> = serde_json::from_slice(black_box(&pods)).expect("a list");
            (deployments.items.len(), pods.items.len())
        });
    });
    group.finish();
}

criterion_group!(benches, benchmarks);
criterion_main!(benches);
