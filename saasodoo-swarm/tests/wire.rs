//! What goes over the wire to the daemon, by a recording server in its place.

mod common;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use common::recorder::{Recorder, Reply, Request};
use futures::{StreamExt, TryStreamExt};
use saasodoo_core::{
    Bytes, CreateOptions, DeleteOptions, EnsureOutcome, ErrorKind, InstanceChange, InstanceFilter, InstanceId,
    InstanceOrchestrator, InstanceOrchestratorExt, InstanceSpec, InstanceStatus, LogOptions, Power, Retry,
    UpdateOptions,
};
use saasodoo_swarm::{Credentials, DockerHost, ImageResolution, QuotaPolicy, RegistryAuth, SwarmOrchestrator};
use serde_json::{Value, json};

const ID: &str = "0a1b2c3d-1111-4222-8333-444455556666";

fn id() -> InstanceId {
    ID.parse().expect("an id")
}

fn spec() -> InstanceSpec {
    InstanceSpec::new(
        id(),
        "acme".parse().expect("a name"),
        "bitnamilegacy/odoo:17".parse().expect("an image"),
    )
    .with_database(saasodoo_core::DatabaseEndpoint::new(
        "db",
        "d",
        "u",
        "s3ntinel-db".into(),
    ))
    .with_env("TOKEN".parse().expect("a name"), "s3ntinel-env")
}

fn orchestrator(recorder: &Recorder, root: &Path) -> SwarmOrchestrator {
    let common = saasodoo_core::Config::builder()
        .base_domain("sw.example".parse().expect("a host"))
        .build();
    SwarmOrchestrator::builder(common)
        .host(DockerHost::Unix(recorder.socket()))
        .data_root(root)
        .quota(QuotaPolicy::BestEffort)
        .build()
        .expect("a socket")
}

/// A daemon with one service at most, which it takes from what is sent.
#[derive(Default)]
struct Daemon {
    service: Option<Value>,
    tasks: Vec<Value>,
    /// How many updates are answered with "out of sequence" first.
    contention: u32,
    version: u64,
}

impl Daemon {
    fn answer(&mut self, request: &Request) -> Reply {
        let path = request.path.as_str();
        match (request.method.as_str(), path) {
            ("GET", "/services") => {
                let filters = request.filters();
                let name_only = filters.get("name").is_some() || filters.to_string().contains("saasodoo.host.");
                Reply::json(
                    200,
                    json!(if name_only {
                        vec![]
                    } else {
                        self.service.iter().collect()
                    }),
                )
            }
            ("GET", "/tasks") => Reply::json(200, json!(self.tasks)),
            ("GET", "/secrets") => Reply::json(200, json!([{"ID": "secret1"}])),
            ("POST", "/secrets/create") => Reply::json(201, json!({"ID": "secret1"})),
            ("DELETE", _) => {
                if path.starts_with("/services/") {
                    self.service = None;
                }
                Reply::json(200, Value::Null)
            }
            ("POST", "/services/create") => {
                self.version = 10;
                self.service = Some(json!({
                    "ID": "svc1", "Version": {"Index": 10}, "CreatedAt": "2026-11-23T19:00:00Z",
                    "UpdatedAt": "2026-11-23T19:00:00Z", "Spec": request.json(),
                }));
                Reply::json(201, json!({"ID": "svc1"}))
            }
            ("POST", "/services/svc1/update") if self.contention > 0 => {
                self.contention -= 1;
                self.version += 1;
                let service = self.service.as_mut().expect("a service");
                service["Version"]["Index"] = json!(self.version);
                service["Spec"]["Labels"]["somebody"] = json!(format!("else{}", self.contention));
                Reply::json(
                    500,
                    json!({"message": "rpc error: code = Unknown desc = update out of sequence"}),
                )
            }
            ("POST", "/services/svc1/update") => {
                self.version += 1;
                let service = self.service.as_mut().expect("a service");
                service["Version"]["Index"] = json!(self.version);
                service["Spec"] = request.json();
                Reply::json(200, json!({}))
            }
            ("GET", path) if path.starts_with("/distribution/") => {
                Reply::json(200, json!({"Descriptor": {"digest": "sha256:00ff"}}))
            }
            _ => Reply::json(404, json!({"message": format!("no {} {path}", request.method)})),
        }
    }
}

fn daemon(daemon: Daemon) -> Recorder {
    let daemon = Mutex::new(daemon);
    Recorder::new(move |request| daemon.lock().expect("no panic").answer(request))
}

fn lines(requests: &[Request]) -> Vec<String> {
    requests
        .iter()
        .map(|request| format!("{} {}", request.method, request.path))
        .collect()
}

#[tokio::test]
async fn a_creation_is_these_requests() {
    let (recorder, root) = (daemon(Daemon::default()), tempfile::tempdir().expect("a root"));
    let swarm = orchestrator(&recorder, root.path());
    let made = swarm.create(&spec(), CreateOptions::new()).await.expect("created");
    assert_eq!(made.outcome, EnsureOutcome::Created);
    let requests = recorder.requests();
    let writes: Vec<&Request> = requests.iter().filter(|request| request.method != "GET").collect();
    assert_eq!(writes.len(), 3, "{:?}", lines(&requests));
    let secret = writes[0].json();
    assert_eq!(writes[0].path, "/secrets/create");
    assert_eq!(secret["Labels"]["saasodoo.instance.id"], ID);
    // Standard base64, which is what the daemon decodes.
    assert_eq!(secret["Data"], "czNudGluZWwtZGI=");
    let service = writes[1].json();
    assert_eq!(writes[1].path, "/services/create");
    assert_eq!(writes[1].query, BTreeMap::new());
    assert_eq!(service["Name"], "odoo-acme-0a1b2c3d");
    // It is started when everything has been checked.
    assert_eq!(service["Mode"]["Replicated"]["Replicas"], 0);
    assert_eq!(writes[2].path, "/services/svc1/update");
    assert_eq!(writes[2].json()["Mode"]["Replicated"]["Replicas"], 1);
    assert!(!service.to_string().contains("s3ntinel-db"));
    assert_eq!(
        service["TaskTemplate"]["ContainerSpec"]["Secrets"][0]["SecretID"],
        "secret1"
    );
    assert!(writes[1].header("x-registry-auth").is_none());
    // What is asked before: by the full id, and by the host.
    let filters: Vec<Value> = requests
        .iter()
        .filter(|request| request.method == "GET" && request.path == "/services")
        .map(Request::filters)
        .collect();
    assert!(
        filters.contains(&json!({"label": [format!("saasodoo.instance.id={ID}")]})),
        "{filters:?}"
    );
    assert!(
        filters.contains(&json!({"label": ["saasodoo.host.acme.sw.example"]})),
        "{filters:?}"
    );
    assert!(filters.contains(&json!({"name": ["odoo-acme-"]})), "{filters:?}");
}

#[tokio::test]
async fn credentials_and_digests_are_sent_as_configured() {
    let (recorder, root) = (daemon(Daemon::default()), tempfile::tempdir().expect("a root"));
    let common = saasodoo_core::Config::builder().build();
    let swarm = SwarmOrchestrator::builder(common)
        .host(DockerHost::Unix(recorder.socket()))
        .data_root(root.path())
        .quota(QuotaPolicy::BestEffort)
        .credentials(Credentials::Environment)
        .image_resolution(ImageResolution::Digest)
        .registry(RegistryAuth::new("u", "pw".into(), "r.example"))
        .build()
        .expect("a socket");
    let made = swarm.create(&spec(), CreateOptions::new()).await.expect("created");
    assert_eq!(
        made.instance.spec.image.as_str(),
        "bitnamilegacy/odoo:17",
        "without the digest"
    );
    let requests = recorder.requests();
    let service = requests
        .iter()
        .find(|request| request.path == "/services/create")
        .expect("a creation");
    let container = &service.json()["TaskTemplate"]["ContainerSpec"];
    assert_eq!(container["Image"], "bitnamilegacy/odoo:17@sha256:00ff");
    assert!(
        container["Env"]
            .to_string()
            .contains("ODOO_DATABASE_PASSWORD=s3ntinel-db")
    );
    // {"password":"pw","serveraddress":"r.example","username":"u"}
    assert_eq!(
        service.header("x-registry-auth").as_deref(),
        Some("eyJwYXNzd29yZCI6InB3Iiwic2VydmVyYWRkcmVzcyI6InIuZXhhbXBsZSIsInVzZXJuYW1lIjoidSJ9")
    );
    let asked = "/distribution/bitnamilegacy/odoo:17/json";
    assert!(
        requests.iter().any(|request| request.path == asked),
        "{:?}",
        lines(&requests)
    );
}

async fn created(daemon_with: Daemon) -> (Recorder, SwarmOrchestrator, tempfile::TempDir) {
    let (recorder, root) = (daemon(daemon_with), tempfile::tempdir().expect("a root"));
    let swarm = orchestrator(&recorder, root.path());
    swarm
        .create(&spec(), CreateOptions::new().stopped())
        .await
        .expect("created");
    recorder.forget();
    (recorder, swarm, root)
}

#[tokio::test]
async fn an_update_sends_the_version_it_saw_and_begins_again_when_that_is_old() {
    let (recorder, swarm, _root) = created(Daemon {
        contention: 3,
        ..Daemon::default()
    })
    .await;
    let change = InstanceChange::new().memory(Bytes::from_gib(4));
    let updated = swarm
        .update(id(), &change, UpdateOptions::new())
        .await
        .expect("in the end");
    assert_eq!(updated.outcome, EnsureOutcome::Updated);
    let updates: Vec<Request> = recorder
        .requests()
        .into_iter()
        .filter(|request| request.method == "POST")
        .collect();
    let versions: Vec<&str> = updates.iter().map(|update| update.query["version"].as_str()).collect();
    assert_eq!(versions, ["10", "11", "12", "13"]);
    assert!(updates.iter().all(|update| update.query["registryAuthFrom"] == "spec"));
    let last = updates[3].json();
    assert_eq!(
        last["Labels"]["somebody"], "else0",
        "what others changed in the meantime stays"
    );
    assert_eq!(last["TaskTemplate"]["Resources"]["Limits"]["MemoryBytes"], 4_u64 << 30);
}

#[tokio::test]
async fn contention_without_end_is_given_up() {
    let (recorder, swarm, _root) = created(Daemon {
        contention: 1000,
        ..Daemon::default()
    })
    .await;
    let error = swarm.set_power(id(), Power::Start).await.expect_err("never");
    assert_eq!(
        (error.kind(), error.retry()),
        (ErrorKind::Conflict, Retry::After(None)),
        "{error}"
    );
    let tried = recorder
        .requests()
        .iter()
        .filter(|request| request.method == "POST")
        .count();
    assert!((2..=10).contains(&tried), "{tried}");
}

#[tokio::test]
async fn a_version_wider_than_32_bits_is_sent_whole() {
    let (recorder, swarm, _root) = created(Daemon::default()).await;
    let wide = 4_294_967_297_u64;
    recorder.replace(move |request| match (request.method.as_str(), request.path.as_str()) {
        ("GET", "/services") => Reply::json(
            200,
            json!([{"ID": "svc1", "Version": {"Index": wide}, "Spec": {
                "Name": "odoo-acme-0a1b2c3d", "Labels": {"saasodoo.instance.id": ID},
                "TaskTemplate": {}, "Mode": {"Replicated": {"Replicas": 1}},
            }}]),
        ),
        ("GET", _) => Reply::json(200, json!([])),
        _ => Reply::json(200, json!({})),
    });
    swarm.set_power(id(), Power::Stop).await.expect("accepted");
    let update = recorder
        .requests()
        .into_iter()
        .find(|request| request.method == "POST")
        .expect("an update");
    assert_eq!(update.query["version"], "4294967297");
}

#[tokio::test]
async fn a_list_is_two_requests_whatever_there_is() {
    for count in [0, 1, 500] {
        let recorder = Recorder::new(move |request| match request.path.as_str() {
            "/services" => Reply::json(
                200,
                (0..count)
                    .map(|n| {
                        json!({"ID": format!("s{n}"), "Version": {"Index": 1}, "Spec": {
                            "Name": format!("odoo-a{n}-00000000"), "Mode": {"Replicated": {"Replicas": 0}},
                            "Labels": {"saasodoo.instance.id": InstanceId::random().to_string(),
                                       "saasodoo.storage.bytes": "1048576"},
                        }})
                    })
                    .collect(),
            ),
            _ => Reply::json(200, json!([])),
        });
        let root = tempfile::tempdir().expect("a root");
        let swarm = orchestrator(&recorder, root.path());
        let listed = swarm.list_all(InstanceFilter::all()).await.expect("a list");
        assert_eq!(listed.len(), count);
        let requests = recorder.requests();
        assert_eq!(requests.len(), 2, "{:?}", lines(&requests));
        for request in &requests {
            // A task has the labels that its service had when it was made, so tasks are not asked for by a label.
            let filters = match request.path.as_str() {
                "/services" => json!({"label": ["saasodoo.instance.id"]}),
                _ => json!({}),
            };
            assert_eq!(request.filters(), filters, "{}", request.path);
        }
    }
}

#[tokio::test]
async fn one_unknown_state_is_one_unknown_instance() {
    let service = |n: u32, id: &str| {
        json!({"ID": format!("s{n}"), "Version": {"Index": 1}, "Spec": {
            "Name": format!("odoo-a{n}-0"), "Mode": {"Replicated": {"Replicas": 1}},
            "Labels": {"saasodoo.instance.id": id},
        }})
    };
    let (first, second) = (InstanceId::random(), InstanceId::random());
    let services = json!([
        service(0, "garbage"),
        service(1, &first.to_string()),
        service(2, &second.to_string())
    ]);
    let task = |service: &str, state: &str| {
        json!({"ID": format!("t{service}"), "ServiceID": service, "DesiredState": "running",
               "CreatedAt": "2026-11-23T19:00:00Z", "Status": {"State": state}})
    };
    let tasks = json!([task("s1", "teleporting"), task("s2", "running")]);
    let recorder = Recorder::new(move |request| {
        Reply::json(
            200,
            if request.path == "/services" {
                services.clone()
            } else {
                tasks.clone()
            },
        )
    });
    let root = tempfile::tempdir().expect("a root");
    let swarm = orchestrator(&recorder, root.path());
    let answers: Vec<_> = swarm.list(InstanceFilter::all()).collect().await;
    let mut statuses = BTreeMap::new();
    let mut errors = Vec::new();
    for answer in answers {
        match answer {
            Ok(instance) => {
                statuses.insert(instance.id, instance.status);
            }
            Err(error) => errors.push(error),
        }
    }
    assert_eq!(statuses[&first], InstanceStatus::Unknown);
    assert_eq!(statuses[&second], InstanceStatus::Running);
    // The service whose label is no id is not left out either: it is the error that ends the list.
    assert_eq!(errors.len(), 1);
    assert!(errors[0].message().contains("garbage"), "{}", errors[0]);
}

#[tokio::test]
async fn a_failed_creation_takes_back_its_own_things_only() {
    let recorder = Recorder::new(|request| match (request.method.as_str(), request.path.as_str()) {
        ("POST", "/secrets/create") => Reply::json(201, json!({"ID": "secret1"})),
        ("POST", "/services/create") => Reply::json(500, json!({"message": "network saasodoo-network not found"})),
        ("GET", _) => Reply::json(200, json!([])),
        _ => Reply::json(200, Value::Null),
    });
    let root = tempfile::tempdir().expect("a root");
    let swarm = orchestrator(&recorder, root.path());
    let error = swarm
        .create(&spec(), CreateOptions::new())
        .await
        .expect_err("no network");
    assert_eq!(error.kind(), ErrorKind::MissingPrerequisite, "{error}");
    assert!(error.advice().is_some());
    let requests = recorder.requests();
    let made = requests
        .iter()
        .find(|request| request.path == "/secrets/create")
        .expect("a secret")
        .json();
    let deleted: Vec<&str> = requests
        .iter()
        .filter(|request| request.method == "DELETE")
        .map(|request| request.path.as_str())
        .collect();
    assert_eq!(
        deleted,
        [format!("/secrets/{}", made["Name"].as_str().expect("a name"))]
    );
    assert_eq!(std::fs::read_dir(root.path()).expect("the root").count(), 0);
}

#[tokio::test]
async fn deletion_waits_for_the_tasks_and_keeps_the_data() {
    let mut daemon_with = Daemon::default();
    daemon_with
        .tasks
        .push(json!({"ID": "t1", "ServiceID": "svc1", "DesiredState": "remove",
        "Status": {"State": "running"}}));
    let (recorder, swarm, root) = {
        let polls = Arc::new(Mutex::new(0));
        let inner = Mutex::new(daemon_with);
        let recorder = Recorder::new(move |request| {
            let mut daemon = inner.lock().expect("no panic");
            if request.path == "/tasks" && daemon.service.is_none() && daemon.version > 0 {
                let mut polls = polls.lock().expect("no panic");
                *polls += 1;
                if *polls > 3 {
                    daemon.tasks.clear();
                }
            }
            if request.path == "/tasks" && daemon.version == 0 {
                return Reply::json(200, json!([]));
            }
            daemon.answer(request)
        });
        let root = tempfile::tempdir().expect("a root");
        let swarm = orchestrator(&recorder, root.path());
        (recorder, swarm, root)
    };
    swarm.create(&spec(), CreateOptions::new()).await.expect("created");
    recorder.forget();
    let deleted = swarm.delete(id(), DeleteOptions::retain()).await.expect("deleted");
    assert!(deleted.existed && deleted.purged.is_empty());
    let seen = lines(&recorder.requests());
    let place = |line: &str| {
        seen.iter()
            .position(|seen| seen == line)
            .unwrap_or_else(|| panic!("{line}: {seen:?}"))
    };
    assert!(
        place("DELETE /services/svc1") < place("DELETE /secrets/secret1"),
        "{seen:?}"
    );
    assert!(
        seen.iter().filter(|line| *line == "GET /tasks").count() >= 4,
        "{seen:?}"
    );
    assert!(root.path().join("odoo_data_acme_0a1b2c3d").exists());
}

#[tokio::test]
async fn logs_are_read_with_these_options() {
    let recorder = Recorder::new(|request| match request.path.as_str() {
        "/services" => Reply::json(
            200,
            json!([{"ID": "svc1", "Spec": {"Name": "odoo-acme-0a1b2c3d", "Labels": {"saasodoo.instance.id": ID}}}]),
        ),
        "/tasks" => Reply::json(
            200,
            json!([{"ID": "t1", "ServiceID": "svc1", "Status": {"State": "running",
                    "ContainerStatus": {"ContainerID": "c"}}}]),
        ),
        _ => {
            let line = b"2026-11-23T19:00:00.5Z hello you\n";
            let mut frame = vec![1, 0, 0, 0, 0, 0, 0, u8::try_from(line.len()).expect("short")];
            frame.extend_from_slice(line);
            Reply {
                status: 200,
                body: frame,
            }
        }
    });
    let root = tempfile::tempdir().expect("a root");
    let swarm = orchestrator(&recorder, root.path());
    let lines: Vec<_> = swarm
        .logs(id(), LogOptions::tail(7))
        .try_collect()
        .await
        .expect("a log");
    assert_eq!(lines.len(), 1);
    assert_eq!((lines[0].unit.as_str(), lines[0].text.as_str()), ("t1", "hello you"));
    assert!(lines[0].at.is_some());
    let request = recorder.requests().pop().expect("a request");
    assert_eq!(request.path, "/tasks/t1/logs");
    for (name, value) in [("stdout", "1"), ("stderr", "1"), ("timestamps", "1"), ("tail", "7")] {
        assert_eq!(request.query[name], value, "{name}");
    }
    assert!(!request.query.contains_key("follow"));
}

#[tokio::test]
async fn trouble_with_the_daemon_is_told_apart() {
    let root = tempfile::tempdir().expect("a root");
    // No socket.
    let builder = || {
        SwarmOrchestrator::builder(saasodoo_core::Config::default())
            .data_root(root.path())
            .quota(QuotaPolicy::BestEffort)
    };
    let missing = root.path().join("nothing.sock");
    let error = builder()
        .host(DockerHost::Unix(missing))
        .build()
        .expect_err("no socket");
    assert_eq!(
        (error.kind(), error.field()),
        (ErrorKind::Unavailable, Some("DOCKER_HOST")),
        "{error}"
    );
    assert!(error.advice().is_some());

    // Nobody behind it.
    let dead = root.path().join("dead.sock");
    drop(std::os::unix::net::UnixListener::bind(&dead).expect("a socket"));
    let swarm = builder().host(DockerHost::Unix(dead)).build().expect("a file");
    let error = swarm.get(id()).await.expect_err("nobody");
    assert_eq!(
        (error.kind(), error.retry()),
        (ErrorKind::Unavailable, Retry::After(None)),
        "{error}"
    );
    let error = swarm.set_power(id(), Power::Stop).await.expect_err("nobody");
    assert_eq!(error.retry(), Retry::After(None), "nothing was sent: {error}");

    // Not a manager.
    let text = "This node is not a swarm manager. Use \"docker swarm init\" or \"docker swarm join\"";
    let worker = Recorder::new(move |_| Reply::json(503, json!({"message": text})));
    let swarm = builder()
        .host(DockerHost::Unix(worker.socket()))
        .build()
        .expect("a socket");
    let error = swarm.get(id()).await.expect_err("a worker");
    assert_eq!(error.kind(), ErrorKind::MissingPrerequisite, "{error}");
    assert!(error.advice().expect("advice").contains("manager"), "{error}");
    let failed = swarm.list_all(InstanceFilter::all()).await.expect_err("no empty list");
    assert_eq!(failed.kind(), ErrorKind::MissingPrerequisite);

    // Plain HTTP where TLS is expected.
    let certificates = tempfile::tempdir().expect("a directory");
    let error = builder()
        .host(DockerHost::Tls {
            address: "127.0.0.1:1".to_owned(),
            certificates: certificates.path().to_owned(),
        })
        .build()
        .expect_err("no certificates");
    assert_eq!(
        (error.kind(), error.field()),
        (ErrorKind::Configuration, Some("DOCKER_CERT_PATH")),
        "{error}"
    );

    // An answer that is no JSON is no absence.
    let odd = Recorder::new(|_| Reply {
        status: 200,
        body: b"<html>".to_vec(),
    });
    let swarm = builder()
        .host(DockerHost::Unix(odd.socket()))
        .build()
        .expect("a socket");
    assert_eq!(swarm.get(id()).await.expect_err("HTML").kind(), ErrorKind::Unexpected);
}

#[tokio::test]
async fn tls_against_plain_http_is_a_configuration_error() {
    let certificates = tempfile::tempdir().expect("a directory");
    // The handshake fails before any of them is looked into.
    for name in ["ca.pem", "cert.pem", "key.pem"] {
        std::fs::write(certificates.path().join(name), "").expect("a file");
    }
    let plain = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = plain.local_addr().expect("an address").to_string();
    tokio::spawn(async move {
        use tokio::io::AsyncWriteExt;
        while let Ok((mut client, _)) = plain.accept().await {
            let _ = client.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
        }
    });
    let root = tempfile::tempdir().expect("a root");
    let swarm = SwarmOrchestrator::builder(saasodoo_core::Config::default())
        .host(DockerHost::Tls {
            address,
            certificates: certificates.path().to_owned(),
        })
        .data_root(root.path())
        .build()
        .expect("certificates");
    let error = swarm.get(id()).await.expect_err("no TLS there");
    assert_eq!(error.kind(), ErrorKind::Configuration, "{error:?}");
    assert!(error.advice().expect("advice").contains("TLS"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_silent_daemon_has_a_deadline() {
    let directory = tempfile::tempdir().expect("a directory");
    let socket = directory.path().join("silent.sock");
    let listener = tokio::net::UnixListener::bind(&socket).expect("a socket");
    tokio::spawn(async move {
        let mut kept = Vec::new();
        while let Ok((client, _)) = listener.accept().await {
            kept.push(client);
        }
    });
    let swarm = SwarmOrchestrator::builder(saasodoo_core::Config::default())
        .host(DockerHost::Unix(socket))
        .data_root(directory.path())
        .build()
        .expect("a socket");
    let begun = tokio::time::Instant::now();
    let error = swarm.get(id()).await.expect_err("silence");
    assert_eq!(
        (error.kind(), error.retry()),
        (ErrorKind::Timeout, Retry::After(None)),
        "{error}"
    );
    assert_eq!(begun.elapsed().as_secs(), 15);
}

/// Collects what is logged, of this library and of bollard, at every level.
#[derive(Clone, Default)]
struct Captured(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Captured {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().expect("no panic").extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn no_log_at_any_level_shows_a_secret() {
    let captured = Captured::default();
    let writer = captured.clone();
    // With its log feature the subscriber takes bollard's records, too; this is the only test that logs.
    tracing_subscriber::fmt()
        .with_max_level(tracing_subscriber::filter::LevelFilter::TRACE)
        .with_writer(move || writer.clone())
        .init();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        for credentials in [Credentials::Secrets, Credentials::Environment] {
            let (recorder, root) = (daemon(Daemon::default()), tempfile::tempdir().expect("a root"));
            let swarm = SwarmOrchestrator::builder(saasodoo_core::Config::default())
                .host(DockerHost::Unix(recorder.socket()))
                .data_root(root.path())
                .quota(QuotaPolicy::BestEffort)
                .credentials(credentials)
                .registry(RegistryAuth::new("u", "s3ntinel-registry".into(), "r.example"))
                .build()
                .expect("a socket");
            swarm.create(&spec(), CreateOptions::new()).await.expect("created");
            let change = InstanceChange::new().set_env("MORE".parse().expect("a name"), "s3ntinel-more");
            swarm
                .update(id(), &change, UpdateOptions::new())
                .await
                .expect("updated");
            swarm.list_all(InstanceFilter::all()).await.expect("listed");
            let mut events = swarm.watch(InstanceFilter::all());
            let _ = tokio::time::timeout(Duration::from_secs(2), events.next()).await;
        }
    });
    let text = String::from_utf8_lossy(&captured.0.lock().expect("no panic")).into_owned();
    assert!(
        text.contains("bollard"),
        "bollard's records are among the captured ones"
    );
    assert!(text.contains("/services/create"), "the requests are logged");
    for secret in ["s3ntinel", "czNudGluZWw"] {
        assert!(!text.contains(secret), "{secret} was logged");
    }
}
