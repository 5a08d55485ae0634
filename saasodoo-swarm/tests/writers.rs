//! One writer for each data directory: what is asked and awaited before a process may start. By a recording server in
//! the daemon's place.

mod common;

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use common::recorder::{Recorder, Reply, Request};
use saasodoo_core::{
    Bytes, Config, Deadlines, ErrorKind, InstanceChange, InstanceFilter, InstanceId, InstanceOrchestrator,
    InstanceOrchestratorExt, Operation, Power, Retry, Route, UpdateOptions,
};
use saasodoo_swarm::{DockerHost, QuotaPolicy, RegistryAuth, SwarmOrchestrator};
use serde_json::{Value, json};

const ID: &str = "0a1b2c3d-1111-4222-8333-444455556666";

fn id() -> InstanceId {
    ID.parse().expect("an id")
}

/// A daemon with one service, and others beside it.
struct Daemon {
    services: Vec<Value>,
    tasks: Vec<Value>,
    /// At this many looks at tasks, those that shall not run have ended.
    ends_after: usize,
    looks: usize,
    version: u64,
    /// What is there beside the service once it has been changed.
    late: Option<Value>,
    /// At this many looks at tasks, somebody else has started it again.
    started_after: usize,
}

impl Daemon {
    fn of(service: Value) -> Self {
        Self {
            services: vec![service],
            tasks: Vec::new(),
            ends_after: usize::MAX,
            looks: 0,
            version: 10,
            late: None,
            started_after: usize::MAX,
        }
    }

    fn answer(&mut self, request: &Request) -> Reply {
        let filters = request.filters();
        match (request.method.as_str(), request.path.as_str()) {
            ("GET", "/services") => {
                let fits = |service: &&Value| match filters["label"][0].as_str() {
                    None => filters.get("name").is_none(),
                    Some(label) => {
                        let (key, value) = label.split_once('=').unwrap_or((label, ""));
                        let seen = service["Spec"]["Labels"].get(key);
                        seen.is_some_and(|seen| value.is_empty() || seen == value)
                    }
                };
                Reply::json(200, self.services.iter().filter(fits).cloned().collect())
            }
            ("GET", "/tasks") => {
                self.looks += 1;
                if self.looks == self.started_after {
                    self.version += 1;
                    let service = &mut self.services[0];
                    service["Version"]["Index"] = json!(self.version);
                    service["Spec"]["Mode"]["Replicated"]["Replicas"] = json!(1);
                    let labels = service["Spec"]["Labels"].as_object_mut().expect("labels");
                    labels.remove("saasodoo.restarting");
                    self.tasks = vec![task("t9", "running", "running")];
                }
                if self.looks >= self.ends_after {
                    self.tasks.retain(|task| task["DesiredState"] == "running");
                }
                // As the daemon has it: the labels of a task are those of its service when it was made, here none.
                let tasks: Vec<&Value> = self
                    .tasks
                    .iter()
                    .filter(|task| match (filters.get("service"), filters.get("label")) {
                        (Some(services), _) => services
                            .to_string()
                            .contains(task["ServiceID"].as_str().expect("an id")),
                        (None, Some(_)) => task.get("labelled").is_some(),
                        _ => true,
                    })
                    .collect();
                Reply::json(200, json!(tasks))
            }
            ("POST", "/services/svc1/update") => {
                self.version += 1;
                self.services[0]["Version"]["Index"] = json!(self.version);
                self.services[0]["Spec"] = request.json();
                if self.services[0]["Spec"]["Mode"]["Replicated"]["Replicas"] == 0 {
                    for task in &mut self.tasks {
                        task["DesiredState"] = json!("remove");
                    }
                }
                self.services.extend(self.late.take());
                Reply::json(200, json!({}))
            }
            _ => Reply::json(404, json!({"message": "no such thing"})),
        }
    }
}

fn service(replicas: u64, root: &Path) -> Value {
    let directory = root.join("odoo_data_acme_0a1b2c3d");
    let _ = std::fs::create_dir(&directory);
    json!({
        "ID": "svc1", "Version": {"Index": 10},
        "CreatedAt": "2026-11-23T19:00:00Z", "UpdatedAt": "2026-11-23T19:00:00Z",
        "Spec": {
            "Name": "odoo-acme-0a1b2c3d",
            "Labels": {
                "saasodoo.instance.id": ID,
                "traefik.http.routers.odoo-acme-0a1b2c3d.rule": "Host(`acme.sw.example`)",
            },
            "TaskTemplate": {
                "ContainerSpec": {
                    "Image": "odoo:17",
                    "Mounts": [{"Type": "bind", "Target": "/bitnami/odoo", "Source": directory}],
                },
                "Resources": {"Limits": {"NanoCPUs": 1_000_000_000, "MemoryBytes": 1 << 30}},
                "ForceUpdate": 3,
            },
            "Mode": {"Replicated": {"Replicas": replicas}},
        },
    })
}

fn task(name: &str, desired: &str, state: &str) -> Value {
    json!({"ID": name, "ServiceID": "svc1", "DesiredState": desired, "CreatedAt": "2026-11-23T19:00:00Z",
           "Status": {"State": state, "ContainerStatus": {"ContainerID": "c"}}})
}

struct Case {
    recorder: Recorder,
    swarm: SwarmOrchestrator,
    daemon: Arc<Mutex<Daemon>>,
    _root: tempfile::TempDir,
}

impl Case {
    fn new(make: impl FnOnce(&Path) -> Daemon) -> Self {
        let root = tempfile::tempdir().expect("a root");
        let daemon = Arc::new(Mutex::new(make(root.path())));
        let answering = Arc::clone(&daemon);
        let recorder = Recorder::new(move |request| answering.lock().expect("no panic").answer(request));
        let mut deadlines = Deadlines::default();
        deadlines.termination = Duration::from_millis(800);
        let common = Config::builder()
            .base_domain("sw.example".parse().expect("a host"))
            .deadlines(deadlines)
            .build();
        let swarm = SwarmOrchestrator::builder(common)
            .host(DockerHost::Unix(recorder.socket()))
            .data_root(root.path())
            .quota(QuotaPolicy::BestEffort)
            .registry(RegistryAuth::new("u", "pw".into(), "r.example"))
            .build()
            .expect("a socket");
        Self {
            recorder,
            swarm,
            daemon,
            _root: root,
        }
    }

    fn posts(&self) -> Vec<Request> {
        let requests = self.recorder.requests();
        requests
            .into_iter()
            .filter(|request| request.method == "POST")
            .collect()
    }

    fn replicas(&self) -> Vec<u64> {
        let replicas = |request: &Request| request.json()["Mode"]["Replicated"]["Replicas"].as_u64();
        self.posts().iter().filter_map(replicas).collect()
    }

    fn body(&self) -> Value {
        self.daemon.lock().expect("no panic").services[0]["Spec"].clone()
    }
}

#[tokio::test]
async fn a_start_waits_until_the_process_before_has_ended() {
    let case = Case::new(|root| Daemon {
        tasks: vec![task("t1", "remove", "running")],
        ends_after: 4,
        ..Daemon::of(service(0, root))
    });
    case.swarm.set_power(id(), Power::Start).await.expect("started");
    let requests = case.recorder.requests();
    let looks = requests.iter().take_while(|request| request.method == "GET");
    assert!(looks.filter(|request| request.path == "/tasks").count() >= 4);
    assert_eq!(case.replicas(), [1]);
}

#[tokio::test]
async fn a_start_beside_a_process_that_does_not_end_is_given_up() {
    let case = Case::new(|root| Daemon {
        tasks: vec![task("t1", "remove", "running")],
        ..Daemon::of(service(0, root))
    });
    let error = case.swarm.set_power(id(), Power::Start).await.expect_err("it lives");
    assert_eq!(
        (error.kind(), error.retry()),
        (ErrorKind::Timeout, Retry::After(None)),
        "{error}"
    );
    assert!(error.advice().is_some());
    assert!(case.posts().is_empty());
}

#[tokio::test]
async fn a_start_on_a_directory_that_another_service_mounts_is_refused() {
    for fenced in [false, true] {
        let case = Case::new(|root| {
            let mut daemon = Daemon::of(service(u64::from(fenced), root));
            if fenced {
                // It was suspended, scaled up by hand, and only the label of the hold was removed: its task waits.
                let constraint = json!(["node.id==saasodoo-suspended-alone"]);
                daemon.services[0]["Spec"]["TaskTemplate"]["Placement"] = json!({"Constraints": constraint});
                daemon.tasks = vec![task("t1", "running", "pending")];
            }
            let mut other = service(1, root);
            other["ID"] = json!("svc2");
            other["Spec"]["Name"] = json!("somebody");
            other["Spec"]["Labels"] = json!({});
            daemon.services.push(other);
            daemon
        });
        for error in [
            case.swarm.set_power(id(), Power::Start).await.map(drop),
            case.swarm
                .plan(&Operation::SetPower(id(), Power::Start))
                .await
                .map(drop),
        ] {
            let error = error.expect_err("two writers");
            assert_eq!(error.kind(), ErrorKind::Conflict, "{error}");
            assert!(error.message().contains("somebody"), "{error}");
        }
        assert!(case.posts().is_empty());
        // Without the other one it starts, and nothing holds it back.
        case.daemon.lock().expect("no panic").services.truncate(1);
        case.swarm.set_power(id(), Power::Start).await.expect("started");
        assert_eq!(case.replicas(), [1]);
        assert!(case.body()["TaskTemplate"].get("Placement").is_none());
    }
}

#[tokio::test]
async fn swarm_is_not_left_to_replace_what_it_does_not_wait_for() {
    let change = InstanceChange::new().memory(Bytes::from_gib(4));
    for (what, edit, steps) in [
        ("ten seconds", None, vec![1]),
        (
            "a long grace period",
            Some((
                "/TaskTemplate/ContainerSpec",
                "StopGracePeriod",
                json!(60_000_000_000_u64),
            )),
            vec![0, 1],
        ),
        (
            "start first",
            Some(("", "UpdateConfig", json!({"Order": "start-first"}))),
            vec![0, 1],
        ),
    ] {
        let case = Case::new(|root| {
            let mut service = service(1, root);
            if let Some((path, name, value)) = edit {
                service["Spec"].pointer_mut(path).expect("a place")[name] = value;
            }
            Daemon {
                tasks: vec![task("t1", "running", "running")],
                ends_after: 4,
                ..Daemon::of(service)
            }
        });
        let mut before = case.body();
        case.swarm.set_power(id(), Power::Restart).await.expect(what);
        assert_eq!(case.replicas(), steps, "{what}");
        before["TaskTemplate"]["ForceUpdate"] = json!(4);
        assert_eq!(case.body(), before, "{what}");
        if steps.len() > 1 {
            // Between the two the old task was seen to end.
            let requests = case.recorder.requests();
            let between = requests
                .iter()
                .skip_while(|request| request.method == "GET")
                .skip(1)
                .take_while(|request| request.method == "GET");
            assert!(
                between.filter(|request| request.path == "/tasks").count() >= 2,
                "{what}"
            );
        }
        case.recorder.forget();
        case.daemon.lock().expect("no panic").tasks = vec![task("t2", "running", "running")];
        case.swarm
            .update(id(), &change, UpdateOptions::new())
            .await
            .expect(what);
        assert_eq!(case.replicas(), steps, "{what}");
        before["TaskTemplate"]["Resources"]["Limits"]["MemoryBytes"] = json!(4_u64 << 30);
        assert_eq!(case.body(), before, "{what}");
    }
}

#[tokio::test]
async fn an_update_that_was_interrupted_half_way_is_gone_on_with() {
    let change = InstanceChange::new().memory(Bytes::from_gib(4));
    let case = Case::new(|root| {
        let mut service = service(1, root);
        service["Spec"]["TaskTemplate"]["ContainerSpec"]["StopGracePeriod"] = json!(60_000_000_000_u64);
        Daemon {
            tasks: vec![task("t1", "running", "running")],
            ..Daemon::of(service)
        }
    });
    // As after an end of this process between the two steps.
    {
        let mut daemon = case.daemon.lock().expect("no panic");
        let body = &mut daemon.services[0]["Spec"];
        body["Mode"]["Replicated"]["Replicas"] = json!(0);
        body["Labels"]["saasodoo.restarting"] = json!("1");
        body["TaskTemplate"]["Resources"]["Limits"]["MemoryBytes"] = json!(4_u64 << 30);
        daemon.tasks = vec![task("t1", "remove", "running")];
        daemon.ends_after = 3;
    }
    case.swarm
        .update(id(), &change, UpdateOptions::new())
        .await
        .expect("gone on");
    assert_eq!(case.replicas(), [1]);
    assert!(case.body()["Labels"].get("saasodoo.restarting").is_none());
}

/// The process that the loser waits for to end is the one that the winner has started.
#[tokio::test]
async fn the_slower_of_two_starts_or_restarts_is_done_when_the_other_one_is() {
    for (power, interrupted) in [(Power::Start, false), (Power::Restart, true)] {
        let case = Case::new(|root| {
            let mut service = service(0, root);
            if interrupted {
                service["Spec"]["Labels"]["saasodoo.restarting"] = json!("1");
            }
            Daemon {
                tasks: vec![task("t1", "remove", "running")],
                started_after: 3,
                ..Daemon::of(service)
            }
        });
        case.swarm.set_power(id(), power).await.expect("started by the other");
        assert!(case.posts().is_empty(), "{power:?}");
    }
    // In the second step of its own restart.
    let case = Case::new(|root| {
        let mut service = service(1, root);
        service["Spec"]["TaskTemplate"]["ContainerSpec"]["StopGracePeriod"] = json!(60_000_000_000_u64);
        Daemon {
            tasks: vec![task("t1", "running", "running")],
            started_after: 4,
            ..Daemon::of(service)
        }
    });
    case.swarm.set_power(id(), Power::Restart).await.expect("restarted");
    assert_eq!(case.replicas(), [0]);
}

#[tokio::test]
async fn an_old_label_of_a_restart_goes_with_the_next_change() {
    let case = Case::new(|root| {
        let mut service = service(1, root);
        service["Spec"]["Labels"]["saasodoo.restarting"] = json!("1");
        Daemon {
            tasks: vec![task("t1", "running", "running")],
            ..Daemon::of(service)
        }
    });
    let change = InstanceChange::new().memory(Bytes::from_gib(4));
    case.swarm
        .update(id(), &change, UpdateOptions::new())
        .await
        .expect("updated");
    assert_eq!(case.replicas(), [1]);
    assert!(case.body()["Labels"].get("saasodoo.restarting").is_none());
}

#[tokio::test]
async fn a_replacement_waits_for_the_task_before_the_one_that_starts() {
    let case = Case::new(|root| Daemon {
        tasks: vec![task("t1", "shutdown", "running"), task("t2", "running", "ready")],
        ends_after: 4,
        ..Daemon::of(service(1, root))
    });
    case.swarm.set_power(id(), Power::Restart).await.expect("restarted");
    let requests = case.recorder.requests();
    let looks = requests.iter().take_while(|request| request.method == "GET");
    assert!(looks.filter(|request| request.path == "/tasks").count() >= 4);
    assert_eq!(case.replicas(), [1]);
}

/// A label that a service is given while it runs is not on its task.
#[tokio::test]
async fn tasks_are_found_by_their_service() {
    let case = Case::new(|root| Daemon {
        tasks: vec![task("t1", "running", "running")],
        ..Daemon::of(service(0, root))
    });
    assert!(case.swarm.get(id()).await.expect("an instance").facts.any_live());
    for filter in [InstanceFilter::all(), InstanceFilter::id(id())] {
        case.recorder.forget();
        let listed = case.swarm.list_all(filter).await.expect("a list");
        assert!(listed[0].facts.any_live());
        assert_eq!(case.recorder.requests().len(), 2);
    }
}

#[tokio::test]
async fn an_instance_whose_process_outlives_its_service_is_not_absent() {
    let case = Case::new(|root| {
        let mut left = task("t1", "remove", "running");
        left["labelled"] = json!(true);
        let mut daemon = Daemon {
            tasks: vec![left],
            ends_after: 4,
            ..Daemon::of(service(1, root))
        };
        daemon.services.clear();
        daemon
    });
    let error = case.swarm.get(id()).await.expect_err("a process");
    assert_eq!(error.kind(), ErrorKind::Conflict, "{error}");
    assert_eq!(error.conflicts(), ["status"]);
    assert_eq!(error.retry(), Retry::After(Some(Duration::from_secs(1))));
    assert!(error.advice().is_some());
    assert!(case.swarm.exists(id()).await.is_err());
    let error = case.swarm.set_power(id(), Power::Stop).await.expect_err("no service");
    assert!(!error.is_not_found(), "{error}");
    // Ended by now.
    assert!(case.swarm.get(id()).await.expect_err("nothing").is_not_found());
}

#[tokio::test]
async fn registry_credentials_go_with_a_new_image() {
    let case = Case::new(|root| Daemon::of(service(0, root)));
    let memory = InstanceChange::new().memory(Bytes::from_gib(4));
    case.swarm
        .update(id(), &memory, UpdateOptions::new())
        .await
        .expect("updated");
    let image = InstanceChange::new().image("r.example/odoo:18".parse().expect("an image"));
    case.swarm
        .update(id(), &image, UpdateOptions::new())
        .await
        .expect("updated");
    let sent: Vec<bool> = case
        .posts()
        .iter()
        .map(|request| request.header("x-registry-auth").is_some())
        .collect();
    assert_eq!(sent, [false, true]);
}

#[tokio::test]
async fn a_host_that_two_updates_took_is_given_back() {
    let case = Case::new(|root| {
        let mut other = service(1, root);
        other["ID"] = json!("svc2");
        other["Spec"]["Name"] = json!("odoo-b");
        other["Spec"]["Labels"] = json!({
            "saasodoo.instance.id": InstanceId::random().to_string(),
            "saasodoo.host.shop.sw.example": "true",
            "traefik.http.routers.odoo-b.rule": "Host(`shop.sw.example`)",
        });
        Daemon {
            late: Some(other),
            ..Daemon::of(service(0, root))
        }
    });
    let before = case.body();
    let mut route = Route::default();
    route.subdomain = Some("shop".parse().expect("a label"));
    let change = InstanceChange::new().route(route);
    let error = case
        .swarm
        .update(id(), &change, UpdateOptions::new())
        .await
        .expect_err("taken");
    assert_eq!(
        (error.kind(), error.conflicts()),
        (ErrorKind::Conflict, &["route".to_owned()][..]),
        "{error}"
    );
    assert_eq!(case.posts().len(), 2);
    assert_eq!(case.body(), before);
}

#[tokio::test]
async fn storage_that_cannot_be_measured_is_not_changed() {
    let case = Case::new(|root| {
        let daemon = Daemon::of(service(0, root));
        std::fs::remove_dir(root.join("odoo_data_acme_0a1b2c3d")).expect("removed");
        daemon
    });
    let change = InstanceChange::new().storage(Bytes::from_gib(100));
    for error in [
        case.swarm.update(id(), &change, UpdateOptions::new()).await.map(drop),
        case.swarm
            .plan(&Operation::Update(id(), Box::new(change.clone())))
            .await
            .map(drop),
        case.swarm
            .plan(&Operation::SetPower(id(), Power::Start))
            .await
            .map(drop),
    ] {
        let error = error.expect_err("no directory");
        assert_eq!(error.kind(), ErrorKind::StorageMissing, "{error}");
    }
    assert!(case.posts().is_empty());
}
