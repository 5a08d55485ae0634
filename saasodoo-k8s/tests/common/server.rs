//! An API server in this process that remembers every request: a store of objects with selectors, pages, merges and
//! owners. Requests that it does not know fail the test.

#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full};
use kube::Client;
use serde_json::{Value, json};
use tokio::sync::{Notify, oneshot};

/// A request as it arrived.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) query: BTreeMap<String, String>,
    pub(crate) content_type: String,
    pub(crate) body: Value,
    /// Requests of one round were all sent before any of them was answered.
    pub(crate) round: usize,
}

impl Seen {
    pub(crate) fn line(&self) -> String {
        format!("{} {}", self.method, self.path)
    }

    /// Asked only what would be done.
    pub(crate) fn is_dry(&self) -> bool {
        self.query.get("dryRun").is_some_and(|dry| dry == "All")
    }
}

#[derive(Clone, Default)]
pub(crate) struct Server(Arc<Inner>);

#[derive(Default)]
struct Inner {
    state: Mutex<State>,
    arrived: Notify,
}

#[derive(Default)]
struct State {
    version: u64,
    objects: BTreeMap<String, BTreeMap<String, Value>>,
    seen: Vec<Seen>,
    unexpected: Vec<String>,
    waiting: Vec<oneshot::Sender<usize>>,
    rounds: usize,
    in_rounds: bool,
    refuse: Option<(String, u16, Value)>,
    /// The cache shows no pods, whatever there is.
    blind: bool,
    /// The continue token that the server has forgotten, once.
    forgotten: Option<String>,
    /// The next request whose line begins so is carried out, and its answer is lost.
    lose: Option<String>,
    /// The request with this number, from 1, is never answered; before or after it is carried out.
    hang: Option<(usize, bool)>,
    hung: bool,
}

/// The collections that exist.
const COLLECTIONS: [&str; 11] = [
    "/apis/apps/v1/namespaces/ns/deployments",
    "/api/v1/namespaces/ns/pods",
    "/api/v1/namespaces/ns/persistentvolumeclaims",
    "/api/v1/namespaces/ns/secrets",
    "/api/v1/namespaces/ns/services",
    "/apis/traefik.io/v1alpha1/namespaces/ns/ingressroutes",
    "/apis/networking.k8s.io/v1/namespaces/ns/networkpolicies",
    "/apis/storage.k8s.io/v1/storageclasses",
    "/api/v1/persistentvolumes",
    "/api/v1/namespaces",
    "/api/v1/namespaces/ns/events",
];

pub(crate) const DEPLOYMENTS: &str = COLLECTIONS[0];
pub(crate) const PODS: &str = COLLECTIONS[1];
pub(crate) const CLAIMS: &str = COLLECTIONS[2];
pub(crate) const SECRETS: &str = COLLECTIONS[3];
pub(crate) const SERVICES: &str = COLLECTIONS[4];
pub(crate) const ROUTES: &str = COLLECTIONS[5];
pub(crate) const CLASSES: &str = COLLECTIONS[7];
pub(crate) const VOLUMES: &str = COLLECTIONS[8];
pub(crate) const EVENTS: &str = COLLECTIONS[10];

impl Server {
    /// With a storage class, and nothing else.
    pub(crate) fn new() -> Self {
        let server = Self::default();
        server.put(CLASSES, "cephfs-saasodoo", json!({"allowVolumeExpansion": true}));
        server
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// A client that ends here, without a network.
    pub(crate) fn client(&self) -> Client {
        let server = self.clone();
        let service = tower::service_fn(move |request: Request<kube::client::Body>| {
            let server = server.clone();
            async move {
                let (parts, body) = request.into_parts();
                let body = body.collect_bytes().await.expect("a body");
                Ok::<_, Infallible>(server.answer(&parts, &body).await)
            }
        });
        Client::new(service, "ns")
    }

    /// Listens on a port of this machine, for clients with their whole stack.
    pub(crate) async fn listen(&self) -> String {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let server = self.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let server = server.clone();
                let service = hyper::service::service_fn(move |request: Request<hyper::body::Incoming>| {
                    let server = server.clone();
                    async move {
                        let (parts, body) = request.into_parts();
                        let body = body.collect().await.expect("a body").to_bytes();
                        Ok::<_, Infallible>(server.answer(&parts, &body).await)
                    }
                });
                let connection = hyper::server::conn::http1::Builder::new()
                    .serve_connection(hyper_util::rt::TokioIo::new(stream), service);
                tokio::spawn(async move { drop(connection.await) });
            }
        });
        format!("http://{address}")
    }

    /// From now on requests are answered in rounds: only when no more arrive, and then all at once.
    pub(crate) fn in_rounds(&self) {
        self.state().in_rounds = true;
        let server = self.clone();
        tokio::spawn(async move {
            loop {
                server.0.arrived.notified().await;
                for _ in 0..500 {
                    tokio::task::yield_now().await;
                }
                let (waiting, round) = {
                    let mut state = server.state();
                    let waiting = std::mem::take(&mut state.waiting);
                    if !waiting.is_empty() {
                        state.rounds += 1;
                    }
                    (waiting, state.rounds)
                };
                for answer in waiting {
                    let _ = answer.send(round);
                }
            }
        });
    }

    /// Refuses requests whose line begins so.
    pub(crate) fn refuse(&self, line: &str, code: u16, body: Value) {
        self.state().refuse = Some((line.to_owned(), code, body));
    }

    /// From now on the cache shows no pods; whoever asks for the truth gets it.
    pub(crate) fn blind(&self) {
        self.state().blind = true;
    }

    /// Forgets where lists were that go on at this object; the next ask finds out.
    pub(crate) fn forget(&self, token: &str) {
        self.state().forgotten = Some(token.to_owned());
    }

    /// Answers everything again.
    pub(crate) fn heal(&self) {
        let mut state = self.state();
        (state.refuse, state.lose, state.hang) = (None, None, None);
    }

    /// Carries out the next request whose line begins so, and loses the answer.
    pub(crate) fn lose(&self, line: &str) {
        self.state().lose = Some(line.to_owned());
    }

    /// Never answers the n-th request from now, from 1; `after`: carries it out all the same.
    pub(crate) fn hang(&self, n: usize, after: bool) {
        let mut state = self.state();
        state.hung = false;
        state.hang = Some((n, after));
    }

    /// Whether that request has come.
    pub(crate) fn has_hung(&self) -> bool {
        self.state().hung
    }

    /// Removes an object behind everybody's back, and nothing that it owns.
    pub(crate) fn remove(&self, collection: &str, name: &str) {
        if let Some(objects) = self.state().objects.get_mut(collection) {
            objects.remove(name);
        }
    }

    /// The names of the objects of a collection.
    pub(crate) fn names(&self, collection: &str) -> Vec<String> {
        let state = self.state();
        let objects = state.objects.get(collection);
        objects
            .map(|objects| objects.keys().cloned().collect())
            .unwrap_or_default()
    }

    /// Changes a part of an object.
    pub(crate) fn edit(&self, collection: &str, name: &str, edit: impl FnOnce(&mut Value)) {
        let mut object = self.get(collection, name).expect("it is there");
        edit(&mut object);
        self.put(collection, name, object);
    }

    /// What arrived since the last call.
    pub(crate) fn take(&self) -> Vec<Seen> {
        let mut state = self.state();
        assert_eq!(state.unexpected, Vec::<String>::new(), "unexpected requests");
        state.rounds = 0;
        std::mem::take(&mut state.seen)
    }

    pub(crate) fn put(&self, collection: &str, name: &str, object: Value) {
        self.state().store(collection, name, object);
    }

    pub(crate) fn get(&self, collection: &str, name: &str) -> Option<Value> {
        self.state().objects.get(collection)?.get(name).cloned()
    }

    async fn answer(&self, parts: &http::request::Parts, body: &[u8]) -> Response<Full<Bytes>> {
        let seen = Seen {
            method: parts.method.to_string(),
            path: parts.uri.path().to_owned(),
            query: query_of(parts.uri.query().unwrap_or_default()),
            content_type: parts
                .headers
                .get(http::header::CONTENT_TYPE)
                .map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned())
                .unwrap_or_default(),
            body: if body.is_empty() {
                Value::Null
            } else {
                serde_json::from_slice(body).expect("JSON")
            },
            round: 0,
        };
        let turn = {
            let mut state = self.state();
            state.in_rounds.then(|| {
                let (answer, turn) = oneshot::channel();
                state.waiting.push(answer);
                turn
            })
        };
        let mut seen = seen;
        if let Some(turn) = turn {
            self.0.arrived.notify_one();
            seen.round = turn.await.unwrap_or_default();
        }
        let (code, value, hangs) = {
            let mut state = self.state();
            state.seen.push(seen.clone());
            let mut hangs = None;
            if let Some((left, after)) = &mut state.hang {
                *left -= 1;
                if *left == 0 {
                    hangs = Some(*after);
                    (state.hang, state.hung) = (None, true);
                }
            }
            let lost = state.lose.take_if(|line| seen.line().starts_with(line.as_str()));
            let (code, value) = match &state.refuse {
                _ if hangs == Some(false) => (500, Value::Null),
                Some((line, code, value)) if seen.line().starts_with(line.as_str()) => (*code, value.clone()),
                _ => state.handle(&seen),
            };
            match lost {
                Some(_) => (504, status(504, "Timeout", "the answer was lost", ""), hangs.is_some()),
                None => (code, value, hangs.is_some()),
            }
        };
        if hangs {
            std::future::pending::<()>().await;
        }
        Response::builder()
            .status(code)
            .header(http::header::CONTENT_TYPE, "application/json")
            .body(Full::new(value.to_string().into()))
            .expect("a response")
    }
}

impl State {
    fn store(&mut self, collection: &str, name: &str, mut object: Value) -> Value {
        self.version += 1;
        let version = self.version;
        let objects = self.objects.entry(collection.to_owned()).or_default();
        let old = objects.get(name);
        let uid = old.map_or_else(|| json!(format!("uid-{version}")), |old| old["metadata"]["uid"].clone());
        let generation = old.and_then(|old| old["metadata"]["generation"].as_i64()).unwrap_or(0) + 1;
        let created = old.map_or_else(
            || json!(jiff::Timestamp::now().to_string()),
            |old| old["metadata"]["creationTimestamp"].clone(),
        );
        let metadata = &mut object["metadata"];
        metadata["name"] = json!(name);
        metadata["namespace"] = json!("ns");
        metadata["uid"] = uid;
        metadata["resourceVersion"] = json!(version.to_string());
        metadata["generation"] = json!(generation);
        metadata["creationTimestamp"] = created;
        objects.insert(name.to_owned(), object.clone());
        object
    }

    fn handle(&mut self, seen: &Seen) -> (u16, Value) {
        if seen.line() == "GET /version" {
            return (200, json!({"gitVersion": "v1.33.0"}));
        }
        let collection = COLLECTIONS.iter().find(|collection| seen.path == **collection);
        if let Some(collection) = collection {
            let token = seen.query.get("continue");
            if token.is_some() && self.forgotten.take_if(|forgotten| Some(&*forgotten) == token).is_some() {
                let message = "The provided continue parameter is too old to display a consistent list result";
                return (410, status(410, "Expired", message, ""));
            }
            return match seen.method.as_str() {
                "GET" => (200, self.page(collection, &seen.query)),
                "POST" => self.create(collection, &seen.body, seen.is_dry()),
                _ => self.surprise(seen),
            };
        }
        let Some((collection, name)) = seen.path.rsplit_once('/') else {
            return self.surprise(seen);
        };
        if !COLLECTIONS.contains(&collection) {
            return self.surprise(seen);
        }
        let Some(object) = self
            .objects
            .get(collection)
            .and_then(|objects| objects.get(name))
            .cloned()
        else {
            return (404, status(404, "NotFound", &format!("{name} not found"), name));
        };
        match seen.method.as_str() {
            "GET" => (200, object),
            "PATCH" => {
                let wanted = &seen.body["metadata"];
                for key in ["uid", "resourceVersion"] {
                    if !wanted[key].is_null() && wanted[key] != object["metadata"][key] {
                        return (409, status(409, "Conflict", "the object has been modified", name));
                    }
                }
                let strategic = seen.content_type == "application/strategic-merge-patch+json";
                let merged = merge(object, &seen.body, strategic);
                if seen.is_dry() {
                    return (200, merged);
                }
                (200, self.store(collection, name, merged))
            }
            "DELETE" => {
                let uid = &seen.body["preconditions"]["uid"];
                if !uid.is_null() && *uid != object["metadata"]["uid"] {
                    return (
                        409,
                        status(409, "Conflict", "the UID in the precondition does not match", name),
                    );
                }
                self.remove(collection, name, &object);
                (200, json!({"kind": "Status", "status": "Success"}))
            }
            _ => self.surprise(seen),
        }
    }

    fn surprise(&mut self, seen: &Seen) -> (u16, Value) {
        self.unexpected.push(format!("{} {:?}", seen.line(), seen.query));
        (500, status(500, "InternalError", "unexpected", ""))
    }

    fn create(&mut self, collection: &str, body: &Value, dry: bool) -> (u16, Value) {
        let name = body["metadata"]["name"].as_str().expect("a name").to_owned();
        if self
            .objects
            .get(collection)
            .is_some_and(|objects| objects.contains_key(&name))
        {
            return (
                409,
                status(409, "AlreadyExists", &format!("{name} already exists"), &name),
            );
        }
        if dry {
            return (201, body.clone());
        }
        (201, self.store(collection, &name, body.clone()))
    }

    fn remove(&mut self, collection: &str, name: &str, object: &Value) {
        if let Some(objects) = self.objects.get_mut(collection) {
            objects.remove(name);
        }
        for objects in self.objects.values_mut() {
            objects.retain(|_, other| {
                let owners = other["metadata"]["ownerReferences"].as_array();
                !owners.is_some_and(|owners| owners.iter().any(|owner| owner["uid"] == object["metadata"]["uid"]))
            });
        }
    }

    fn page(&self, collection: &str, query: &BTreeMap<String, String>) -> Value {
        let selector = query.get("labelSelector").map(String::as_str).unwrap_or_default();
        let all: Vec<&Value> = self
            .objects
            .get(collection)
            .into_iter()
            .flat_map(BTreeMap::values)
            .filter(|o| fits(o, selector))
            .filter(|_| !(self.blind && collection == PODS && query.contains_key("resourceVersion")))
            .collect();
        let limit: usize = query
            .get("limit")
            .map_or(usize::MAX, |limit| limit.parse().expect("a number"));
        let offset: usize = query.get("continue").map_or(0, |token| token.parse().expect("a token"));
        let items: Vec<&&Value> = all.iter().skip(offset).take(limit).collect();
        let end = offset + items.len();
        json!({
            "metadata": {
                "resourceVersion": self.version.to_string(),
                "continue": (end < all.len()).then(|| end.to_string()),
            },
            "items": items,
        })
    }
}

fn status(code: u16, reason: &str, message: &str, name: &str) -> Value {
    json!({
        "kind": "Status", "apiVersion": "v1", "status": "Failure",
        "code": code, "reason": reason, "message": message, "details": {"name": name},
    })
}

/// `a=b`, `a!=b`, `a in (b,c)`, `a`, joined by commas.
fn fits(object: &Value, selector: &str) -> bool {
    let labels = &object["metadata"]["labels"];
    let mut depth = 0;
    let terms = selector.split(|c: char| {
        match c {
            '(' => depth += 1,
            ')' => depth -= 1,
            _ => {}
        }
        c == ',' && depth == 0
    });
    terms.filter(|term| !term.is_empty()).all(|term| {
        if let Some((key, values)) = term.split_once(" in ") {
            let values = values.trim_matches(['(', ')']);
            return values.split(',').any(|value| labels[key.trim()] == value.trim());
        }
        if let Some((key, value)) = term.split_once("!=") {
            return labels[key] != value;
        }
        if let Some(key) = term.strip_prefix('!') {
            return labels[key].is_null();
        }
        match term.split_once('=') {
            Some((key, value)) => labels[key] == value,
            None => !labels[term].is_null(),
        }
    })
}

fn merge(old: Value, patch: &Value, strategic: bool) -> Value {
    match (old, patch) {
        (Value::Object(mut old), Value::Object(patch)) => {
            for (key, value) in patch {
                if value.is_null() {
                    old.remove(key);
                } else if !key.starts_with('$') {
                    let before = old.remove(key).unwrap_or(Value::Null);
                    old.insert(key.clone(), merge(before, value, strategic));
                }
            }
            Value::Object(old)
        }
        (Value::Array(mut old), Value::Array(patch))
            if strategic && patch.iter().all(|item| !item["name"].is_null()) =>
        {
            for item in patch {
                let place = old.iter().position(|other| other["name"] == item["name"]);
                if item["$patch"] == "delete" {
                    place.map(|place| old.remove(place));
                } else if let Some(place) = place {
                    old[place] = merge(old[place].take(), item, strategic);
                } else {
                    old.push(item.clone());
                }
            }
            Value::Array(old)
        }
        (_, Value::Object(patch)) => merge(json!({}), &Value::Object(patch.clone()), strategic),
        (_, patch) => patch.clone(),
    }
}

fn query_of(query: &str) -> BTreeMap<String, String> {
    query
        .split('&')
        .filter_map(|pair| pair.split_once('='))
        .map(|(key, value)| (decoded(key), decoded(value)))
        .collect()
}

fn decoded(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        match byte {
            b'+' => bytes.push(b' '),
            b'%' => {
                let digits = [rest.next().expect("a digit"), rest.next().expect("a digit")];
                let digits = std::str::from_utf8(&digits).expect("digits");
                bytes.push(u8::from_str_radix(digits, 16).expect("a byte"));
            }
            other => bytes.push(other),
        }
    }
    String::from_utf8(bytes).expect("UTF-8")
}
