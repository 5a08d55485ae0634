//! An API server of three kinds of objects, with pages, versions, watches that resume from a version, lost history,
//! and everything that can happen to a connection.

use std::cell::OnceCell;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use futures::channel::mpsc::{self, UnboundedSender};
use futures::stream::BoxStream;
use futures::{StreamExt as _, stream};
use http::{Request, Response};
use http_body_util::StreamBody;
use hyper::body::Frame;
use jiff::{SignedDuration, Timestamp};
use kube::Client;
use kube::client::Body;
use saasodoo_core::InstanceStatus;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::views::{ClaimView, DeploymentView, PodView, View as _};
use crate::watch::Observe;

type BoxError = Box<dyn std::error::Error + Send + Sync>;
type Line = Result<Frame<Bytes>, BoxError>;
type Answer = Response<StreamBody<BoxStream<'static, Line>>>;

/// The time of day on the paused clock.
pub(super) fn now() -> Timestamp {
    thread_local!(static START: OnceCell<Instant> = const { OnceCell::new() });
    let start = START.with(|start| *start.get_or_init(Instant::now));
    let passed = SignedDuration::try_from(start.elapsed()).expect("a short test");
    Timestamp::from_second(1_800_000_000).expect("a time") + passed
}

pub(super) fn labels(n: u32) -> Value {
    json!({
        "app": "odoo",
        "managed-by": "saasodoo",
        "instance-id": format!("{n:08x}"),
        "app.kubernetes.io/instance": format!("{n:08x}-0000-4000-8000-000000000000"),
    })
}

#[derive(Clone, Default)]
pub(super) struct FakeApi(Arc<Mutex<Inner>>);

#[derive(Default)]
struct Inner {
    version: u64,
    objects: BTreeMap<&'static str, BTreeMap<String, Value>>,
    history: Vec<(u64, &'static str, String)>,
    compacted: u64,
    pages: BTreeMap<(&'static str, u64), Vec<Value>>,
    watches: Vec<Watch>,
    /// Connections that are open and on which nothing comes any more.
    zombies: Vec<Watch>,
    down: bool,
    silent: bool,
    hang_bodies: bool,
    paused: bool,
    gone_as_event: bool,
    requests: Vec<String>,
}

struct Watch {
    kind: &'static str,
    lines: UnboundedSender<Line>,
    sent: u64,
}

impl Inner {
    fn push(&mut self) {
        if self.paused {
            return;
        }
        for watch in &mut self.watches {
            for (version, kind, line) in &self.history {
                if *kind == watch.kind && *version > watch.sent {
                    let _ = watch.lines.unbounded_send(Ok(Frame::data(line.clone().into())));
                    watch.sent = *version;
                }
            }
        }
    }

    fn record(&mut self, kind: &'static str, type_: &str, object: &Value) {
        let line = format!("{}\n", json!({"type": type_, "object": object}));
        self.history.push((self.version, kind, line));
        self.push();
    }
}

fn kind_of(path: &str) -> &'static str {
    match path {
        "/apis/apps/v1/namespaces/ns/deployments" => "deployments",
        "/api/v1/namespaces/ns/pods" => "pods",
        "/api/v1/namespaces/ns/persistentvolumeclaims" => "persistentvolumeclaims",
        other => panic!("unexpected path {other}"),
    }
}

fn status(code: u16, reason: &str) -> Value {
    json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": reason, "message": reason})
}

fn respond(code: u16, lines: impl futures::Stream<Item = Line> + Send + 'static) -> Answer {
    let body = StreamBody::new(lines.boxed());
    Response::builder().status(code).body(body).expect("a response")
}

fn whole(code: u16, body: &Value) -> Answer {
    let line: Line = Ok(Frame::data(body.to_string().into()));
    respond(code, stream::iter([line]))
}

impl FakeApi {
    pub(super) fn new() -> Self {
        let api = Self::default();
        api.lock().version = 1000;
        api
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().expect("no panic")
    }

    pub(super) fn client(&self) -> Client {
        let api = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let api = api.clone();
            async move {
                if api.lock().silent {
                    api.lock().requests.push(request.uri().to_string());
                    std::future::pending::<()>().await;
                }
                api.answer(&request)
            }
        });
        Client::new(service, "ns")
    }

    fn answer(&self, request: &Request<Body>) -> Result<Answer, BoxError> {
        let mut inner = self.lock();
        inner.requests.push(request.uri().to_string());
        if inner.down {
            return Err("connection refused".into());
        }
        assert_eq!(request.method(), http::Method::GET);
        let kind = kind_of(request.uri().path());
        let query: BTreeMap<&str, &str> = request
            .uri()
            .query()
            .unwrap_or_default()
            .split('&')
            .filter_map(|pair| pair.split_once('='))
            .collect();
        if query.get("watch") == Some(&"true") {
            let from: u64 = query["resourceVersion"].parse().expect("a version");
            let seconds: u64 = query["timeoutSeconds"].parse().expect("seconds");
            assert_eq!(query.get("allowWatchBookmarks"), Some(&"true"));
            if from < inner.compacted {
                let gone = status(410, "Expired");
                if !inner.gone_as_event {
                    return Ok(whole(410, &gone));
                }
                let line = format!("{}\n", json!({"type": "ERROR", "object": gone}));
                return Ok(respond(200, stream::iter([Ok(Frame::data(line.into()))])));
            }
            let (lines, receiver) = mpsc::unbounded();
            inner.watches.push(Watch {
                kind,
                lines,
                sent: from,
            });
            inner.push();
            let end = Box::pin(tokio::time::sleep(Duration::from_secs(seconds)));
            return Ok(respond(200, receiver.take_until(end)));
        }
        let limit: usize = query["limit"].parse().expect("a limit");
        let (version, offset) = match query.get("continue") {
            Some(token) => {
                let (version, offset) = token.split_once('.').expect("a token of ours");
                (
                    version.parse().expect("a version"),
                    offset.parse::<usize>().expect("an offset"),
                )
            }
            None => {
                let all = inner
                    .objects
                    .get(kind)
                    .into_iter()
                    .flatten()
                    .map(|(_, object)| object.clone())
                    .collect();
                let version = inner.version;
                inner.pages.insert((kind, version), all);
                (version, 0)
            }
        };
        if version < inner.compacted {
            return Ok(whole(410, &status(410, "Expired")));
        }
        let all = &inner.pages[&(kind, version)];
        let items: Vec<&Value> = all.iter().skip(offset).take(limit).collect();
        let rest = all.len() - offset - items.len();
        let token = (rest > 0).then(|| format!("{version}.{}", offset + items.len()));
        let page = json!({
            "kind": "List", "apiVersion": "v1",
            "metadata": {"resourceVersion": version.to_string(), "continue": token},
            "items": items,
        });
        if inner.hang_bodies {
            let text = page.to_string();
            let half: Line = Ok(Frame::data(text[..text.len() / 2].to_owned().into()));
            return Ok(respond(200, stream::iter([half]).chain(stream::pending())));
        }
        Ok(whole(200, &page))
    }

    // Objects.

    pub(super) fn put(&self, kind: &'static str, name: &str, mut object: Value) -> String {
        let mut inner = self.lock();
        inner.version += 1;
        let version = inner.version.to_string();
        let old = inner.objects.get(kind).and_then(|objects| objects.get(name));
        let type_ = if old.is_some() { "MODIFIED" } else { "ADDED" };
        let uid = old.map_or_else(|| json!(format!("uid-{version}")), |old| old["metadata"]["uid"].clone());
        let metadata = &mut object["metadata"];
        metadata["name"] = json!(name);
        metadata["namespace"] = json!("ns");
        metadata["uid"] = uid;
        metadata["resourceVersion"] = json!(version);
        inner
            .objects
            .entry(kind)
            .or_default()
            .insert(name.to_owned(), object.clone());
        inner.record(kind, type_, &object);
        version
    }

    fn remove(&self, kind: &'static str, name: &str) {
        let mut inner = self.lock();
        let Some(mut object) = inner.objects.get_mut(kind).and_then(|objects| objects.remove(name)) else {
            return;
        };
        inner.version += 1;
        object["metadata"]["resourceVersion"] = json!(inner.version.to_string());
        inner.record(kind, "DELETED", &object);
    }

    fn deployment_with(&self, n: u32, change: impl FnOnce(&mut Value)) -> String {
        let name = format!("odoo-acme-{n:08x}");
        let old = self
            .lock()
            .objects
            .get("deployments")
            .and_then(|objects| objects.get(&name))
            .cloned();
        let mut object = old.unwrap_or_else(|| {
            json!({
                "metadata": {"labels": labels(n), "annotations": {}},
                "spec": {
                    "replicas": 0,
                    "selector": {"matchLabels": labels(n)},
                    "template": {"spec": {"volumes": [
                        {"name": "odoo-data", "persistentVolumeClaim": {"claimName": format!("{name}-storage")}}
                    ]}},
                },
            })
        });
        change(&mut object);
        self.put("deployments", &name, object)
    }

    pub(super) fn deployment(&self, n: u32, replicas: i32) -> String {
        self.deployment_with(n, |object| object["spec"]["replicas"] = json!(replicas))
    }

    pub(super) fn title(&self, n: u32, title: &str) -> String {
        self.deployment_with(n, |object| object["metadata"]["annotations"]["title"] = json!(title))
    }

    pub(super) fn remove_deployment(&self, n: u32) {
        self.remove("deployments", &format!("odoo-acme-{n:08x}"));
    }

    pub(super) fn pod(&self, n: u32, name: &str, ready: bool) {
        self.put(
            "pods",
            &format!("{name}-{n}"),
            json!({
                "metadata": {"labels": labels(n)},
                "status": {"phase": "Running", "containerStatuses": [{"name": "odoo", "ready": ready}]},
            }),
        );
    }

    pub(super) fn remove_pod(&self, n: u32, name: &str) {
        self.remove("pods", &format!("{name}-{n}"));
    }

    pub(super) fn claim(&self, n: u32, size: &str) -> String {
        self.put(
            "persistentvolumeclaims",
            &format!("odoo-acme-{n:08x}-storage"),
            json!({
                "metadata": {"labels": labels(n)},
                "spec": {"resources": {"requests": {"storage": size}}},
            }),
        )
    }

    /// What a list would show, joined without any index.
    pub(super) fn list(&self, observe: &dyn Observe) -> BTreeMap<String, (String, InstanceStatus)> {
        fn all<T: serde::de::DeserializeOwned>(inner: &Inner, kind: &str) -> Vec<T> {
            let objects = inner.objects.get(kind).into_iter().flatten();
            objects
                .map(|(_, object)| serde_json::from_value(object.clone()).expect("a view"))
                .collect()
        }
        let inner = self.lock();
        let pods: Vec<PodView> = all(&inner, "pods");
        let claims: Vec<ClaimView> = all(&inner, "persistentvolumeclaims");
        all::<DeploymentView>(&inner, "deployments")
            .iter()
            .filter_map(|deployment| {
                let selector = &deployment.spec.selector.match_labels;
                let own: Vec<&PodView> = pods
                    .iter()
                    .filter(|pod| {
                        selector
                            .iter()
                            .all(|(key, value)| pod.label(key) == Some(value.as_str()))
                    })
                    .collect();
                let claim = format!("{}-storage", deployment.name());
                let claim = claims.iter().find(|other| other.name() == claim);
                let instance = observe.observe(deployment, &own, claim, now())?;
                Some((
                    instance.name.to_string(),
                    (instance.provenance.revision, instance.status),
                ))
            })
            .collect()
    }

    // Connections.

    pub(super) fn requests(&self) -> Vec<String> {
        self.lock().requests.clone()
    }

    pub(super) fn lists(&self) -> usize {
        self.requests()
            .iter()
            .filter(|request| !request.contains("watch=true"))
            .count()
    }

    pub(super) fn open_watches(&self) -> usize {
        self.lock()
            .watches
            .iter()
            .filter(|watch| !watch.lines.is_closed())
            .count()
    }

    /// Ends all watches in an orderly way.
    pub(super) fn close_watches(&self) {
        self.lock().watches.clear();
    }

    /// Ends all watches with an error of the connection.
    pub(super) fn break_watches(&self) {
        for watch in self.lock().watches.drain(..) {
            let _ = watch.lines.unbounded_send(Err("connection reset".into()));
        }
    }

    /// Refuses connections, and ends those that are open.
    pub(super) fn down(&self, down: bool) {
        let mut inner = self.lock();
        inner.down = down;
        if down {
            inner.watches.clear();
        }
    }

    /// Does not answer, and leaves open connections open.
    pub(super) fn silent(&self, silent: bool) {
        let mut inner = self.lock();
        inner.silent = silent;
        if silent {
            let watches = std::mem::take(&mut inner.watches);
            inner.zombies.extend(watches);
        }
    }

    /// Begins to answer lists and stops half-way.
    pub(super) fn hang_bodies(&self, hang: bool) {
        self.lock().hang_bodies = hang;
    }

    /// Keeps events back for a while.
    pub(super) fn pause_watches(&self, paused: bool) {
        let mut inner = self.lock();
        inner.paused = paused;
        inner.push();
    }

    /// Forgets the history, so that a watch from before is refused.
    pub(super) fn compact(&self) {
        let mut inner = self.lock();
        inner.compacted = inner.version;
        inner.version += 1;
    }

    /// How a watch from before is refused: by an event, or by the status of the answer.
    pub(super) fn gone_as_event(&self, event: bool) {
        self.lock().gone_as_event = event;
    }

    pub(super) fn send_raw(&self, kind: &str, text: &'static str) {
        for watch in self.lock().watches.iter().filter(|watch| watch.kind == kind) {
            let _ = watch.lines.unbounded_send(Ok(Frame::data(text.into())));
        }
    }
}
