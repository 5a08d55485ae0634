//! The tasks that keep the cache in step: one for each kind, and a clock.

use std::collections::HashMap;
use std::error::Error as _;
use std::fmt::Debug;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use futures::{FutureExt as _, StreamExt as _};
use http::{Request, Response};
use http_body_util::BodyExt as _;
use kube::client::Body;
use kube::runtime::utils::Backoff as _;
use kube::runtime::watcher::{self, DefaultBackoff, Event};
use kube::{Api, Client, Resource};
use serde::de::DeserializeOwned;
use tokio::runtime::Handle;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::state::Watched;
use super::{Kind, Shared, Tuning, lock};
use crate::names::SELECTOR;
use crate::views::{ClaimView, DeploymentView, PodView};

/// A watch that lasted this long was a good one: the next failure is a new one.
const GOOD: Duration = Duration::from_secs(60);

/// Starts the tasks. They do not keep the cache alive.
pub(super) fn start(runtime: &Handle, shared: &Arc<Shared>) -> Vec<JoinHandle<()>> {
    vec![
        runtime.spawn(keep::<DeploymentView>(Arc::downgrade(shared))),
        runtime.spawn(keep::<PodView>(Arc::downgrade(shared))),
        runtime.spawn(keep::<ClaimView>(Arc::downgrade(shared))),
        runtime.spawn(clock(Arc::downgrade(shared), Arc::clone(&shared.timer))),
    ]
}

/// Looks again at instances whose status changes with time.
async fn clock(shared: Weak<Shared>, timer: Arc<tokio::sync::Notify>) {
    loop {
        let Some(due) = shared.upgrade().map(|shared| shared.state().next_due()) else {
            return;
        };
        match due {
            Some(due) => {
                tokio::select! {
                    () = sleep_until(due) => {}
                    () = timer.notified() => continue,
                }
            }
            None => {
                timer.notified().await;
                continue;
            }
        }
        let Some(shared) = shared.upgrade() else { return };
        shared.change(|state, observe, now| state.ripen(observe, now));
    }
}

/// Follows one kind for as long as there is a cache, over errors, silence and panics.
async fn keep<K>(shared: Weak<Shared>)
where
    K: Watched + Resource<DynamicType = (), Scope = kube::core::NamespaceResourceScope> + DeserializeOwned + Debug,
{
    let mut backoff = DefaultBackoff::default();
    loop {
        let begun = Instant::now();
        let ended = AssertUnwindSafe(follow::<K>(&shared)).catch_unwind().await;
        let (reason, panicked) = match ended {
            Ok(Some(reason)) => (reason, false),
            Ok(None) => return,
            Err(_) => ("the watch panicked, which is a bug of this library".to_owned(), true),
        };
        {
            let Some(shared) = shared.upgrade() else { return };
            shared.change(|state, _, _| {
                state.lose(K::KIND, reason);
                if panicked {
                    state.suspect(K::KIND);
                }
            });
        }
        if begun.elapsed() > GOOD {
            backoff.reset();
        }
        sleep(backoff.next().unwrap_or(Duration::from_secs(30))).await;
    }
}

/// Lists one kind and follows its changes until contact is lost; answers why. `None` when the cache is gone.
///
/// Whatever goes wrong, the next call begins with a list: only then is it known when everything that was missed has
/// been made up for. The two ends that are part of normal life, a watch that ends in time and a connection that the
/// other side closed, are resumed by the watcher from where they ended.
async fn follow<K>(weak: &Weak<Shared>) -> Option<String>
where
    K: Watched + Resource<DynamicType = (), Scope = kube::core::NamespaceResourceScope> + DeserializeOwned + Debug,
{
    let (client, namespace, tuning) = {
        let shared = weak.upgrade()?;
        (shared.client.clone(), shared.namespace.clone(), shared.tuning)
    };
    let pulse = Pulse::new(weak.clone(), K::KIND);
    let api = Api::<K>::namespaced(heard(client, &pulse, tuning), &namespace);
    let seconds = u32::try_from(tuning.watch.as_secs()).unwrap_or(290);
    let config = watcher::Config::default()
        .labels(SELECTOR)
        .page_size(tuning.page_size)
        .timeout(seconds);
    let mut stream = std::pin::pin!(watcher::watcher(api, config));
    let mut listed = HashMap::new();
    let mut resumed = false;
    loop {
        let event = tokio::select! {
            event = stream.next() => event,
            () = pulse.silent_for(tuning.silence()) => {
                return Some(format!("nothing was heard for {} s", tuning.silence().as_secs()));
            }
        };
        let shared = weak.upgrade()?;
        resumed = match event {
            Some(Ok(event)) => {
                shared.change(|state, observe, now| match event {
                    Event::Init => {
                        listed.clear();
                        state.list_begins(K::KIND);
                    }
                    Event::InitApply(object) => {
                        listed.insert(object.name().into(), object);
                    }
                    Event::InitDone => state.replace(std::mem::take(&mut listed), observe, now),
                    Event::Apply(object) => object.put(state, observe, now),
                    Event::Delete(object) => K::remove(object.name(), state, observe, now),
                });
                false
            }
            Some(Err(watcher::Error::WatchError(status))) if status.code == 410 => {
                // The watcher lists again by itself.
                let reason = "the server no longer has the changes since the last one that was seen".to_owned();
                shared.change(|state, _, _| state.lose(K::KIND, reason));
                false
            }
            Some(Err(watcher::Error::WatchFailed(kube::Error::ReadEvents(_) | kube::Error::HyperError(_))))
                if !resumed =>
            {
                true
            }
            Some(Err(error)) => return Some(reason_of(&error)),
            None => return Some("the watch ended".to_owned()),
        };
    }
}

/// The whole chain of an error on one line.
fn reason_of(error: &watcher::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let part = error.to_string();
        if !text.contains(&part) {
            text.push_str(": ");
            text.push_str(&part);
        }
        source = error.source();
    }
    text
}

/// When the server was last heard of: answers, objects, and bookmarks too, which the watcher keeps to itself.
struct Pulse {
    shared: Weak<Shared>,
    kind: Kind,
    last: Mutex<Instant>,
}

impl Pulse {
    fn new(shared: Weak<Shared>, kind: Kind) -> Arc<Self> {
        Arc::new(Self {
            shared,
            kind,
            last: Mutex::new(Instant::now()),
        })
    }

    fn beat(&self) {
        *lock(&self.last) = Instant::now();
        if let Some(shared) = self.shared.upgrade() {
            let now = (shared.tuning.now)();
            shared.state().heard_of(self.kind, now);
        }
    }

    async fn silent_for(&self, bound: Duration) {
        loop {
            let end = *lock(&self.last) + bound;
            if Instant::now() >= end {
                return;
            }
            sleep_until(end).await;
        }
    }
}

/// The client with an ear on everything that comes back, and a limit to how long an answer may take to begin: the
/// library's own would wait forever.
fn heard(inner: Client, pulse: &Arc<Pulse>, tuning: Tuning) -> Client {
    let namespace = inner.default_namespace().to_owned();
    let pulse = Arc::clone(pulse);
    let service = tower::service_fn(move |request: Request<Body>| {
        let (inner, pulse) = (inner.clone(), Arc::clone(&pulse));
        async move {
            let answer = timeout(tuning.answer, inner.send(request)).await;
            let response = answer.map_err(|_| format!("no answer within {} s", tuning.answer.as_secs()))??;
            if response.status().is_success() {
                pulse.beat();
            }
            let (head, body) = response.into_parts();
            let body = body.map_frame(move |frame| {
                pulse.beat();
                frame
            });
            Ok::<_, Box<dyn std::error::Error + Send + Sync>>(Response::from_parts(head, body))
        }
    });
    Client::new(service, namespace)
}
