//! One watch cache for all callers of an orchestrator.
//!
//! Three tasks, one for each kind of object, keep what the server has ([`follow`]); [`state`] joins it into instances and
//! tells every subscriber which of them changed. A subscriber keeps a set of names and not a queue of events, so a slow
//! one neither holds up the others nor loses anything: it gets the latest state of each instance when it asks.
//!
//! The tasks start with the first subscriber and end with the last owner of the cache, orchestrator or stream.

mod follow;
mod state;
#[cfg(test)]
mod tests;

use std::fmt;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use futures::stream::{BoxStream, Stream, StreamExt as _};
use jiff::Timestamp;
use kube::Client;
use saasodoo_core::{HealthState, Instance, InstanceEvent, InstanceFilter, InstanceId, Origin, Source};
use tokio::task::JoinHandle;

use crate::observe::{ClaimSeen, Observer, data_claim, observe};
use crate::views::{ClaimView, DeploymentView, PodView};
use crate::wire::Wire;
use state::State;

/// How objects become instances.
pub(crate) trait Observe: Send + Sync + 'static {
    /// Puts an observation together; `None` when the deployment is no instance.
    fn observe(
        &self,
        deployment: &DeploymentView,
        pods: &[&PodView],
        claim: Option<&ClaimView>,
        now: Timestamp,
    ) -> Option<Instance>;

    /// The name of the claim with the instance's data.
    fn claim_of<'a>(&self, deployment: &'a DeploymentView) -> Option<&'a str>;
}

/// The observation that every other call makes too.
struct Observed {
    observer: Observer,
    data_path: String,
}

impl Observe for Observed {
    fn observe(
        &self,
        deployment: &DeploymentView,
        pods: &[&PodView],
        claim: Option<&ClaimView>,
        now: Timestamp,
    ) -> Option<Instance> {
        let claim = claim.map_or(ClaimSeen::Missing, ClaimSeen::Found);
        Some(observe(&self.observer, deployment, pods, claim, Source::Cache, now))
    }

    fn claim_of<'a>(&self, deployment: &'a DeploymentView) -> Option<&'a str> {
        data_claim(deployment, &self.data_path)
    }
}

/// How many events a stream gives before it lets other tasks run.
const BURST: u8 = 64;

/// The kinds of objects that are watched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Deployment,
    Pod,
    Claim,
}

impl Kind {
    const fn index(self) -> usize {
        match self {
            Self::Deployment => 0,
            Self::Pod => 1,
            Self::Claim => 2,
        }
    }

    const fn plural(self) -> &'static str {
        match self {
            Self::Deployment => "deployments",
            Self::Pod => "pods",
            Self::Claim => "claims",
        }
    }
}

/// How the cache keeps in touch.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Tuning {
    /// How long one watch request lasts. Asking again proves that the server is there, also when nothing happens.
    pub(crate) watch: Duration,
    /// How long the server may take to begin an answer.
    pub(crate) answer: Duration,
    /// How many objects a page of a list has.
    pub(crate) page_size: u32,
    /// The time of day.
    pub(crate) now: fn() -> Timestamp,
}

impl Default for Tuning {
    fn default() -> Self {
        Self {
            watch: Duration::from_secs(30),
            answer: Duration::from_secs(10),
            page_size: 500,
            now: Timestamp::now,
        }
    }
}

impl Tuning {
    /// After so long without a word of the server the connection is taken for dead: a watch, the client's own patience
    /// with it, and an answer.
    const fn silence(&self) -> Duration {
        Duration::from_secs(self.watch.as_secs() + 10 + self.answer.as_secs())
    }
}

/// The watch cache. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Cache(Arc<Shared>);

pub(crate) struct Shared {
    client: Client,
    namespace: String,
    observe: Box<dyn Observe>,
    tuning: Tuning,
    state: Mutex<State>,
    /// Wakes the clock when an instance has to be looked at again soon.
    timer: Arc<tokio::sync::Notify>,
    tasks: Mutex<Vec<JoinHandle<()>>>,
}

impl fmt::Debug for Cache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cache")
            .field("namespace", &self.0.namespace)
            .finish_non_exhaustive()
    }
}

impl Cache {
    /// A cache that does nothing until it is started.
    pub(crate) fn new(wire: &Wire, observer: Observer, data_path: String) -> Self {
        let observe = Observed { observer, data_path };
        Self::with(wire.client().clone(), wire.namespace(), observe, Tuning::default())
    }

    fn with(client: Client, namespace: impl Into<String>, observe: impl Observe, tuning: Tuning) -> Self {
        Self(Arc::new(Shared {
            client,
            namespace: namespace.into(),
            observe: Box::new(observe),
            tuning,
            state: Mutex::new(State::new((tuning.now)())),
            timer: Arc::default(),
            tasks: Mutex::default(),
        }))
    }

    /// Starts the tasks, unless they run. False outside of a tokio runtime.
    pub(crate) fn start(&self) -> bool {
        let Ok(runtime) = tokio::runtime::Handle::try_current() else {
            return false;
        };
        let mut tasks = lock(&self.0.tasks);
        // They end by themselves only when the runtime that they were started in is gone.
        if tasks.is_empty() || tasks.iter().any(JoinHandle::is_finished) {
            for task in tasks.drain(..) {
                task.abort();
            }
            lock(&self.0.state).started = true;
            tasks.extend(follow::start(&runtime, &self.0));
        }
        true
    }

    /// A stream for one more subscriber. The cache is started when it is first polled.
    pub(crate) fn watch(&self, filter: InstanceFilter) -> BoxStream<'static, InstanceEvent> {
        Subscription {
            cache: self.clone(),
            filter: Some(filter),
            key: None,
            burst: 0,
        }
        .boxed()
    }

    /// The instance, if the cache is in step with the server and at least as new as the caller's own writes. `None` says
    /// nothing: ask the server.
    pub(crate) fn cached(&self, id: InstanceId) -> Option<Instance> {
        let now = (self.0.tuning.now)();
        let state = self.0.state();
        let mut instance = state.fresh(id, &*self.0.observe, now)?;
        if instance.provenance.origin == Origin::Legacy {
            // Its hosts are in its route, which is not watched.
            return None;
        }
        instance.provenance.source = Source::Cache;
        instance.provenance.observed_at = state.heard();
        Some(instance)
    }

    /// Records a write of the caller, by the version that the server answered: until the cache has seen it, it does not
    /// answer for the instance.
    pub(crate) fn wrote(&self, id: InstanceId, kind: Kind, version: &str) {
        // Versions are compared as numbers, which they are; one that is none is never reached, until the next list.
        self.0.state().wrote(id, kind, version.parse().unwrap_or(u64::MAX));
    }

    /// Records that the caller deleted the instance.
    pub(crate) fn deleted(&self, id: InstanceId) {
        self.0.state().wrote(id, Kind::Deployment, u64::MAX);
    }

    /// How the cache is, for [`health`](saasodoo_core::InstanceOrchestrator::health). `None` when it was not started.
    pub(crate) fn health(&self) -> Option<(HealthState, String)> {
        let state = self.0.state();
        if !state.started {
            return None;
        }
        let lag = (self.0.tuning.now)().duration_since(state.heard()).as_secs().max(0);
        Some(match (state.staleness(), state.is_ready()) {
            (Some(stale), _) => (
                HealthState::Degraded,
                format!("out of touch since {}: {}", stale.since, stale.reason),
            ),
            (None, false) => (HealthState::Degraded, "the first lists are being read".to_owned()),
            (None, true) => (
                HealthState::Ok,
                format!("{} instances in step, last heard {lag} s ago", state.len()),
            ),
        })
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// Changes the state, then wakes whom it concerns.
    fn change<T>(&self, change: impl FnOnce(&mut State, &dyn Observe, Timestamp) -> T) -> T {
        let now = (self.tuning.now)();
        let mut state = self.state();
        let due = state.next_due();
        let answer = change(&mut state, &*self.observe, now);
        let sooner = state.next_due() != due;
        let wakers = state.wakers();
        drop(state);
        if sooner {
            self.timer.notify_one();
        }
        for waker in wakers {
            waker.wake();
        }
        answer
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        for task in lock(&self.tasks).drain(..) {
            task.abort();
        }
    }
}

/// A lock that a panic elsewhere does not break: what it protects is replaced by the next list.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One subscriber's stream.
struct Subscription {
    cache: Cache,
    /// Until it has subscribed.
    filter: Option<InstanceFilter>,
    key: Option<u64>,
    burst: u8,
}

impl Stream for Subscription {
    type Item = InstanceEvent;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<InstanceEvent>> {
        let this = &mut *self;
        this.cache.start();
        let shared = &this.cache.0;
        if this.burst >= BURST {
            this.burst = 0;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let now = (shared.tuning.now)();
        let mut state = shared.state();
        if let Some(filter) = this.filter.take() {
            this.key = Some(state.subscribe(filter));
        }
        let event = this
            .key
            .and_then(|key| state.next_event(key, &*shared.observe, now, cx.waker()));
        match event {
            Some(event) => {
                this.burst += 1;
                Poll::Ready(Some(event))
            }
            None => {
                this.burst = 0;
                Poll::Pending
            }
        }
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        if let Some(key) = self.key {
            self.cache.0.state().unsubscribe(key);
        }
    }
}
