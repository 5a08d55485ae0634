//! Creations and deletions against a daemon that answers late, wrong or not at all: whose things are touched.

mod common;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use common::recorder::{Recorder, Reply, Request};
use saasodoo_core::{
    CreateOptions, DataPolicy, DatabaseEndpoint, DeleteOptions, EnsureOutcome, ErrorKind, InstanceId,
    InstanceOrchestrator, InstanceSpec, InstanceStatus, Operation, PurgeToken, Retry,
};
use saasodoo_swarm::{Credentials, DockerHost, QuotaPolicy, SwarmOrchestrator};
use serde_json::{Value, json};

fn spec() -> InstanceSpec {
    InstanceSpec::new(
        InstanceId::random(),
        "acme".parse().expect("a name"),
        "odoo:17".parse().expect("an image"),
    )
    .with_database(DatabaseEndpoint::new("db", "d", "u", "s3ntinel-db".into()))
}

fn orchestrator(recorder: &Recorder, root: &Path) -> SwarmOrchestrator {
    let common = saasodoo_core::Config::builder()
        .base_domain("sw.example".parse().expect("a host"))
        .build();
    SwarmOrchestrator::builder(common)
        .host(DockerHost::Unix(recorder.socket()))
        .data_root(root)
        .quota(QuotaPolicy::BestEffort)
        .credentials(Credentials::Environment)
        .build()
        .expect("a socket")
}

type Odd = Box<dyn FnMut(&mut Daemon, &Request) -> Option<Reply> + Send>;

/// What a daemon holds, and how it misbehaves.
#[derive(Default)]
struct Daemon {
    services: Vec<Value>,
    tasks: Vec<Value>,
    made: u64,
    /// Answers a request in place of the daemon, after it was carried out or not.
    odd: Option<Odd>,
}

impl Daemon {
    fn add(&mut self, body: Value) -> String {
        self.made += 1;
        let id = format!("svc{}", self.made);
        self.services.push(json!({
            "ID": id, "Version": {"Index": 10}, "Spec": body,
            "CreatedAt": format!("2026-11-23T19:00:{:02}Z", self.made), "UpdatedAt": "2026-11-23T19:00:00Z",
        }));
        id
    }

    fn matching(&self, request: &Request) -> Vec<Value> {
        let filters = request.filters();
        let label = filters["label"][0].as_str().unwrap_or_default().to_owned();
        let name = filters["name"][0].as_str().unwrap_or_default().to_owned();
        let fits = |service: &&Value| {
            let labels = &service["Spec"]["Labels"];
            let labelled = match label.split_once('=') {
                Some((key, value)) => labels[key] == value,
                None => label.is_empty() || labels.get(&label).is_some(),
            };
            labelled && service["Spec"]["Name"].as_str().unwrap_or_default().starts_with(&name)
        };
        self.services.iter().filter(fits).cloned().collect()
    }

    fn answer(&mut self, request: &Request) -> Reply {
        if let Some(mut odd) = self.odd.take() {
            let reply = odd(self, request);
            self.odd = Some(odd);
            if let Some(reply) = reply {
                return reply;
            }
        }
        self.plain(request)
    }

    fn plain(&mut self, request: &Request) -> Reply {
        let path = request.path.as_str();
        match (request.method.as_str(), path) {
            ("GET", "/services") => Reply::json(200, json!(self.matching(request))),
            ("GET", "/tasks") => {
                let filters = request.filters();
                let only = |task: &&Value| match filters["id"].as_array() {
                    Some(ids) => ids.contains(&task["ID"]),
                    // Made before their service had the label.
                    None => filters["label"].is_null() || task["late"].is_null(),
                };
                Reply::json(200, self.tasks.iter().filter(only).cloned().collect())
            }
            ("GET", "/secrets") => Reply::json(200, json!([])),
            ("POST", "/services/create") => {
                let body = request.json();
                if self
                    .services
                    .iter()
                    .any(|service| service["Spec"]["Name"] == body["Name"])
                {
                    return Reply::json(409, json!({"message": "name conflicts with an existing object"}));
                }
                Reply::json(201, json!({"ID": self.add(body)}))
            }
            ("POST", path) if path.ends_with("/update") => {
                let service = self
                    .services
                    .iter_mut()
                    .find(|service| path.contains(service["ID"].as_str().expect("an id")))
                    .expect("a service");
                service["PreviousSpec"] = service["Spec"].take();
                service["Spec"] = request.json();
                Reply::json(200, json!({}))
            }
            ("DELETE", path) => {
                self.services
                    .retain(|service| !path.ends_with(service["ID"].as_str().expect("an id")));
                Reply::json(200, Value::Null)
            }
            _ => Reply::json(404, json!({"message": format!("no {} {path}", request.method)})),
        }
    }
}

fn serve(daemon: Daemon) -> (Recorder, Arc<Mutex<Daemon>>) {
    let daemon = Arc::new(Mutex::new(daemon));
    let inner = Arc::clone(&daemon);
    let recorder = Recorder::new(move |request| inner.lock().expect("no panic").answer(request));
    (recorder, daemon)
}

fn deletions(recorder: &Recorder) -> usize {
    let requests = recorder.requests();
    requests.iter().filter(|request| request.method == "DELETE").count()
}

fn lost() -> Reply {
    Reply::json(
        500,
        json!({"message": "rpc error: code = Unavailable desc = transport is closing"}),
    )
}

#[tokio::test]
async fn a_lost_answer_does_not_make_the_service_of_another_call_ours() {
    let root = tempfile::tempdir().expect("a root");
    let spec = spec();
    // Another call makes the instance while this one's request is lost.
    let (recorder, daemon) = serve(Daemon::default());
    let other = {
        let (recorder, kept) = serve(Daemon::default());
        let elsewhere = tempfile::tempdir().expect("a root");
        let swarm = orchestrator(&recorder, elsewhere.path());
        swarm.create(&spec, CreateOptions::new()).await.expect("created");
        let kept = kept.lock().expect("no panic");
        kept.services[0]["Spec"].clone()
    };
    daemon.lock().expect("no panic").odd = Some(Box::new(move |daemon, request| {
        (request.path == "/services/create").then(|| {
            daemon.add(other.clone());
            lost()
        })
    }));
    let swarm = orchestrator(&recorder, root.path());
    let ensured = swarm.create(&spec, CreateOptions::new()).await.expect("it is there");
    assert_eq!(ensured.outcome, EnsureOutcome::Unchanged);
    assert_eq!(deletions(&recorder), 0);
    assert_eq!(daemon.lock().expect("no panic").services.len(), 1);
}

#[tokio::test]
async fn a_lost_answer_to_the_own_creation_is_found_out() {
    let root = tempfile::tempdir().expect("a root");
    let (recorder, daemon) = serve(Daemon {
        odd: Some(Box::new(|daemon, request| {
            (request.path == "/services/create").then(|| {
                daemon.plain(request);
                lost()
            })
        })),
        ..Daemon::default()
    });
    let swarm = orchestrator(&recorder, root.path());
    let ensured = swarm.create(&spec(), CreateOptions::new()).await.expect("created");
    assert_eq!(ensured.outcome, EnsureOutcome::Created);
    let service = daemon.lock().expect("no panic").services[0].clone();
    assert_eq!(service["Spec"]["Mode"]["Replicated"]["Replicas"], 1);
    assert_eq!(ensured.instance.unparsed, [], "the labels of a creation are no user's");
    assert!(ensured.instance.spec.labels.is_empty());
}

#[tokio::test]
async fn nothing_runs_before_everything_is_checked_and_a_failed_check_leaves_nothing() {
    let root = tempfile::tempdir().expect("a root");
    let spec = spec();
    let mut posted = false;
    let (recorder, daemon) = serve(Daemon {
        odd: Some(Box::new(move |_, request| {
            posted |= request.path == "/services/create";
            // The look for others with the same host, after the service was made.
            (posted && request.path == "/services" && request.filters().to_string().contains("saasodoo.host."))
                .then(lost)
        })),
        ..Daemon::default()
    });
    let swarm = orchestrator(&recorder, root.path());
    swarm
        .create(&spec, CreateOptions::new())
        .await
        .expect_err("a failed check");
    let made = recorder.requests();
    let body = made.iter().find(|request| request.path == "/services/create");
    assert_eq!(body.expect("made").json()["Mode"]["Replicated"]["Replicas"], 0);
    assert!(
        !made.iter().any(|request| request.path.ends_with("/update")),
        "it never ran"
    );
    assert!(daemon.lock().expect("no panic").services.is_empty());
    assert_eq!(std::fs::read_dir(root.path()).expect("the root").count(), 0);
    daemon.lock().expect("no panic").odd = None;
    let again = swarm.create(&spec, CreateOptions::new()).await.expect("created");
    assert_eq!(again.outcome, EnsureOutcome::Created);
}

#[tokio::test(start_paused = true)]
async fn an_interrupted_creation_is_finished_by_the_next_call() {
    let root = tempfile::tempdir().expect("a root");
    let spec = spec();
    let (recorder, daemon) = serve(Daemon {
        odd: Some(Box::new(|daemon, request| {
            // The process dies between the two requests: nobody answers it any more.
            let made = !daemon.services.is_empty();
            (request.path.ends_with("/update") || made && request.path == "/services").then(lost)
        })),
        ..Daemon::default()
    });
    let swarm = orchestrator(&recorder, root.path());
    swarm
        .create(&spec, CreateOptions::new())
        .await
        .expect_err("the daemon is gone");
    daemon.lock().expect("no panic").odd = None;
    // What a call that was killed leaves, and what somebody has labelled since.
    if daemon.lock().expect("no panic").services.is_empty() {
        let requests = recorder.requests();
        let made = requests.iter().find(|request| request.path == "/services/create");
        daemon.lock().expect("no panic").add(made.expect("made").json());
        let name = format!("odoo_data_acme_{}", spec.id.short());
        std::fs::create_dir(root.path().join(name)).expect("a directory");
    }
    {
        let mut daemon = daemon.lock().expect("no panic");
        let service = &mut daemon.services[0];
        service["PreviousSpec"] = service["Spec"].clone();
        service["Spec"]["Labels"]["traefik.http.routers.other.tls"] = json!("true");
    }
    let ensured = swarm.create(&spec, CreateOptions::new()).await.expect("finished");
    assert_eq!(ensured.outcome, EnsureOutcome::Unchanged);
    let service = daemon.lock().expect("no panic").services[0].clone();
    assert_eq!(service["Spec"]["Mode"]["Replicated"]["Replicas"], 1);
}

#[tokio::test]
async fn a_service_that_somebody_has_started_is_not_taken_back() {
    let root = tempfile::tempdir().expect("a root");
    let (recorder, daemon) = serve(Daemon {
        odd: Some(Box::new(|daemon, request| {
            let made = !daemon.services.is_empty();
            if made && request.filters().to_string().contains("saasodoo.host.") {
                daemon.services[0]["Spec"]["Mode"]["Replicated"]["Replicas"] = json!(1);
                return Some(lost());
            }
            None
        })),
        ..Daemon::default()
    });
    let swarm = orchestrator(&recorder, root.path());
    swarm
        .create(&spec(), CreateOptions::new())
        .await
        .expect_err("a failed check");
    assert_eq!(daemon.lock().expect("no panic").services.len(), 1);
    assert_eq!(std::fs::read_dir(root.path()).expect("the root").count(), 1);
}

/// Somebody starts it, and no look succeeds from then on.
#[tokio::test]
async fn a_service_that_cannot_be_looked_at_is_not_taken_back() {
    let root = tempfile::tempdir().expect("a root");
    let (recorder, daemon) = serve(Daemon {
        odd: Some(Box::new(|daemon, request| {
            let made = !daemon.services.is_empty();
            (made && request.method == "GET").then(|| {
                daemon.services[0]["Spec"]["Mode"]["Replicated"]["Replicas"] = json!(1);
                lost()
            })
        })),
        ..Daemon::default()
    });
    let swarm = orchestrator(&recorder, root.path());
    swarm
        .create(&spec(), CreateOptions::new())
        .await
        .expect_err("a failed check");
    assert_eq!(deletions(&recorder), 0);
    assert_eq!(daemon.lock().expect("no panic").services.len(), 1);
    assert_eq!(std::fs::read_dir(root.path()).expect("the root").count(), 1);
}

#[tokio::test]
async fn what_is_held_before_it_was_started_is_not_started() {
    let root = tempfile::tempdir().expect("a root");
    let (recorder, daemon) = serve(Daemon {
        odd: Some(Box::new(|daemon, request| {
            // Between the service and its start.
            if !daemon.services.is_empty() && request.method == "GET" {
                daemon.services[0]["Spec"]["Labels"]["saasodoo.hold"] = json!("suspended");
            }
            None
        })),
        ..Daemon::default()
    });
    let swarm = orchestrator(&recorder, root.path());
    let ensured = swarm.create(&spec(), CreateOptions::new()).await.expect("created");
    assert_eq!(ensured.instance.status, InstanceStatus::Paused);
    let service = daemon.lock().expect("no panic").services[0].clone();
    assert_eq!(service["Spec"]["Mode"]["Replicated"]["Replicas"], 0);
    assert!(service["Spec"]["Labels"].get("saasodoo.creation.unfinished").is_none());
}

#[tokio::test]
async fn what_is_stopped_before_it_was_started_is_not_started() {
    let root = tempfile::tempdir().expect("a root");
    let (recorder, daemon) = serve(Daemon {
        odd: Some(Box::new(|daemon, request| {
            if !daemon.services.is_empty() && request.method == "GET" {
                let labels = daemon.services[0]["Spec"]["Labels"].as_object_mut();
                labels.expect("labels").remove("saasodoo.creation.unfinished");
            }
            None
        })),
        ..Daemon::default()
    });
    let swarm = orchestrator(&recorder, root.path());
    let ensured = swarm.create(&spec(), CreateOptions::new()).await.expect("created");
    assert_eq!(ensured.instance.status, InstanceStatus::Stopped);
    assert_eq!(daemon.lock().expect("no panic").services.len(), 1);
}

#[tokio::test]
async fn a_service_whose_id_cannot_be_read_has_its_host() {
    let root = tempfile::tempdir().expect("a root");
    let (recorder, daemon) = serve(Daemon::default());
    daemon.lock().expect("no panic").add(json!({
        "Name": "odoo-acme-x",
        "Labels": {"saasodoo.instance.id": "garbage", "traefik.http.routers.odoo-acme-x.rule": "Host(`acme.sw.example`)"},
    }));
    let swarm = orchestrator(&recorder, root.path());
    let error = swarm
        .create(&spec(), CreateOptions::new())
        .await
        .expect_err("the host is taken");
    assert_eq!(error.kind(), ErrorKind::Conflict, "{error}");
    assert_eq!(error.conflicts(), ["route"]);
}

#[tokio::test]
async fn a_directory_on_which_a_removed_services_task_ends_is_not_adopted() {
    let root = tempfile::tempdir().expect("a root");
    let path = root.path().join("left");
    std::fs::create_dir(&path).expect("a directory");
    let (recorder, daemon) = serve(Daemon::default());
    daemon.lock().expect("no panic").tasks.push(json!({
        "ID": "t1", "ServiceID": "gone", "DesiredState": "remove", "Status": {"State": "running"}, "late": true,
        "Spec": {"ContainerSpec": {"Mounts": [{"Type": "bind", "Source": path, "Target": "/bitnami/odoo"}]}},
    }));
    let swarm = orchestrator(&recorder, root.path());
    let adopt = || CreateOptions::new().with_data(DataPolicy::AdoptDirectory("left".parse().expect("a path")));
    let error = swarm.create(&spec(), adopt()).await.expect_err("two writers");
    assert_eq!(
        (error.kind(), error.retry()),
        (ErrorKind::Conflict, Retry::After(None)),
        "{error}"
    );
    assert!(error.message().contains("t1"), "{error}");
    daemon.lock().expect("no panic").tasks[0]["Status"]["State"] = json!("shutdown");
    swarm.create(&spec(), adopt()).await.expect("it has ended");
}

/// A task keeps the labels that its service had when the task was made.
#[tokio::test(start_paused = true)]
async fn a_deletion_waits_for_tasks_that_do_not_carry_the_label() {
    let root = tempfile::tempdir().expect("a root");
    let (recorder, daemon) = serve(Daemon::default());
    let swarm = orchestrator(&recorder, root.path());
    let spec = spec();
    swarm.create(&spec, CreateOptions::new()).await.expect("created");
    daemon.lock().expect("no panic").tasks.push(json!({
        "ID": "t1", "ServiceID": "svc1", "DesiredState": "remove", "Status": {"State": "running"}, "late": true,
    }));
    let error = swarm
        .delete(spec.id, DeleteOptions::retain())
        .await
        .expect_err("it still runs");
    assert_eq!(error.kind(), ErrorKind::Timeout, "{error}");
    assert!(error.message().contains("t1"), "{error}");
}

/// The clock of a test with a long grace period.
#[tokio::test(start_paused = true)]
async fn a_deletion_waits_as_long_as_the_instance_may_take_to_stop() {
    let root = tempfile::tempdir().expect("a root");
    let (recorder, daemon) = serve(Daemon::default());
    let swarm = orchestrator(&recorder, root.path());
    let mut spec = spec();
    spec.scheduling.stop_grace_seconds = 300;
    swarm.create(&spec, CreateOptions::new()).await.expect("created");
    daemon.lock().expect("no panic").tasks.push(json!({
        "ID": "t1", "ServiceID": "svc1", "DesiredState": "remove", "Status": {"State": "running"},
    }));
    let begun = tokio::time::Instant::now();
    let answer = swarm.delete(spec.id, DeleteOptions::retain()).await;
    assert_eq!(answer.expect_err("it never ends").kind(), ErrorKind::Timeout);
    assert!(
        (305..=312).contains(&begun.elapsed().as_secs()),
        "{:?}",
        begun.elapsed()
    );
}

/// An instance with a file in its data, and what it takes to purge it.
async fn purgeable(swarm: &SwarmOrchestrator, root: &Path) -> (InstanceSpec, PathBuf, PurgeToken) {
    let spec = spec();
    swarm.create(&spec, CreateOptions::new()).await.expect("created");
    let data = root.join(format!("odoo_data_acme_{}", spec.id.short()));
    std::fs::write(data.join("precious"), "x").expect("a file");
    let plan = swarm.plan(&Operation::Purge(spec.id)).await.expect("a plan");
    (spec, data, plan.purge_token.expect("a token"))
}

#[tokio::test]
async fn a_purge_looks_for_users_of_the_data_once_more() {
    let root = tempfile::tempdir().expect("a root");
    let (recorder, daemon) = serve(Daemon::default());
    let swarm = orchestrator(&recorder, root.path());
    let (spec, data, token) = purgeable(&swarm, root.path()).await;
    // Somebody mounts the directory when the service is gone.
    let source = data.clone();
    daemon.lock().expect("no panic").odd = Some(Box::new(move |daemon, request| {
        if request.method == "DELETE" && request.path.starts_with("/services/") {
            let reply = daemon.plain(request);
            daemon.add(
                json!({"Name": "other", "Labels": {}, "TaskTemplate": {"ContainerSpec": {"Mounts": [
                {"Type": "bind", "Source": source, "Target": "/bitnami/odoo"}]}}}),
            );
            return Some(reply);
        }
        None
    }));
    let error = swarm
        .delete(spec.id, DeleteOptions::purge(token))
        .await
        .expect_err("two users");
    assert_eq!(error.kind(), ErrorKind::Conflict, "{error}");
    assert!(data.join("precious").exists());
}

/// Such as a service whose mount somebody has changed by hand.
#[tokio::test]
async fn the_data_of_another_instance_is_not_purged_with_the_one_that_mounts_it() {
    let root = tempfile::tempdir().expect("a root");
    let (recorder, daemon) = serve(Daemon::default());
    let swarm = orchestrator(&recorder, root.path());
    let (spec, data, token) = purgeable(&swarm, root.path()).await;
    let owner = InstanceId::random().to_string();
    xattr::set(&data, "user.saasodoo.instance", owner.as_bytes()).expect("a mark");
    for error in [
        swarm.plan(&Operation::Purge(spec.id)).await.map(drop),
        swarm.delete(spec.id, DeleteOptions::purge(token)).await.map(drop),
    ] {
        let error = error.expect_err("another's");
        assert_eq!(error.kind(), ErrorKind::Conflict, "{error}");
        assert!(error.message().contains(&owner), "{error}");
    }
    assert!(data.join("precious").exists());
    assert_eq!(
        daemon.lock().expect("no panic").services.len(),
        1,
        "refused before anything is done"
    );
}

#[tokio::test(start_paused = true)]
async fn a_creation_is_whole_or_nothing_at_every_request() {
    for lose in [false, true] {
        let mut ended = false;
        for n in 1..=30 {
            let root = tempfile::tempdir().expect("a root");
            let spec = spec();
            let count = Arc::new(Mutex::new(0));
            let counted = Arc::clone(&count);
            let (recorder, daemon) = serve(Daemon {
                odd: Some(Box::new(move |daemon, request| {
                    let mut count = counted.lock().expect("no panic");
                    *count += 1;
                    (*count == n).then(|| {
                        if lose {
                            daemon.plain(request);
                        }
                        lost()
                    })
                })),
                ..Daemon::default()
            });
            let when = format!("request {n}, carried out: {lose}");
            let swarm = orchestrator(&recorder, root.path());
            let answer = swarm.create(&spec, CreateOptions::new()).await;
            let hit = *count.lock().expect("no panic") >= n;
            let directories = std::fs::read_dir(root.path()).expect("the root").count();
            let services = daemon.lock().expect("no panic").services.clone();
            let runs =
                |services: &[Value]| services.len() == 1 && services[0]["Spec"]["Mode"]["Replicated"]["Replicas"] == 1;
            if answer.is_ok() {
                assert!(runs(&services), "{when}: {services:?}");
            } else {
                assert!(hit, "{when}: {answer:?}");
                assert!(services.is_empty() || runs(&services), "{when}: {services:?}");
            }
            assert_eq!(directories, services.len(), "{when}");
            daemon.lock().expect("no panic").odd = None;
            let again = swarm.create(&spec, CreateOptions::new()).await;
            assert!(again.is_ok(), "{when}, the second call: {again:?}");
            assert!(runs(&daemon.lock().expect("no panic").services), "{when}");
            if !hit {
                assert!(n > 5, "expected several requests");
                ended = true;
                break;
            }
        }
        assert!(ended, "a creation takes more than thirty requests");
    }
}
