//! The way to the server and back: requests as a service, streams, and what can be done to both.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::stream;
use http::{Request, Response, StatusCode, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::{Body, Bytes, Frame};
use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until};

use super::pods::pod_named;
use super::refusal::Refusal;
use super::request::{Asked, Target, query, target};
use super::selector::Selector;
use super::state::{Fault, State};
use super::store::{Change, Object, PODS, Resource, text, uid};
use super::{FakeKubernetes, Inner};

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// The body of an answer. That of a watch or a followed log goes on.
pub type FakeBody = UnsyncBoxBody<Bytes, BoxError>;

/// A [`FakeKubernetes`] as a service for requests: what a client is made of.
#[derive(Debug, Clone)]
pub struct FakeKubernetesService(pub(super) FakeKubernetes);

impl<B> tower::Service<Request<B>> for FakeKubernetesService
where
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<BoxError>,
{
    type Response = Response<FakeBody>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let inner = Arc::clone(&self.0.inner);
        Box::pin(async move {
            let (parts, body) = request.into_parts();
            let body = body.collect().await.map_err(Into::into)?.to_bytes();
            inner.serve(&parts, &body).await
        })
    }
}

impl Inner {
    async fn serve(
        self: &Arc<Self>,
        parts: &http::request::Parts,
        body: &[u8],
    ) -> Result<Response<FakeBody>, BoxError> {
        self.keep_running();
        let (asked, fault, epoch) = {
            let mut state = self.state();
            let asked = target(parts.uri.path(), &state.absent).map(|target| Asked {
                method: parts.method.to_string(),
                target,
                query: query(parts.uri.query().unwrap_or_default()),
                content_type: content_type(parts),
                body: body.to_vec(),
            });
            let fault = match &asked {
                Ok(asked) if asked.is_stream() => None,
                _ => state.count_request(),
            };
            let watches = asked.as_ref().is_ok_and(|asked| asked.flag("watch"));
            if state.down || (state.blind && watches) {
                return Err(refused());
            }
            (asked, fault, state.epoch)
        };
        let half = self.latency / 2;
        pause(half).await;
        if fault == Some(Fault::Before) {
            return Err(reset());
        }
        let answer = {
            let mut state = self.state();
            if state.down || state.epoch != epoch {
                return Err(reset());
            }
            match &asked {
                Ok(asked) if asked.flag("watch") => state.watch(asked).map(Reply::Watch),
                Ok(asked) if matches!(asked.target, Target::Log(..)) => state.open_log(asked).map(Reply::Log),
                Ok(asked) => state.answer(asked).map(|(code, body)| Reply::Whole(code, body)),
                Err(refusal) => Err(refusal.clone()),
            }
        };
        self.publish();
        pause(half).await;
        if fault == Some(Fault::After) || self.state().epoch != epoch {
            return Err(reset());
        }
        let (code, content, body) = match answer {
            Ok(Reply::Whole(code, body)) => (code, "application/json", whole(&body)),
            Err(Refusal { code, body }) => (code, "application/json", whole(&body)),
            Ok(Reply::Watch(watch)) => (200, "application/json", watch.body(self, epoch)),
            Ok(Reply::Log(log)) => (200, "text/plain", log.body(self, epoch)),
        };
        let mut response = Response::new(body);
        *response.status_mut() = StatusCode::from_u16(code)?;
        response
            .headers_mut()
            .insert(header::CONTENT_TYPE, header::HeaderValue::from_static(content));
        Ok(response)
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }
}

enum Reply {
    Whole(u16, Value),
    Watch(Watch),
    Log(Tail),
}

fn content_type(parts: &http::request::Parts) -> String {
    let value = parts.headers.get(header::CONTENT_TYPE);
    let text = value.and_then(|value| value.to_str().ok()).unwrap_or_default();
    text.split(';').next().unwrap_or_default().trim().to_owned()
}

async fn pause(time: Duration) {
    if !time.is_zero() {
        sleep(time).await;
    }
}

fn whole(body: &Value) -> FakeBody {
    Full::new(Bytes::from(body.to_string()))
        .map_err(|never: Infallible| match never {})
        .boxed_unsync()
}

fn reset() -> BoxError {
    io::Error::new(
        io::ErrorKind::ConnectionReset,
        "the connection broke: a fault of the test",
    )
    .into()
}

fn refused() -> BoxError {
    io::Error::new(
        io::ErrorKind::ConnectionRefused,
        "connection refused: the fake server is stopped",
    )
    .into()
}

impl State {
    /// Counts a request; the fault that it has.
    fn count_request(&mut self) -> Option<Fault> {
        self.requests += 1;
        let planned = self.fault.as_mut()?;
        planned.left = planned.left.saturating_sub(1);
        if planned.left > 0 {
            return None;
        }
        let planned = self.fault.take()?;
        planned.hit.store(true, Ordering::SeqCst);
        Some(planned.fault)
    }

    fn watch(&mut self, asked: &Asked) -> Result<Watch, Refusal> {
        let (resource, namespace) = match &asked.target {
            Target::Collection(resource, namespace) => (*resource, namespace.clone()),
            _ => return Err(Refusal::bad("only collections can be watched")),
        };
        self.allowed("watch", resource, "")?;
        if asked.flag("sendInitialEvents") {
            return Err(Refusal::no_streaming_lists());
        }
        let selector = Selector::parse(asked.text("labelSelector"), asked.text("fieldSelector"))?;
        let mut pending = VecDeque::new();
        let asked_version = asked.number("resourceVersion")?.unwrap_or(0);
        let position = if asked_version == 0 {
            let present = self.store.all(resource, &namespace);
            pending.extend(
                present
                    .filter(|(_, object)| selector.fits(object))
                    .map(|(_, object)| event("ADDED", object)),
            );
            self.store.version()
        } else {
            asked_version
        };
        let now = Instant::now();
        let seconds = asked.number("timeoutSeconds")?.unwrap_or(1800).max(1);
        let deadline = now + Duration::from_secs(seconds);
        Ok(Watch {
            resource,
            namespace,
            selector,
            position,
            pending,
            deadline,
            bookmark: asked.flag("allowWatchBookmarks").then(|| next_bookmark(now, deadline)),
        })
    }

    fn open_log(&mut self, asked: &Asked) -> Result<Tail, Refusal> {
        let Target::Log(namespace, name) = &asked.target else {
            return Err(Refusal::bad("no log"));
        };
        self.allowed("get", PODS, "/log")?;
        let object = pod_named(self, namespace, name).ok_or_else(|| Refusal::not_found(PODS, name))?;
        let asked_for = asked.text("container");
        let uid = uid(&object).to_owned();
        let Some(pod) = self.pods.get(&uid) else {
            return Err(Refusal::not_found(PODS, name));
        };
        let container = if asked_for.is_empty() {
            &pod.container
        } else {
            asked_for
        };
        let containers = object["spec"]["containers"].as_array();
        if !containers
            .into_iter()
            .flatten()
            .any(|other| other["name"] == *container)
        {
            return Err(Refusal::bad(format!(
                "container {container} is not valid for pod {name}"
            )));
        }
        let number = if asked.flag("previous") {
            let ended = pod.logs.iter().rposition(|log| log.ended);
            let before = match pod.logs.last() {
                Some(last) if last.ended => ended,
                _ => pod.logs.len().checked_sub(2),
            };
            before.ok_or_else(|| {
                Refusal::bad(format!(
                    "previous terminated container {container:?} in pod {name:?} not found"
                ))
            })?
        } else {
            let waiting = text(&object, "/status/containerStatuses/0/state/waiting/reason");
            pod.logs.len().checked_sub(1).ok_or_else(|| {
                Refusal::bad(format!(
                    "container {container:?} in pod {name:?} is waiting to start: {waiting}"
                ))
            })?
        };
        let since = match asked.text("sinceTime") {
            "" => asked
                .number("sinceSeconds")?
                .and_then(|seconds| self.time().checked_sub(Duration::from_secs(seconds)).ok()),
            text => {
                let time = text.parse::<Timestamp>();
                Some(time.map_err(|_| Refusal::bad(format!("sinceTime: {text:?} is no time")))?)
            }
        };
        let lines = pod.logs.get(number).map_or(&[][..], |log| &log.lines);
        let since = since.map_or(0, |since| lines.partition_point(|(at, _)| *at < since));
        let tail = asked.number("tailLines")?.and_then(|lines| usize::try_from(lines).ok());
        let tail = tail.map_or(0, |tail| lines.len().saturating_sub(tail));
        Ok(Tail {
            uid,
            number,
            next: since.max(tail),
            follow: asked.flag("follow"),
            timestamps: asked.flag("timestamps"),
            once: false,
        })
    }
}

fn next_bookmark(now: Instant, deadline: Instant) -> Instant {
    // One comes shortly before the end, so that the next watch goes on from there.
    (now + Duration::from_secs(60)).min(deadline - Duration::from_millis(500))
}

fn event(type_: &str, object: &Value) -> Bytes {
    Bytes::from(format!("{}\n", json!({"type": type_, "object": object})))
}

struct Watch {
    resource: Resource,
    namespace: String,
    selector: Selector,
    position: u64,
    pending: VecDeque<Bytes>,
    deadline: Instant,
    bookmark: Option<Instant>,
}

impl Watch {
    fn body(self, inner: &Arc<Inner>, epoch: u64) -> FakeBody {
        let (inner, changes) = (Arc::clone(inner), inner.changes());
        let stream = stream::unfold(
            (self, inner, changes, false),
            move |(mut watch, inner, mut changes, over)| async move {
                loop {
                    if let Some(bytes) = watch.pending.pop_front() {
                        return Some((Ok(Frame::data(bytes)), (watch, inner, changes, over)));
                    }
                    if over {
                        return None;
                    }
                    changes.borrow_and_update();
                    {
                        let state = inner.state();
                        if state.epoch != epoch {
                            drop(state);
                            return Some((Err(reset()), (watch, inner, changes, true)));
                        }
                        if !watch.advance(&state) {
                            drop(state);
                            let bytes = watch.pending.pop_front()?;
                            return Some((Ok(Frame::data(bytes)), (watch, inner, changes, true)));
                        }
                    }
                    if !watch.pending.is_empty() {
                        continue;
                    }
                    if Instant::now() >= watch.deadline {
                        return None;
                    }
                    let wake = watch.bookmark.map_or(watch.deadline, |at| at.min(watch.deadline));
                    tokio::select! {
                        changed = changes.changed() => changed.ok()?,
                        () = sleep_until(wake) => {}
                    }
                }
            },
        );
        StreamBody::new(stream).boxed_unsync()
    }

    /// Takes up what has changed. False when that is forgotten: then the watch ends.
    fn advance(&mut self, state: &State) -> bool {
        let oldest = state.store.compacted();
        if self.position < oldest {
            let Refusal { body, .. } = Refusal::too_old(self.position, oldest);
            self.pending.push_back(event("ERROR", &body));
            return false;
        }
        for change in state.store.since(self.position) {
            self.position = change.version;
            if change.resource == self.resource && (self.namespace.is_empty() || change.namespace == self.namespace) {
                self.pending.extend(self.seen(change));
            }
        }
        let now = Instant::now();
        if self.bookmark.is_some_and(|at| at <= now) {
            let object = json!({
                "kind": self.resource.kind, "apiVersion": self.resource.api_version(),
                "metadata": {"resourceVersion": self.position.to_string()},
            });
            self.pending.push_back(event("BOOKMARK", &object));
            self.bookmark = (now + Duration::from_secs(1) < self.deadline).then(|| next_bookmark(now, self.deadline));
        }
        true
    }

    /// A change as this watch sees it: what comes to fit the selector is added, what ceases to is deleted.
    fn seen(&self, change: &Change) -> Option<Bytes> {
        let fits = |object: &Option<Object>| object.as_ref().filter(|object| self.selector.fits(object)).is_some();
        let last = change.after.as_ref().or(change.before.as_ref())?;
        match (fits(&change.before), fits(&change.after)) {
            (false, false) => None,
            (false, true) => Some(event("ADDED", last)),
            (true, true) => Some(event("MODIFIED", last)),
            (true, false) => {
                // As it was when it last fitted, under the version of the change.
                let mut left = (**change.before.as_ref()?).clone();
                left["metadata"]["resourceVersion"] = json!(change.version.to_string());
                Some(event("DELETED", &left))
            }
        }
    }
}

/// A log that is being read.
struct Tail {
    uid: String,
    number: usize,
    next: usize,
    follow: bool,
    timestamps: bool,
    once: bool,
}

impl Tail {
    fn body(self, inner: &Arc<Inner>, epoch: u64) -> FakeBody {
        let (inner, changes) = (Arc::clone(inner), inner.changes());
        let stream = stream::unfold(
            (self, inner, changes),
            move |(mut tail, inner, mut changes)| async move {
                loop {
                    if tail.once {
                        return None;
                    }
                    changes.borrow_and_update();
                    let (cut, lines, ended) = {
                        let state = inner.state();
                        let log = state.pods.get(&tail.uid).and_then(|pod| pod.logs.get(tail.number));
                        let lines = log.map(|log| log.lines.iter().skip(tail.next).cloned().collect::<Vec<_>>());
                        (
                            state.epoch != epoch,
                            lines.unwrap_or_default(),
                            log.is_none_or(|log| log.ended),
                        )
                    };
                    if cut {
                        tail.once = true;
                        return Some((Err(reset()), (tail, inner, changes)));
                    }
                    tail.once = !tail.follow || ended;
                    if !lines.is_empty() {
                        tail.next += lines.len();
                        let mut text = String::new();
                        for (at, line) in lines {
                            if tail.timestamps {
                                text.push_str(&format!("{at} "));
                            }
                            text.push_str(&line);
                            text.push('\n');
                        }
                        return Some((Ok(Frame::data(Bytes::from(text))), (tail, inner, changes)));
                    }
                    if !tail.once {
                        changes.changed().await.ok()?;
                    }
                }
            },
        );
        StreamBody::new(stream).boxed_unsync()
    }
}
