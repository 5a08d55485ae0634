//! What goes over the wire: method, path, query and body of every request, and which of them go together.

#[path = "wire/lists.rs"]
mod lists;
#[path = "wire/plans.rs"]
mod plans;
#[path = "common/server.rs"]
mod server;
#[path = "wire/waits.rs"]
mod waits;

use std::collections::BTreeSet;
use std::io::Write;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use kube::Client;
use saasodoo_core::{
    Bytes, Config, CreateOptions, DeleteOptions, EnsureOutcome, ErrorKind, InstanceChange, InstanceFilter, InstanceId,
    InstanceOrchestrator as _, InstanceOrchestratorExt as _, InstanceSpec, Operation, Retry, UpdateOptions,
};
use saasodoo_k8s::{KubernetesConfig, KubernetesOrchestrator};
use saasodoo_testkit::fixtures;
use serde_json::{Value, json};
use server::{CLAIMS, CLASSES, DEPLOYMENTS, PODS, ROUTES, SECRETS, SERVICES, Seen, Server};

const DATABASE_SECRET: &str = "s3ntinel-database";
const ADMIN_SECRET: &str = "s3ntinel-admin";

fn spec() -> InstanceSpec {
    let id: InstanceId = "0a1b2c3d-1111-4222-8333-444455556666".parse().expect("a UUID");
    let mut spec = fixtures::spec_with_id("acme", id);
    spec.database.as_mut().expect("a database").password = DATABASE_SECRET.into();
    spec.admin.as_mut().expect("an administrator").password = ADMIN_SECRET.into();
    spec
}

fn config() -> KubernetesConfig {
    KubernetesConfig::new(
        Config::builder()
            .namespace("ns")
            .expect("a name")
            .base_domain("tenants.example".parse().expect("a host"))
            .build(),
    )
}

async fn orchestrator(client: Client) -> KubernetesOrchestrator {
    KubernetesOrchestrator::builder(config())
        .client(client)
        .build()
        .await
        .expect("an orchestrator")
}

/// An instance that exists, and requests that are recorded from here on.
async fn existing(server: &Server) -> KubernetesOrchestrator {
    let orchestrator = orchestrator(server.client()).await;
    orchestrator
        .create(&spec(), CreateOptions::new())
        .await
        .expect("created");
    // As the claim looks once it is bound.
    let name = format!("{NAME}-storage");
    let mut claim = server.get(CLAIMS, &name).expect("a claim");
    claim["spec"]["volumeName"] = json!("pv-1");
    claim["status"] = json!({"phase": "Bound", "capacity": {"storage": "10Gi"}});
    server.put(CLAIMS, &name, claim);
    server.take();
    orchestrator
}

const NAME: &str = "odoo-acme-0a1b2c3d";
const SELECTOR: &str = "managed-by=saasodoo,app=odoo";

fn lines(seen: &[Seen]) -> BTreeSet<String> {
    seen.iter().map(Seen::line).collect()
}

fn writes(seen: &[Seen]) -> Vec<&Seen> {
    seen.iter().filter(|request| request.method != "GET").collect()
}

fn find<'a>(seen: &'a [Seen], line: &str) -> &'a Seen {
    let all = lines(seen);
    seen.iter()
        .find(|request| request.line() == line)
        .unwrap_or_else(|| panic!("no {line} among {all:#?}"))
}

#[tokio::test(start_paused = true)]
async fn a_creation_is_two_rounds_of_concurrent_requests() {
    let server = Server::new();
    let orchestrator = orchestrator(server.client()).await;
    server.in_rounds();
    let answer = orchestrator
        .create(&spec(), CreateOptions::new())
        .await
        .expect("created");
    assert_eq!(answer.outcome, EnsureOutcome::Created);
    let seen = server.take();
    let round = |n| seen.iter().filter(|r| r.round == n).cloned().collect::<Vec<_>>();
    assert_eq!(seen.iter().map(|r| r.round).max(), Some(2), "{:#?}", lines(&seen));

    let first = round(1);
    assert_eq!(
        lines(&first),
        BTreeSet::from([
            format!("POST {DEPLOYMENTS}"),
            format!("GET {DEPLOYMENTS}"),
            format!("GET {CLAIMS}"),
            format!("GET {CLASSES}/cephfs-saasodoo"),
            // The hosts of the guide's instances are known to their routes only.
            format!("GET {ROUTES}"),
        ])
    );
    assert_eq!(writes(&first).len(), 1, "the Deployment is the claim on the name");
    let second = round(2);
    let version = |request: &Seen| request.query.get("resourceVersion").cloned();
    let limit = |request: &Seen| request.query.get("limit").cloned();
    // A server reads every object of the kind for a page of those that a selector fits, and for none from its cache.
    for line in [format!("GET {DEPLOYMENTS}"), format!("GET {ROUTES}")] {
        assert_eq!(version(find(&first, &line)).as_deref(), Some("0"), "{line}");
    }
    assert_eq!(
        version(find(&first, &format!("GET {CLAIMS}"))),
        None,
        "data is looked for as of now"
    );
    assert!(seen.iter().all(|request| limit(request).is_none()));
    // Every host that was claimed before this Deployment is seen.
    let looked = find(&second, &format!("GET {DEPLOYMENTS}"));
    let made = server.get(DEPLOYMENTS, NAME).expect("made");
    assert_eq!(version(looked).as_deref(), made["metadata"]["resourceVersion"].as_str());
    assert_eq!(looked.query["resourceVersionMatch"], "NotOlderThan");
    let posts: BTreeSet<String> = lines(&second)
        .into_iter()
        .filter(|line| line.starts_with("POST"))
        .collect();
    assert_eq!(
        posts,
        [CLAIMS, SECRETS, SERVICES, ROUTES]
            .iter()
            .map(|path| format!("POST {path}"))
            .collect::<BTreeSet<_>>()
    );

    for request in writes(&seen) {
        assert_eq!(
            request.query.get("fieldManager").map(String::as_str),
            Some("saasodoo"),
            "{}",
            request.line()
        );
        assert_eq!(request.content_type, "application/json");
        let labels = &request.body["metadata"]["labels"];
        assert_eq!(
            labels["app.kubernetes.io/instance"],
            "0a1b2c3d-1111-4222-8333-444455556666"
        );
        assert_eq!(
            (
                &labels["app"],
                &labels["managed-by"],
                &labels["instance-id"],
                &labels["database"]
            ),
            (&json!("odoo"), &json!("saasodoo"), &json!("0a1b2c3d"), &json!("acme"))
        );
    }
    for request in seen
        .iter()
        .filter(|r| r.method == "GET" && (r.path == DEPLOYMENTS || r.path == CLAIMS))
    {
        let selector = request
            .query
            .get("labelSelector")
            .map(String::as_str)
            .unwrap_or_default();
        assert!(selector.starts_with("managed-by=saasodoo,"), "{selector}");
    }

    let deployment = &find(&seen, &format!("POST {DEPLOYMENTS}")).body;
    assert_eq!(deployment["metadata"]["name"], NAME);
    assert_eq!(deployment["spec"]["replicas"], 1);
    assert_eq!(deployment["spec"]["strategy"]["type"], "Recreate");
    let selector = &deployment["spec"]["selector"]["matchLabels"];
    assert_eq!(
        selector["app.kubernetes.io/instance"],
        "0a1b2c3d-1111-4222-8333-444455556666"
    );
    let pod = &deployment["spec"]["template"]["spec"];
    assert_eq!(pod["automountServiceAccountToken"], false);
    assert_eq!(
        pod["volumes"][0]["persistentVolumeClaim"]["claimName"],
        format!("{NAME}-storage")
    );
    let uid = &server.get(DEPLOYMENTS, NAME).expect("stored")["metadata"]["uid"];
    for path in [SECRETS, SERVICES, ROUTES] {
        let owner = &find(&seen, &format!("POST {path}")).body["metadata"]["ownerReferences"][0];
        assert_eq!((&owner["kind"], &owner["uid"]), (&json!("Deployment"), uid), "{path}");
    }
    let claim = &find(&seen, &format!("POST {CLAIMS}")).body;
    assert_eq!(
        claim["metadata"]["ownerReferences"],
        Value::Null,
        "data outlives the instance"
    );
    assert_eq!(claim["spec"]["storageClassName"], "cephfs-saasodoo");
    assert_eq!(claim["spec"]["resources"]["requests"]["storage"], "10Gi");
}

#[tokio::test(start_paused = true)]
async fn passwords_are_in_the_secret_and_nowhere_else() {
    let server = Server::new();
    let orchestrator = orchestrator(server.client()).await;
    orchestrator
        .create(&spec(), CreateOptions::new())
        .await
        .expect("created");
    let change = InstanceChange::new().memory(Bytes::from_gib(3));
    orchestrator
        .update(spec().id, &change, UpdateOptions::new())
        .await
        .expect("updated");
    orchestrator.stop(spec().id).await.expect("stopped");
    for request in server.take() {
        let text = request.body.to_string();
        let clear = text.contains(DATABASE_SECRET) || text.contains(ADMIN_SECRET);
        assert!(!clear, "{}", request.line());
        // As a Secret encodes them.
        let encoded = text.contains("czNudGluZWwt");
        assert_eq!(
            encoded,
            request.line() == format!("POST {SECRETS}"),
            "{}",
            request.line()
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_second_creation_only_reads() {
    let server = Server::new();
    let orchestrator = existing(&server).await;
    let same = orchestrator
        .create(&spec(), CreateOptions::new())
        .await
        .expect("the same");
    assert_eq!(same.outcome, EnsureOutcome::Unchanged);
    let other = spec().with_image("odoo:18".parse().expect("an image"));
    let error = orchestrator
        .create(&other, CreateOptions::new())
        .await
        .expect_err("another");
    assert_eq!(error.kind(), ErrorKind::Conflict);
    assert!(error.conflicts().contains(&"image".to_owned()), "{error}");
    let seen = server.take();
    let written: BTreeSet<String> = writes(&seen).into_iter().map(Seen::line).collect();
    assert_eq!(
        written,
        BTreeSet::from([format!("POST {DEPLOYMENTS}")]),
        "refused by the server: the name is taken"
    );
}

#[tokio::test(start_paused = true)]
async fn an_update_names_the_fields_it_means_and_what_it_was_based_on() {
    let server = Server::new();
    let orchestrator = existing(&server).await;
    let version = server.get(DEPLOYMENTS, NAME).expect("stored")["metadata"]["resourceVersion"].clone();
    let change = InstanceChange::new()
        .memory(Bytes::from_gib(3))
        .set_env("WORKERS".parse().expect("a name"), "4");
    let answer = orchestrator
        .update(spec().id, &change, UpdateOptions::new())
        .await
        .expect("updated");
    assert_eq!(answer.outcome, EnsureOutcome::Updated);
    let seen = server.take();
    let [patch] = writes(&seen)[..] else {
        panic!("{:#?}", lines(&seen))
    };
    assert_eq!(patch.line(), format!("PATCH {DEPLOYMENTS}/{NAME}"));
    assert_eq!(patch.content_type, "application/strategic-merge-patch+json");
    assert_eq!(patch.query.get("fieldManager").map(String::as_str), Some("saasodoo"));
    assert_eq!(patch.body["metadata"]["resourceVersion"], version);
    let container = &patch.body["spec"]["template"]["spec"]["containers"][0];
    assert_eq!(container["name"], "odoo");
    assert_eq!(container["resources"]["limits"]["memory"], "3Gi");
    assert_eq!(container["image"], Value::Null, "what is not meant is not sent");
    assert_eq!(patch.body["spec"]["replicas"], Value::Null);
    assert_eq!(answer.instance.spec.resources.memory, Bytes::from_gib(3));
    // Twice is once.
    let again = orchestrator
        .update(spec().id, &change, UpdateOptions::new())
        .await
        .expect("the same");
    assert_eq!(again.outcome, EnsureOutcome::Unchanged);
    assert_eq!(writes(&server.take()).len(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_label_is_set_and_taken_away_without_a_restart_and_ours_stay() {
    let server = Server::new();
    let orchestrator = existing(&server).await;
    let key: saasodoo_core::LabelKey = "tier".parse().expect("a key");
    let set = InstanceChange::new().set_label(key.clone(), "gold".parse().expect("a value"));
    let answer = orchestrator
        .update(spec().id, &set, UpdateOptions::new())
        .await
        .expect("updated");
    assert_eq!(answer.outcome, EnsureOutcome::Updated);
    assert_eq!(answer.instance.spec.labels[&key].as_str(), "gold");
    let seen = server.take();
    let [patch] = writes(&seen)[..] else {
        panic!("{:#?}", lines(&seen))
    };
    assert_eq!(patch.body["metadata"]["labels"], serde_json::json!({"tier": "gold"}));
    assert_eq!(patch.body["spec"], Value::Null, "the template stays as it is");
    let take = InstanceChange::new().unset_label(key.clone());
    let answer = orchestrator
        .update(spec().id, &take, UpdateOptions::new())
        .await
        .expect("updated");
    assert!(!answer.instance.spec.labels.contains_key(&key));
    server.take();
    let ours = InstanceChange::new().unset_label("managed-by".parse().expect("a key"));
    let answer = orchestrator
        .update(spec().id, &ours, UpdateOptions::new())
        .await
        .expect("nothing to do");
    assert_eq!(answer.outcome, EnsureOutcome::Unchanged);
    assert_eq!(writes(&server.take()).len(), 0);
}

#[tokio::test(start_paused = true)]
async fn storage_grows_by_a_patch_of_the_claim_and_never_shrinks() {
    let server = Server::new();
    let orchestrator = existing(&server).await;
    let grow = |gib| InstanceChange::new().storage(Bytes::from_gib(gib));
    let error = orchestrator
        .update(spec().id, &grow(5), UpdateOptions::new())
        .await
        .expect_err("a shrink");
    assert!(
        matches!(error.kind(), ErrorKind::InvalidInput | ErrorKind::Conflict),
        "{error}"
    );
    assert_eq!(writes(&server.take()).len(), 0);
    orchestrator
        .update(spec().id, &grow(20), UpdateOptions::new())
        .await
        .expect("a growth");
    let seen = server.take();
    let patch = find(&seen, &format!("PATCH {CLAIMS}/{NAME}-storage"));
    assert_eq!(patch.body["spec"]["resources"]["requests"]["storage"], "20Gi");
}

#[tokio::test(start_paused = true)]
async fn a_claim_without_a_volume_does_not_grow_but_waits_for_one() {
    let server = Server::new();
    let orchestrator = existing(&server).await;
    let name = format!("{NAME}-storage");
    let mut claim = server.get(CLAIMS, &name).expect("the claim");
    claim["status"]["phase"] = json!("Pending");
    server.put(CLAIMS, &name, claim.clone());
    server.take();
    let grow = InstanceChange::new().storage(Bytes::from_gib(20));
    let error = orchestrator
        .update(spec().id, &grow, UpdateOptions::new())
        .await
        .expect_err("no volume");
    assert_eq!(
        (error.kind(), error.retry()),
        (ErrorKind::Unavailable, Retry::After(None)),
        "{error}"
    );
    assert_eq!(writes(&server.take()).len(), 0);

    let spec = spec();
    let (answer, ()) = tokio::join!(orchestrator.update(spec.id, &grow, UpdateOptions::new()), async {
        tokio::time::sleep(Duration::from_secs(5)).await;
        claim["status"]["phase"] = json!("Bound");
        server.put(CLAIMS, &name, claim);
    });
    answer.expect("a growth");
    find(&server.take(), &format!("PATCH {CLAIMS}/{name}"));
}

#[tokio::test(start_paused = true)]
async fn power_is_one_patch_of_the_deployment() {
    let server = Server::new();
    let orchestrator = existing(&server).await;
    orchestrator.stop(spec().id).await.expect("stopped");
    let seen = server.take();
    let [patch] = writes(&seen)[..] else {
        panic!("{:#?}", lines(&seen))
    };
    assert_eq!(patch.line(), format!("PATCH {DEPLOYMENTS}/{NAME}"));
    assert_eq!(patch.body["spec"]["replicas"], 0);
    assert_eq!(patch.body["spec"]["template"], Value::Null, "the pod template stays");
    orchestrator.stop(spec().id).await.expect("stopped already");
    assert_eq!(writes(&server.take()).len(), 0);

    orchestrator.start(spec().id).await.expect("started");
    let seen = server.take();
    let [patch] = writes(&seen)[..] else {
        panic!("{:#?}", lines(&seen))
    };
    assert_eq!(patch.body["spec"]["replicas"], 1);

    orchestrator.restart(spec().id).await.expect("restarted");
    let seen = server.take();
    let [patch] = writes(&seen)[..] else {
        panic!("{:#?}", lines(&seen))
    };
    assert!(
        patch.body["spec"]["template"]["metadata"]["annotations"].is_object(),
        "{}",
        patch.body
    );
    assert_eq!(patch.body["spec"]["template"]["spec"], Value::Null);
}

#[tokio::test(start_paused = true)]
async fn a_deletion_names_the_very_object_and_keeps_the_claim() {
    let server = Server::new();
    let orchestrator = existing(&server).await;
    let uid = server.get(DEPLOYMENTS, NAME).expect("stored")["metadata"]["uid"].clone();
    let deleted = orchestrator
        .delete(spec().id, DeleteOptions::retain())
        .await
        .expect("deleted");
    assert!(deleted.existed && deleted.retained.is_some() && deleted.purged.is_empty());
    let seen = server.take();
    let deletions: Vec<&Seen> = seen.iter().filter(|r| r.method == "DELETE").collect();
    let [deletion] = deletions[..] else {
        panic!("{:#?}", lines(&seen))
    };
    assert_eq!(deletion.line(), format!("DELETE {DEPLOYMENTS}/{NAME}"));
    assert_eq!(deletion.body["preconditions"]["uid"], uid);
    assert_eq!(deletion.body["propagationPolicy"], "Foreground");
    assert!(server.get(CLAIMS, &format!("{NAME}-storage")).is_some());
    let again = orchestrator
        .delete(spec().id, DeleteOptions::retain())
        .await
        .expect("gone");
    assert!(!again.existed);
    assert_eq!(writes(&server.take()).len(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_read_is_one_round() {
    let server = Server::new();
    let orchestrator = existing(&server).await;
    server.in_rounds();
    let seen = orchestrator.get(spec().id).await.expect("there");
    assert_eq!(seen.spec.diff(&spec()), []);
    let requests = server.take();
    assert_eq!(requests.iter().map(|r| r.round).max(), Some(1));
    assert_eq!(
        lines(&requests),
        [DEPLOYMENTS, PODS, CLAIMS]
            .iter()
            .map(|path| format!("GET {path}"))
            .collect::<BTreeSet<_>>()
    );
    for request in &requests {
        let selector = request.query.get("labelSelector").map(String::as_str);
        assert_eq!(selector, Some("managed-by=saasodoo,app=odoo,instance-id=0a1b2c3d"));
    }
}

#[tokio::test(start_paused = true)]
async fn names_from_the_server_never_become_other_paths() {
    let server = Server::new();
    let orchestrator = existing(&server).await;
    let mut deployment = server.get(DEPLOYMENTS, NAME).expect("stored");
    for hostile in ["../secrets/other", "x?dryRun=All", "a/status", "..", "é", ""] {
        deployment["metadata"]["annotations"]["saasodoo.io/claim"] = json!(hostile);
        deployment["spec"]["template"]["spec"]["volumes"][0]["persistentVolumeClaim"]["claimName"] = json!(hostile);
        server.put(DEPLOYMENTS, NAME, deployment.clone());
        let answers = [
            orchestrator.get(spec().id).await.map(drop),
            orchestrator.delete(spec().id, DeleteOptions::retain()).await.map(drop),
        ];
        server.put(DEPLOYMENTS, NAME, deployment.clone());
        if !hostile.is_empty() {
            assert!(answers[0].is_err(), "{hostile}");
        }
        for request in server.take() {
            let known = [DEPLOYMENTS, PODS, CLAIMS, SECRETS, SERVICES, ROUTES].iter().any(|c| {
                request.path == *c
                    || request
                        .path
                        .strip_prefix(c)
                        .is_some_and(|rest| rest.starts_with("/odoo-acme-"))
            });
            assert!(known, "{hostile}: {}", request.path);
            assert!(!request.query.contains_key("dryRun"), "{hostile}");
        }
    }
}

#[tokio::test]
async fn hostile_configuration_is_refused_before_any_request() {
    let server = Server::new();
    for namespace in ["../kube-system", "a/b", "t?dryRun=All", "A", ""] {
        let mut config = config();
        config.common.namespace = namespace.to_owned();
        let error = KubernetesOrchestrator::builder(config)
            .client(server.client())
            .build()
            .await
            .expect_err(namespace);
        assert_eq!(
            (error.kind(), error.field()),
            (ErrorKind::Configuration, Some("namespace"))
        );
    }
    let bad: [fn(&mut InstanceSpec); 4] = [
        |spec| spec.display_name = "two\nlines".to_owned(),
        |spec| spec.storage = Bytes::new(0),
        |spec| {
            drop(
                spec.environment
                    .insert("ODOO_DATABASE_HOST".parse().expect("a name"), "evil".to_owned()),
            )
        },
        |spec| spec.route.subdomain = None,
    ];
    let orchestrator = orchestrator(server.client()).await;
    for (n, change) in bad.into_iter().enumerate() {
        // The last one: a database name that makes a reserved host.
        let mut spec = if n == 3 {
            fixtures::spec_with_id("admin", spec().id)
        } else {
            spec()
        };
        change(&mut spec);
        let error = orchestrator
            .create(&spec, CreateOptions::new())
            .await
            .expect_err("bad input");
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
    }
    assert_eq!(lines(&server.take()), BTreeSet::new());
}

/// Collects what is logged.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().expect("no panic").extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn no_log_line_shows_a_password() {
    // Else what another test meets first, on a thread without a subscriber, is switched off here too.
    tracing::subscriber::set_global_default(tracing_subscriber::registry()).expect("the first");
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_span_events(tracing_subscriber::fmt::format::FmtSpan::FULL)
        .with_writer(move || writer.clone())
        .finish();
    let _guard = tracing::subscriber::set_default(subscriber);
    let server = Server::new();
    // The client with its whole stack, which logs requests of its own.
    let url = server.listen().await.parse().expect("a URL");
    let client = Client::try_from(kube::Config::new(url)).expect("a client");
    let orchestrator = orchestrator(client).await;
    let mut texts = Vec::new();
    orchestrator
        .create(&spec(), CreateOptions::new())
        .await
        .expect("created");
    texts.push(format!(
        "{orchestrator:?} {orchestrator} {:?}",
        orchestrator.get(spec().id).await
    ));
    orchestrator
        .delete(spec().id, DeleteOptions::retain())
        .await
        .expect("deleted");
    // A server that answers with the object it refuses.
    let echo = json!({
        "kind": "Status", "code": 422, "reason": "Invalid",
        "message": "Secret is invalid", "details": {"causes": []},
        "object": {"data": {"database-password": DATABASE_SECRET}},
    });
    server.refuse(&format!("POST {SECRETS}"), 422, echo);
    let other = fixtures::spec_with_id("other", InstanceId::random());
    let mut other = other.with_database(spec().database.expect("a database"));
    other.admin = spec().admin;
    let error = orchestrator
        .create(&other, CreateOptions::new())
        .await
        .expect_err("refused");
    texts.push(format!(
        "{error} {error:?} {:?}",
        std::error::Error::source(&error).map(ToString::to_string)
    ));
    server.refuse("never", 500, Value::Null);
    server.take();
    let logged = String::from_utf8_lossy(&log.0.lock().expect("no panic")).into_owned();
    assert!(
        logged.contains("kubernetes") && logged.contains(DEPLOYMENTS),
        "it was captured"
    );
    for text in texts.iter().chain([&logged]) {
        for secret in [DATABASE_SECRET, ADMIN_SECRET, "czNudGluZWwt"] {
            assert!(!text.contains(secret), "{secret} is in {text}");
        }
    }
}
