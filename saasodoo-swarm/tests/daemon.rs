//! Daemons of other kinds than a manager that answers over its socket: over TCP, sick, and such that keep a stream open.

mod common;

use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use common::recorder::{Recorder, Reply, Request};
use futures::stream::{self, BoxStream};
use futures::{StreamExt, TryStreamExt};
use http_body_util::StreamBody;
use hyper::body::Frame;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use saasodoo_core::{
    Config, Deadlines, ErrorKind, Health, HealthState, InstanceEvent, InstanceFilter, InstanceId, InstanceOrchestrator,
    InstanceOrchestratorExt, LogOptions,
};
use saasodoo_swarm::{DockerHost, Polling, QuotaPolicy, SwarmBuilder, SwarmOrchestrator};
use serde_json::{Value, json};
use tokio::sync::mpsc;

fn builder(root: &Path) -> SwarmBuilder {
    let mut deadlines = Deadlines::default();
    deadlines.read = Duration::from_secs(1);
    SwarmOrchestrator::builder(Config::builder().deadlines(deadlines).build())
        .data_root(root)
        .quota(QuotaPolicy::BestEffort)
        .polling(Polling::new(Duration::from_millis(50), Duration::from_secs(3600)))
}

/// What a healthy daemon answers.
fn healthy(request: &Request) -> Reply {
    match request.path.as_str() {
        "/version" => Reply::json(200, json!({"Version": "29.0", "ApiVersion": "1.52"})),
        "/info" => Reply::json(
            200,
            json!({"Swarm": {"ControlAvailable": true, "LocalNodeState": "active"}}),
        ),
        "/networks/saasodoo-network" => Reply::json(200, json!({"Scope": "swarm"})),
        path if path.starts_with("/images/") => Reply::json(200, json!({"Id": "sha256:00"})),
        "/services" | "/tasks" => Reply::json(200, json!([])),
        path => Reply::json(404, json!({"message": format!("no {path}")})),
    }
}

async fn health(answer: impl Fn(&Request) -> Option<Reply> + Send + Sync + 'static) -> Health {
    let root = tempfile::tempdir().expect("a root");
    let recorder = Recorder::new(move |request| answer(request).unwrap_or_else(|| healthy(request)));
    let swarm = builder(root.path()).host(DockerHost::Unix(recorder.socket())).build();
    swarm.expect("a socket").health().await
}

fn check<'a>(health: &'a Health, name: &str) -> (HealthState, &'a str) {
    let check = health.check(name).expect(name);
    (check.state, check.detail.as_str())
}

#[tokio::test]
async fn what_is_wrong_with_a_daemon_is_in_its_health() {
    let well = health(|_| None).await;
    for name in ["reachable", "manager", "network", "image"] {
        assert_eq!(check(&well, name).0, HealthState::Ok, "{name}: {well:?}");
    }

    let info = json!({"Swarm": {"ControlAvailable": false, "LocalNodeState": "active"}});
    let worker = health(move |request| (request.path == "/info").then(|| Reply::json(200, info.clone()))).await;
    let (state, detail) = check(&worker, "manager");
    assert!(
        state == HealthState::Failed && detail.contains("not a swarm manager"),
        "{detail}"
    );
    assert!(!worker.is_ready());

    for (network, part) in [
        (
            Reply::json(404, json!({"message": "network saasodoo-network not found"})),
            "not found",
        ),
        (Reply::json(200, json!({"Scope": "local"})), "--driver overlay"),
    ] {
        let network = Mutex::new(Some(network));
        let seen = health(move |request| {
            let asked = request.path.starts_with("/networks/");
            asked.then(|| network.lock().expect("no panic").take().expect("asked once"))
        })
        .await;
        let (state, detail) = check(&seen, "network");
        assert!(state == HealthState::Failed && detail.contains(part), "{detail}");
    }

    let refusal = json!({"message": "manifest unknown"});
    let unknown = health(move |request| {
        let asked = request.path.starts_with("/images/") || request.path.starts_with("/distribution/");
        asked.then(|| Reply::json(404, refusal.clone()))
    })
    .await;
    let (state, detail) = check(&unknown, "image");
    assert!(
        state == HealthState::Degraded && detail.contains("is not in its registry"),
        "{detail}"
    );

    let silent =
        health(|request| (request.path == "/version").then(|| Reply::json(500, json!({"message": "no"})))).await;
    assert_eq!(check(&silent, "reachable").0, HealthState::Failed);
}

#[tokio::test]
async fn the_swarm_has_an_id_that_its_managers_know() {
    let root = tempfile::tempdir().expect("a root");
    let manager = json!({"Swarm": {"ControlAvailable": true, "LocalNodeState": "active",
        "NodeID": "n1", "Cluster": {"ID": "lu4kpjnt4ef2tdnzyg6z4crz6"}}});
    let recorder = Recorder::new(move |_| Reply::json(200, manager.clone()));
    let swarm = builder(root.path()).host(DockerHost::Unix(recorder.socket())).build();
    let swarm = swarm.expect("a socket");
    assert_eq!(swarm.cluster_id().await.expect("an id"), "lu4kpjnt4ef2tdnzyg6z4crz6");
    let asked: Vec<String> = recorder.requests().into_iter().map(|request| request.path).collect();
    assert_eq!(
        asked,
        ["/info"],
        "the answer of /swarm holds the tokens with which nodes join"
    );

    // A worker, and a node outside of any swarm.
    for (node, state) in [("n2", "active"), ("", "inactive")] {
        let info = json!({"Swarm": {"ControlAvailable": false, "LocalNodeState": state, "NodeID": node}});
        recorder.replace(move |_| Reply::json(200, info.clone()));
        let error = swarm.cluster_id().await.expect_err("no manager");
        assert_eq!(error.kind(), ErrorKind::MissingPrerequisite, "{error}");
        assert!(
            error.message().contains(state) && error.advice().is_some_and(|advice| advice.contains("DOCKER_HOST")),
            "{error}"
        );
    }
    recorder.replace(|_| Reply::json(500, json!({"message": "no"})));
    assert_eq!(
        swarm.cluster_id().await.expect_err("sick").kind(),
        ErrorKind::Unexpected
    );
}

#[tokio::test]
async fn a_daemon_is_reached_over_tcp() {
    let root = tempfile::tempdir().expect("a root");
    let recorder = Recorder::new(healthy);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address").to_string();
    let socket = recorder.socket();
    let passing = tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let mut daemon = tokio::net::UnixStream::connect(&socket).await.expect("the recorder");
            tokio::spawn(async move { tokio::io::copy_bidirectional(&mut client, &mut daemon).await });
        }
    });
    let swarm = builder(root.path())
        .host(DockerHost::Tcp(address))
        .build()
        .expect("an address");
    assert_eq!(swarm.list_all(InstanceFilter::all()).await.expect("a list"), []);
    assert_eq!(recorder.requests().len(), 2);
    passing.abort();
    let _ = passing.await;
    // A port that nobody serves.
    let closed = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = closed.local_addr().expect("an address").to_string();
    drop(closed);
    let swarm = builder(root.path())
        .host(DockerHost::Tcp(address))
        .build()
        .expect("an address");
    let error = swarm.list_all(InstanceFilter::all()).await.expect_err("nobody");
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
}

type Body = StreamBody<BoxStream<'static, Result<Frame<Bytes>, Infallible>>>;

/// A daemon that keeps streams open, and one that never begins one.
struct Streaming {
    directory: tempfile::TempDir,
    events: Arc<Mutex<Vec<mpsc::UnboundedSender<Bytes>>>>,
}

impl Streaming {
    /// `answer` gives the answer to everything but events; none is a silence.
    fn new(answer: impl Fn(&str, &str) -> Option<Value> + Send + Sync + 'static) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let listener = tokio::net::UnixListener::bind(directory.path().join("docker.sock")).expect("a socket");
        let events: Arc<Mutex<Vec<mpsc::UnboundedSender<Bytes>>>> = Arc::default();
        let (open, answer) = (Arc::clone(&events), Arc::new(answer));
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (open, answer) = (Arc::clone(&open), Arc::clone(&answer));
                tokio::spawn(async move {
                    let service = service_fn(|request: hyper::Request<hyper::body::Incoming>| {
                        let (open, answer) = (Arc::clone(&open), Arc::clone(&answer));
                        async move {
                            let query = request.uri().query().unwrap_or_default().to_owned();
                            let body: BoxStream<'static, Result<Frame<Bytes>, Infallible>> =
                                if request.uri().path() == "/events" {
                                    let (sender, receiver) = mpsc::unbounded_channel();
                                    open.lock().expect("no panic").push(sender);
                                    let lines = stream::unfold(receiver, |mut receiver| async move {
                                        let line = receiver.recv().await?;
                                        Some((Ok(Frame::data(line)), receiver))
                                    });
                                    lines.boxed()
                                } else {
                                    match answer(request.uri().path(), &query) {
                                        Some(value) => {
                                            stream::iter([Ok(Frame::data(Bytes::from(value.to_string())))]).boxed()
                                        }
                                        None => futures::future::pending().await,
                                    }
                                };
                            Ok::<_, Infallible>(hyper::Response::new(Body::new(body)))
                        }
                    });
                    let connection = hyper::server::conn::http1::Builder::new();
                    let _ = connection.serve_connection(TokioIo::new(client), service).await;
                });
            }
        });
        Self { directory, events }
    }

    fn socket(&self) -> PathBuf {
        self.directory.path().join("docker.sock")
    }

    fn event(&self, service: &str) {
        let line = json!({"Type": "service", "Actor": {"ID": service}, "timeNano": 1_764_000_000_000_000_000_i64});
        for open in self.events.lock().expect("no panic").iter() {
            let _ = open.send(Bytes::from(format!("{line}\n")));
        }
    }
}

/// One that is stopped is looked at only when an event names it; any other one here is always on its way.
fn service(name: &str, id: InstanceId, replicas: u32) -> Value {
    json!({"ID": name, "Version": {"Index": 1}, "CreatedAt": "2026-11-23T19:00:00Z", "Spec": {
        "Name": format!("odoo-{name}"), "Mode": {"Replicated": {"Replicas": replicas}},
        "Labels": {"saasodoo.instance.id": id.to_string(), "saasodoo.storage.bytes": "1048576"},
    }})
}

/// The next event, within a time in which no slow look comes.
async fn next(events: &mut BoxStream<'static, InstanceEvent>) -> InstanceEvent {
    let next = tokio::time::timeout(Duration::from_secs(10), events.next()).await;
    next.expect("in time").expect("a watch does not end")
}

#[tokio::test]
async fn a_deletion_is_seen_at_its_event_and_one_odd_instance_is_no_lost_connection() {
    let root = tempfile::tempdir().expect("a root");
    let (gone, twice) = (InstanceId::random(), InstanceId::random());
    let deleted = Arc::new(AtomicBool::new(false));
    let answering = Arc::clone(&deleted);
    let daemon = Streaming::new(move |path, query| {
        Some(match path {
            "/services" => {
                let one = service("one", gone, 0);
                let copies = [service("two", twice, 1), service("copy", twice, 1)];
                let all = [one]
                    .into_iter()
                    .filter(|_| !answering.load(Ordering::SeqCst))
                    .chain(copies);
                let asked = |service: &Value| {
                    let id = service["Spec"]["Labels"]["saasodoo.instance.id"]
                        .as_str()
                        .expect("an id");
                    // By a whole id, or by the label.
                    !query.contains("instance.id%3D") || query.contains(id)
                };
                all.filter(asked).collect()
            }
            path if path.starts_with("/services/") => Value::Null,
            _ => json!([]),
        })
    });
    let swarm = builder(root.path())
        .host(DockerHost::Unix(daemon.socket()))
        .build()
        .expect("a socket");
    let mut events = swarm.watch(InstanceFilter::all());
    for _ in 0..2 {
        assert!(matches!(next(&mut events).await, InstanceEvent::Applied(_)));
    }
    assert!(matches!(next(&mut events).await, InstanceEvent::Synced));
    // The second is looked at many times in this while, and cannot be told from its copy.
    let quiet = tokio::time::timeout(Duration::from_millis(400), events.next()).await;
    assert!(quiet.is_err(), "{quiet:?}");
    daemon.event("two");
    deleted.store(true, Ordering::SeqCst);
    daemon.event("one");
    match next(&mut events).await {
        InstanceEvent::Deleted(instance) => assert_eq!(instance.id, gone),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_log_that_never_begins_has_a_deadline() {
    let root = tempfile::tempdir().expect("a root");
    let id = InstanceId::random();
    let daemon = Streaming::new(move |path, _| match path {
        "/services" => Some(json!([service("one", id, 1)])),
        "/tasks" => Some(json!([{"ID": "t1", "ServiceID": "one", "DesiredState": "running",
            "Status": {"State": "running", "ContainerStatus": {"ContainerID": "c"}}}])),
        _ => None,
    });
    let swarm = builder(root.path())
        .host(DockerHost::Unix(daemon.socket()))
        .build()
        .expect("a socket");
    let lines = swarm.logs(id, LogOptions::tail(1).follow());
    let read = tokio::time::timeout(Duration::from_secs(10), lines.try_collect::<Vec<_>>()).await;
    let error = read.expect("its own deadline").expect_err("silence");
    assert_eq!(error.kind(), ErrorKind::Timeout, "{error}");
}
