//! Against a real cluster, with real pods. Each test has a namespace of its own.
//!
//! ```sh
//! eval "$(.ci/testbed/testbed env)"
//! cargo test -p saasodoo-k8s --test live -- --ignored --test-threads=2
//! ```

mod common;

use std::future::poll_fn;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Poll;
use std::time::{Duration, Instant};

use futures::StreamExt as _;
use kube::Client;
use kube::api::{ListParams, Patch, PatchParams};
use saasodoo_core::{
    Bytes, Cause, CreateOptions, DeleteOptions, DynOrchestrator, EnsureOutcome, ErrorKind, Instance, InstanceEvent,
    InstanceFilter, InstanceId, InstanceOrchestrator as _, InstanceOrchestratorExt as _, InstanceStatus, LogOptions,
    Origin,
};
use saasodoo_k8s::{AdoptionSource, KubernetesConfig, KubernetesOrchestrator};
use saasodoo_testkit::contract::Runner;
use serde_json::json;

use common::guide::GuideInstance;
use common::subject::ClusterSubject;
use common::{Bed, Fault, in_namespace, spec};

const START: Duration = Duration::from_secs(120);

/// Waits until the condition holds of the instance.
async fn until(
    orchestrator: &DynOrchestrator,
    id: InstanceId,
    what: &str,
    fits: impl Fn(&Instance) -> bool + Send + Sync,
) -> Instance {
    let begun = Instant::now();
    loop {
        let seen = orchestrator.get(id).await.expect("it is there");
        if fits(&seen) {
            return seen;
        }
        assert!(
            begun.elapsed() < START,
            "not {what}: {} {:?} {:?}",
            seen.status,
            seen.cause,
            seen.facts
        );
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a Kubernetes cluster (creates a namespace)"]
async fn the_contract_holds() {
    in_namespace("contract", |bed| async move {
        let root = std::env::var_os("SAASODOO_CEPHFS").map_or_else(std::env::temp_dir, PathBuf::from);
        let root = root.join(format!("adopt-{}", bed.namespace));
        std::fs::create_dir_all(&root).expect("a directory");
        let mut config = bed.config();
        config.adoption = Some(AdoptionSource::HostPath {
            root: root.display().to_string(),
        });
        let subject = ClusterSubject {
            orchestrator: bed.orchestrator_with(config).await,
            bed,
            root: root.clone(),
            // The testbed's script; another cluster is left alone.
            control: std::env::var_os("SAASODOO_TESTBED_CTL").map(PathBuf::from),
        };
        let concurrency = std::env::var("SAASODOO_CONCURRENCY")
            .ok()
            .and_then(|n| n.parse().ok())
            .unwrap_or(8);
        let report = Runner::new(Arc::new(subject)).concurrency(concurrency).run().await;
        report.write().expect("the result file");
        println!("{report}");
        let _ = std::fs::remove_dir_all(&root);
        report.assert_passed(60);
    })
    .await;
}

#[tokio::test]
#[ignore = "needs a Kubernetes cluster (creates a namespace)"]
async fn ten_created_at_once_all_run() {
    in_namespace("ten", |bed| async move {
        let orchestrator = bed.orchestrator().await;
        let specs: Vec<_> = (0..10).map(|_| spec()).collect();
        let created =
            futures::future::join_all(specs.iter().map(|s| orchestrator.create(s, CreateOptions::new()))).await;
        for answer in created {
            assert_eq!(answer.expect("created").outcome, EnsureOutcome::Created);
        }
        for spec in &specs {
            orchestrator
                .wait_until(spec.id, InstanceStatus::Running, START)
                .await
                .expect("it runs");
        }
        let addresses: std::collections::BTreeSet<_> = orchestrator
            .list_all(InstanceFilter::all().with_status(InstanceStatus::Running))
            .await
            .expect("a list")
            .into_iter()
            .filter_map(|instance| instance.facts.current()?.address.clone())
            .collect();
        assert_eq!(addresses.len(), 10, "each has a pod of its own");
    })
    .await;
}

#[tokio::test]
#[ignore = "needs a Kubernetes cluster (creates a namespace)"]
async fn instances_of_the_guide_are_operated() {
    in_namespace("guide", |bed| async move {
        GuideInstance::credentials(&bed).await;
        let guide = GuideInstance::create(&bed, "0a1b2c3d", "acme").await;
        let orchestrator = bed.orchestrator().await;
        let id: InstanceId = guide.id.parse().expect("a short id");
        let seen = until(&orchestrator, id, "running", |i| i.status == InstanceStatus::Running).await;
        assert!(seen.id.is_legacy());
        assert_eq!(seen.provenance.origin, Origin::Legacy);
        assert_eq!(
            (seen.name.as_str(), seen.spec.database_name.to_string()),
            (guide.name.as_str(), guide.database.clone())
        );
        assert_eq!(seen.spec.image, common::image());
        assert_eq!(seen.spec.resources.memory, Bytes::from_mib(32));
        assert_eq!(seen.spec.storage, Bytes::from_mib(10));
        assert_eq!(
            seen.endpoints.hosts.iter().map(|h| h.as_str()).collect::<Vec<_>>(),
            ["acme.tenants.example"]
        );
        assert_eq!(
            seen.spec
                .environment
                .get(&"WORKERS".parse().expect("a name"))
                .map(String::as_str),
            Some("2")
        );
        // By a whole UUID that begins so, too.
        let whole: InstanceId = "0a1b2c3d-1111-4222-8333-444455556666".parse().expect("a UUID");
        assert_eq!(orchestrator.get(whole).await.expect("found").name, seen.name);

        let listed = orchestrator.list_all(InstanceFilter::all()).await.expect("a list");
        assert_eq!(listed.iter().map(|i| i.id).collect::<Vec<_>>(), [id]);

        // Ours beside it, and both found by the guide's selector.
        let ours = spec();
        orchestrator.create_and_wait(&ours, START).await.expect("ours runs");
        let found = bed
            .api("apps", "v1", "Deployment")
            .list(&ListParams::default().labels("managed-by=saasodoo,app=odoo"))
            .await
            .expect("a list");
        let mut names: Vec<_> = found.into_iter().filter_map(|d| d.metadata.name).collect();
        names.sort();
        let mut expected = vec![guide.name.clone(), ours.object_name().to_string()];
        expected.sort();
        assert_eq!(names, expected);
        // The guide finds the pods of an instance by the last part of its Deployment's name.
        let label = format!("instance-id={}", ours.id.short());
        let pods = bed
            .api("", "v1", "Pod")
            .list(&ListParams::default().labels(&label))
            .await
            .expect("pods");
        assert_eq!(pods.items.len(), 1);

        let before = bed.uids().await;
        orchestrator.restart(id).await.expect("a restart");
        let unit = seen.facts.current().map(|unit| unit.id.clone());
        until(&orchestrator, id, "restarted", |i| {
            i.status == InstanceStatus::Running && i.facts.current().map(|unit| unit.id.clone()) != unit
        })
        .await;
        orchestrator.stop(id).await.expect("a stop");
        until(&orchestrator, id, "stopped", |i| i.status == InstanceStatus::Stopped).await;
        orchestrator.start(id).await.expect("a start");
        until(&orchestrator, id, "running", |i| i.status == InstanceStatus::Running).await;
        let lines: Vec<_> = orchestrator.logs(id, LogOptions::all()).collect().await;
        assert!(
            lines
                .iter()
                .any(|line| line.as_ref().is_ok_and(|l| l.text.contains("listening"))),
            "{lines:?}"
        );
        for (name, uid) in bed.uids().await.iter().filter(|(name, _)| !name.starts_with("Pod ")) {
            assert_eq!(before.get(name), Some(uid), "{name} was replaced");
        }

        let deleted = orchestrator
            .delete(id, DeleteOptions::retain())
            .await
            .expect("a deletion");
        assert!(deleted.existed && deleted.retained.is_some());
        let left = bed.picture().await;
        let of_guide: Vec<_> = left.keys().filter(|name| name.contains("acme-0a1b2c3d")).collect();
        assert_eq!(of_guide, ["PersistentVolumeClaim odoo-acme-0a1b2c3d-storage"]);
        assert!(left.contains_key("Secret odoo-db-credentials"), "it belongs to all");
        assert_eq!(
            orchestrator.get(ours.id).await.expect("untouched").status,
            InstanceStatus::Running
        );
    })
    .await;
}

#[tokio::test]
#[ignore = "needs a Kubernetes cluster (creates a namespace)"]
async fn a_second_create_touches_nothing() {
    in_namespace("second", |bed| async move {
        let orchestrator = bed.orchestrator().await;
        let spec = spec();
        orchestrator.create_and_wait(&spec, START).await.expect("it runs");
        let (uids, picture) = (bed.uids().await, bed.picture().await);

        let same = orchestrator
            .create(&spec, CreateOptions::new())
            .await
            .expect("the same");
        assert_eq!(same.outcome, EnsureOutcome::Unchanged);
        let mut other = spec
            .clone()
            .with_image("saasodoo/odoo-stub:18".parse().expect("an image"));
        other.resources.memory = Bytes::from_mib(65);
        let error = orchestrator
            .create(&other, CreateOptions::new())
            .await
            .expect_err("another spec");
        assert_eq!(error.kind(), ErrorKind::Conflict);
        assert!(error.conflicts().iter().any(|field| field == "image"), "{error}");
        assert!(
            error.conflicts().iter().any(|field| field == "resources.memory"),
            "{error}"
        );

        assert_eq!(bed.uids().await, uids);
        assert_eq!(bed.picture().await, picture);
        let seen = orchestrator.get(spec.id).await.expect("it is there");
        assert_eq!(seen.status, InstanceStatus::Running);
        assert_eq!(seen.facts.current().map(|unit| unit.restarts), Some(0));
    })
    .await;
}

/// After a creation that did not end well: everything of it is there, or nothing; and nothing else has changed.
async fn all_or_nothing(bed: &Bed, before: &common::Picture, spec: &saasodoo_core::InstanceSpec, when: &str) -> bool {
    let orchestrator = bed.orchestrator().await;
    let begun = Instant::now();
    loop {
        let picture = bed.picture().await;
        let (own, others): (common::Picture, common::Picture) = picture
            .into_iter()
            .partition(|(name, _)| name.contains(&spec.id.short().to_string()));
        assert_eq!(&others, before, "{when}: something else changed");
        let settled = match orchestrator.get(spec.id).await {
            Ok(_) => {
                // Whole, says the library's own comparison, which reads every object.
                let again = orchestrator.create(spec, CreateOptions::new().stopped()).await;
                again.is_ok_and(|ensured| ensured.outcome == EnsureOutcome::Unchanged)
            }
            Err(error) => error.is_not_found() && own.is_empty(),
        };
        if settled {
            return !own.is_empty();
        }
        assert!(
            begun.elapsed() < Duration::from_secs(60),
            "{when}: neither whole nor gone: {own:#?}"
        );
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
}

#[tokio::test]
#[ignore = "needs a Kubernetes cluster (creates a namespace)"]
async fn whichever_request_of_a_creation_fails_all_or_nothing_is_there() {
    in_namespace("faults", |bed| async move {
        let orchestrator = bed.orchestrator().await;
        let neighbour = spec();
        orchestrator
            .create_and_wait(&neighbour, START)
            .await
            .expect("the neighbour runs");
        orchestrator
            .create(&spec(), CreateOptions::new().stopped())
            .await
            .expect("the storage class is known now");
        let before = bed.picture().await;
        let (mut whole, mut gone) = (0, 0);
        for fault in [Fault::Before, Fault::After] {
            for n in 1.. {
                let when = format!("request {n} {fault:?}");
                let spec = spec();
                let hit = bed.tap.fail(n, fault);
                let answer = orchestrator.create(&spec, CreateOptions::new().stopped()).await;
                bed.tap.heal();
                let struck = hit.load(Ordering::SeqCst);
                if all_or_nothing(&bed, &before, &spec, &when).await {
                    whole += 1;
                    orchestrator
                        .delete(spec.id, DeleteOptions::retain())
                        .await
                        .expect("a deletion");
                    let plan = orchestrator
                        .plan(&saasodoo_core::Operation::Purge(spec.id))
                        .await
                        .expect("a plan");
                    let token = plan.purge_token.expect("a token");
                    orchestrator
                        .delete(spec.id, DeleteOptions::purge(token))
                        .await
                        .expect("a purge");
                } else {
                    gone += 1;
                    assert!(answer.is_err(), "{when}: it answered well and nothing is there");
                }
                if !struck {
                    assert!(n > 5, "a creation takes more requests than {n}");
                    answer.expect("without a fault");
                    break;
                }
            }
        }
        println!("{whole} times whole, {gone} times gone");
        assert!(gone > 0 && whole > 0);
        assert_eq!(
            orchestrator.get(neighbour.id).await.expect("there").status,
            InstanceStatus::Running
        );
    })
    .await;
}

#[tokio::test]
#[ignore = "needs a Kubernetes cluster (creates a namespace)"]
async fn a_creation_dropped_at_any_await_leaves_all_or_nothing() {
    in_namespace("dropped", |bed| async move {
        let orchestrator = bed.orchestrator().await;
        orchestrator
            .create(&spec(), CreateOptions::new().stopped())
            .await
            .expect("a neighbour");
        let before = bed.picture().await;
        for polls in 0..200 {
            let spec = spec();
            let mut ended = false;
            {
                let mut future = pin!(orchestrator.create(&spec, CreateOptions::new().stopped()));
                let mut left = polls;
                poll_fn(|cx| {
                    if left == 0 {
                        return Poll::Ready(());
                    }
                    left -= 1;
                    match future.as_mut().poll(cx) {
                        Poll::Ready(answer) => {
                            answer.expect("created");
                            ended = true;
                            Poll::Ready(())
                        }
                        Poll::Pending if left == 0 => Poll::Ready(()),
                        Poll::Pending => Poll::Pending,
                    }
                })
                .await;
            }
            // What goes on by itself needs a moment to begin to show.
            tokio::time::sleep(Duration::from_millis(400)).await;
            if all_or_nothing(&bed, &before, &spec, &format!("after {polls} polls")).await {
                orchestrator
                    .delete(spec.id, DeleteOptions::retain())
                    .await
                    .expect("a deletion");
                let plan = orchestrator
                    .plan(&saasodoo_core::Operation::Purge(spec.id))
                    .await
                    .expect("a plan");
                let token = plan.purge_token.expect("a token");
                orchestrator
                    .delete(spec.id, DeleteOptions::purge(token))
                    .await
                    .expect("a purge");
            }
            if ended {
                println!("a creation is polled {polls} times");
                return;
            }
        }
        panic!("a creation is polled more than 200 times");
    })
    .await;
}

async fn refused(bed: &Bed, config: KubernetesConfig, client: Client, kind: ErrorKind, says: &str) {
    let orchestrator = KubernetesOrchestrator::builder(config)
        .client(client)
        .build()
        .await
        .expect("an orchestrator");
    let before = bed.picture().await;
    let error = orchestrator
        .create(&spec(), CreateOptions::new())
        .await
        .expect_err(says);
    assert_eq!(error.kind(), kind, "{error}");
    let text = error.to_string();
    assert!(text.contains(says), "{text}");
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(bed.picture().await, before, "after {text}");
}

#[tokio::test]
#[ignore = "needs a Kubernetes cluster (creates a namespace)"]
async fn a_cluster_that_lacks_something_is_told_so_and_nothing_is_created() {
    in_namespace("lacks", |bed| async move {
        let mut config = bed.config();
        config.common.storage_class = "nowhere".to_owned();
        refused(
            &bed,
            config,
            bed.client.clone(),
            ErrorKind::MissingPrerequisite,
            "nowhere",
        )
        .await;

        // A server without Traefik's kinds: the path of another group, which this server does not have.
        let inner = bed.client.clone();
        let without = tower::service_fn(move |request: http::Request<kube::client::Body>| {
            let inner = inner.clone();
            let (mut parts, body) = request.into_parts();
            parts.uri = parts
                .uri
                .to_string()
                .replace("/apis/traefik.io/", "/apis/traefik.invalid/")
                .parse()
                .expect("a path");
            async move { inner.send(http::Request::from_parts(parts, body)).await }
        });
        let client = Client::new(without, "default");
        refused(
            &bed,
            bed.config(),
            client,
            ErrorKind::MissingPrerequisite,
            "ingressroutes",
        )
        .await;

        let mut elsewhere = bed.config();
        elsewhere.common.namespace = "no-such-namespace".to_owned();
        refused(
            &bed,
            elsewhere,
            bed.client.clone(),
            ErrorKind::MissingPrerequisite,
            "no-such-namespace",
        )
        .await;
    })
    .await;
}

#[tokio::test]
#[ignore = "needs a Kubernetes cluster (creates a namespace)"]
async fn a_caller_without_rights_is_told_so() {
    in_namespace("rights", |bed| async move {
        let mut config = common::client_config().await;
        let user = format!("system:serviceaccount:{}:default", bed.namespace);
        config.headers.push((
            "impersonate-user".parse().expect("a name"),
            user.parse().expect("a value"),
        ));
        let client = Client::try_from(config).expect("a client");
        refused(&bed, bed.config(), client.clone(), ErrorKind::Forbidden, "deployments").await;
        let orchestrator = KubernetesOrchestrator::builder(bed.config())
            .client(client)
            .build()
            .await
            .expect("one");
        for kind in [
            orchestrator
                .get(InstanceId::random())
                .await
                .expect_err("no rights")
                .kind(),
            orchestrator
                .list_all(InstanceFilter::all())
                .await
                .expect_err("no rights")
                .kind(),
            orchestrator
                .stop(InstanceId::random())
                .await
                .expect_err("no rights")
                .kind(),
            orchestrator
                .delete(InstanceId::random(), DeleteOptions::retain())
                .await
                .expect_err("no rights")
                .kind(),
        ] {
            assert_eq!(kind, ErrorKind::Forbidden);
        }
        let health = orchestrator.health().await;
        assert!(!health.is_ready(), "{health}");
        assert!(
            health
                .check("permissions")
                .is_some_and(|check| check.detail.contains("create")),
            "{health}"
        );
        let mut events = orchestrator.watch(InstanceFilter::all());
        let first = tokio::time::timeout(Duration::from_secs(20), events.next())
            .await
            .expect("an event");
        assert!(
            matches!(&first, Some(InstanceEvent::Stale(stale)) if stale.reason.contains("forbidden")),
            "{first:?}"
        );
    })
    .await;
}

/// A kubeconfig with this server, and a client certificate with this key.
fn kubeconfig(directory: &std::path::Path, server: &str, authority: &std::path::Path) -> PathBuf {
    let path = directory.join("kubeconfig");
    let text = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "c",
        "clusters": [{"name": "c", "cluster": {"server": server, "certificate-authority": authority}}],
        "users": [{"name": "u", "user": {
            "client-certificate": directory.join("client.crt"), "client-key": directory.join("client.key"),
        }}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
    });
    std::fs::write(&path, text.to_string()).expect("a file");
    path
}

/// A certificate of the cluster's authority that ended yesterday, made by `openssl`.
fn expired_certificate(directory: &std::path::Path, pki: &std::path::Path) {
    let run = |arguments: &[&str]| {
        let output = std::process::Command::new("openssl")
            .current_dir(directory)
            .args(arguments)
            .output();
        let output = output.expect("openssl is installed");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    let (authority, key) = (pki.join("ca.crt"), pki.join("ca.key"));
    run(&[
        "req",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-keyout",
        "client.key",
        "-out",
        "client.csr",
        "-subj",
        "/O=system:masters/CN=late",
    ]);
    // A certificate of version 3, which is what extensions make it: no other is accepted by TLS libraries.
    std::fs::write(directory.join("ext"), "extendedKeyUsage=clientAuth").expect("a file");
    run(&[
        "x509",
        "-req",
        "-in",
        "client.csr",
        "-CA",
        &authority.to_string_lossy(),
        "-CAkey",
        &key.to_string_lossy(),
        "-set_serial",
        "77",
        "-days",
        "-1",
        "-extfile",
        "ext",
        "-out",
        "client.crt",
    ]);
}

#[tokio::test]
#[ignore = "needs a Kubernetes cluster whose authority's key is beside its KUBECONFIG, in pki/"]
async fn an_expired_certificate_is_told_so() {
    let file = PathBuf::from(std::env::var_os("KUBECONFIG").expect("KUBECONFIG"));
    let pki = file.parent().expect("a directory").join("pki");
    let directory = tempfile::tempdir().expect("a directory");
    expired_certificate(directory.path(), &pki);
    let server = common::client_config().await.cluster_url.to_string();
    let path = kubeconfig(directory.path(), &server, &pki.join("ca.crt"));
    let config = KubernetesConfig::new(saasodoo_core::Config::default());
    let orchestrator = KubernetesOrchestrator::builder(config)
        .kubeconfig(path)
        .build()
        .await
        .expect("one");
    let error = orchestrator.get(InstanceId::random()).await.expect_err("expired");
    assert_eq!(error.kind(), ErrorKind::Unauthorized, "{error}");
    let error = orchestrator
        .create(&spec(), CreateOptions::new())
        .await
        .expect_err("expired");
    assert_eq!(error.kind(), ErrorKind::Unauthorized, "{error}");
    let health = orchestrator.health().await;
    assert!(!health.is_ready(), "{health}");
}

#[tokio::test]
#[ignore = "needs a Kubernetes cluster (creates a namespace)"]
async fn what_keeps_pods_from_being_is_the_cause() {
    in_namespace("causes", |bed| async move {
        let orchestrator = bed.orchestrator().await;
        let mut nowhere = spec();
        nowhere.scheduling.node_selector = [(
            "saasodoo-test/none".parse().expect("a key"),
            "x".parse().expect("a value"),
        )]
        .into();
        orchestrator
            .create(&nowhere, CreateOptions::new())
            .await
            .expect("created");
        let seen = until(&orchestrator, nowhere.id, "unschedulable", |i| {
            matches!(i.cause, Some(Cause::Unschedulable { .. }))
        })
        .await;
        assert_ne!(seen.status, InstanceStatus::Running);

        let quota = json!({"metadata": {"name": "none"}, "spec": {"hard": {"pods": "0"}}});
        bed.create("", "v1", "ResourceQuota", quota).await;
        tokio::time::sleep(Duration::from_secs(1)).await;
        let refused = spec();
        orchestrator
            .create(&refused, CreateOptions::new())
            .await
            .expect("the objects are created");
        let seen = until(&orchestrator, refused.id, "quota exceeded", |i| {
            matches!(i.cause, Some(Cause::QuotaExceeded { .. }))
        })
        .await;
        assert_eq!(seen.facts.units, []);
    })
    .await;
}

#[tokio::test]
#[ignore = "needs a Kubernetes cluster (creates a namespace)"]
async fn hands_that_meddle_are_seen() {
    in_namespace("hands", |bed| async move {
        let orchestrator = bed.orchestrator().await;
        let spec = spec();
        orchestrator.create_and_wait(&spec, START).await.expect("it runs");
        let mut events = orchestrator.watch(InstanceFilter::id(spec.id));
        while !matches!(events.next().await, Some(InstanceEvent::Synced)) {}

        // A rollout that nobody announced: the status follows the new pod, and ends where the old one was.
        let patch = json!({"spec": {"template": {"metadata": {"annotations": {"by": "hand"}}}}});
        bed.api("apps", "v1", "Deployment")
            .patch(
                spec.object_name().as_str(),
                &PatchParams::default(),
                &Patch::Merge(patch),
            )
            .await
            .expect("a patch");
        let mut seen = Vec::new();
        let left = tokio::time::timeout(START, async {
            let mut left = false;
            while let Some(event) = events.next().await {
                if let InstanceEvent::Applied(instance) = event {
                    seen.push(instance.status);
                    left |= instance.status != InstanceStatus::Running;
                    if left && instance.status == InstanceStatus::Running {
                        return true;
                    }
                }
            }
            false
        })
        .await;
        assert_eq!(left.ok(), Some(true), "{seen:?}");

        // Scaled to nothing by hand: stopped, without an error.
        let patch = json!({"spec": {"replicas": 0}});
        bed.api("apps", "v1", "Deployment")
            .patch(
                spec.object_name().as_str(),
                &PatchParams::default(),
                &Patch::Merge(patch),
            )
            .await
            .expect("a patch");
        let stopped = until(&orchestrator, spec.id, "stopped", |i| {
            i.status == InstanceStatus::Stopped
        })
        .await;
        assert_eq!(stopped.cause, None);
    })
    .await;
}

#[tokio::test]
#[ignore = "needs a Kubernetes cluster (creates a namespace)"]
async fn a_followed_log_goes_on_with_the_next_pod() {
    in_namespace("logs", |bed| async move {
        let orchestrator = bed.orchestrator().await;
        let spec = spec();
        orchestrator.create_and_wait(&spec, START).await.expect("it runs");
        let mut log = orchestrator.logs(spec.id, LogOptions::all().follow());
        let mut line = async || {
            let line = tokio::time::timeout(START, log.next()).await.expect("a line in time");
            line.expect("it goes on").expect("no error")
        };
        let first = line().await;
        assert!(first.text.contains("starting on"), "{first:?}");
        assert!(first.at.is_some());
        orchestrator.restart(spec.id).await.expect("a restart");
        loop {
            let next = line().await;
            if next.unit != first.unit {
                assert!(next.text.contains("starting on"), "{next:?}");
                break;
            }
        }
        drop(log);
    })
    .await;
}
