//! The server by itself, without any client library.

use std::time::Duration;

use futures::StreamExt as _;
use futures::stream::BoxStream;
use http::Request;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Bytes;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep, timeout};
use tower::Service as _;

use super::{FakeBody, FakeKubernetes};

const DEPLOYMENTS: &str = "/apis/apps/v1/namespaces/default/deployments";
const PODS: &str = "/api/v1/namespaces/default/pods";
const CLAIMS: &str = "/api/v1/namespaces/default/persistentvolumeclaims";
const VOLUMES: &str = "/api/v1/persistentvolumes";
const SECRETS: &str = "/api/v1/namespaces/default/secrets";
const SERVICES: &str = "/api/v1/namespaces/default/services";
const MERGE: &str = "application/merge-patch+json";

impl FakeKubernetes {
    async fn request(&self, method: &str, path: &str, type_: &str, body: Value) -> Result<(u16, FakeBody), String> {
        let bytes = if body.is_null() {
            String::new()
        } else {
            body.to_string()
        };
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("content-type", type_)
            .body(Full::new(Bytes::from(bytes)))
            .expect("a request");
        let answer = self.service().call(request).await;
        let response = answer.map_err(|error| error.to_string())?;
        Ok((response.status().as_u16(), response.into_body()))
    }

    async fn ask(&self, method: &str, path: &str, type_: &str, body: Value) -> (u16, Value) {
        let (code, body) = self.request(method, path, type_, body).await.expect("an answer");
        let bytes = body.collect().await.expect("a body").to_bytes();
        (code, serde_json::from_slice(&bytes).expect("JSON"))
    }

    async fn get(&self, path: &str) -> Value {
        self.ask("GET", path, "", Value::Null).await.1
    }

    async fn post(&self, path: &str, body: Value) -> Value {
        let (code, body) = self.ask("POST", path, "application/json", body).await;
        assert_eq!(code, 201, "{body}");
        body
    }

    async fn patch(&self, path: &str, body: Value) -> (u16, Value) {
        self.ask("PATCH", path, MERGE, body).await
    }

    async fn delete(&self, path: &str, body: Value) -> (u16, Value) {
        self.ask("DELETE", path, "application/json", body).await
    }

    async fn items(&self, path: &str) -> Vec<Value> {
        self.get(path).await["items"].as_array().cloned().expect("items")
    }

    async fn text(&self, path: &str) -> Result<String, u16> {
        let (code, body) = self.request("GET", path, "", Value::Null).await.expect("an answer");
        let bytes = body.collect().await.expect("a body").to_bytes();
        let text = String::from_utf8(bytes.to_vec()).expect("text");
        if code == 200 { Ok(text) } else { Err(code) }
    }

    /// The events of a watch, each with its type; `Err` when the connection breaks.
    async fn watch(&self, path: &str) -> BoxStream<'static, Result<(String, Value), String>> {
        let (code, body) = self.request("GET", path, "", Value::Null).await.expect("an answer");
        assert_eq!(code, 200);
        body.into_data_stream()
            .map(|frame| {
                let event: Value = serde_json::from_slice(&frame.map_err(|error| error.to_string())?).expect("JSON");
                Ok((
                    event["type"].as_str().unwrap_or_default().to_owned(),
                    event["object"].clone(),
                ))
            })
            .boxed()
    }

    async fn until(&self, path: &str, what: &str, fits: impl Fn(&Value) -> bool) -> Value {
        let begun = Instant::now();
        loop {
            let seen = self.get(path).await;
            if fits(&seen) {
                return seen;
            }
            assert!(begun.elapsed() < Duration::from_secs(600), "not {what}: {seen:#}");
            sleep(Duration::from_millis(100)).await;
        }
    }

    async fn one_pod(&self) -> String {
        let list = self
            .until(PODS, "one pod", |list| {
                list["items"].as_array().is_some_and(|pods| pods.len() == 1)
            })
            .await;
        format!(
            "{PODS}/{}",
            list["items"][0]["metadata"]["name"].as_str().expect("a name")
        )
    }
}

fn config_map(name: &str, label: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "labels": {"l": label}}, "data": {"a": "1"},
    })
}

fn claim(name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": name},
        "spec": {
            "accessModes": ["ReadWriteMany"], "storageClassName": "cephfs-saasodoo",
            "resources": {"requests": {"storage": "1Gi"}},
        },
    })
}

/// A Deployment of the stand-in for Odoo, with these variables, on the claim `data`.
fn deployment(name: &str, env: Value) -> Value {
    let probe = json!({"httpGet": {"path": "/", "port": 8069}, "periodSeconds": 1, "failureThreshold": 30});
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name},
        "spec": {
            "strategy": {"type": "Recreate"},
            "selector": {"matchLabels": {"app": name}},
            "template": {
                "metadata": {"labels": {"app": name}},
                "spec": {
                    "containers": [{
                        "name": "odoo", "image": "saasodoo/odoo-stub:17", "env": env,
                        "resources": {"limits": {"memory": "64Mi"}},
                        "startupProbe": probe, "readinessProbe": probe,
                    }],
                    "volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": "data"}}],
                },
            },
        },
    })
}

fn version(object: &Value) -> u64 {
    let text = object["metadata"]["resourceVersion"].as_str().expect("a version");
    text.parse().expect("a number")
}

fn is_ready(deployment: &Value) -> bool {
    deployment["status"]["readyReplicas"] == 1
        && deployment["status"]["observedGeneration"] == deployment["metadata"]["generation"]
}

const MAPS: &str = "/api/v1/namespaces/default/configmaps";

#[tokio::test(start_paused = true)]
async fn versions_are_global_and_preconditions_hold() {
    let fake = FakeKubernetes::new();
    let first = fake.post(MAPS, config_map("a", "x")).await;
    let second = fake.post(MAPS, config_map("b", "x")).await;
    assert!(version(&second) > version(&first));
    let path = format!("{MAPS}/a");
    let (code, same) = fake.patch(&path, json!({"data": {"a": "1"}})).await;
    assert_eq!((code, version(&same)), (200, version(&first)), "nothing changed");

    let (code, status) = fake.ask("POST", MAPS, "", config_map("a", "y")).await;
    assert_eq!((code, &status["reason"]), (409, &json!("AlreadyExists")));
    let stale = json!({"metadata": {"resourceVersion": "1"}, "data": {"a": "2"}});
    let (code, status) = fake.patch(&path, stale).await;
    assert_eq!((code, &status["reason"]), (409, &json!("Conflict")));
    let other = json!({"metadata": {"uid": second["metadata"]["uid"]}, "data": {"a": "2"}});
    let (code, status) = fake.patch(&path, other).await;
    let field = &status["details"]["causes"][0]["field"];
    assert_eq!((code, field), (422, &json!("metadata.uid")));
    let other = json!({"preconditions": {"uid": second["metadata"]["uid"]}});
    assert_eq!(fake.delete(&path, other).await.0, 409);
    assert_eq!(fake.get(&path).await, first, "it is as it was");

    let own = json!({"preconditions": {"uid": first["metadata"]["uid"]}});
    assert_eq!(fake.delete(&path, own).await.0, 200);
    let (code, status) = fake.ask("GET", &path, "", Value::Null).await;
    assert_eq!((code, &status["details"]["name"]), (404, &json!("a")));
    let (code, status) = fake.ask("GET", "/apis/example.org/v1/things", "", Value::Null).await;
    assert_eq!(
        (code, &status["details"]["name"]),
        (404, &Value::Null),
        "a kind, not an object"
    );
    fake.remove_kind("ConfigMap");
    assert_eq!(fake.ask("GET", MAPS, "", Value::Null).await.0, 404);
}

#[tokio::test(start_paused = true)]
async fn a_dry_run_refuses_what_the_real_one_would_and_does_nothing() {
    let fake = FakeKubernetes::new();
    let first = fake.post(MAPS, config_map("a", "x")).await;
    let path = format!("{MAPS}/a");
    let (dry_all, dry_one) = (format!("{MAPS}?dryRun=All"), format!("{path}?dryRun=All"));
    assert_eq!(fake.ask("POST", &dry_all, "", config_map("b", "x")).await.0, 201);
    assert_eq!(fake.ask("POST", &dry_all, "", config_map("a", "x")).await.0, 409);
    let (code, changed) = fake.patch(&dry_one, json!({"data": {"a": "2"}})).await;
    assert_eq!((code, &changed["data"]["a"]), (200, &json!("2")));
    let stale = json!({"metadata": {"resourceVersion": "1"}, "data": {"a": "2"}});
    assert_eq!(fake.patch(&dry_one, stale).await.0, 409);
    assert_eq!(fake.delete(&dry_one, Value::Null).await.0, 200);
    assert_eq!(fake.delete(&path, json!({"dryRun": ["All"]})).await.0, 200);
    let (code, _) = fake
        .patch(&format!("{path}?dryRun=Some"), json!({"data": {"a": "2"}}))
        .await;
    assert_eq!(code, 400);
    assert_eq!(fake.get(MAPS).await["items"].as_array().map(Vec::len), Some(1));
    assert_eq!(fake.get(&path).await, first);
    let later = fake.post(MAPS, config_map("c", "x")).await;
    assert_eq!(version(&later), version(&first) + 1, "no version was used");
}

#[tokio::test(start_paused = true)]
async fn a_generation_counts_spec_and_annotations() {
    let fake = FakeKubernetes::new();
    let mut stopped = deployment("d", json!([]));
    stopped["spec"]["replicas"] = json!(0);
    fake.post(DEPLOYMENTS, stopped).await;
    let path = format!("{DEPLOYMENTS}/d");
    fake.until(&path, "observed", |d| d["status"]["observedGeneration"] == 1)
        .await;
    for (patch, generation) in [
        (json!({"metadata": {"labels": {"a": "b"}}}), 1),
        (json!({"metadata": {"annotations": {"a": "b"}}}), 2),
        (json!({"spec": {"paused": true}}), 3),
        (json!({"status": {"replicas": 7}}), 3),
    ] {
        let (_, seen) = fake.patch(&path, patch.clone()).await;
        assert_eq!(seen["metadata"]["generation"], generation, "{patch}");
        assert_ne!(seen["status"]["replicas"], 7, "the status is the controller's");
    }
}

#[tokio::test(start_paused = true)]
async fn pages_are_of_one_moment() {
    let fake = FakeKubernetes::new();
    for name in ["a", "b", "c", "d", "e"] {
        fake.post(MAPS, config_map(name, if name == "b" { "y" } else { "x" }))
            .await;
    }
    let names = |list: &Value| -> String {
        let items = list["items"].as_array().expect("items");
        items
            .iter()
            .filter_map(|item| item["metadata"]["name"].as_str())
            .collect()
    };
    let first = fake.get(&format!("{MAPS}?labelSelector=l%3Dx&limit=2")).await;
    assert_eq!(names(&first), "ac");
    fake.delete(&format!("{MAPS}/d"), Value::Null).await;
    fake.post(MAPS, config_map("f", "x")).await;
    let token = first["metadata"]["continue"].as_str().expect("a token");
    let second = fake.get(&format!("{MAPS}?limit=2&continue={token}")).await;
    assert_eq!(names(&second), "de", "as it was when the list began");
    assert_eq!(
        second["metadata"]["resourceVersion"],
        first["metadata"]["resourceVersion"]
    );
    assert_eq!(second["metadata"]["continue"], Value::Null);

    let first = fake.get(&format!("{MAPS}?limit=1")).await;
    let token = first["metadata"]["continue"].as_str().expect("a token");
    fake.compact();
    let (code, status) = fake
        .ask("GET", &format!("{MAPS}?limit=1&continue={token}"), "", Value::Null)
        .await;
    assert_eq!((code, &status["reason"]), (410, &json!("Expired")));
}

#[tokio::test(start_paused = true)]
async fn watches_resume_and_see_what_fits() {
    let fake = FakeKubernetes::new();
    let first = fake.post(MAPS, config_map("a", "x")).await;
    let from = version(&first);
    let path = format!("{MAPS}?watch=true&labelSelector=l%3Dx&allowWatchBookmarks=true&timeoutSeconds=30");
    let mut watch = fake.watch(&format!("{path}&resourceVersion={from}")).await;
    let own = format!("{MAPS}/a");
    fake.patch(&own, json!({"data": {"a": "2"}})).await;
    fake.patch(&own, json!({"metadata": {"labels": {"l": "y"}}})).await;
    fake.patch(&own, json!({"metadata": {"labels": {"l": "x"}}})).await;
    fake.delete(&own, Value::Null).await;
    fake.post(MAPS, config_map("b", "y")).await;
    let mut seen = Vec::new();
    let mut last = 0;
    while let Some(event) = watch.next().await {
        let (type_, object) = event.expect("no fault");
        assert!(version(&object) > last, "in order");
        last = version(&object);
        if type_ == "DELETED" {
            assert_eq!(object["metadata"]["labels"]["l"], "x", "as it was when it last fitted");
        }
        seen.push(type_);
    }
    assert_eq!(seen, ["MODIFIED", "DELETED", "ADDED", "DELETED", "BOOKMARK"]);

    // From the bookmark there is nothing new; from the beginning everything comes again.
    let mut rest = fake.watch(&format!("{path}&resourceVersion={last}")).await;
    assert!(timeout(Duration::from_secs(5), rest.next()).await.is_err());
    let mut again = fake.watch(&format!("{path}&resourceVersion={from}")).await;
    assert_eq!(again.next().await.expect("an event").expect("no fault").0, "MODIFIED");

    fake.cut_connections();
    assert!(rest.next().await.expect("an end").is_err());
    fake.compact();
    let mut late = fake.watch(&format!("{path}&resourceVersion={from}")).await;
    let (type_, status) = late.next().await.expect("an event").expect("no fault");
    assert_eq!((type_.as_str(), &status["code"]), ("ERROR", &json!(410)));
    assert!(late.next().await.is_none());
    let (code, _) = fake
        .ask("GET", &format!("{path}&sendInitialEvents=true"), "", Value::Null)
        .await;
    assert_eq!(code, 422);
}

#[tokio::test(start_paused = true)]
async fn faults_hit_the_request_that_was_meant() {
    let fake = FakeKubernetes::new();
    let count = fake.count_requests();
    let fault = fake.fail_nth_request(2);
    fake.get(MAPS).await;
    assert!(!fault.hit());
    let failed = fake.request("POST", MAPS, "", config_map("a", "x")).await;
    assert!(failed.is_err() && fault.hit());
    let fault = fake.lose_nth_response(1);
    let lost = fake.request("POST", MAPS, "", config_map("b", "x")).await;
    assert!(lost.is_err() && fault.hit());
    drop(fake.fail_nth_request(1));
    let names: Vec<Value> = fake
        .items(MAPS)
        .await
        .iter()
        .map(|map| map["metadata"]["name"].clone())
        .collect();
    assert_eq!(names, ["b"]);
    assert_eq!(fake.count_requests() - count, 4);

    fake.stop_server();
    let error = fake.request("GET", MAPS, "", Value::Null).await.expect_err("stopped");
    assert!(error.contains("refused"), "{error}");
    fake.start_server();
    assert_eq!(fake.items(MAPS).await.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn what_is_wrong_is_refused_and_named() {
    let fake = FakeKubernetes::new();
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "0a"}, "spec": {"ports": [{"port": 1}]},
    });
    let mut labelled = config_map("a", "-x-");
    let mut foreign = deployment("d", json!([]));
    foreign["spec"]["selector"]["matchLabels"]["app"] = json!("other");
    let mut greedy = deployment("d", json!([]));
    greedy["spec"]["template"]["spec"]["containers"][0]["resources"]["requests"] = json!({"memory": "65Mi"});
    for (path, object, code, field) in [
        (SERVICES, service, 422, "metadata.name"),
        (MAPS, labelled.clone(), 422, "metadata.labels"),
        (DEPLOYMENTS, foreign, 422, "spec.template.metadata.labels"),
        (
            DEPLOYMENTS,
            greedy,
            422,
            "spec.template.spec.containers[0].resources.requests",
        ),
        (SECRETS, config_map("a", "x"), 400, ""),
    ] {
        let (seen, status) = fake.ask("POST", path, "", object).await;
        assert_eq!(seen, code, "{status}");
        let cause = status["details"]["causes"][0]["field"].as_str().unwrap_or_default();
        assert_eq!(cause, field, "{status}");
    }
    labelled["metadata"]["labels"]["l"] = json!("x");
    let (code, status) = fake
        .ask("POST", "/api/v1/namespaces/nowhere/configmaps", "", labelled)
        .await;
    assert_eq!((code, &status["details"]["kind"]), (404, &json!("namespaces")));

    let mut unbound = claim("unbound");
    unbound["spec"]["storageClassName"] = json!("nowhere");
    fake.post(CLAIMS, unbound).await;
    fake.post(CLAIMS, claim("data")).await;
    let path = format!("{CLAIMS}/data");
    let size = |size: &str| json!({"spec": {"resources": {"requests": {"storage": size}}}});
    fake.until(&path, "bound", |claim| claim["status"]["phase"] == "Bound")
        .await;
    let (code, _) = fake.patch(&format!("{CLAIMS}/unbound"), size("2Gi")).await;
    assert_eq!(code, 422, "it has no volume yet");
    assert_eq!(fake.patch(&path, size("512Mi")).await.0, 422, "smaller");
    assert_eq!(
        fake.patch(&path, json!({"spec": {"storageClassName": "x"}})).await.0,
        422
    );
    assert_eq!(fake.patch(&path, size("2Gi")).await.0, 200);
    fake.until(&path, "grown", |claim| claim["status"]["capacity"]["storage"] == "2Gi")
        .await;

    fake.deny("list", "configmaps");
    assert_eq!(fake.ask("GET", MAPS, "", Value::Null).await.0, 403);
    let review = |verb: &str| json!({"spec": {"resourceAttributes": {"verb": verb, "resource": "configmaps"}}});
    for (verb, allowed) in [("list", false), ("get", true)] {
        let path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
        assert_eq!(fake.post(path, review(verb)).await["status"]["allowed"], allowed);
    }
}

#[tokio::test(start_paused = true)]
async fn a_rollout_ends_the_old_pod_before_the_new_one_is_made() {
    let fake = FakeKubernetes::new();
    fake.post(DEPLOYMENTS, deployment("d", json!([]))).await;
    let path = format!("{DEPLOYMENTS}/d");
    let pod = fake.one_pod().await;
    let waiting = fake
        .until(&pod, "unschedulable", |pod| pod["status"]["conditions"].is_array())
        .await;
    let message = waiting["status"]["conditions"][0]["message"]
        .as_str()
        .unwrap_or_default();
    assert!(message.contains("\"data\" not found"), "{message}");
    fake.post(CLAIMS, claim("data")).await;
    let ready = fake.until(&path, "ready", is_ready).await;
    assert_eq!(ready["metadata"]["generation"], 1);
    let from = version(&fake.get(PODS).await);
    let mut watch = fake
        .watch(&format!("{PODS}?watch=true&resourceVersion={from}&timeoutSeconds=60"))
        .await;
    let patch = json!({"spec": {"template": {"metadata": {"annotations": {"by": "hand"}}}}});
    fake.patch(&path, patch).await;
    fake.until(&path, "rolled out", is_ready).await;
    let mut order = Vec::new();
    while let Ok(Some(event)) = timeout(Duration::from_secs(5), watch.next()).await {
        let (type_, _) = event.expect("no fault");
        if type_ != "MODIFIED" {
            order.push(type_);
        }
    }
    assert_eq!(order, ["DELETED", "ADDED"]);
    assert_eq!(fake.violations(), Vec::<String>::new());

    fake.refuse_pods(Some("exceeded quota: none"));
    fake.delete(&fake.one_pod().await, Value::Null).await;
    let failed = |d: &Value| d["status"]["conditions"].to_string().contains("exceeded quota");
    fake.until(&path, "refused", failed).await;
    fake.refuse_pods(None);
    let again = fake.until(&path, "ready again", is_ready).await;
    assert!(!failed(&again));
}

#[tokio::test(start_paused = true)]
async fn owners_take_along_what_they_own() {
    let fake = FakeKubernetes::new();
    fake.post(CLAIMS, claim("data")).await;
    for policy in ["Foreground", "Background"] {
        let owner = fake.post(DEPLOYMENTS, deployment("d", json!([]))).await;
        let path = format!("{DEPLOYMENTS}/d");
        fake.until(&path, "ready", is_ready).await;
        let mut owned = config_map("owned", "x");
        owned["metadata"]["ownerReferences"] = json!([{
            "apiVersion": "apps/v1", "kind": "Deployment", "name": "d", "uid": owner["metadata"]["uid"],
            "blockOwnerDeletion": true,
        }]);
        fake.post(MAPS, owned).await;
        fake.delete(&format!("{CLAIMS}/data"), Value::Null).await;
        fake.delete(&path, json!({"propagationPolicy": policy})).await;
        let (code, seen) = fake.ask("GET", &path, "", Value::Null).await;
        if policy == "Foreground" {
            assert_eq!(
                (code, &seen["metadata"]["finalizers"]),
                (200, &json!(["foregroundDeletion"]))
            );
        } else {
            assert_eq!(code, 404);
        }
        sleep(Duration::from_millis(100)).await;
        // The process has not ended: the pod, its Deployment and its claim wait for it.
        assert_eq!(fake.items(PODS).await.len(), 1);
        assert_eq!(fake.items(DEPLOYMENTS).await.len(), usize::from(policy == "Foreground"));
        assert_eq!(fake.items(CLAIMS).await.len(), 1);
        sleep(Duration::from_secs(2)).await;
        for collection in [PODS, DEPLOYMENTS, MAPS, CLAIMS] {
            assert_eq!(
                fake.items(collection).await,
                Vec::<Value>::new(),
                "{policy} {collection}"
            );
        }
        fake.post(CLAIMS, claim("data")).await;
    }
}

#[tokio::test(start_paused = true)]
async fn data_outlives_a_claim_unless_its_volume_says_otherwise() {
    let fake = FakeKubernetes::new();
    fake.post(CLAIMS, claim("data")).await;
    let path = format!("{CLAIMS}/data");
    let bound = fake
        .until(&path, "bound", |claim| claim["status"]["phase"] == "Bound")
        .await;
    let volume = bound["spec"]["volumeName"].as_str().expect("a volume").to_owned();
    let directory = fake.directory_of_claim("default", "data").expect("a directory");
    assert!(fake.write_file(&directory, "marker", "precious"));
    fake.delete(&path, Value::Null).await;
    let volume_path = format!("{VOLUMES}/{volume}");
    fake.until(&volume_path, "released", |v| v["status"]["phase"] == "Released")
        .await;
    assert_eq!(fake.read_file(&directory, "marker").as_deref(), Some("precious"));

    // Another claim does not get it until its owner is taken out.
    let mut again = claim("data");
    again["spec"]["volumeName"] = json!(volume);
    fake.post(CLAIMS, again).await;
    sleep(Duration::from_secs(5)).await;
    assert_eq!(fake.get(&path).await["status"]["phase"], "Pending");
    fake.patch(&volume_path, json!({"spec": {"claimRef": {"uid": null}}}))
        .await;
    fake.until(&path, "bound again", |claim| claim["status"]["phase"] == "Bound")
        .await;
    assert_eq!(fake.directory_of_claim("default", "data"), Some(directory.clone()));

    fake.patch(
        &volume_path,
        json!({"spec": {"persistentVolumeReclaimPolicy": "Delete"}}),
    )
    .await;
    fake.delete(&path, Value::Null).await;
    sleep(Duration::from_secs(1)).await;
    assert_eq!(fake.ask("GET", &volume_path, "", Value::Null).await.0, 404);
    assert!(!fake.directories().contains_key(&directory));
}

#[tokio::test(start_paused = true)]
async fn a_process_that_ends_is_started_again_ever_later() {
    let fake = FakeKubernetes::new();
    fake.post(CLAIMS, claim("data")).await;
    fake.post(DEPLOYMENTS, deployment("d", json!([{"name": "CRASH", "value": "3"}])))
        .await;
    let pod = fake.one_pod().await;
    let status = "/status/containerStatuses/0";
    let restarts = |pod: &Value| pod.pointer(&format!("{status}/restartCount")).and_then(Value::as_u64);
    let mut starts = Vec::new();
    for n in 1..=4 {
        fake.until(&pod, "restarted", |pod| restarts(pod) == Some(n)).await;
        starts.push(Instant::now());
    }
    let pauses: Vec<u64> = starts.windows(2).map(|pair| (pair[1] - pair[0]).as_secs()).collect();
    assert_eq!(pauses, [10, 20, 40]);
    let reason = |pod: &Value| pod.pointer(&format!("{status}/state/waiting/reason")).cloned();
    let seen = fake
        .until(&pod, "in back-off", |pod| {
            reason(pod) == Some(json!("CrashLoopBackOff"))
        })
        .await;
    let ended = &seen["status"]["containerStatuses"][0]["lastState"]["terminated"];
    assert_eq!((&ended["exitCode"], &ended["reason"]), (&json!(3), &json!("Error")));
    let log = fake
        .text(&format!("{pod}/log?container=odoo&previous=true"))
        .await
        .expect("a log");
    assert!(log.ends_with("odoo-stub: crashing with 3\n"), "{log}");
    let tail = fake
        .text(&format!("{pod}/log?tailLines=1&timestamps=true"))
        .await
        .expect("a log");
    assert_eq!(tail.lines().count(), 1);
    let (time, line) = tail.trim_end().split_once(' ').expect("a time");
    assert!(
        time.parse::<jiff::Timestamp>().is_ok() && line.contains("crashing"),
        "{tail}"
    );
    assert_eq!(fake.text(&format!("{pod}/log?container=other")).await, Err(400));
}

#[tokio::test(start_paused = true)]
async fn what_keeps_a_pod_from_running_is_told() {
    let fake = FakeKubernetes::new();
    fake.post(CLAIMS, claim("data")).await;
    let path = format!("{DEPLOYMENTS}/d");
    let mut image = deployment("d", json!([]));
    image["spec"]["template"]["spec"]["containers"][0]["image"] = json!("localhost:1/nowhere:17");
    let mut nowhere = deployment("d", json!([]));
    nowhere["spec"]["template"]["spec"]["nodeSelector"] = json!({"none": "x"});
    let eats = deployment("d", json!([{"name": "EAT_MB", "value": "256"}]));
    let silent = deployment("d", json!([{"name": "UNREADY", "value": "1"}]));
    for (object, expected) in [
        (image, "ImagePullBackOff"),
        (nowhere, "Unschedulable"),
        (eats, "OOMKilled"),
        (silent, "\"restartCount\":1"),
    ] {
        fake.post(DEPLOYMENTS, object).await;
        let pod = fake.one_pod().await;
        fake.until(&pod, expected, |pod| pod["status"].to_string().contains(expected))
            .await;
        assert!(!is_ready(&fake.get(&path).await));
        fake.delete(&path, json!({"propagationPolicy": "Foreground"})).await;
        fake.until(DEPLOYMENTS, "gone", |list| list["items"] == json!([])).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_running_process_writes_its_heartbeat_and_its_log() {
    let fake = FakeKubernetes::builder().start_time(Duration::from_secs(3)).build();
    fake.post(CLAIMS, claim("data")).await;
    fake.post(DEPLOYMENTS, deployment("d", json!([]))).await;
    let pod = fake.one_pod().await;
    let running = |pod: &Value| pod["status"]["phase"] == "Running";
    fake.until(&pod, "running", running).await;
    let path = format!("{pod}/log?follow=true");
    let (_, body) = fake.request("GET", &path, "", Value::Null).await.expect("an answer");
    let mut lines = body.into_data_stream();
    let mut next =
        async || String::from_utf8_lossy(&lines.next().await.expect("a line").expect("no fault")).into_owned();
    assert!(next().await.contains("starting on"));
    assert_eq!(next().await, "odoo-stub: listening on 8069\n");
    fake.until(&format!("{DEPLOYMENTS}/d"), "ready", is_ready).await;

    let directory = fake.directory_of_claim("default", "data").expect("a directory");
    let beats = || {
        fake.read_file(&directory, "heartbeat.log")
            .map_or(0, |text| text.lines().count())
    };
    let before = beats();
    sleep(Duration::from_secs(10)).await;
    assert_eq!(beats(), before + 10);
    fake.patch(&format!("{DEPLOYMENTS}/d"), json!({"spec": {"replicas": 0}}))
        .await;
    assert_eq!(next().await, "odoo-stub: stopping\n");
    fake.until(PODS, "gone", |list| list["items"] == json!([])).await;
    let last = beats();
    sleep(Duration::from_secs(10)).await;
    assert_eq!(beats(), last);
}
